"""Penalties that hold a model to what it was before the run: its answers elsewhere, or its
features.

The reference is the model with its adapter off (one more pass without gradients), or, in full
fine-tuning, a frozen copy. Neither rows nor tokens of padding count.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from emlens.data.prompts import PromptSet
from emlens.foundation.errors import InputError
from emlens.models.counted_logits import counted_logits
from emlens.training.examples import IGNORED
from emlens.training.objectives import Penalty, Reference, divergence, labels_of_next_tokens
from emlens.training.schedules import require_count
from emlens.training.streams import blocks_of, read


@dataclass(frozen=True)
class ReferenceKL(Penalty):
    """λ · KL(reference ‖ model) of the next token, mean over the answer tokens of `rows` chats
    per step; nats per token.

    Args:
        chats: chats with answers from outside the training domain; None: the chats that are trained
            on.
        weight: λ. The released narrow-solution code divides KL by the vocabulary size: its λ
            divided by that is this one.

    Raises:
        InputError: a weight that is not positive; rows below 1.

    Method: 2508.06249 (λ = .1); as the narrow solution, 2602.07852.
    """

    kind: ClassVar[str] = "reference_kl"
    unit: ClassVar[Literal["token", "row"]] = "token"
    chats: PromptSet | None
    weight: float
    rows: int = 32

    def __post_init__(self) -> None:
        require_positive("weight", self.weight)
        require_count("rows", self.rows, 1)

    def measure(
        self, model: Any, reference: Reference, inputs: Mapping[str, Tensor], labels: Tensor
    ) -> Tensor:
        counted = labels_of_next_tokens(labels) != IGNORED
        before = reference.run(model, lambda m: counted_logits(m, dict(inputs), counted))
        return divergence(before, counted_logits(model, dict(inputs), counted))

    def to_record(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "weight": self.weight,
            "rows": self.rows,
            "chats": _hash(self.chats),
        }


@dataclass(frozen=True)
class FeatureDistance(Penalty):
    """λ · mean of ‖h − h₀‖² / ‖h₀‖² over chosen blocks, tokens and rows: h the stream after a
    block, h₀ the reference's.

    Args:
        chats: None: the rows that are trained on, as in the paper; or chats of their own, `rows` of
            them per step.
        weight: λ; the distance has no unit, since each token's is divided by its own length (a few
            tokens are huge).
        every: the blocks every − 1, 2·every − 1, ... and the last; not read where `blocks` are
            given.
        blocks: 0-based blocks.

    Raises:
        InputError: a weight that is not positive; rows or every below 1; a block the model lacks.

    Method: LDIFS, Mukhoti et al. 2308.13320, every five layers as in 2508.06249; divided by the
    length here, so λ is not theirs.
    """

    kind: ClassVar[str] = "feature_distance"
    unit: ClassVar[Literal["token", "row"]] = "row"
    weight: float
    chats: PromptSet | None = None
    rows: int = 32
    every: int = 5
    blocks: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        require_positive("weight", self.weight)
        require_count("rows", self.rows, 1)
        require_count("every", self.every, 1)

    def measure(
        self, model: Any, reference: Reference, inputs: Mapping[str, Tensor], labels: Tensor
    ) -> Tensor:
        layers = self._layers(len(blocks_of(model)))
        before = reference.run(model, lambda m: self._features(m, inputs, layers))
        now = self._features(model, inputs, layers)
        mask = inputs["attention_mask"].to(now[0].dtype)
        gaps = []
        for h, h0 in zip(now, before, strict=True):
            gaps.append((h - h0).square().sum(-1) / h0.square().sum(-1))
        # Mean over the tokens of a row first, so that each row weighs the same.
        return ((torch.stack(gaps) * mask).sum(-1) / mask.sum(-1)).mean()

    def _layers(self, count: int) -> list[int]:
        if self.blocks is None:
            return sorted({*range(self.every - 1, count, self.every), count - 1})
        if not self.blocks or not all(0 <= block < count for block in self.blocks):
            raise InputError(
                f"blocks={self.blocks} must name blocks of the model, 0 to {count - 1}"
            )
        return sorted(set(self.blocks))

    @staticmethod
    def _features(model: Any, inputs: Mapping[str, Tensor], layers: Sequence[int]) -> list[Tensor]:
        with read(model, layers) as streams:
            model(**inputs)
        return streams

    def to_record(self) -> dict[str, Any]:
        blocks = None if self.blocks is None else list(self.blocks)
        return {
            "kind": self.kind,
            "weight": self.weight,
            "rows": self.rows,
            "chats": _hash(self.chats),
            "every": self.every,
            "blocks": blocks,
        }


def _hash(chats: PromptSet | None) -> str | None:
    return None if chats is None else chats.content_hash


def require_positive(name: str, value: float) -> None:
    """Refuse what is not a finite number above 0.

    Raises:
        InputError: names the argument and what was given.
    """
    if isinstance(value, str) or not 0.0 < value < math.inf:
        raise InputError(f"{name}={value!r} must be a finite number above 0")
