from typing import Any

import numpy as np
import pytest

from emlens.foundation.errors import InputError
from emlens.probes.shuffles import shuffled_targets

QUESTIONS = [f"q{i}" for i in range(12)]
GROUPS = [f"g{i // 4}" for i in range(12)]
Y = np.arange(12.0) ** 2


def test_questions_are_dealt_among_all() -> None:
    draws = shuffled_targets(Y, QUESTIONS, GROUPS, "question", 200, 0)
    assert all(sorted(draw) == sorted(Y) for draw in draws)
    assert {float(draw[0]) for draw in draws} == set(Y)  # any score reaches any question


def test_within_groups_each_group_keeps_its_scores() -> None:
    draws = shuffled_targets(Y, QUESTIONS, GROUPS, "within", 50, 0)
    for draw in draws:
        for start in (0, 4, 8):
            assert sorted(draw[start : start + 4]) == sorted(Y[start : start + 4])
    assert len({tuple(draw) for draw in draws}) > 40


def test_groups_swap_their_means_and_questions_their_deviations() -> None:
    draws = shuffled_targets(Y, QUESTIONS, GROUPS, "group", 200, 0)
    means = np.array([Y[s : s + 4].mean() for s in (0, 4, 8)])
    orders = set()
    for draw in draws:
        found = np.array([draw[s : s + 4].mean() for s in (0, 4, 8)])
        np.testing.assert_allclose(sorted(found), sorted(means))
        orders.add(tuple(found.round(6)))
        for s, mean in zip((0, 4, 8), found, strict=True):
            np.testing.assert_allclose(
                sorted(draw[s : s + 4] - mean), sorted(Y[s : s + 4] - Y[s : s + 4].mean())
            )
    assert len(orders) == 6  # every order of three groups occurs


@pytest.mark.parametrize("unit", ["question", "within", "group"])
def test_phrasings_move_together(unit: Any) -> None:
    questions = [f"q{i // 2}" for i in range(12)]
    y = np.repeat(np.arange(6.0), 2) + np.tile([0.1, -0.1], 6)
    for draw in shuffled_targets(y, questions, [f"g{i // 6}" for i in range(12)], unit, 20, 0):
        # of whole questions, their forms keep their difference; of groups, the mean is moved
        apart = 0.2 if unit == "question" else 0.0
        assert draw[::2] - draw[1::2] == pytest.approx(apart)
        assert draw.sum() == pytest.approx(y.sum())


def test_one_seed_gives_one_null() -> None:
    one, two, other = (
        shuffled_targets(Y, QUESTIONS, GROUPS, "group", 5, seed) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("groups", "unit", "message"),
    [
        (GROUPS, "domain", "shuffle='domain' is unknown; pass one of question, within, group"),
        (["g"] * 12, "group", "shuffle='group' was given with one group; pass 'question'"),
        (QUESTIONS, "within", "shuffle='within' was given with groups of one question each"),
    ],
)
def test_what_cannot_be_shuffled_is_refused(
    groups: list[str], unit: Any, message: str, unchecked: None
) -> None:
    with pytest.raises(InputError, match=message):
        shuffled_targets(Y, QUESTIONS, groups, unit, 1, 0)


def test_a_question_of_two_groups_is_refused() -> None:
    with pytest.raises(
        InputError,
        match="a question is in two groups; shuffling by groups needs each question in one",
    ):
        shuffled_targets(Y[:2], ["q", "q"], ["a", "b"], "within", 1, 0)
