"""Work that leaves a trace: which process did which unit, and how often. Importable by the
processes that do it.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from emlens.runs import LocalExecutor, RankExecutor, Unit, Worker
from emlens.runs.units import UnitResult

LEASE = 3.0


@dataclass
class Counting(Worker):
    """Unit i writes its square into a file. What `plant` left in `out` goes wrong; where `out/meet`
    stands, work waits for a second worker.
    """

    out: Path
    units: int = 6
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.out.mkdir(exist_ok=True)
        self._trace("open", "")

    def plan(self) -> Sequence[Unit]:
        return [Unit(f"unit/{i}", {"i": i}, cost=1.0 + i) for i in range(self.units)]

    def run(self, unit: Unit) -> UnitResult:
        self._trace("begin", unit.id)
        i = unit.inputs["i"]
        path = self.out / f"square-{i}.txt"
        if self._due("kill", i):
            path.with_suffix(".half").write_text("ha")
            os.kill(os.getpid(), signal.SIGKILL)
        if (self.out / "meet").exists():
            # on a busy machine one could do it all before another starts
            until(lambda: len(trace(self.out, "open")) >= 2, 120)
        time.sleep(self.seconds)
        if self._due("fail", i):
            raise ValueError(f"planted failure of {i}")
        path.write_text(f"{i * i}\n")
        self._trace("end", unit.id)
        return {"value": i * i}, [path]

    def finish(self, answers: Mapping[str, Any]) -> UnitResult:
        self._trace("finish", "")
        path = self.out / "sum.txt"
        path.write_text(str(sum(answer["value"] for answer in answers.values())))
        return None, [path]

    def _due(self, what: str, i: int) -> bool:
        """Whether an accident planted by `plant` is still to happen; each happens once."""
        try:
            next(iter(sorted(self.out.glob(f"{what}-{i}-*")))).unlink()
        except (StopIteration, FileNotFoundError):
            return False
        return True

    def _trace(self, what: str, unit: str) -> None:
        with open(self.out / "trace", "a") as file:
            file.write(f"{what} {unit or '-'} {os.getpid()}\n")


def plant(out: Path, what: str, i: int, times: int = 1) -> None:
    out.mkdir(exist_ok=True)
    for number in range(times):
        (out / f"{what}-{i}-{number}").touch()


def trace(out: Path, what: str) -> list[tuple[str, int]]:
    """(unit, process) of every event of one kind, in order."""
    lines = [line.split() for line in (out / "trace").read_text().splitlines()]
    return [(unit, int(pid)) for kind, unit, pid in lines if kind == what]


def squares(out: Path, units: int = 6) -> bool:
    """Every result is there, whole, and the sum of the finish is right."""
    read = [(out / f"square-{i}.txt").read_text() for i in range(units)]
    return read == [f"{i * i}\n" for i in range(units)] and (out / "sum.txt").read_text() == str(
        sum(i * i for i in range(units))
    )


@dataclass(frozen=True)
class Opening:
    """Opens a `Counting` wherever it is called."""

    out: Path
    units: int = 6
    seconds: float = 0.0

    def __call__(self) -> Counting:
        return Counting(self.out, self.units, self.seconds)


def rank_main(directory: Path, opening: Callable[[], Worker], rank: int, count: int) -> None:
    RankExecutor(rank, count, run="test", lease=LEASE).run(opening, directory)


def local_main(directory: Path, opening: Callable[[], Worker]) -> None:
    try:
        # a shell's background jobs ignore it
        signal.signal(signal.SIGINT, signal.default_int_handler)
        LocalExecutor(lease=LEASE).run(opening, directory)
    except KeyboardInterrupt:
        sys.exit(130)


def start(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A real process, from a server that has imported emlens.runs once."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["emlens.runs"])
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "what the test waits for did not happen"
        time.sleep(0.01)
