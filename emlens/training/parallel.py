"""One run of training over several processes: each takes its share of every batch, and gradients
are added up.

This is what `parallel: {kind: ddp}` asks for (DistributedDataParallel, through accelerate), and
`{kind: fsdp}`, which splits the weights too (`emlens.training.split_weights`). Without it a run
belongs to one process, whatever started the process (`emlens.training.launchers`). The rows of a
step are split over processes and parts as they are split over the parts of an accumulation, so that
losses and weights are those of one process with the same batch, but for the order of summation. The
first process writes.
"""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from emlens.data.configuration import Frozen
from emlens.foundation.errors import InputError, StateError
from emlens.training.objectives import Loss, Objective
from emlens.training.recipes import Recipe

_NEEDED: Final = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
"""What a launcher tells its processes."""


class Parallel(Frozen):
    """How several processes train one run.

    Args:
        kind: "ddp": every process holds the whole model. "fsdp": each holds a part of every weight.
    """

    kind: Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class Group:
    """The processes of one run, this one among them."""

    index: int
    count: int
    local: int
    splits: bool = False
    """Whether they split the weights."""

    @property
    def writes(self) -> bool:
        """Whether this is the process that writes."""
        return self.index == 0

    def device(self, device: str) -> str:
        """Its own GPU, where none is named."""
        if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
            return f"cuda:{self.local}"
        return device


@contextmanager
def joined(parallel: Parallel | None) -> Iterator[Group | None]:
    """The group of processes that a launcher started, left again at the end of the block; None
    where one process trains.

    Raises:
        InputError: the processes of no launcher are here.
        StateError: this process is in a group already.
    """
    if parallel is None:
        yield None
        return
    if not os.environ.keys() >= _NEEDED:
        raise InputError(
            f"parallel: kind {parallel.kind!r} needs several processes, and this one is alone;"
            " start with torchrun --nproc-per-node N, or accelerate launch --num_processes N"
        )
    if torch.distributed.is_initialized():
        raise StateError("this process is in a torch.distributed group already; train before it is")
    from accelerate.state import (  # type: ignore[import-untyped]
        AcceleratorState,
        GradientState,
        PartialState,
    )

    from emlens.training.launchers import without_settings

    # accelerate remembers for the whole process what it found at an earlier run of one process
    AcceleratorState._reset_state(True)
    with without_settings():
        state = PartialState(cpu=not torch.cuda.is_available(), **_meeting_place())
        try:
            yield Group(
                state.process_index,
                state.num_processes,
                state.local_process_index,
                splits=parallel.kind == "fsdp",
            )
            state.wait_for_everyone()
        finally:
            torch.distributed.destroy_process_group()
            AcceleratorState._reset_state(True)
            GradientState._reset_state()


@cache
def _store() -> tuple[Any, int, int]:
    """Where the processes of this launcher meet, with the number of this one and of all."""
    from torch.distributed.rendezvous import rendezvous

    store, index, count = next(rendezvous("env://"))
    return store, index, count


_meetings = itertools.count()


def _meeting_place() -> dict[str, Any]:
    """Arguments of `init_process_group` for one more group of the same processes.

    A second group under the keys of the first would read its addresses, and wait for ever.
    """
    from torch.distributed.distributed_c10d import PrefixStore

    store, index, count = _store()
    place = PrefixStore(f"run {next(_meetings)}", store)
    return {"store": place, "rank": index, "world_size": count}


def check_parallel(
    group: Group | None,
    recipe: Recipe,
    objectives: Sequence[Objective],
    resumes: bool,
    ready_batches: bool,
) -> None:
    """Refuse what several processes cannot do as one.

    Raises:
        InputError: names it, and what to do instead.
    """
    if group is None:
        return
    parts = group.count * recipe.accumulation
    reasons = {
        f"batch_size={recipe.batch_size} has fewer rows than {group.count} processes ×"
        f" accumulation={recipe.accumulation}": recipe.batch_size < parts,
        "optimiser 'sam' takes a second gradient, which would be that of one process": (
            recipe.optimiser == "sam"
        ),
        "objectives log terms of the whole batch, and a process has a part of it": bool(objectives),
        "resume_every keeps the random states of one process": resumes,
        "data comes as ready batches, which are not split": ready_batches,
    }
    for reason, found in reasons.items():
        if found:
            raise InputError(f"parallel: {reason}; leave it out, or train in one process")


class LossOfPart(nn.Module):
    """The loss of this process's part as a forward pass: what DistributedDataParallel wraps, and
    where FSDP puts weights together.

    Gradients are averaged over processes, so a part's share of the loss is taken times their
    number.
    """

    def __init__(self, module: nn.Module, loss: Loss, count: int):
        super().__init__()
        self.module = module
        self._loss = loss
        self.count = count

    def forward(self, batch: Mapping[str, Tensor], share: Tensor) -> Tensor:
        return self._loss(self.module, batch) * share * self.count
