"""A run of training belongs to one process, whatever started the process.

torchrun, Slurm, MPI and `accelerate launch` tell their processes by environment variables that they
are one training. The Trainer believes it and averages gradients over all of them, while each has a
run of its own: every run would then be another one, without a sign. `accelerate launch` also sets
precision and accumulation, which the Trainer takes over the recipe's. So all of these are hidden
while a run is trained.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from emlens.foundation.errors import StateError

LAUNCHER_VARIABLES: Final = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "PMI_RANK",
    "PMI_SIZE",
    "MPI_LOCALRANKID",
    "MPI_LOCALNRANKS",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MV2_COMM_WORLD_RANK",
    "MV2_COMM_WORLD_SIZE",
    "MV2_COMM_WORLD_LOCAL_RANK",
    "MV2_COMM_WORLD_LOCAL_SIZE",
)
"""What accelerate reads to find the other processes of a training."""
LAUNCHER_SETTINGS: Final = ("ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_")
"""Beginnings of the variables by which `accelerate launch` sets precision, accumulation and
parallelism: the Trainer obeys them, whatever the recipe says.
"""


@contextmanager
def one_process() -> Iterator[None]:
    """Hide what a launcher said, and put it back.

    Raises:
        StateError: this process has joined a group of `torch.distributed` already, which cannot be
            hidden.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        size = torch.distributed.get_world_size()
        if size > 1:
            raise StateError(
                f"this process belongs to a torch.distributed group of {size} processes, which"
                " would average the gradients of different runs; train before the group is made,"
                " or in a process without one"
            )
    hidden = {name: os.environ.pop(name) for name in _of_launchers()}
    try:
        yield
    finally:
        for name in _of_launchers():  # the Trainer sets some itself
            del os.environ[name]
        os.environ.update(hidden)


@contextmanager
def without_settings() -> Iterator[None]:
    """Hide the settings of a launcher that the Trainer would take over the recipe's, and put them
    back; who the other processes are stays known.
    """
    names = [name for name in os.environ if name.startswith(LAUNCHER_SETTINGS)]
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith(LAUNCHER_SETTINGS)]:
            del os.environ[name]
        os.environ.update(hidden)


def _of_launchers() -> list[str]:
    """The variables of launchers that are set now."""
    return [
        name
        for name in os.environ
        if name in LAUNCHER_VARIABLES or name.startswith(LAUNCHER_SETTINGS)
    ]
