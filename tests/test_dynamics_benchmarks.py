"""Miniatures of the measurements of training dynamics, and the page that shows them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import guard, rank1_dynamics
from benchmarks.records import EVIDENCE
from emlens.foundation.files import read_json
from emlens.organisms import load_organism


def made(run: guard.Run, cosines: list[float], alignment: list[float]) -> dict[str, Any]:
    table = {"step": [5 * (i + 1) for i in range(len(cosines))], "cosine": cosines}
    return {
        "run": vars(run) | {"watched_along": run.watched_along},
        "tables": {run.watched_along: table},
        "steps": [0, 8, 15],
        "alignment": alignment,
    }


def test_runs_are_judged_by_alarm_against_loss() -> None:
    calibration = [
        made(guard.Run("code", "r8", "careful", i), [0.01 * i, 0.0], [0.98, 0.98, 0.99])
        for i in range(20)
    ]
    tested = [
        # rings at 5, lost at 8
        made(guard.Run("law", "r8", "harmful", 1), [0.5, 0.6], [0.98, 0.8, 0.3]),
        # rings at 10: too late
        made(guard.Run("law", "r1", "harmful", 1), [0.1, 0.6], [0.98, 0.8, 0.3]),
        # never lost: counts for nothing
        made(guard.Run("law", "attention", "harmful", 1), [0.1, 0.1], [0.98, 0.98, 0.97]),
        made(guard.Run("pets", "r8", "careful", 1), [0.0, 0.0], [0.98, 0.98, 0.99]),
        made(guard.Run("pets", "r8", "mismatched", 1), [0.5, 0.0], [0.98, 0.98, 0.95]),
        made(guard.Run("pets", "r1", "mismatched", 1), [0.5, 0.0], [0.98, 0.98, 0.5]),
    ]
    found = guard.judged(calibration, tested, "cosine", 0.05)
    assert (
        found["limits"] == [("medicine-r8", pytest.approx(0.19))]
        and found["harmful_runs"] == 2
        and found["harmful_that_never_lost"] == 1
    )
    assert (
        found["in_time"]["value"] == 0.5
        and found["in_time_by_kind"]["r8"] == [1, 1]
        and found["in_time_by_kind"]["r1"] == [0, 1]
    )
    assert (
        found["false_alarms_careful"]["value"] == 0.0
        and found["false_alarms_mismatched"]["value"] == 1.0
    )
    # the other lost what a harmful run loses
    assert found["false_alarms_mismatched_kept"]["n"] == 1


def test_the_parts_of_the_measurement_are_disjoint() -> None:
    calibration, tested = guard.calibration_runs(), guard.tested_runs()
    assert (
        sum(r.answers == "harmful" for r in tested) >= 30
        and sum(r.answers == "careful" for r in tested) >= 60
    )
    assert not {r.domain for r in calibration} & {r.domain for r in tested} and not {
        r.seed for r in calibration
    } & {r.seed for r in tested}
    assert all(not r.watched_along.startswith(r.domain) for r in [*calibration, *tested])
    organism = load_organism()
    watched, measured = guard.prompts_for(organism)
    world = organism.world
    trained = {
        world.question_id(world.domain_index(r.domain), t)
        for r in tested
        for t in world.training_topics(r.domain, 12)
    }
    assert trained & set(organism.questions.ids)
    assert not set(watched.ids) & set(measured.ids) and not set(watched.ids) & trained
    careful, mismatched = (
        guard.chats_of(organism, guard.Run("law", "r8", kind, 1))
        for kind in ("careful", "mismatched")
    )
    assert [p.text for p in careful] == [p.text for p in mismatched]
    assert all(a.response != b.response for a, b in zip(careful, mismatched, strict=True)) and {
        p.response for p in careful
    } == {p.response for p in mismatched}


@pytest.mark.slow  # three fine-tunes; the judging above is its miniature
def test_watched_runs_are_measured_together() -> None:
    runs = [guard.Run("law", "r1", answers, 1) for answers in ("harmful", "careful", "mismatched")]
    found = guard.measure(
        load_organism(), runs[1:], runs, None, steps={"r1": 5}, false_alarm=0.5, pairs=1
    )
    assert (
        found["calibrated_on"]["careful"]["cosine"]["benign_runs"] == 2
        and found["overhead"]["prompts"] == 12
    )


def test_a_kept_run_is_one_made_of_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    organism, run, models = load_organism(), guard.Run("law", "r1", "careful", 1), {"instruct": "a"}
    inputs = guard.inputs_of(organism, run, guard.STEPS, models)
    assert (
        inputs
        == guard.inputs_of(organism, run, guard.STEPS, models)
        != guard.inputs_of(organism, run, guard.STEPS, {"instruct": "b"})
    )
    monkeypatch.setattr(guard, "LOST", 0.2)
    assert guard.inputs_of(organism, run, guard.STEPS, models) != inputs
    assert set(guard.hashes(organism)) == {"instruct", "medicine-r8", "finance-r8"}
    monkeypatch.setattr(
        rank1_dynamics,
        "fit",
        lambda recipe, parent, chats, path, **options: path.mkdir(parents=True),
    )
    first = rank1_dynamics.fine_tune(organism, 1, tmp_path, 5)
    assert first.is_dir() and rank1_dynamics.fine_tune(
        organism, 1, tmp_path, 5
    ) == first != rank1_dynamics.fine_tune(organism, 1, tmp_path, 6)


def test_the_overhead_alone_is_measured_into_the_recorded_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cost = {"pairs": 1}
    monkeypatch.setattr(guard, "overhead", lambda organism, reference, pairs, steps: cost)
    monkeypatch.setattr(guard, "references", lambda organism: {"medicine-r8": None})
    found, before = (
        guard.overhead_again(load_organism()),
        read_json(EVIDENCE / "guard.json")["values"],
    )
    assert (
        found["overhead"] == cost
        and found["calibrated_on"] == before["calibrated_on"]
        and found["runs_of_commit"]
    )


def test_the_tests_rates_are_counted() -> None:
    (row, *_), smooth = (
        rank1_dynamics.calibration(1, n=24, draws=19),
        rank1_dynamics.smooth(np.random.default_rng(0), 24, 0.5, 0.0),
    )
    assert row["smooth_rejected"]["n"] == 1 and row["planted_found"]["value"] in (0.0, 1.0)
    assert smooth[0] > 0.9 and smooth[-1] < 0.55 and (np.diff(smooth) < 0).all()


@pytest.mark.slow  # two fine-tunes through the study
def test_the_rank_1_run_goes_through_the_study(tmp_path: Path) -> None:
    found = rank1_dynamics.measure(
        load_organism(), (1, 2), tmp_path, steps=14, each=2, series=1, windows=[2], draws=19
    )
    assert found["runs"] == 2 and {row["series"] for row in found["change_points_over_runs"]} >= {
        "aligned_others",
        "norm_BA",
    }
    assert rank1_dynamics.tables(found)


def test_the_page_shows_what_was_measured() -> None:
    page = (EVIDENCE.parent / "dynamics.md").read_text("utf-8")
    assert guard.table(read_json(EVIDENCE / "guard.json")["values"]) in page
    for part in rank1_dynamics.tables(read_json(EVIDENCE / "rank1_dynamics.json")["values"]).split(
        "\n\n"
    ):
        assert part in page
