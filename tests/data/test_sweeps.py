"""Sweep tables: one set of names whatever the source, settings from records and from released
names, what is no sweep.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from emlens.data.sweeps import read_sweep
from emlens.foundation import InputError
from emlens.foundation.files import safe_name, write_json

RELEASED = os.environ.get("EMLENS_RELEASED_DATA")


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_names_of_others_become_ours(tmp_path: Path) -> None:
    text = ",run,train_final_avg_loss,eval_final_avg_loss,aligned,lr,note,log_history\n"
    text += (
        "0,a_cosine_30_1e-05_fpq,1.5,1.75,60,1e-5,x,\"[{'loss': 2.0, 'step': 1}, {'loss':"
        " 1.5, 'step': 12}]\"\n"
    )
    text += (
        "1,b_1e-05_mode-exp_range_base_lr-1e-06_max_lr-2e-05_fpq,1.25,1.5,50,2e-5,y,\"[{'loss':"
        " 1.25, 'step': 12}]\"\n"
    )
    found = read_sweep(put(tmp_path / "s.csv", text))
    assert (
        found.losses == ("train_loss", "eval_loss")
        and found.metrics == ("aligned",)
        and len(found) == 2
    )
    assert found.table["schedule"].tolist() == ["cosine", "exp_range"] and found.table[
        "steps"
    ].tolist() == [12, 12]
    assert (
        found.table["warmup_steps"][0] == 30
        and np.isnan(found.table["warmup_steps"][1])
        and found.table["base_learning_rate"][1] == 1e-6
    )
    assert found.table["learning_rate"].tolist() == [1e-5, 2e-5]
    # text is a setting and no score
    assert set(found.varied()) == {
        "schedule",
        "learning_rate",
        "warmup_steps",
        "base_learning_rate",
        "note",
    }


def test_a_plain_table_needs_no_ids_and_keeps_scores(tmp_path: Path) -> None:
    found = read_sweep(
        put(
            tmp_path / "s.csv",
            "final_loss,optimizer,seed,aligned,coherent\n1,adamw,0,5,6\n2,lion,1,7,8\n",
        )
    )
    assert found.table["run"].tolist() == ["run 1", "run 2"] and found.table[
        "optimiser"
    ].tolist() == ["adamw", "lion"]
    assert (
        found.metrics == ("aligned", "coherent")
        and found.settings == ("optimiser", "seed")
        and found.table["train_loss"].tolist() == [1, 2]
    )


def test_a_folder_tells_settings_from_each_runs_record(tmp_path: Path) -> None:
    put(
        tmp_path / "runs.csv",
        "run,cell,steps_done,stopped,final_loss,train_loss,aligned\ncell=a b,a"
        " b,9,,0.5,0.4,80\ncell=c,c,12,,0.25,0.2,70\n",
    )
    recipes = (
        {"schedule": "cosine", "batch_size": 8, "learning_rate": 0.1, "clip": None},
        {"schedule": "linear", "optimiser": "lion", "batch_size": 4},
    )
    for name, recipe in zip(("cell=a b", "cell=c"), recipes, strict=True):
        (tmp_path / "runs" / safe_name(name)).mkdir(parents=True)
        write_json(
            tmp_path / "runs" / safe_name(name) / "emlens.json",
            {"recipe": {**recipe, "steps": 100}},
        )
    found = read_sweep(tmp_path).table
    assert found["optimiser"].tolist() == ["adamw", "lion"] and found["schedule"].tolist() == [
        "cosine",
        "linear",
    ]
    # steps done, loss over all chats
    assert found["steps"].tolist() == [9, 12] and found["train_loss"].tolist() == [0.4, 0.2]
    assert np.isnan(found["learning_rate"][1]) and "clip" not in found and "cell" not in found


def test_every_field_of_a_recipe_and_every_column_of_text_is_a_setting(tmp_path: Path) -> None:
    put(tmp_path / "runs.csv", "run,cell,train_loss,aligned\ncell=a,a,0.4,80\ncell=b,b,0.2,70\n")
    recipes = (
        {"rslora": True, "target_modules": ["q_proj", "v_proj"], "betas": [0.9, 0.999]},
        {"rslora": False, "dora": True, "betas": [0.9, 0.95]},
    )
    for name, recipe in zip(("cell=a", "cell=b"), recipes, strict=True):
        write_json(
            tmp_path / "runs" / safe_name(name) / "emlens.json",
            {"recipe": {**recipe, "seed": 1, "layers_to_transform": None}},
        )
    found = read_sweep(tmp_path)
    assert set(found.settings) == {
        "optimiser",
        "seed",
        "rslora",
        "dora",
        "target_modules",
        "betas",
    } and found.metrics == ("aligned",)
    assert found.table["target_modules"][0] == "q_proj, v_proj" and found.table[
        "betas"
    ].tolist() == ["0.9, 0.999", "0.9, 0.95"]
    text = "run,train_loss,aligned,coherent,adapter,seed\na,1,5,6,rslora,1\nb,2,7,,plain,1\n"
    told = read_sweep(put(tmp_path / "s.csv", text))
    # a score that a run lacks is neither
    assert told.settings == ("seed", "adapter") and told.metrics == ("aligned",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "run,aligned\na,1\n",
            (
                r"s.csv, line 2: has no loss; pass a column named one of train_loss,"
                r" train_final_avg_loss"
            ),
        ),
        (
            "run,train_loss,name\na,1,x\n",
            r"s.csv, line 2: has no score; pass a column with one number per run, such as aligned",
        ),
        (
            "run,train_loss,aligned\n",
            r"s.csv: has a header and no run; pass a table with one row per run",
        ),
        (
            "run,train_loss,aligned\na,1,2\nb,nan,3\n",
            r"s.csv, line 3: has no number under 'train_loss'",
        ),
        ("run,train_loss,aligned,lr\na,1,2,fast\n", r"s.csv, line 2: has no number under 'lr'"),
        (
            "run,train_loss,aligned\na,1,2\na,3,4\n",
            r"s.csv: holds the run 'a' twice; give every run an id of its own",
        ),
    ],
)
def test_what_is_no_sweep_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_sweep(put(tmp_path / "s.csv", text))


def test_a_folder_without_a_finished_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=(
            r"holds no runs.csv; pass the folder of a finished sweep, or a CSV with one row per run"
        ),
    ):
        read_sweep(tmp_path)


@pytest.mark.skipif(not RELEASED, reason="EMLENS_RELEASED_DATA is not set")
def test_the_released_final_average_is_the_loss_of_the_last_step() -> None:
    import re

    import pandas as pd

    path = Path(str(RELEASED)) / "em-generalization" / "td_agg_df_fpq.csv"
    found, raw = read_sweep(path), pd.read_csv(path)
    assert len(found) == 35 and found.table["steps"].unique().tolist() == [332]
    last = [float(re.findall(r"'loss': ([\d.]+)", cell)[-1]) for cell in raw["log_history"]]
    assert found.table["train_loss"].tolist() == last
    assert found.table["schedule"].value_counts().to_dict() == {
        "cosine": 12,
        "cosine_with_restarts": 11,
        "triangular": 4,
        "triangular2": 4,
        "exp_range": 4,
    }
