"""Scores dealt out anew, for nulls that repeat a whole forecast: which rows may change places is
what the null claims.

| unit | what is dealt | the null |
|---|---|---|
| `question` | scores among all questions | scores have nothing to do with questions |
| `within` | scores among the questions of a group | nothing is known beyond the group |
| `group` | groups' means among groups, deviations among a group's questions | neither which group
is high nor which question in it is known |

With groups held out and scores that cluster by group, dealing among all questions makes the null
too narrow; `group` keeps the clustering. It is exact where groups are of one size; elsewhere a
group's mean keeps the noise of its old size. Phrasings of one question move together and share the
question's mean.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from emlens.foundation.errors import InputError
from emlens.foundation.seeds import numpy_rng
from emlens.probes.ridge import Array

Unit = Literal["question", "within", "group"]


def shuffled_targets(
    target: Array,
    questions: Sequence[str],
    groups: Sequence[str],
    unit: Unit,
    count: int,
    seed: int,
) -> list[Array]:
    """`count` shuffles of a target, one value a row.

    Raises:
        InputError: an unknown unit, a question in two groups, one group only, or no group with two
            questions to swap.
    """
    if unit not in get_args(Unit):
        raise InputError(f"shuffle={unit!r} is unknown; pass one of {', '.join(get_args(Unit))}")
    names = sorted(set(questions))
    of = dict(zip(questions, groups, strict=True))
    if unit != "question" and any(of[q] != g for q, g in zip(questions, groups, strict=True)):
        raise InputError(
            "a question stands in two groups; shuffling by groups needs each question in one"
        )
    place = {name: i for i, name in enumerate(names)}
    row = np.array([place[q] for q in questions])
    means = np.bincount(row, weights=target) / np.bincount(row)
    member = {g: np.array([place[q] for q in names if of[q] == g]) for g in sorted(set(groups))}
    if unit == "group" and len(member) < 2:
        raise InputError("shuffle='group' came with one group; pass 'question'")
    if unit == "within" and all(len(rows) < 2 for rows in member.values()):
        raise InputError(
            "shuffle='within' came with groups of one question each, which leaves nothing to swap;"
            " pass 'question'"
        )
    rng = numpy_rng(seed, "shuffled scores")
    alone = len(names) == len(questions)
    found = []
    for _ in range(count):
        if unit == "question":
            found.append(rng.permutation(target) if alone else rng.permutation(means)[row])
            continue
        dealt = means.copy()
        for rows in member.values():
            dealt[rows] = rng.permutation(means[rows])
        if unit == "group":
            levels = [means[rows].mean() for rows in member.values()]
            for rows, old, new in zip(
                member.values(), levels, rng.permutation(levels), strict=True
            ):
                dealt[rows] += new - old
        found.append(dealt[row])
    return found
