"""Shuffled scores, for nulls that repeat a whole forecast: which rows may change places is what the
null claims.

* `question`: scores among all questions. The null: scores have nothing to do with questions.
* `within`: scores among the questions of a group. The null: nothing is known beyond the group.
* `group`: means of groups among groups, and deviations among a group's questions. The null: neither
  which group is high nor which question in it is known.

With groups held out and scores that cluster by group, shuffling among all questions makes the null
too narrow; `group` keeps the clustering. It is exact where groups are of one size; elsewhere a
group's mean keeps the noise of its old size. Paraphrases of one question move together and share
the question's mean.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from emlens.foundation.errors import InputError
from emlens.foundation.seeds import numpy_rng
from emlens.probes.ridge import Array

Shuffle = Literal["question", "within", "group"]


LEAST_DRAWS: Final = 200
"""Shuffles for one p-value."""


def draws_for(tests: int, level: float = 0.05) -> int:
    """Shuffles with which each of `tests` p-values can pass Holm's correction.

    With the +1 rule p is at least 1 / (1 + draws), and Holm multiplies the smallest by the number
    of tests. So that p with one shuffle beyond the measured value still passes,
    2 · tests / (1 + draws) ≤ level.
    """
    return max(LEAST_DRAWS, math.ceil(round(2 * tests / level, 6)) - 1)


def shuffled_targets(
    target: Array,
    questions: Sequence[str],
    groups: Sequence[str],
    shuffle: Shuffle,
    count: int,
    seed: int,
) -> list[Array]:
    """`count` shuffles of a target, one value per row.

    Raises:
        InputError: an unknown kind of shuffle, a question in two groups, one group only, or no
            group with two questions to swap.
    """
    if shuffle not in get_args(Shuffle):
        raise InputError(
            f"shuffle={shuffle!r} is unknown; pass one of {', '.join(get_args(Shuffle))}",
            name=shuffle,
            known=get_args(Shuffle),
        )
    names = sorted(set(questions))
    number = {name: i for i, name in enumerate(names)}
    row = np.array([number[question] for question in questions])
    means = np.bincount(row, weights=target) / np.bincount(row)
    rng = numpy_rng(seed, "shuffled scores")
    if shuffle == "question":
        if len(names) == len(questions):
            return [rng.permutation(target) for _ in range(count)]
        blocks = _equal_blocks(row, len(names))
        if blocks is not None:
            return [_moved_blocks(target, blocks, rng) for _ in range(count)]
        return [rng.permutation(means)[row] for _ in range(count)]
    members = _questions_of_groups(number, questions, groups)
    _require_swaps(members, shuffle)
    moves_groups = shuffle == "group"
    return [_shuffled_by_group(means, members, moves_groups, rng)[row] for _ in range(count)]


def _equal_blocks(row: NDArray[np.int64], count: int) -> NDArray[np.int64] | None:
    """(question, form) → row, where every question has as many rows; None where they differ."""
    sizes = np.bincount(row, minlength=count)
    if np.ptp(sizes):
        return None
    return np.argsort(row, kind="stable").reshape(count, -1)


def _moved_blocks(target: Array, blocks: NDArray[np.int64], rng: np.random.Generator) -> Array:
    """The scores of each question's forms, in their order, moved to another question."""
    shuffled = np.empty_like(target)
    shuffled[blocks] = target[blocks][rng.permutation(len(blocks))]
    return shuffled


def _shuffled_by_group(
    means: Array,
    members: Sequence[NDArray[np.int64]],
    moves_groups: bool,
    rng: np.random.Generator,
) -> Array:
    """Question means shuffled inside each group, and the groups' levels among groups on demand."""
    shuffled = means.copy()
    for rows in members:
        shuffled[rows] = rng.permutation(means[rows])
    if moves_groups:
        levels = [means[rows].mean() for rows in members]
        for rows, old, new in zip(members, levels, rng.permutation(levels), strict=True):
            shuffled[rows] += new - old
    return shuffled


def _questions_of_groups(
    number: Mapping[str, int], questions: Sequence[str], groups: Sequence[str]
) -> list[NDArray[np.int64]]:
    """Numbers of each group's questions, groups and questions in sorted order."""
    group_of = dict(zip(questions, groups, strict=True))
    if any(group_of[q] != g for q, g in zip(questions, groups, strict=True)):
        raise InputError(
            "a question is in two groups; shuffling by groups needs each question in one"
        )
    members: dict[str, list[int]] = {group: [] for group in sorted(set(groups))}
    for name, i in number.items():
        members[group_of[name]].append(i)
    return [np.array(rows) for rows in members.values()]


def _require_swaps(members: Sequence[NDArray[np.int64]], shuffle: Shuffle) -> None:
    if shuffle == "group" and len(members) < 2:
        raise InputError("shuffle='group' was given with one group; pass 'question'")
    if shuffle == "within" and all(len(rows) < 2 for rows in members):
        raise InputError(
            "shuffle='within' was given with groups of one question each, which leaves nothing to"
            " swap; pass 'question'"
        )
