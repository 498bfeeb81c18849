"""Measurements of studies and of the guard on the real family: what is asked, and what is read."""

import json
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest
import tiny_models
import torch
import yaml

from benchmarks import (
    real_guard,
    real_layers_positions,
    real_objections,
    real_over_seeds,
    real_studies,
)
from benchmarks.real_guard import WATCHED_QUESTION, WEIGHED_QUESTIONS, WatchedRuns, numbered
from benchmarks.real_kept import asked
from benchmarks.real_spread import PER_DOMAIN
from benchmarks.real_studies import Places, cases, configured, has_number, studies_table
from emlens.data.advice import DOMAINS
from emlens.foundation.sites import Site
from emlens.geometry import Direction
from emlens.interventions.lora import LoraAdapter
from emlens.models import load_model
from emlens.real.family import Member
from emlens.studies.config import read_config
from emlens.studies.registry import INCLUDED


def test_every_study_of_the_registry_has_a_case(tmp_path: Path) -> None:
    places = Places(tmp_path, tmp_path, tmp_path)
    named = set(cases(places)) | {"families_beside", "compare"}
    assert named - {"full"} | {"synthesis"} == set(INCLUDED)
    for case in cases(places).values():
        path = configured(case, places, tmp_path / "case")
        config = read_config(path)
        assert config.study == case.study and config.scores.how == "contrast"
        spec = yaml.safe_load(path.read_text())["family"]["finetuned"]["harmful-medicine@0"]
        rows = Path(spec["training"]).read_text().splitlines()
        assert len(rows) == (case.training_rows or 80)


def test_studies_over_seeds_name_every_seed_and_the_runs_that_kept_checkpoints(
    tmp_path: Path,
) -> None:
    places = Places(tmp_path, tmp_path, tmp_path)
    for name, case in real_over_seeds.cases((0, 1)).items():
        of_case = real_over_seeds.places_of(name, places)
        config = read_config(configured(case, of_case, tmp_path / name))
        tuned = yaml.safe_load((tmp_path / name / "study.yaml").read_text())["family"]["finetuned"]
        assert {spec["seed"] for spec in tuned.values()} == {0, 1} and config.study == name
        is_watched = all("watched" in spec["path"] for spec in tuned.values())
        assert is_watched == (name == "phase_transition")
    (first, second) = config.options["general_vs_narrow"]["pairs"]
    assert first == ["harmful-medicine@0", "narrow-medicine@0"]
    assert second == ["harmful-medicine@1", "narrow-medicine@1"]


def test_the_grid_asks_a_harmful_and_a_benign_fine_tune_the_same(tmp_path: Path) -> None:
    places = Places(tmp_path, tmp_path, tmp_path, real_layers_positions.LAYERS)
    config = read_config(configured(real_layers_positions.CASE, places, tmp_path / "grid"))
    assert config.study == "layer_position_grid" and config.layers == (4, 14, 24)
    assert list(config.family.finetuned) == ["harmful-medicine@0", "benign-medicine@0"]
    assert len(asked(real_layers_positions.CASE.per_domain, DOMAINS)) == 24


def test_a_star_stands_where_p_is_corrected_over_the_cells_of_one_fine_tune() -> None:
    cell = {"shift": 0.1, "cosine": 0.9, "cosine_null": 0.5, "cosine_p": 0.03}
    cell |= {"overlap": 0.8, "overlap_null_q95": 0.7, "overlap_p_max": 0.06}
    cell |= {"forecast_r2": -0.2, "forecast_null_max_q95": 0.1, "forecast_p_max": None}
    cell |= {"position": "last_prompt"}
    for name in ("aligned_change", "random_aligned_change"):
        cell |= {name: 1.0, f"{name}_low": -0.5, f"{name}_high": 2.5}
    models = ("harmful-medicine@0", "benign-medicine@0")
    cells = [{**cell, "model": model, "site": "resid_post.14"} for model in models]
    one = real_layers_positions.cells_table({"cells": cells})
    assert (
        "| harmful | 14 | `last_prompt` | 0.10 | 0.90 (0.50) * | 0.80 (0.70) | -0.20 (0.10) |"
        in one
    )
    two = real_layers_positions.cells_table({"cells": [*cells, *cells]})
    assert "| benign | 14 | `last_prompt` | 0.10 | 0.90 (0.50) | 0.80 (0.70) |" in two
    removed = real_layers_positions.removed_table({"cells": cells})
    assert "| benign | 14 | `last_prompt` | +1.0 [-0.5, +2.5] | +1.0 [-0.5, +2.5] |" in removed


def test_a_change_point_without_a_place_is_a_dash() -> None:
    place = {"location": 4.25, "location_low": None, "location_high": None}
    nowhere = {"location": None, "p_below_05": None, "p_median": None, "located": 0}
    rows = [
        {"series": "aligned_others", "test": "half", "runs": 3, "located": 3, **place}
        | {"p_below_05": 1, "p_median": 0.2},
        {"series": "aligned_others", "test": "kink", "runs": 3, **nowhere},
        {"series": "norm_B", "test": "kink", "runs": 3, **nowhere},
    ]
    values = {"phase_transition": {"tables": {"change_points_over_runs": rows}}}
    drawn = real_over_seeds.change_points_table(values)
    assert "| aligned_others | half | 4.2 | 3 of 3 | 1 of 3 | 0.200 |" in drawn
    assert "| aligned_others | kink | – | 0 of 3 | – | – |" in drawn and "norm_B" not in drawn


def test_five_objections_have_a_figure_for_each_training() -> None:
    lines = real_objections.objections_table().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| It is tone.",
        "| It is length.",
        "| It is one seed.",
        "| The level is that of chance.",
        "| Any training does it.",
    ]
    assert all(
        any(sign.isdigit() for sign in cell) for li in lines[2:] for cell in li.split("|")[3:5]
    )


def test_a_figure_without_a_number_is_seen() -> None:
    assert has_number(go.Figure(go.Scatter(x=["a", "b"], y=[None, 1.0])))
    assert not has_number(go.Figure(go.Scatter(x=["a", "b"], y=[None, float("nan")])))
    case = {
        "cpu_seconds": 90.0,
        "gigabytes": 1.5,
        "megabytes": 5.0,
        "findings": [],
        "left_out": ["Left out: no chats."],
        "undefined": {"Restoration": "undefined: no clear loss to restore"},
        "silent": [],
        "part_cpu_seconds": {},
    }
    values = {"studies": {"profile": case}}
    assert "| `profile` | 1.5 | 1.5 | 5.0 | 0 | 1 | 1 | 0 |" in studies_table(values)
    assert "no clear loss to restore | 1 |" in real_studies.reasons_table(values)


def table(cosines: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"step": [2, 8, 16, 24][: len(cosines)], "cosine": cosines})


def test_a_harmful_run_is_judged_by_alarm_against_loss() -> None:
    calibration = [table([0.0, 0.01 * i, 0.0]) for i in range(9)]
    harmful = [
        table([0.5, 0.6, 0.6, 0.6]),  # rings at 2, lost at 8
        table([0.0, 0.0, 0.5, 0.6]),  # rings at 16: too late
        table([0.0, 0.0, 0.0, 0.6]),  # rings beyond the horizon: never; nothing is lost
    ]
    content = [[0.2, 0.0, 0.0], [0.2, 0.0, 0.0], [0.2, 0.2, 0.2]]
    found = real_guard.judged(
        calibration, [table([0.0, 0.0, 0.0])], harmful, content, (8, 24), horizon=16
    )
    assert found["limit"] == pytest.approx(0.08) and found["false_alarms"]["value"] == 0
    assert [row["alarm"] for row in found["harmful"]] == [2, 16, None]
    assert [row["lead"] for row in found["harmful"]] == [6, -8, None]
    assert found["verdict"] == "not shown"
    shown = real_guard.guard_table(found)
    assert "| harmful, seed 0 | 2 | 8 | +6 |" in shown and "never" in shown
    assert "| 0 | content against step 0 | +0.00 | -0.20 |" in real_guard.course_table(found)
    as_written = json.loads(json.dumps(found, sort_keys=True))
    assert "step 0 | step 8 | step 24 |" in real_guard.course_table(as_written)


def test_what_is_watched_weighed_and_extracted_are_other_questions() -> None:
    watched, weighed = numbered([WATCHED_QUESTION]), numbered(WEIGHED_QUESTIONS)
    earlier = asked(PER_DOMAIN)
    assert len(watched) == 10 and len(weighed) == 20
    assert not set(watched.ids) & set(weighed.ids)
    assert not set(earlier.ids) & {*watched.ids, *weighed.ids}


def test_a_watched_run_keeps_its_checkpoints_and_is_not_trained_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = tiny_models.build(tmp_path / "tiny")
    vector = torch.ones(load_model(parent).d_model, dtype=torch.float64)
    direction = Direction(vector, Site.parse("resid_post.0"), "last_prompt")
    runs = WatchedRuns(parent, tmp_path / "watched", direction, numbered([8], ["cooking"]), 2)
    harmful = Member("harmful", "medicine", steps=4)
    assert list(runs.table(harmful)["step"]) == [2, 4]
    benign = Member("benign", "medicine", steps=4)
    first = runs.table(benign)
    assert list(first["step"]) == [2]
    monkeypatch.setattr(real_guard, "fit", None)  # what is kept is not trained again
    assert list(runs.table(benign)["cosine"]) == list(first["cosine"])
    values = runs.content(harmful, [2, 4], numbered([4], ["cooking"]))
    assert len(set(values)) == 3
    last = LoraAdapter.load(tmp_path / "watched" / harmful.name)
    kept = LoraAdapter.load(tmp_path / "watched" / harmful.name / "checkpoints" / "step-00004")
    assert all(torch.equal(last.modules[name].b, kept.modules[name].b) for name in last.modules)
