"""Captures that are asked for once more are not run once more.

A part of a study reads the same prompts of the same model in several places: the parent before
every fine-tune, the benign fine-tune beside every other. Inside `keeping_captures` such a capture
is taken from memory. The same means: the model as it is, without an active edit and with no weight
changed since; prompts, sites, positions, batches and dtypes; the thread count. Captures that had to
be cut are not kept, since another model would run other batches.

Those of the study's own models also last: they are on disk for the other parts
(`emlens.activations.stored_captures`).
"""

import copy
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from emlens.activations.capture_spec import CaptureSpec
from emlens.activations.memory import Activations
from emlens.activations.store import ActivationStore
from emlens.activations.stored_captures import StoredCaptures
from emlens.data.prompts import PromptSet
from emlens.foundation.positions import Chosen
from emlens.foundation.provenance import hash_json
from emlens.models.hooked import HookedModel

MOST_VECTORS = 200_000
"""Kept at most, of all captures together: 2 GB of a 14B model in 16 bits."""


@dataclass(eq=False)
class KeptCaptures:
    """What was captured inside a block, the newest last.

    Args:
        most: vectors that are kept; older captures are forgotten first.
        lasting: where captures of a study's own models last beyond the block; None: nowhere.
    """

    most: int = field(default_factory=lambda: MOST_VECTORS)
    lasting: StoredCaptures | None = None
    _captures: OrderedDict[Hashable, tuple["weakref.ref[Any]", Activations, int]] = field(
        default_factory=OrderedDict
    )

    def get(self, key: Hashable, model: HookedModel) -> Activations | None:
        """The capture under a key, if it is of this very model."""
        owner, activations, _ = self._captures.get(key, (None, None, 0))
        if owner is None or owner() is not _owner(model):
            return None
        self._captures.move_to_end(key)
        return activations

    def add(self, key: Hashable | None, model: HookedModel, activations: Activations) -> None:
        """Keep a capture that was not cut, and forget the oldest ones that no longer fit."""
        if key is None or activations.provenance.get("replanned"):
            return
        self._captures[key] = weakref.ref(_owner(model)), activations, _vectors(activations)
        while sum(vectors for _, _, vectors in self._captures.values()) > self.most:
            self._captures.popitem(last=False)


_ACTIVE: ContextVar[KeptCaptures | None] = ContextVar("kept captures", default=None)


@contextmanager
def keeping_captures(lasting: StoredCaptures | None = None) -> Iterator[None]:
    """Inside, a capture in memory that was made before is not made again.

    Args:
        lasting: captures that were made outside, too.
    """
    token = _ACTIVE.set(KeptCaptures(lasting=lasting))
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def active_captures() -> KeptCaptures | None:
    """Those of the innermost block; None outside."""
    return _ACTIVE.get()


def capture_key(
    model: HookedModel, prompts: PromptSet, spec: CaptureSpec, alike: bool
) -> Hashable | None:
    """What decides a capture; None where it cannot be said.

    Args:
        alike: whether all models of the capture can share first tokens.
    """
    chooses = any(isinstance(position, Chosen) for position in spec.parsed_positions)
    if model.edit_blocks.active or chooses:
        return None
    filled = spec.filled()
    return (
        id(_owner(model)),
        getattr(model, "adapter_name", None),
        model.name,
        id(model.tokenizer),
        model.chat_template,
        hash_json(model.provenance),
        model.weight_versions(),
        prompts.content_hash,
        _text(filled.sites),
        _text(filled.layers),
        tuple(position.name for position in filled.parsed_positions),
        filled.batch_tokens,
        filled.dtype,
        filled.compute_dtype,
        filled.shared_prefixes and alike,
        torch.get_num_threads(),
    )


def _text(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, tuple | list):
        return tuple(map(str, value))
    return str(value)


def of_alone(spec: CaptureSpec, alike: bool) -> CaptureSpec:
    """The spec by which some models of a capture run the batches that all of them would."""
    return replace(spec, shared_prefixes=spec.shared_prefixes and alike)


def copied(activations: Activations) -> Activations:
    """The same values in a record of its own."""
    record = copy.copy(activations)
    record.provenance = dict(activations.provenance)
    return record


def _owner(model: HookedModel) -> Any:
    """What holds the weights; it is not kept alive."""
    return getattr(model, "module", model)


def _vectors(activations: Activations) -> int:
    """In memory: what lies on disk is mapped."""
    if isinstance(activations, ActivationStore):
        return 0
    return sum(len(activations.value(key)) for key in activations.keys)
