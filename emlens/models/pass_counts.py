"""Counts of forward passes, for plans and for the record of a run.

A pass is one call of the model on one padded batch. Passes that draw answers, one for every token
in turn, are counted apart: how many there are is not known before. Counting adds a few integers a
pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any

_ACTIVE: ContextVar[tuple["PassCounts", ...]] = ContextVar("active counts", default=())


@dataclass
class PassCounts:
    """What models were made to read.

    Args:
        passes: calls of a model that reads prompts.
        tokens: read, without padding.
        padded_tokens: the same with padding; time goes with them.
        logit_tokens: padded tokens at which logits were computed.
        widest: padded tokens of the largest batch with logits.
        sampled_passes, sampled_tokens: passes and tokens of answers that are sampled; they are in
            none of the others.
    """

    passes: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    logit_tokens: int = 0
    widest: int = 0
    sampled_passes: int = 0
    sampled_tokens: int = 0

    def add(self, tokens: int, padded: int, logits: int) -> None:
        self.passes += 1
        self.tokens += tokens
        self.padded_tokens += padded
        self.logit_tokens += logits
        self.widest = max(self.widest, logits)

    def add_counts(self, other: "PassCounts") -> None:
        self.passes += other.passes
        self.tokens += other.tokens
        self.padded_tokens += other.padded_tokens
        self.logit_tokens += other.logit_tokens
        self.widest = max(self.widest, other.widest)
        self.sampled_passes += other.sampled_passes
        self.sampled_tokens += other.sampled_tokens

    def to_record(self) -> dict[str, Any]:
        return asdict(self)


@contextmanager
def counted_passes() -> Iterator[PassCounts]:
    """Count every pass inside the block, of all models; blocks can be nested."""
    counts = PassCounts()
    token = _ACTIVE.set((*_ACTIVE.get(), counts))
    try:
        yield counts
    finally:
        _ACTIVE.reset(token)


@contextmanager
def uncounted_passes() -> Iterator[None]:
    """Count no pass inside the block: what is proved once for a model is no part of a plan."""
    token = _ACTIVE.set(())
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def note_pass(tokens: int, padded: int, logits: int = 0) -> None:
    """A pass is about to run."""
    for counts in _ACTIVE.get():
        counts.add(tokens, padded, logits)


def note_sampling(tokens: int) -> None:
    """A pass that draws the next token of answers is about to run."""
    for counts in _ACTIVE.get():
        counts.sampled_passes += 1
        counts.sampled_tokens += tokens


def note_again(counted: PassCounts) -> None:
    """The passes that were counted before would run once more."""
    for counts in _ACTIVE.get():
        counts.add_counts(counted)
