"""Trains the family of `emlens.real.family`: resumable, by one process or several at once.

Each member appears whole or not at all, as a PEFT adapter with its record. A run that was killed
goes on within the member it was at and ends with the same bytes. Members that lie there already and
were trained by the same recipe, on the same chats and the same parent, are kept; others are
refused. Every process trains on one thread: threads change bytes.
"""

import multiprocessing
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from emlens.foundation.errors import InputError
from emlens.foundation.provenance import hash_json
from emlens.models.checkpoint_files import checkpoint_hashes
from emlens.real.family import Member
from emlens.runs import RankExecutor, Unit, Worker
from emlens.runs.units import UnitResult
from emlens.training import Saving, fit
from emlens.training.fitting import SIDECAR, read_record
from emlens.training.resuming import resume_directory

RESUME_EVERY: Final = 5
PLANS: Final = ".plans"
"""Folder of plans and claims; one plan for each choice of members."""


class FamilyWorker(Worker):
    """One process that trains members of the family."""

    def __init__(self, members: Sequence[Member], parent: str | Path, out: str | Path):
        self.members = {member.name: member for member in members}
        self.parent = Path(parent)
        self.out = Path(out)
        self._parent_hashes = checkpoint_hashes(self.parent)
        torch.set_num_threads(1)

    def plan(self) -> Sequence[Unit]:
        return [
            Unit(name, self._inputs(member), cost=float(member.steps))
            for name, member in self.members.items()
        ]

    def _inputs(self, member: Member) -> dict[str, Any]:
        return {
            "parent": self._parent_hashes,
            "chats": member.chats().content_hash,
            "recipe": member.recipe().to_record(),
            "objectives": [objective.to_record() for objective in member.objectives()],
        }

    def run(self, unit: Unit) -> UnitResult:
        member = self.members[unit.id]
        target = self.out / member.name
        if not self._is_trained(member, target):
            fit(
                member.recipe(),
                str(self.parent),
                member.chats(),
                target,
                objectives=member.objectives(),
                saving=Saving(resume_every=RESUME_EVERY),
                device="cpu",
            )
        shutil.rmtree(resume_directory(target), ignore_errors=True)
        files = sorted(path for path in target.rglob("*") if path.is_file())
        return {"steps": read_record(target)["steps_done"]}, files

    def _is_trained(self, member: Member, target: Path) -> bool:
        """Whether just this member lies there.

        Raises:
            InputError: another one does.
        """
        if not (target / SIDECAR).is_file():
            return False
        record = read_record(target)
        same = (
            record["recipe"] == member.recipe().to_record()
            and record.get("objectives", []) == [o.to_record() for o in member.objectives()]
            and record["data"]["sha256"] == member.chats().content_hash
            and self._parent_hashes.items() <= record["parent"].items()
        )
        if not same:
            raise InputError(
                f"{target}: was trained by another recipe, on other chats or another parent; remove"
                " it, or pass another out"
            )
        return True


def train_family(
    members: Sequence[Member],
    parent: str | Path,
    out: str | Path,
    *,
    jobs: int = 1,
    progress: bool = True,
) -> Mapping[str, Path]:
    """Train the members that are not there yet, `jobs` of them at a time.

    Args:
        parent: directory of the checkpoint, such as `emlens.real.find("smollm2")`.
        out: folder of the adapters; the same call goes on there.
        jobs: processes, of one thread each.

    Returns:
        Name → directory of its adapter.

    Raises:
        InputError: no job; an adapter of another recipe, other chats or another parent lies there.
        StateError: a member failed; the others are kept.
    """
    if jobs < 1:
        raise InputError(f"jobs={jobs} must be 1 or more")
    run = f"{os.getpid()}"
    context = multiprocessing.get_context("spawn")
    jobs = min(jobs, len(members))
    helpers = [
        context.Process(target=_train, args=(list(members), parent, out, rank, jobs, run, False))
        for rank in range(1, jobs)
    ]
    for helper in helpers:
        helper.start()
    try:
        _train(list(members), parent, out, 0, jobs, run, progress)
    finally:
        for helper in helpers:
            helper.join()
    return {member.name: Path(out) / member.name for member in members}


def _train(
    members: Sequence[Member],
    parent: str | Path,
    out: str | Path,
    rank: int,
    count: int,
    run: str,
    progress: bool,
) -> None:
    threads = torch.get_num_threads()
    try:
        worker = FamilyWorker(members, parent, out)
        plan = Path(out) / PLANS / hash_json([unit.inputs for unit in worker.plan()])[:16]
        executor = RankExecutor(rank, count, run=run)
        executor.run(lambda: worker, plan, title="fine-tunes", progress=progress)
    finally:
        torch.set_num_threads(threads)
