"""Which edits are in force on a model: blocks that live in the context of their caller.

A block is what one `with model.intervene(...)` opens. Blocks lie in one context variable
(PEP 567), so a thread or an asyncio task never sees a block that another opened; a task sees those
that were in force where it was created. A plain generator has no context of its own: it shares its
caller's. Each block leaves by identity, so blocks may end in any order. A block that is left in
another thread or task than the one that opened it (a generator that is closed elsewhere) ends
everywhere. Blocks hold no reference to a model, only a key, so a forgotten context keeps no weights
in memory.
"""

import asyncio
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.intervention import Intervention
from emlens.foundation.sites import Site


@dataclass(frozen=True, eq=False)
class SiteEdit:
    """An intervention and the sites it was resolved to."""

    intervention: Intervention
    sites: tuple[Site, ...]

    def describe(self) -> dict[str, Any]:
        return self.intervention.describe()


@dataclass(frozen=True, eq=False)
class ModuleUpdate:
    """A low-rank product added to what one module computes: output + (x Aᵀ) Bᵀ.

    Args:
        weight: the module's own weights, by which a backend finds the module that it runs.
    """

    path: str
    weight: Tensor
    a: Float[Tensor, "r d_in"]
    b: Float[Tensor, "d_out r"]

    def added(self, inputs: Tensor, output: Tensor) -> Tensor:
        return output + (inputs @ self.a.T) @ self.b.T


@dataclass(frozen=True, eq=False)
class ModuleUpdates:
    """Updates of several modules that belong together: one adapter.

    Args:
        record: what provenance says of it.
    """

    updates: tuple[ModuleUpdate, ...]
    record: dict[str, Any]

    def describe(self) -> dict[str, Any]:
        return self.record


ActiveEdit = SiteEdit | ModuleUpdates
_Place = tuple[int, Any]


def _current_place() -> _Place:
    """The running thread, and the running asyncio task in it."""
    task = None
    with suppress(RuntimeError):  # no event loop runs in this thread
        task = asyncio.current_task()
    return threading.get_ident(), task


class _Block:
    """Edits that one `with` block puts on one model."""

    def __init__(self, model: object, edits: tuple[ActiveEdit, ...], alone: bool):
        self.model, self.edits, self.alone = model, edits, alone
        self._opened_in = _current_place()
        self._is_left = False
        self._is_left_elsewhere = False

    def is_in_force(self, place: _Place) -> bool:
        """Whether passes at this place run under the block.

        A task that was created inside the block keeps it after its parent has left: the task may
        not even have started then. What runs in its thread outside of any task, such as a callback
        of the event loop, does not.
        """
        thread, _ = self._opened_in
        if place in (self._opened_in, (thread, None)):
            return not self._is_left
        return not self._is_left_elsewhere

    def leave(self) -> None:
        self._is_left = True
        self._is_left_elsewhere = _current_place() != self._opened_in


_BLOCKS: ContextVar[tuple[_Block, ...]] = ContextVar("emlens_edit_blocks", default=())


class EditBlocks:
    """The blocks of one model object."""

    def __init__(self) -> None:
        self._key = object()

    @property
    def active(self) -> tuple[ActiveEdit, ...]:
        """The edits in force where this is called, outermost block first."""
        blocks = _BLOCKS.get()
        if not blocks:
            return ()
        edits: tuple[ActiveEdit, ...] = ()
        place = _current_place()
        for block in blocks:
            if block.model is self._key and block.is_in_force(place):
                edits = block.edits if block.alone else edits + block.edits
        return edits

    @contextmanager
    def opened(self, edits: Iterable[ActiveEdit], *, alone: bool = False) -> Iterator[None]:
        """Put edits in force until the block is left.

        Args:
            alone: hide those of earlier blocks meanwhile.
        """
        block = _Block(self._key, tuple(edits), alone)
        _BLOCKS.set((*_BLOCKS.get(), block))
        try:
            yield
        finally:
            block.leave()
            place = _current_place()
            remaining = [other for other in _BLOCKS.get() if other.is_in_force(place)]
            _BLOCKS.set(tuple(remaining))


def resolved(
    interventions: Intervention | Iterable[Intervention], sites: Sequence[Site], d_model: int
) -> list[SiteEdit]:
    """Each intervention, or the only one, with the sites it acts on.

    Raises:
        InputError: neither an intervention nor a list of them, or one that matches none of the
            sites or has another width.
    """
    if isinstance(interventions, Intervention):
        interventions = [interventions]
    if not isinstance(interventions, Iterable):
        raise InputError(
            f"interventions is a {type(interventions).__name__};"
            " pass a list of emlens.ablate(...) or emlens.steer(...)"
        )
    edits = []
    for intervention in interventions:
        edits.append(SiteEdit(intervention, _targets(intervention, sites, d_model)))
    return edits


def _targets(intervention: Intervention, sites: Sequence[Site], d_model: int) -> tuple[Site, ...]:
    if not isinstance(intervention, Intervention):
        raise InputError(
            f"interventions holds a {type(intervention).__name__};"
            " pass a list of emlens.ablate(...) or emlens.steer(...)"
        )
    if intervention.d_model != d_model:
        raise InputError(
            f"interventions holds one whose vectors have {intervention.d_model} coordinates,"
            f" but the model's stream has {d_model}"
        )
    targets = tuple(intervention.targets(sites))
    for site in targets:
        if site.kind == "resid_mid":
            raise InputError(
                f"site {site} can be read but not edited;"
                " intervene on attn_out or resid_post instead"
            )
    return targets
