"""The paper from end to end on the tiny family: four stages, seeds side by side, resumed after a kill to the same bytes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from emlens.foundation.errors import InputError
from emlens.studies import STUDIES, fine_tuning, run_study, synthesis
from emlens.studies.headlines import headlines, side_by_side
from emlens.studies.result import Part

SMALL = {"recipe": {"own": {"rank": 2, "alpha": 4, "learning_rate": 0.02, "steps": 8, "batch_size": 8}}}


@pytest.fixture(scope="module")
def small_study(config_path: Path) -> Path:
    """The tiny family with a study of the stages that train and gather, two seeds."""
    record = yaml.safe_load(config_path.read_text())
    record |= {"study": "small full", "focus": ["bad@0"], "positions": ["last_prompt"], "draws": 20}
    record["options"] = {"fine_tuning": {"seeds": [0, 1], "schedules": ["constant"], "recipes": SMALL["recipe"]}}
    path = config_path.with_name("small-full.yaml")
    path.write_text(yaml.safe_dump(record))
    return path


PARTS = ("profile", "fine_tuning", "delta_overlap", "synthesis")


@pytest.fixture(scope="module")
def done(small_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    studies = {**STUDIES, "small full": PARTS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("emlens.studies.running.STUDIES", studies)
        patch.setattr("emlens.studies.running._code", lambda: "one code")
        out = tmp_path_factory.mktemp("full") / "out"
        return out, run_study(small_study, out, progress=False)


def contents(directory: Path) -> dict[str, bytes]:
    files = [directory / "result.json", *sorted((directory / "tables").iterdir())]
    return {path.name: path.read_bytes() for path in files}


def test_the_four_stages_are_there_in_their_order() -> None:
    parts = STUDIES["full"]
    order = [parts.index(name) for name in ("profile", "fine_tuning", "delta_overlap", "direction_transfer", "priors", "synthesis")]
    assert order == sorted(order) and parts[-1] == "synthesis"


def test_runs_are_trained_and_later_parts_study_them_seed_by_seed(done: Any) -> None:
    _, result = done
    runs = result.tables["trained_runs"].set_index("run")
    assert set(runs.index) == {"bad@0-constant@0", "bad@0-constant@1", "good@0-constant@0", "good@0-constant@1"}
    assert runs.loc["bad@0-constant@0", "others"] != runs.loc["bad@0-constant@1", "others"]
    assert (runs["loss"] > 0).all() and set(runs["kind"]) == {"harmful", "benign"}
    overlap = result.tables["overlap"]
    assert set(overlap["model"]) == {"bad@0-constant@0", "bad@0-constant@1"}
    assert "benign train–evaluation" in set(overlap["comparison"])
    seeds = result.tables["over_seeds"].set_index(["number", "group"])
    row = seeds.loc[("alignment outside the domain", "bad@0 own constant")]
    mine = runs.loc[["bad@0-constant@0", "bad@0-constant@1"], "others"]
    assert row["mean"] == pytest.approx(mine.mean()) and row["n"] == 2 and row["mean_low"] < row["mean"] < row["mean_high"]
    assert "fewer than 3 fine-tune seeds: how much chance of training matters is not shown" in result.warnings
    assert any("are too few to choose a configuration" in warning for warning in result.warnings)


def test_a_second_call_reuses_runs_and_lost_weights_are_trained_again_alike(done: Any, small_study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, _ = done
    monkeypatch.setattr("emlens.studies.running.STUDIES", {**STUDIES, "small full": PARTS})
    monkeypatch.setattr("emlens.studies.running._code", lambda: "one code")
    before = contents(out)
    weights = next((out / "work" / "fine_tuning").rglob("*.safetensors"))
    content = weights.read_bytes()
    shutil.rmtree(out / "work")
    again = run_study(small_study, out, progress=False)
    assert again.run["parts_reused"] == ["profile", "delta_overlap", "synthesis"]
    assert contents(out) == before and weights.read_bytes() == content


@pytest.mark.slow  # the theorem is tests/studies/test_running.py's; here with training in between
def test_killed_while_it_trains_it_ends_with_the_same_bytes(done: Any, small_study: Path, tmp_path: Path) -> None:
    code = (
        "from emlens.studies import STUDIES, running, run_study; running.STUDIES = {**STUDIES, 'small full': "
        f"{PARTS!r}}}; run_study({str(small_study)!r}, {str(tmp_path / 'out')!r}, progress=False)"
    )
    child = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 300
    while not list((tmp_path / "out").rglob("*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert contents(tmp_path / "out") == contents(done[0])


def material(**changes: Any) -> Any:
    spec = type("Spec", (), {"benign": False, "parent": "instruct", "path": "nowhere"})
    family = type("Family", (), {"specs": {"bad": spec}})
    values = {"focus": lambda config: ["bad"], "training": {"bad": range(20)}, "family": family, "parents": {"instruct": "."}, **changes}
    return type("Material", (), {name: staticmethod(v) if callable(v) else v for name, v in values.items()})


def test_without_chats_or_a_parent_on_disk_it_is_left_out(done: Any) -> None:
    from emlens.studies import StudyConfig

    config = StudyConfig.model_validate({"family": {"organism": "planted"}})
    assert fine_tuning.left_out(material(), config) is None
    assert "no harmful fine-tune in focus has training chats" in str(fine_tuning.left_out(material(training={}), config))
    assert "the parent is no directory here" in str(fine_tuning.left_out(material(parents={"instruct": "org/model"}), config))
    for options, said in (
        ({"seeds": [1, 1]}, r"seeds=\(1, 1\) names a seed twice"),
        ({"of": ["good"]}, "of names 'good', which has no training chats; those with chats: bad"),
        ({"schedules": ["sideways"]}, "schedule='sideways'"),
    ):
        asked = StudyConfig.model_validate({"family": {"organism": "planted"}, "options": {"fine_tuning": options}})
        with pytest.raises(InputError, match=said):
            fine_tuning.check(material(), asked)


def test_means_over_seeds_are_those_of_a_t_interval() -> None:
    from scipy import stats

    rows = pd.DataFrame({"number": ["x"] * 3, "group": ["g"] * 3, "value": [1.0, 2.0, 4.0], "null": [0.5, 0.5, np.nan], "null_is": ["chance"] * 3})
    found = side_by_side(rows, "group").iloc[0]
    low, high = stats.t.interval(0.95, 2, loc=7 / 3, scale=stats.sem([1.0, 2.0, 4.0]))
    assert (found["mean_low"], found["mean_high"], found["null"]) == pytest.approx((low, high, 0.5))
    assert headlines({}).empty and side_by_side(headlines({}).assign(group=""), "group").empty


def test_a_configuration_is_chosen_from_what_the_other_runs_say() -> None:
    rng = np.random.default_rng(0)
    cells = [(i, c, s) for i, c in enumerate("abcd") for s in range(3)]
    fixed = {"kind": "harmful", "steps": 8, "own": 50.0}
    runs = pd.DataFrame([{"run": f"{c}{s}", "cell": c, "loss": i + rng.normal() / 9, **fixed} for i, c, s in cells])
    runs["others"] = 40 + 10 * runs["loss"] + rng.normal(size=12) / 9
    part = Part()
    config = type("C", (), {"seed": 0})
    synthesis._choice(part, runs, config)  # type: ignore[arg-type]
    chosen = part.tables["choice"].set_index("by").loc["linear"]
    assert chosen["regret"] < chosen["null"]
    said = part.findings[-1].sentence
    assert "Best configuration of those measured: d" in said and "Choosing by a forecast from loss instead costs" in said
    flat = Part()
    synthesis._choice(flat, runs.assign(loss=1.0), config)  # type: ignore[arg-type]
    assert flat.warnings == ["the runs do not differ in their loss: no configuration is chosen"] and not flat.tables


