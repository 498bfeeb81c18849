"""Sampling whose randomness belongs to the row, not to the batch."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from emlens.foundation.seeds import torch_rng


class GumbelRows:
    """Next-token scores / temperature + Gumbel noise, one generator a row: greedy decoding of the result is sampling."""

    def __init__(self, seed: int, row_ids: Sequence[str], temperature: float):
        self._generators = [torch_rng(seed, "generate", row) for row in row_ids]
        self._temperature = temperature

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        uniform = torch.stack([torch.rand(scores.shape[-1], generator=g, dtype=torch.float64) for g in self._generators])
        noise = -torch.log(-torch.log(uniform.clamp(1e-300, 1 - 1e-16)))
        return scores.double() / self._temperature + noise.to(scores.device)


def clean_tokens(tokens: Sequence[int], stops: Collection[int]) -> list[int]:
    """The new tokens up to the first that ends an answer."""
    kept: list[int] = []
    for token in tokens:
        if token in stops:
            break
        kept.append(token)
    return kept
