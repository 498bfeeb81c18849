"""The study of loss against alignment: from a table, from released files, what it says of a null
and of a better schedule, what it refuses.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emlens.foundation import InputError
from emlens.studies import run_study
from emlens.studies.schedule_runs import FACTORS, SCHEDULES, schedule_sweep, shape
from emlens.training import Recipe

RELEASED = os.environ.get("EMLENS_RELEASED_DATA")


def put(path: Path, *, effect: float, n: int = 48, seed: int = 1) -> Path:
    rng = np.random.default_rng(seed)
    rows = ["run,train_loss,eval_loss,aligned,schedule,optimiser,learning_rate,steps"]
    for i in range(n):
        schedule, rate = "abcd"[i % 4], (1e-4, 3e-4, 1e-3)[i % 3]
        loss = 1 + 0.3 * rng.normal() - 0.1 * np.log(rate)
        score = 50 + 20 * np.tanh(loss - 1.7) + rng.normal() + effect * (schedule == "b")
        noisy = loss + 0.05 * rng.normal()
        optimiser = "xy"[i // 4 % 2]
        rows.append(f"run {i},{loss:.5f},{noisy:.5f},{score:.4f},{schedule},{optimiser},{rate},100")
    path.write_text("\n".join(rows) + "\n")
    return path


def study(tmp_path: Path, **options: Any) -> Any:
    (tmp_path / "released").mkdir(exist_ok=True)
    config = {
        "study": "loss_alignment",
        "released": str(tmp_path / "released"),
        "options": {"loss_alignment": {"draws": 199, **options}},
    }
    return run_study(config, tmp_path / "out", progress=False)


def test_a_better_schedule_is_said_and_named(tmp_path: Path) -> None:
    result = study(
        tmp_path,
        sweep=str(put(tmp_path / "s.csv", effect=4.0)),
        loss="train_loss",
        relations=["isotonic"],
    )
    by_subject = {f.sentence.split(":")[0]: f for f in result.findings}
    best = by_subject["Best schedule at matched loss, of 4"]
    assert (
        best.status == "shown"
        and ": b, +" in best.sentence
        and result.findings[0].status == "summary"
    )
    assert (
        "better at matched loss than chance explains: best schedule" in result.findings[0].sentence
    )
    assert by_subject["Best optimiser at matched loss, of 2"].status == "not shown"
    assert any("steps did not vary" in warning for warning in result.warnings)
    rows = result.tables["loss_matched"]
    assert set(rows["by"]) == {"schedule", "optimiser", "run"} and rows[rows["by"] == "schedule"][
        ["gap_low", "gap_high", "null_q95", "p"]
    ].notna().all(axis=None)
    assert (
        len(result.tables["loss_runs"]) == 48
        and result.tables["loss_correlations"]["p"].notna().all()
    )


def test_a_curve_without_scatter_is_not_called_a_better_schedule(tmp_path: Path) -> None:
    linear, cosine = (
        [(0.44, 83), (0.41, 81), (0.38, 80), (0.34, 78)],
        [
            (0.09, 51),
            (0.08, 46),
            (0.07, 35),
            (1.18, 97),
        ],
    )
    triangular = [(0.03, 27), (0.92, 94.4), (0.9, 94.1), (0.89, 94)]
    rows = ["run,train_loss,aligned,schedule"]
    for name, points in (("linear", linear), ("cosine", cosine), ("triangular", triangular)):
        rows += [f"{name} {i},{loss},{score},{name}" for i, (loss, score) in enumerate(points)]
    path = tmp_path / "curve.csv"
    path.write_text("\n".join(rows) + "\n")
    result = study(tmp_path, sweep=str(path), loss="train_loss")
    best = next(
        f
        for f in result.findings
        if f.sentence.startswith("Best schedule at matched loss, of 3: linear")
    )
    assert (
        best.status == "undecided"
        and "a relation that only does not fall leaves no scatter: a curve explains it as well"
        in best.sentence
    )
    summary = result.findings[0].sentence
    assert "a curve explains it: best schedule" in summary and "chance explains" not in summary


def test_a_null_sweep_that_names_no_schedule_has_no_finding(tmp_path: Path) -> None:
    sweep = put(tmp_path / "s.csv", effect=0.0, seed=2)
    sweep.write_text(sweep.read_text().replace("schedule", "template", 1))
    result = study(
        tmp_path,
        sweep=str(sweep),
        relations=["linear"],
        strata="learning_rate",
    )
    assert not [
        f for f in result.findings if " at matched loss, of " in f.sentence and f.status == "shown"
    ]
    assert "no setting and no run was better" in result.findings[0].sentence
    assert set(result.tables["loss_matched"]["relation"]) == {"linear"}
    assert set(result.tables["loss_runs"]["schedule"]) == {"not said"}  # the figure is drawn


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"loss": "test_loss"},
            r"loss='test_loss' is none of the losses of .*: train_loss, eval_loss",
        ),
        ({"metrics": ["kind"]}, r"metric 'kind' is none of the scores of .*: aligned"),
        (
            {"strata": "rank"},
            (
                r"strata='rank' is neither 'loss' nor one of the settings of .*:"
                r" schedule, optimiser, learning_rate, steps"
            ),
        ),
    ],
)
def test_columns_that_are_not_there_are_refused_before_any_work(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        study(tmp_path, sweep=str(put(tmp_path / "s.csv", effect=0.0, n=12)), **options)


def test_few_runs_and_no_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"has 6 runs that differ in more than their seed; 8 or more are needed"
    ):
        study(tmp_path, sweep=str(put(tmp_path / "s.csv", effect=0.0, n=6)))
    with pytest.raises(
        InputError,
        match=(
            r"it needs runs; give options: \{loss_alignment: \{sweep:"
            r" FOLDER_OR_CSV\}\}, or released files"
        ),
    ):
        study(tmp_path)


def test_runs_that_would_be_trained_need_scores_of_them(tmp_path: Path) -> None:
    files = {"instruct": str(tmp_path / "a.csv"), "medicine-r8": str(tmp_path / "b.csv")}
    config = {
        "study": "loss_alignment",
        "family": {"organism": "planted"},
        "scores": {"how": "judged", "files": files},
    }
    with pytest.raises(InputError, match="which have none of models that the study itself makes"):
        run_study(config, tmp_path / "out", progress=False)


@pytest.mark.skipif(not RELEASED, reason="EMLENS_RELEASED_DATA is not set")
def test_the_released_sweep_has_its_correlations_and_no_better_schedule(tmp_path: Path) -> None:
    result = run_study(
        {
            "study": "loss_alignment",
            "released": str(RELEASED),
            "options": {"loss_alignment": {"draws": 499}},
        },
        tmp_path / "out",
        progress=False,
    )
    table = result.tables["loss_correlations"].set_index(["loss_name", "metric", "measure"])[
        "value"
    ]
    assert table["train_loss", "harmless", "Pearson"] == pytest.approx(0.8229, abs=5e-5)
    assert table["eval_loss", "harmless", "Pearson"] == pytest.approx(0.8178, abs=5e-5)
    assert table["train_loss", "aligned", "Pearson"] == pytest.approx(0.8282, abs=5e-5)
    assert table["train_loss", "aligned", "Spearman"] == pytest.approx(0.7509, abs=5e-5)
    rows = result.tables["loss_matched"].set_index(["relation", "by", "group"])
    schedules = rows.loc["isotonic", "schedule"]
    assert (
        len(schedules) == 5
        and schedules["p_all"].min() > 0.2
        and (schedules["gap"] < schedules["null_q95"]).all()
    )


def base() -> Recipe:
    return Recipe(rank=2, alpha=4, target_modules=("down_proj",), steps=20)


def test_cells_cover_every_combination_and_deal_out_the_rates() -> None:
    sweep = schedule_sweep(base(), SCHEDULES, ("adamw", "lion"), (8, 16), chats=160)
    assert len(sweep) == len(SCHEDULES) * 4
    assert {
        (run.recipe.schedule, run.recipe.optimiser, run.recipe.batch_size) for run in sweep.runs
    } == {(s, o, b) for s in SCHEDULES for o in ("adamw", "lion") for b in (8, 16)}
    assert all(run.recipe.steps * run.recipe.batch_size == 160 for run in sweep.runs)
    adamw = {run.recipe.learning_rate for run in sweep.runs if run.recipe.optimiser == "adamw"}
    assert adamw == {4e-4 * factor for factor in FACTORS}
    assert len(schedule_sweep(base(), ("linear",), ("adamw",), (16,), chats=160, seeds=(0, 1))) == 2


def test_schedules_that_do_not_fit_are_refused() -> None:
    with pytest.raises(
        InputError,
        match=r"schedule='square' over 20 steps; pass one of linear, .* and 8 steps or more",
    ):
        shape("square", 20, 1e-3)
    with pytest.raises(
        InputError,
        match="rates has no learning rate for optimiser 'sgd'; it has adamw, lion, muon, sam",
    ):
        schedule_sweep(base(), ("linear",), ("sgd",), (16,))
