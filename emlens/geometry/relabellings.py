"""All relabellings of rows, each once, or as many random ones as draws are asked for.

Two kinds: a sign per row (before and after exchanged), and which rows go into the first of two
sets. Both yield the observed labelling first, so that a null and its observed value come from one
pass.
"""

import math
from collections.abc import Iterator
from itertools import combinations, islice, product

import numpy as np
import torch
from torch import Tensor

from emlens.geometry.batched_bases import stacks

_COUNTABLE = 63
"""Bits of a signed integer: more patterns than 2**63 are reported as uncountable (None)."""


def sign_patterns(
    n: int, draws: int, *, fix_first: bool, rng: np.random.Generator
) -> tuple[Iterator[Tensor], int | None]:
    """Stacks (draw, n) of signs, the all-plus pattern first, and how many patterns there are.

    `fix_first`: the first sign stays +, for statistics that do not change when all rows turn round.
    All patterns come, each once, where that takes no more than `draws`.
    """
    free = n - fix_first
    if free >= _COUNTABLE:
        return _random_signs(n, draws, rng), None
    if 2**free - 1 <= draws:
        return _all_signs(n, free), 2**free
    return _random_signs(n, draws, rng), 2**free


def _all_signs(n: int, free: int) -> Iterator[Tensor]:
    # product() starts with its first factors: all plus, the observed pattern
    patterns = product(*[(1.0,)] * (n - free), *[(1.0, -1.0)] * free)
    for size in stacks(2**free, n):
        yield torch.tensor(list(islice(patterns, size)), dtype=torch.float64)


def _random_signs(n: int, draws: int, rng: np.random.Generator) -> Iterator[Tensor]:
    yield torch.ones(1, n, dtype=torch.float64)
    for size in stacks(draws, n):
        signs = rng.choice(np.array([-1.0, 1.0]), size=(size, n))
        yield torch.from_numpy(signs)


def first_sets(
    rows: int,
    n: int,
    draws: int,
    *,
    is_mirrored: bool,
    numbers: int,
    rng: np.random.Generator,
) -> tuple[Iterator[Tensor], int | None]:
    """Stacks (draw, n) of row numbers of the first set, and how many sets there are.

    The observed set, rows 0 to n − 1, comes first. All sets come, each once, where that takes no
    more than `draws`. `numbers` is how many float64s one draw needs (see `stacks`).

    Args:
        is_mirrored: exchanging the two sets changes no statistic. Then row 0 stays in the first set
            where both are equally large, or every division would come twice.
    """
    fixed = int(is_mirrored and 2 * n == rows)
    ways = math.comb(rows - fixed, n - fixed)
    if ways - 1 <= draws:
        return _all_sets(rows, n, fixed, ways, numbers), ways
    return _random_sets(rows, n, draws, numbers, rng), ways if ways < 2**_COUNTABLE else None


def _all_sets(rows: int, n: int, fixed: int, ways: int, numbers: int) -> Iterator[Tensor]:
    # combinations() is lexicographic: the first is 0 … n − 1, the observed set
    choices = combinations(range(fixed, rows), n - fixed)
    for size in stacks(ways, numbers):
        yield torch.tensor([(*range(fixed), *choice) for choice in islice(choices, size)])


def _random_sets(
    rows: int, n: int, draws: int, numbers: int, rng: np.random.Generator
) -> Iterator[Tensor]:
    yield torch.arange(n)[None]
    for size in stacks(draws, numbers):
        orders = rng.permuted(np.tile(np.arange(rows), (size, 1)), axis=1)
        yield torch.from_numpy(orders[:, :n].copy())
