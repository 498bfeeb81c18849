"""Does a fine-tune's own shift follow its scores? The mean shift of half of the questions, read on
the other half, tells questions below the median score from the others.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy.stats import rankdata

from emlens.activations import Activations
from emlens.foundation.seeds import numpy_rng
from emlens.stats import max_statistic_p
from emlens.stats.effects import rank_biserial
from emlens.studies.material import Material, split_questions

COLUMNS: Final = ("auroc", "auroc_low", "auroc_high", "auroc_null", "auroc_p_max")


Cell = tuple[str, str]
"""Site and position."""


def auroc_by_cell(
    material: Material,
    name: str,
    deltas: Activations,
    cells: Sequence[Cell],
    flips: int,
    seed: int,
) -> dict[Cell, dict[str, float]]:
    """Cell → AUROC with interval, the mean of its null, and p of the largest cell.

    The null permutes scores within domains. `nan` where a group has one question, where no draw of
    the null moves a score (two questions of each group leave one in the half that is read), and
    where no question lies below the median score; without an interval where one does.

    Args:
        deltas: of the questions outside the fine-tune's domain.
        flips: draws of the null.
    """
    outside = material.scored(material.outside(name), name)
    missing = dict.fromkeys(COLUMNS, np.nan)
    if min(outside.groups.count(group) for group in set(outside.groups)) < 2:
        return dict.fromkeys(cells, missing)
    first, second = (half.prompts().ids for half in split_questions(outside, (0.5, 0.5), seed))
    scores = material.per_question(name)
    scored = set(scores.index)
    values = scores[[_question(prompt, scored) for prompt in second]].to_numpy(dtype=float)
    # where more than half of the questions have the lowest score, none lies below the median
    if not (values < np.median(values)).any():
        return dict.fromkeys(cells, missing)
    directions, reading = deltas.select(first), deltas.select(second)
    orders = orders_within(reading.groups, flips, seed)
    if all(np.array_equal(values[order], values) for order in orders):
        return dict.fromkeys(cells, missing)
    along = []
    for cell in cells:
        direction = directions[cell].double().mean(0)
        along.append((reading[cell].double() @ direction).numpy())
    ranks = [rankdata(projections) for projections in along]
    observed = _areas(values, ranks)
    null = np.array([_areas(values[order], ranks) for order in orders])
    # p of the largest cell: the grid is searched, so each cell meets the null of the maximum
    corrected = max_statistic_p(observed, null)
    columns = {}
    for number, cell in enumerate(cells):
        low, high = _interval(values, along[number])
        columns[cell] = {
            "auroc": float(observed[number]),
            "auroc_low": low,
            "auroc_high": high,
            "auroc_null": float(null[:, number].mean()),
            "auroc_p_max": float(corrected[number]),
        }
    return columns


def _interval(scores: np.ndarray, along: np.ndarray) -> tuple[float, float]:
    below = scores < np.median(scores)
    if min(below.sum(), (~below).sum()) < 2:
        return np.nan, np.nan
    # the rank-biserial correlation is 2 AUROC − 1
    r = rank_biserial(along[below], along[~below])
    return (r.low + 1) / 2, (r.high + 1) / 2


def _areas(scores: np.ndarray, ranks: Sequence[np.ndarray]) -> np.ndarray:
    """`area` of one set of scores in every cell."""
    return np.array([area(scores, cell) for cell in ranks])


def area(scores: np.ndarray, ranks: np.ndarray) -> float:
    """P(a question below the median score has the higher rank than one that is not), ties half."""
    below = scores < np.median(scores)
    if not below.any() or below.all():
        return 0.5
    # Mann–Whitney: the rank sum, less its smallest possible value, over the number of pairs
    count = int(below.sum())
    pairs = count * (len(scores) - count)
    return float((ranks[below].sum() - count * (count + 1) / 2) / pairs)


def orders_within(groups: Sequence[str], draws: int, seed: int) -> list[np.ndarray]:
    """Orders in which rows change places within their group only."""
    labels, rng = np.array(groups), numpy_rng(seed, "scores within domains")
    orders = []
    for _ in range(draws):
        order = np.arange(len(labels))
        for group in sorted(set(groups)):
            members = np.flatnonzero(labels == group)
            order[members] = rng.permutation(members)
        orders.append(order)
    return orders


def _question(prompt: str, questions: set[str]) -> str:
    """The question of a prompt's id (`qid`, or `qid/p2` for a paraphrase)."""
    return prompt if prompt in questions else prompt.rpartition("/p")[0]
