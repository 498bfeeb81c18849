"""Sampling whose randomness belongs to the row, not to the batch.

One uniform number a row and token, from a generator seeded by the row's id, picks the token at
which the cumulative probability passes it (inverse transform). That is one number where noise for
every token of a vocabulary would be 150,000.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from emlens.foundation.seeds import numpy_rng

_BLOCK = 64
_BELOW_ONE = 1 - 2.0**-50
"""Keeps the sought sum below the whole one after rounding, so that no token of probability 0 behind
it is picked.
"""


@dataclass(eq=False)
class Generated:
    """An answer's tokens, without the one that ended it. `index` is where its row stood among those
    given.
    """

    index: int
    tokens: list[int] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] = "length"

    @classmethod
    def cut(cls, index: int, tokens: Sequence[int], stops: Collection[int]) -> "Generated":
        """An answer from tokens that may go on after the first that ends it."""
        end = next((i for i, token in enumerate(tokens) if token in stops), None)
        return cls(index, list(tokens[:end]), "length" if end is None else "stop")


class RowSampler:
    """Next tokens by temperature sampling, or the likeliest at temperature 0; row i draws from its
    own stream.
    """

    def __init__(self, seed: int, row_ids: Sequence[str], temperature: float):
        self._temperature = temperature
        self._generators = (
            [numpy_rng(seed, "generate", row) for row in row_ids] if temperature > 0 else []
        )
        self._drawn: list[np.ndarray] = [np.empty(0)] * len(self._generators)

    def pick(
        self, scores: Float[Tensor, "row vocab"], rows: Sequence[int], steps: Sequence[int]
    ) -> Int[Tensor, " row"]:
        """The token of each of `rows` at its own step (0-based), from its next-token scores."""
        if not self._generators:
            return scores.argmax(-1)
        uniform = torch.tensor(
            [self._uniform(row, step) for row, step in zip(rows, steps, strict=True)],
            dtype=torch.float64,
        )
        sums = (scores.float() / self._temperature).softmax(-1).cumsum(-1, dtype=torch.float64)
        sought = (uniform * _BELOW_ONE).to(sums.device)[:, None] * sums[:, -1:]
        return torch.searchsorted(sums, sought, right=True)[:, 0]

    def _uniform(self, row: int, step: int) -> float:
        while step >= len(self._drawn[row]):
            self._drawn[row] = np.append(self._drawn[row], self._generators[row].random(_BLOCK))
        return float(self._drawn[row][step])


class SampledScores:
    """The same sampling for a `generate` that takes the likeliest token: scores that leave only the
    sampled one.
    """

    def __init__(self, sampler: RowSampler, rows: Sequence[int]):
        self._sampler, self._rows, self._step = sampler, list(rows), 0

    def __call__(
        self, ids: Int[Tensor, "row token"], scores: Float[Tensor, "row vocab"]
    ) -> Float[Tensor, "row vocab"]:
        tokens = self._sampler.pick(scores, self._rows, [self._step] * len(self._rows))
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens[:, None], 0.0)
