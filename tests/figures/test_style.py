"""The palette under simulated colour blindness: any two colours stay apart, which an ordinary red
and green do not.
"""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from emlens.figures.groups import groups_of
from emlens.figures.style import CYCLE, DASHES, SYMBOLS

SEEN_BY = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
"""Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB."""
APART = 14.0
"""CIE76 distance between any two colours; about 2.3 is just noticeable side by side."""
TO_XYZ = [
    [0.4124564, 0.3575761, 0.1804375],
    [0.2126729, 0.7151522, 0.0721750],
    [0.0193339, 0.1191920, 0.9503041],
]


def linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def distance(one: str, two: str, seen_by: str) -> float:
    points = []
    for colour in (one, two):
        xyz = (
            np.array(TO_XYZ)
            @ np.clip(np.array(SEEN_BY[seen_by]) @ linear(colour), 0, 1)
            / [0.95047, 1, 1.08883]
        )
        f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
        points.append(np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])]))
    return float(np.linalg.norm(points[0] - points[1]))


@pytest.mark.parametrize("seen_by", SEEN_BY)
def test_any_two_colours_stay_apart(seen_by: str) -> None:
    nearest = min(combinations(CYCLE, 2), key=lambda pair: distance(*pair, seen_by))
    assert distance(*nearest, seen_by) > APART, nearest


def test_an_ordinary_red_and_green_do_not() -> None:
    assert distance("#d62728", "#2ca02c", "deuteranopia") < APART


def test_the_palette_is_the_one_of_okabe_and_ito_with_a_grey() -> None:
    published = {"#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#000000"}
    assert set(CYCLE) == published | {"#6B6B6B"}


def test_groups_differ_by_more_than_colour() -> None:
    table = pd.DataFrame({"g": [f"g{i}" for i in range(len(CYCLE))]})
    groups = groups_of(table, "g")
    assert len({group.symbol for group in groups}) == len(CYCLE) <= len(SYMBOLS)
    assert len({(group.colour, group.dash) for group in groups}) == len(CYCLE)
    assert len({group.dash for group in groups}) == len(DASHES)
