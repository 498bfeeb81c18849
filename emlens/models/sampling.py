"""Sampling whose randomness belongs to the row, not to the batch.

One uniform number per row and token, from a generator seeded by the row's id, picks the token at
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
from emlens.models.finite import NotFiniteScores, first_unusable
from emlens.models.stops import Ends

_BLOCK = 64
_BELOW_ONE = 1 - 2.0**-50
"""Keeps a drawn sum below the whole sum after rounding; otherwise a token of probability 0 at the
end of the vocabulary could be picked.
"""


@dataclass(eq=False)
class Generated:
    """An answer's tokens, without the one that ended it, but with those of a text that ended it;
    `index` is the number of its row.
    """

    index: int
    tokens: list[int] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] = "length"

    @classmethod
    def cut(
        cls, index: int, tokens: Sequence[int], stops: Collection[int], ends: Ends
    ) -> "Generated":
        """An answer from tokens that may go on after what ends it.

        Args:
            stops: tokens that end it.
            ends: whether the text of tokens ends it.
        """
        for i, token in enumerate(tokens):
            if token in stops:
                return cls(index, list(tokens[:i]), "stop")
            if ends(index, tokens[: i + 1]):
                return cls(index, list(tokens[: i + 1]), "stop")
        return cls(index, list(tokens), "length")


class RowSampler:
    """Next tokens by temperature sampling, or the likeliest at temperature 0.

    Each row has a random generator of its own.
    """

    def __init__(self, seed: int, row_ids: Sequence[str], temperature: float):
        self._temperature = temperature
        self._generators: list[np.random.Generator] = []
        if temperature > 0:
            self._generators = [numpy_rng(seed, "generate", row) for row in row_ids]
        self._draws: list[np.ndarray] = [np.empty(0)] * len(self._generators)

    def pick(
        self, scores: Float[Tensor, "row vocab"], rows: Sequence[int], steps: Sequence[int]
    ) -> Int[Tensor, " row"]:
        """The token of each of `rows` at its own step (0-based), from its next-token scores."""
        if not self._generators:
            return scores.argmax(-1)
        draws = list(map(self._uniform, rows, steps))
        uniform = torch.tensor(draws, dtype=torch.float64) * _BELOW_ONE
        # float64: with 150,000 tokens a float32 sum loses the small probabilities
        sums = (scores.float() / self._temperature).softmax(-1).cumsum(-1, dtype=torch.float64)
        # relative to the last sum, which rounding keeps from being exactly 1
        drawn_sum = uniform.to(sums.device)[:, None] * sums[:, -1:]
        return torch.searchsorted(sums, drawn_sum, right=True)[:, 0]

    def _uniform(self, row: int, step: int) -> float:
        # in blocks of one size, so that the numbers of a row do not depend on who asks when
        while step >= len(self._draws[row]):
            self._draws[row] = np.append(self._draws[row], self._generators[row].random(_BLOCK))
        return float(self._draws[row][step])


class SampledScores:
    """The same sampling for a `generate` that takes the likeliest token.

    Gives scores under which only the sampled token is possible.
    """

    def __init__(self, sampler: RowSampler, rows: Sequence[int]):
        self._sampler, self._rows, self._step = sampler, list(rows), 0

    def __call__(
        self, ids: Int[Tensor, "row token"], scores: Float[Tensor, "row vocab"]
    ) -> Float[Tensor, "row vocab"]:
        row = first_unusable(scores)
        if row is not None:
            raise NotFiniteScores(self._rows[row], ids[row, ids.shape[1] - self._step :].tolist())
        tokens = self._sampler.pick(scores, self._rows, [self._step] * len(self._rows))
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens[:, None], 0.0)
