"""A capture into stores as a job: planned once, its shards run in any process and any order,
finished when all stand.

A unit is one shard of one model's side. Running it is idempotent: a shard that stands as its
checksums say is left alone. A shard is written under a temporary name and published by rename, its
sidecar after it. A batch that does not fit into memory is cut; the cut is written beside the plan
of every side, and shards of other sides that ran that batch whole count as missing again, so that
all sides end on identical batches.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emlens.activations.batch_layout import BatchLayout
from emlens.activations.capture_facts import capture_facts, check_process
from emlens.activations.capture_output import MemorySide, StoreSide
from emlens.activations.planfile import begin_store, open_plan, plan_record
from emlens.activations.reading import Reading, read_shard
from emlens.activations.record import Activations
from emlens.activations.shards import shard_path
from emlens.foundation.errors import InputError, IntegrityError, StateError, UnknownNameError
from emlens.models.hooked import HookedModel
from emlens.runs.locks import exclusive, shared

Advance = Callable[[], Any]
logger = logging.getLogger("emlens")
_PATIENCE = 1.0  # seconds
_BUSY = "another process is capturing into this store; wait for it, or pass another directory"


@dataclass(frozen=True)
class CaptureUnit:
    """One shard of one model's side of a capture."""

    model: str
    shard: int

    @property
    def id(self) -> str:
        return f"{self.model}/shard-{self.shard:05d}"


class CaptureJob:
    """One reading for one or several models, each side into a store of its own.

    `CaptureJob.plan` writes the plan (or finds it), `CaptureJob.open` needs nothing but the
    directories; then `run(unit, model)` for every unit, in any process and order, and `finish`
    once.
    """

    def __init__(self, reading: Reading, sides: Mapping[str, StoreSide | MemorySide]):
        self.reading = reading
        self._sides = dict(sides)
        self._cuts: dict[int, int] = {}
        self._alone = False

    @classmethod
    def plan(
        cls,
        models: Mapping[str, HookedModel],
        reading: Reading,
        *,
        stores: Mapping[str, str | Path],
        prompts_sha256: str = "",
    ) -> "CaptureJob":
        """Write the plan of a reading into the stores; sides without one are kept in memory.

        Raises:
            InputError: a store for no model, or one directory for several.
            IntegrityError: a directory that holds something else, or a store of another plan.
        """
        unknown = sorted(set(stores) - set(models))
        if unknown:
            raise InputError(
                f"stores names {unknown[0]!r}, which is not among the models {', '.join(models)}"
            )
        if len({Path(path).resolve() for path in stores.values()}) != len(stores):
            raise InputError("stores gives one directory to several models; pass one for each")
        sides: dict[str, StoreSide | MemorySide] = {}
        for name, model in models.items():
            facts = capture_facts(model, reading, prompts_sha256)
            if name not in stores:
                sides[name] = MemorySide(reading, facts)
                continue
            plan, rows = plan_record(reading, facts)
            directory = Path(stores[name])
            if not directory.exists():
                directory.mkdir(parents=True, exist_ok=True)
            # a file is refused inside
            with _lock(directory, alone=False) if directory.is_dir() else nullcontext():
                sides[name] = StoreSide(directory, plan, begin_store(directory, plan, rows))
            _sweep(directory)
        return cls(reading, sides)

    @classmethod
    def open(cls, stores: Mapping[str, str | Path]) -> "CaptureJob":
        """A job that was planned before, from its directories.

        Raises:
            InputError: no store, or one that was not begun.
            IntegrityError: a damaged plan, or plans that do not belong together.
        """
        if not stores:
            raise InputError("stores is empty; pass the directory of each model")
        found = {name: (Path(path), *open_plan(Path(path))) for name, path in stores.items()}
        first = next(iter(found))
        for path, _, plan, _ in found.values():
            for key in sorted(set(plan) - {"provenance"}):
                if plan[key] != found[first][2][key]:
                    raise IntegrityError(
                        f"{path}: was planned with other {key} than {found[first][0]};"
                        " pass the sides of one capture"
                    )
        return cls(
            found[first][1],
            {
                name: StoreSide(path, plan, digest)
                for name, (path, _, plan, digest) in found.items()
            },
        )

    @property
    def units(self) -> list[CaptureUnit]:
        """Every unit, side by side: a model's shards follow each other."""
        return [
            CaptureUnit(name, shard)
            for name in self._sides
            for shard in range(len(self.reading.layout.shards))
        ]

    def passes(self, unit: CaptureUnit) -> int:
        """Planned batches of a unit: what progress counts."""
        return len(self.reading.layout.batches_of(unit.shard))

    def missing(self, *, thorough: bool = False) -> list[CaptureUnit]:
        """Units that do not stand; `thorough` reads every byte and compares checksums, otherwise
        sidecars and sizes.
        """
        layout = self.layout
        return [
            unit
            for unit in self.units
            if not self._sides[unit.model].stands(layout, unit.shard, thorough)
        ]

    @property
    def layout(self) -> BatchLayout:
        """The batches as they are to run now: as planned, with every cut that any side recorded."""
        layout = self.reading.layout.merged(self._cuts)
        for side in self._sides.values():
            layout = layout.merged(side.parts())
        return layout

    def run(
        self, unit: CaptureUnit, model: HookedModel, advance: Advance = lambda: None
    ) -> dict[str, Any]:
        """Run one unit and publish its shard; one that stands already is left alone.

        Returns:
            JSON-ready: `unit`, `rows`, `batches`, `reused`, and for a store `path` and `bytes`.

        Raises:
            UnknownNameError: no such unit.
            IntegrityError: the model, thread count or library versions are not as planned.
            StateError: a capture that wants the directory alone holds it.
        """
        side = self._sides.get(unit.model)
        if side is None or not 0 <= unit.shard < len(self.reading.layout.shards):
            raise UnknownNameError(
                f"unit {unit.id!r} is not part of this capture,"
                f" which has {len(self.units)} from {self.units[0].id!r} on"
            )
        with ExitStack() as stack:
            if isinstance(side, StoreSide):
                check_process(side.plan["provenance"], model, str(side.directory))
                if not self._alone:
                    stack.enter_context(_lock(side.directory, alone=False))
            layout = self.layout
            reused = side.stands(layout, unit.shard, True)
            if reused:
                for _ in layout.batches_of(unit.shard):
                    advance()
            # again where another process cut a batch meanwhile
            while not side.stands(layout, unit.shard, True):
                values, ran = read_shard(model, self.reading, layout, unit.shard, advance)
                self._note_cuts(unit.shard, ran)
                side.keep(ran, unit.shard, values)
                layout = self.layout
        record: dict[str, Any] = {
            "unit": unit.id,
            "rows": len(layout.rows_of(unit.shard)),
            "batches": self.passes(unit),
            "reused": reused,
        }
        if isinstance(side, StoreSide):
            path = shard_path(side.directory, unit.shard)
            record |= {"path": path.name, "bytes": path.stat().st_size}
        return record

    def _note_cuts(self, shard: int, ran: BatchLayout) -> None:
        """Write a cut beside the plan of every side, so that all of them run the same parts."""
        parts = ran.parts_of(shard)
        if parts == self.layout.parts_of(shard):
            return
        logger.warning(
            "a batch did not fit into memory and was cut; shard %d runs in parts %s", shard, parts
        )
        self._cuts |= parts
        for side in self._sides.values():
            side.cut(shard, self.layout.parts_of(shard))

    def finish(self) -> dict[str, Activations]:
        """Publish the manifests: every store is whole.

        Returns:
            What was captured, by model; stores read from disk.

        Raises:
            IntegrityError: units that are not written yet.
        """
        missing = self.missing()
        if missing:
            raise IntegrityError(
                f"{len(missing)} of {len(self.units)} units are not written yet,"
                f" first {missing[0].id!r}; run them, then finish"
            )
        layout = self.layout
        for side in self._sides.values():
            if isinstance(side, StoreSide):
                _sweep(side.directory)
        return {name: side.finish(self.reading, layout) for name, side in self._sides.items()}

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold every store against other captures; the locks vanish with the process that held
        them.

        Raises:
            StateError: another process works in one of the directories.
        """
        with ExitStack() as stack:
            for side in self._sides.values():
                if isinstance(side, StoreSide):
                    stack.enter_context(_lock(side.directory, alone=True))
            self._alone = True
            try:
                yield
            finally:
                self._alone = False


def _sweep(directory: Path) -> None:
    """Remove what killed processes left half written, unless someone works there."""
    if directory.is_dir():
        with suppress(StateError), _lock(directory, alone=True):
            for path in directory.glob(".*.part"):
                path.unlink(missing_ok=True)


def _lock(directory: Path, *, alone: bool) -> AbstractContextManager[None]:
    """Hold a directory, alone or with others that share it; those who share wait for the moment
    that a sweep takes.

    Raises:
        StateError: somebody else holds it.
    """
    if not os.access(directory, os.W_OK):
        return nullcontext()  # nothing can be written, so there is nothing to guard
    if alone:
        return exclusive(directory, busy=_BUSY)
    return shared(directory, busy=_BUSY, patience=_PATIENCE)
