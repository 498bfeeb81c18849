"""Every cell has every measure with its interval or null; a planted direction tells its questions
and a shuffled one does not.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from emlens.activations import Activations
from emlens.data import Question, QuestionSet
from emlens.foundation.errors import InputError
from emlens.stats import NullDistribution
from emlens.studies import run_study
from emlens.studies.cell_measures import overlap_p_max
from emlens.studies.direction_auroc import area, auroc_by_cell
from emlens.studies.material import split_questions

SITE, POSITION = "resid_post.0", "last_prompt"


def test_every_cell_of_the_tiny_family_has_its_measures(config_path: Path, tmp_path: Path) -> None:
    record = yaml.safe_load(config_path.read_text()) | {
        "study": "layer_position_grid",
        "focus": ["bad@0"],
    }
    path = config_path.with_name("sweep.yaml")
    path.write_text(
        yaml.safe_dump(
            record
            | {
                "options": {
                    "layer_position_grid": {"flips": 19, "sites": ["resid_post", "mlp_out"]}
                }
            }
        )
    )
    result = run_study(path, tmp_path / "out", progress=False)
    table = result.tables["cells"]
    moved = table[table["shift"] > 0]
    assert len(table) == 2 * 3 * 2 and len(moved)
    for measure, beside in (
        ("shift", "shift_low"),
        ("cosine_null", "cosine_p"),
        ("forecast_r2", "forecast_p_max"),
        ("auroc", "auroc_null"),
    ):
        assert moved[[measure, beside]].notna().all(axis=None), measure
    overlapping = moved[moved["overlap"].notna()]
    assert (overlapping["overlap_p_max"] >= overlapping["overlap_p"]).all() and overlapping[
        "overlap_null"
    ].between(0, 1).all()
    assert {f.section for f in result.findings} == {"layer_position_grid"}
    # the best cell is not quoted: what is, chose its place on inner folds
    forecast = next(f.sentence for f in result.findings if "forecast R²" in f.sentence[:30])
    nested = result.tables["grid_forecasts"].iloc[0]
    assert f"chosen on inner folds it is {nested['r2']:.2f}" in forecast
    assert all("largest at" not in finding.sentence for finding in result.findings)
    bare = {
        name: {**spec, "training": None} for name, spec in record["family"]["finetuned"].items()
    }
    path.write_text(yaml.safe_dump(record | {"family": {**record["family"], "finetuned": bare}}))
    with pytest.raises(
        InputError,
        match="layer_position_grid was left out: no fine-tune in focus has training prompts",
    ):
        run_study(path, tmp_path / "none", progress=False)


def grid_p(overlap: float, cells: int, draws: int, seed: int = 0) -> list[float]:
    """p of a grid whose cells all reach one overlap, beside nulls of different levels."""
    rng = np.random.default_rng(seed)
    nulls = [NullDistribution(rng.normal(0.2 + 0.5 * i / cells, 0.03, draws)) for i in range(cells)]
    return overlap_p_max([overlap] * cells, nulls, seed)


def test_a_grid_of_sixty_cells_can_be_shown_and_draws_of_chance_are_not() -> None:
    """Holm over 60 cells of 1,000 draws gives no p below .06, whatever the overlap."""
    assert max(grid_p(0.99, 60, 1000)) < 0.05
    assert max(grid_p(0.99, 60, 100)) < 0.05
    rng = np.random.default_rng(5)
    hits = 0
    for seed in range(100):
        nulls = [NullDistribution(rng.normal(i, 1 + i, 99)) for i in range(20)]
        chance = [float(rng.normal(i, 1 + i)) for i in range(20)]
        hits += min(overlap_p_max(chance, nulls, seed)) <= 0.05
    assert hits <= 12  # 5 expected of 100; above 12 with probability .001
    nulls_or_none = [None, NullDistribution(np.zeros(19)), None]
    p = overlap_p_max([np.nan, 0.0, np.nan], nulls_or_none, 0)
    assert np.isnan(p[0]) and p[1] == 1 and np.isnan(p[2])


def planted(
    strength: float, levels: tuple[float, float] | None = None, of_group: int = 24
) -> dict[str, float]:
    """AUROC where shifts grow with misalignment along one axis, by a strength.

    Args:
        levels: the only two scores that occur, the first of a single question that is read.
        of_group: questions of each group, of 96.
    """
    rng = np.random.default_rng(0)
    questions = QuestionSet(
        [Question(f"q{i}", f"text {i}", f"group {i // of_group}") for i in range(96)]
    )
    scores = pd.Series(rng.uniform(0, 100, 96), index=questions.ids)
    if levels is not None:
        scores[:] = levels[1]
        _, read = split_questions(questions, (0.5, 0.5), 0)
        scores[read.ids[0]] = levels[0]
    shifts = torch.from_numpy(rng.normal(size=(96, 8)))
    shifts[:, 0] += 2 + strength * torch.from_numpy((100 - scores.to_numpy()) / 50)
    deltas = Activations(
        {(SITE, POSITION): shifts},
        ids=questions.ids,
        groups=questions.groups,
        sites=[SITE],
        positions=[POSITION],
        provenance={},
    )
    material: Any = SimpleNamespace(
        scored=lambda questions, *names: questions,
        outside=lambda name: questions,
        per_question=lambda name: scores,
    )
    cell = SITE, POSITION
    return auroc_by_cell(material, "bad", deltas, [cell], flips=199, seed=0)[cell]


def test_a_direction_that_carries_misalignment_tells_questions_and_another_does_not() -> None:
    carries, other = planted(3.0), planted(0.0)
    assert carries["auroc"] > 0.8 and carries["auroc_low"] > 0.5 and carries["auroc_p_max"] < 0.02
    assert other["auroc_p_max"] > 0.05 and other["auroc_low"] < 0.5 < other["auroc_high"]
    assert abs(carries["auroc_null"] - 0.5) < 0.1


def test_few_answers_may_leave_nothing_below_the_median() -> None:
    one_below, none_below = planted(3.0, (15.0, 90.0)), planted(3.0, (90.0, 15.0))
    assert 0 <= one_below["auroc"] <= 1 and np.isnan(one_below["auroc_low"])
    assert all(np.isnan(value) for value in none_below.values())


def test_a_null_that_cannot_move_gives_no_area() -> None:
    assert all(np.isnan(value) for value in planted(3.0, of_group=2).values())
    assert planted(3.0, of_group=4)["auroc_p_max"] < 0.05


def test_the_area_is_that_of_scikit_learn() -> None:
    from scipy.stats import rankdata
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(1)
    scores, along = rng.normal(size=31), rng.integers(0, 9, size=31)
    assert area(scores, rankdata(along)) == pytest.approx(
        roc_auc_score(scores < np.median(scores), along)
    )
    assert area(np.ones(5), along[:5]) == 0.5
