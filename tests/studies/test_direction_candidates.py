"""Which candidate is taken where the rule leaves none: bounds are given up one by one, and it is
said.
"""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from emlens.geometry import direction_cosine, mean_difference_direction, whitened_direction
from emlens.results.study_result import Part
from emlens.studies.direction_candidates import choose
from emlens.studies.shift_candidates import EXTRACTIONS, SHRINKAGE, direction_between


def material(neutral: object = "text", n_layers: int = 4) -> Any:
    parent = type("M", (), {"n_layers": n_layers})()
    return type("F", (), {"neutral": neutral, "parent": staticmethod(lambda name: parent)})()


def table(**changes: list[float]) -> pd.DataFrame:
    base = {
        "layer": [0, 1, 2, 3],
        "restoration": [0.1, 0.6, 0.4, 0.9],
        "coherent_change": [-1.0] * 4,
        "instruct_kl": [0.01, 0.5, 0.05, 0.01],
    }
    return pd.DataFrame({**base, **changes}, index=list("abcd"))


def test_nothing_is_chosen_where_nothing_can_be_compared() -> None:
    part = Part()
    assert choose(table(restoration=[np.nan] * 4), "m", material(), part) is None
    assert not part.warnings


@pytest.mark.parametrize(
    ("changes", "neutral", "expected", "warned"),
    [
        # b restores more, at too much damage; d lies behind the last block
        ({}, "text", "c", False),
        ({}, None, "b", False),  # no neutral text, no bound on damage
        ({"instruct_kl": [0.5] * 4}, "text", "b", True),
        # none early keeps coherence: the best early one of little damage
        ({"coherent_change": [-20.0, -20.0, -20.0, 0.0]}, "text", "c", True),
        ({"coherent_change": [-20.0, -20.0, -20.0, 0.0]}, None, "b", True),
        # only d has a restoration, behind the last block
        ({"restoration": [np.nan, np.nan, np.nan, 0.1]}, "text", "d", True),
    ],
)
def test_bounds_are_given_up_one_by_one(
    changes: dict[str, list[float]], neutral: object, expected: str, warned: bool
) -> None:
    part = Part()
    assert choose(table(**changes), "m", material(neutral), part) == expected
    assert bool(part.warnings) == warned
    if warned:
        [said] = part.warnings
        assert said.startswith("m: none of 4 candidates is left by the rule") and said.endswith(
            "bounds were given up until a candidate was left"
        )


def test_a_model_of_one_block_has_one_choice() -> None:
    part = Part()
    assert choose(table().loc[["a"]], "m", material(n_layers=1), part) == "a" and not part.warnings


def test_extractions_are_those_of_geometry() -> None:
    after, before = (
        torch.randn(40, 8, dtype=torch.float64) + 1,
        torch.randn(40, 8, dtype=torch.float64) * torch.linspace(0.2, 3, 8),
    )
    plain, whitened = (
        direction_between(name, after, before, site="resid_post.1") for name in EXTRACTIONS
    )
    assert direction_cosine(
        plain, mean_difference_direction(after, before, site="resid_post.1")
    ) == pytest.approx(1)
    assert direction_cosine(
        whitened, whitened_direction(after, before, site="resid_post.1", shrinkage=SHRINKAGE)
    ) == pytest.approx(1)
    assert direction_cosine(plain, whitened) < 0.99
