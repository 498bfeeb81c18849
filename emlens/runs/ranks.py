"""Which of several processes this is, from the environment that torchrun or Slurm set.

A Slurm array multiplies with the tasks of `srun` or the processes of torchrun inside it: rank =
array index × processes of a task + the process. A run's name is shared by processes that were
started together and is new when they are started again; retries are counted within it.
"""

import os
import platform
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from emlens.foundation.errors import InputError
from emlens.runs.unit_claims import birth


@dataclass(frozen=True)
class Rank:
    """Process `index` of `count`; `local` counts within the machine."""

    index: int
    count: int
    local: int
    run: str


def rank_from_environment(
    environment: Mapping[str, str] | None = None, needed: bool = True
) -> Rank:
    """Read `RANK`, `WORLD_SIZE`, `LOCAL_RANK` (torchrun) and `SLURM_ARRAY_TASK_*`, `SLURM_PROCID`,
    `SLURM_NTASKS` (Slurm).

    Raises:
        InputError: none of them is set and `needed`; or they contradict each other.
    """
    if environment is None:
        environment = os.environ
    number = _Numbers(environment)
    if "RANK" in environment or "WORLD_SIZE" in environment:
        inner, inner_count = number("RANK"), number("WORLD_SIZE")
    else:
        inner, inner_count = number("SLURM_PROCID", 0), number("SLURM_NTASKS", 1)
    task, tasks = 0, 1
    if "SLURM_ARRAY_TASK_ID" in environment:
        offset = number("SLURM_ARRAY_TASK_ID") - number("SLURM_ARRAY_TASK_MIN", 0)
        task = offset // max(1, number("SLURM_ARRAY_TASK_STEP", 1))
        tasks = number("SLURM_ARRAY_TASK_COUNT")
    elif needed and not {"RANK", "SLURM_PROCID"} & environment.keys():
        raise InputError(
            "no rank in the environment: start with torchrun or Slurm, pass rank= and count=,"
            " or use LocalExecutor"
        )
    index, count = task * inner_count + inner, tasks * inner_count
    if not 0 <= index < count:
        raise InputError(
            f"the environment says rank {index} of {count}; the rank must lie below the count"
        )
    local = number("LOCAL_RANK", number("SLURM_LOCALID", 0))
    return Rank(index, count, local, _run_name(environment))


class _Numbers:
    def __init__(self, environment: Mapping[str, str]):
        self._environment = environment

    def __call__(self, name: str, default: int | None = None) -> int:
        text = self._environment.get(name)
        if text is None and default is not None:
            return default
        try:
            return int(text or "")
        except ValueError:
            problem = "is missing" if text is None else f"is {text!r}, not a number"
            raise InputError(
                f"{name} {problem}; start all ranks with torchrun or Slurm,"
                " or pass rank= and count="
            ) from None


def _run_name(environment: Mapping[str, str]) -> str:
    """torchrun: its agent on this machine and its restart; Slurm: the array or the job step; else
    this process alone.

    Ids that a person chooses, such as torchrun's `--rdzv-id`, are left out: used again, they would
    bring back old failures.
    """
    restart = environment.get("SLURM_RESTART_COUNT", "0")
    if "TORCHELASTIC_RUN_ID" in environment:
        agent = os.getppid()
        return (
            f"torchrun {platform.node()} {agent} {birth(agent)}"
            f" {environment.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        )
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"slurm array {environment['SLURM_ARRAY_JOB_ID']} {restart}"
    if "SLURM_JOB_ID" in environment and "SLURM_STEP_ID" in environment:
        return f"slurm {environment['SLURM_JOB_ID']}.{environment['SLURM_STEP_ID']} {restart}"
    return uuid.uuid4().hex
