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
_TOKENS_OF_BLOCK = 256
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
        wide = scores.float()
        if self._temperature != 1:
            wide = wide / self._temperature
        return _token_at(wide.softmax(-1), uniform.to(wide.device))

    def _uniform(self, row: int, step: int) -> float:
        # in blocks of one size, so that the numbers of a row do not depend on who asks when
        while step >= len(self._draws[row]):
            self._draws[row] = np.append(self._draws[row], self._generators[row].random(_BLOCK))
        return float(self._draws[row][step])


def _token_at(
    probabilities: Float[Tensor, "row vocab"], uniform: Float[Tensor, " row"]
) -> Int[Tensor, " row"]:
    """The token at which the cumulative probability passes a number, relative to the whole sum.

    Found in two steps, first its block of tokens, then the token in it: one pass over the
    vocabulary in float32. Over blocks, sums are float64: with 150,000 tokens a float32 sum loses
    the small probabilities.
    """
    short = -probabilities.shape[-1] % _TOKENS_OF_BLOCK
    if short:
        probabilities = torch.nn.functional.pad(probabilities, (0, short))
    blocks = probabilities.unflatten(-1, (-1, _TOKENS_OF_BLOCK))
    sums = blocks.sum(-1).cumsum(-1, dtype=torch.float64)
    drawn = uniform[:, None] * sums[:, -1:]
    block = torch.searchsorted(sums, drawn, right=True)
    mass_before = torch.nn.functional.pad(sums, (1, 0)).gather(-1, block)
    mass = sums.gather(-1, block) - mass_before
    row = torch.arange(len(blocks), device=blocks.device)
    inside = blocks[row, block[:, 0]].cumsum(-1, dtype=torch.float64)
    # a block's own sum is rounded otherwise than its float64 one, so the place in it is a share
    share = ((drawn - mass_before) / mass).clamp(max=_BELOW_ONE)
    token = torch.searchsorted(inside, share * inside[:, -1:], right=True)
    return (block * _TOKENS_OF_BLOCK + token)[:, 0]


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
