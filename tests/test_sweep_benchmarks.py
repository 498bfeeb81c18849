"""Miniatures of the measurements of sweeps and of the two solutions."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import general_vs_narrow, kl_frontier, schedule_sweep
from emlens.data import PromptSet
from emlens.organisms import load_organism
from emlens.studies.solution_training import organism_task

TINY = {
    "seeds": [0],
    "steps": 10,
    "lift_after": 8,
    "shares": [1.0],
    "significance_shares": [1.0],
    "epsilons": [0.5],
    "directions": 1,
    "points": [0.0, 1.0],
}


def test_a_frontier_is_read_off_the_runs(tmp_path: Path) -> None:
    whole = organism_task(load_organism(), kl_frontier.FINETUNE)
    task = replace(whole, other=PromptSet(list(whole.other)[::100]), rows=4)
    runs = kl_frontier.sweep(task, (0.0, 0.5), (0, 1), 6, (6,), tmp_path)
    table = kl_frontier.frontier(runs).set_index("weight")
    assert (
        table["seeds"].eq(2).all()
        and (table["own_low"] <= table["own"]).all()
        and not table["mean_reaches_goal"].any()
    )
    # read again, not trained
    assert kl_frontier.sweep(task, (0.0, 0.5), (0, 1), 6, (6,), tmp_path).equals(runs)
    longer = kl_frontier.sweep(task, (0.0,), (0,), 7, (6,), tmp_path)
    assert len(longer) == 1 and len(list(tmp_path.iterdir())) == 5  # another length is another run
    planted = runs.sort_values(["weight", "seed"]).assign(
        own=[0.2, 0.3, 0.2, 0.21], others=[0.9, 0.8, 0.905, 0.91], own_held_out=0.4
    )
    better = kl_frontier.frontier(planted).set_index("weight")
    assert (
        better.loc[0.0, "mean_reaches_goal"]
        and not better.loc[0.0, "interval_reaches_goal"]
        and better.loc[0.0, "seeds_that_reach_goal"] == 1
    )
    assert better.loc[0.5, "interval_reaches_goal"] and not better["held_out_reaches_goal"].any()


def test_a_kept_sweep_is_one_of_the_same_recipes(tmp_path: Path) -> None:
    sizes = (("linear",), ("adamw",), (16,))
    assert schedule_sweep.kept_at(tmp_path, *sizes, 160) == schedule_sweep.kept_at(
        tmp_path, *sizes, 160
    )
    assert schedule_sweep.kept_at(tmp_path, *sizes, 160) != schedule_sweep.kept_at(
        tmp_path, *sizes, 320
    )


@pytest.mark.slow  # two processes load and train
def test_processes_share_a_sweep_and_it_is_analysed(tmp_path: Path) -> None:
    sizes = (("linear", "cosine"), ("adamw", "lion"), (16, 20), 160)
    assert schedule_sweep.train(tmp_path / "s", *sizes) > 0
    found = schedule_sweep.analysed(tmp_path / "s", draws=99)
    assert found["runs"] == 8 and {row["by"] for row in found["eval_loss"]["matched"]} >= {
        "schedule",
        "optimiser",
        "batch_size",
        "run",
    }
    assert found["train_loss"]["verdict"].startswith(
        "Over 8 runs, train_loss and aligned correlate by"
    )


@pytest.mark.slow  # three short runs
def test_two_solutions_are_trained_and_measured(tmp_path: Path) -> None:
    found = general_vs_narrow.measure(tmp_path / "g", TINY)
    assert (
        set(general_vs_narrow.SHOWN) == set(found["shown"])
        and "one seed: differences have no interval" in found["warnings"]
    )
    assert {row["data"] for row in found["significance"]} == {"neutral", "documents"}
    assert {row["step"] for row in found["drift"]} == {8, 9, 10} or {
        row["step"] for row in found["drift"]
    } == {8, 10}
