"""A model in training, read as it is: hooks on the very module that is trained, no random number
drawn, no mode or flag left changed.

Refused: weights that are spread over processes, since a pass of one process would wait for the
others. Memory: the prompts' activations.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from emlens.activations.capture_plan import CapturePlan
from emlens.activations.capture_spec import CaptureSpec
from emlens.activations.reducing import Reduction
from emlens.data import Prompt
from emlens.foundation.errors import StateError
from emlens.foundation.sites import Site
from emlens.models.batches import Batch, pad
from emlens.models.live_module import live_module

if TYPE_CHECKING:
    from emlens.models.checkpoint import CheckpointModel


@dataclass(frozen=True, eq=False)
class LiveModel:
    """A model in training as it can be read.

    Everything that does not change between checks is worked out once.
    """

    inner: nn.Module
    model: "CheckpointModel"
    plan: CapturePlan
    batches: tuple[tuple[Batch, Reduction], ...]
    modules: tuple[nn.Module, ...]

    @classmethod
    def of(
        cls,
        inner: nn.Module,
        tokenizer: Any,
        chat_template: str | None,
        prompts: Sequence[Prompt],
        places: Sequence[tuple[str, str]],
    ) -> "LiveModel":
        """Plan the reading of these prompts at these (site, position) places.

        Raises:
            StateError: weights that are spread over processes.
        """
        live = live_module(inner, tokenizer, chat_template)
        spec = CaptureSpec(
            sites=sorted({site for site, _ in places}),
            positions=sorted({position for _, position in places}),
            batch_tokens=8192,
        )
        plan = CapturePlan.make({"live": live}, prompts, spec)
        batches = []
        for number in range(len(plan.layout.sizes)):
            for piece in plan.layout.pieces(number):
                rendered = [plan.rows.rendered(i) for i in piece]
                shared = plan.layout.shared_by(piece[0])
                batch = pad(rendered, piece, live.pad_id, "right", live.device, shared)
                batches.append((batch, Reduction(batch, plan.rows, plan.positions, None)))
        return cls(inner, live, plan, tuple(batches), tuple(inner.modules()))

    def read(self) -> dict[tuple[str, str], Tensor]:
        """(site, position) → activations, rows in the order of the prompts."""
        parts: dict[tuple[str, str], list[Tensor]] = {}
        order: list[int] = []

        def reader(site: Site, reduce: Reduction) -> Callable[[Tensor], None]:
            def keep(stream: Tensor) -> None:
                for position, rows in reduce(stream).items():
                    parts.setdefault((str(site), position), []).append(rows)

            return keep

        with _evaluating(self.modules):
            for batch, reduce in self.batches:
                self.model.run(batch, {site: reader(site, reduce) for site in self.plan.sites})
                order += batch.index
        back = torch.tensor(order).argsort()
        return {place: torch.cat(rows).cpu()[back] for place, rows in parts.items()}


@contextmanager
def _evaluating(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Without dropout inside; every module back in its own mode afterwards."""
    # set directly: `eval()` costs as much as the pass of a small model
    training = [module for module in modules if module.training]
    for module in training:
        module.__dict__["training"] = False
    try:
        yield
    finally:
        for module in training:
            module.__dict__["training"] = True


_SWITCHED_OFF: "WeakSet[nn.Module]" = WeakSet()
_LOCK = threading.Lock()


@contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """Without the adapter inside, where there is one; gradient flags as they were afterwards, also
    after an error.

    Raises:
        StateError: its adapter is off already: the first block to end would switch it on for both.
    """
    if not hasattr(model, "disable_adapter"):
        yield
        return
    with _LOCK:
        if model in _SWITCHED_OFF:
            raise StateError(
                "the model's adapter is switched off by another block already, which changes the"
                " model for everyone; wait until that block has ended"
            )
        _SWITCHED_OFF.add(model)
    # peft's `disable_adapter` changes requires_grad of the adapter's weights, and a trained run
    # must not notice that it was read
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with model.disable_adapter():
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        with _LOCK:
            _SWITCHED_OFF.discard(model)
