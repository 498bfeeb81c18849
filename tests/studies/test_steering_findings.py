"""Sufficiency: what a direction does where it is added, in the usable doses, with its sign."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from emlens.studies.direction_findings import nothing_chosen
from emlens.studies.steering_findings import sufficiency_finding

RANDOM = "random, activation covariance"


def steering(
    added: tuple[float, float] = (-30.0, -20.0),
    control: tuple[float, float] = (-2.0, 1.0),
    usable: tuple[float, ...] = (0.0, 0.5, 1.0),
) -> pd.DataFrame:
    """Doses 0, .5, 1 and 2 of a direction and of a random vector; the intervals are those at 1."""
    rows: list[dict[str, Any]] = []
    for vector, (low, high) in (("direction", added), (RANDOM, control)):
        for steered, sign in (("instruct", 1), ("bad", -1)):
            for dose in (0.0, 0.5, 1.0, 2.0):
                rows.append(
                    {
                        "model": "bad",
                        "steered": steered,
                        "vector": vector,
                        "coefficient": sign * dose,
                        "aligned": 60.0 + dose,
                        "aligned_change": dose * sign * (low + high) / 2,
                        "aligned_change_low": dose * min(sign * low, sign * high),
                        "aligned_change_high": dose * max(sign * low, sign * high),
                        "usable": dose in usable,
                    }
                )
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("changes", "status", "effect"),
    [
        ({}, "shown", "lowers alignment: -25.0 points [-30.0, -20.0], to 61.0"),
        # a random vector does as much
        ({"control": (-25.0, -10.0)}, "undecided", "cannot be told"),
        ({"added": (-30.0, 3.0)}, "undecided", "cannot be told"),
        ({"added": (-4.0, 1.0)}, "not shown", "does not lower alignment by 5 points or more"),
        ({"added": (2.0, 3.0)}, "reversed", "raises alignment"),
        # so does a random vector: the direction is nothing special
        ({"added": (2.0, 3.0), "control": (1.0, 4.0)}, "not shown", "does not lower"),
    ],
)
def test_adding_lowers_raises_or_does_nothing(
    changes: dict[str, tuple[float, float]], status: str, effect: str
) -> None:
    finding = sufficiency_finding("bad", steering(**changes), -0.758)
    assert finding.status == status, finding.sentence
    assert effect in finding.sentence and "at 1 times its length" in finding.sentence
    assert finding.sentence.endswith("its cosine with the unembedding contrast is -0.76.")
    middle = -sum(changes.get("added", (-30.0, -20.0))) / 2
    assert f"subtracted from bad at 1 times its length: {middle:+.1f} points" in finding.sentence


def test_only_usable_doses_count() -> None:
    half = sufficiency_finding("bad", steering(usable=(0.0, 0.5)), np.nan)
    assert half.status == "shown" and "at 0.5 times its length" in half.sentence
    assert half.sentence.endswith("points [+10.0, +15.0], to 60.5.")
    none = sufficiency_finding("bad", steering(usable=(0.0,)), 0.5)
    assert none.status == "undecided"
    assert "no dose of its direction leaves instruct usable (the smallest tried is 0.5" in (
        none.sentence
    )


def test_that_nothing_was_chosen_is_said() -> None:
    candidates = pd.DataFrame({"method": ["undefined: nothing was lost"] * 3})
    many, one = nothing_chosen("m", candidates), nothing_chosen("m", candidates.iloc[:1])
    assert many.status == one.status == "undecided"
    assert "undefined for each of its 3 candidates (nothing was lost)" in many.sentence
    assert "undefined for its only candidate (nothing was lost)" in one.sentence
