"""A capture as a job: planned once, its units run in any process and any order, then finished.

A unit is one shard of one model. Running it is idempotent: a shard that is complete, as its
checksums say, is not run again. A shard is written under a temporary name and published by rename,
its sidecar after it.

A batch that does not fit into memory is cut. The cut is written beside the plan of every model, and
shards of other models that ran that batch whole count as missing again, so that all models end on
identical batches.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emlens.activations.batch_layout import BatchLayout
from emlens.activations.batch_reading import read_shard
from emlens.activations.capture_output import MemoryOutput, StoreOutput
from emlens.activations.capture_plan import CapturePlan
from emlens.activations.capture_provenance import (
    WEIGHTS,
    capture_provenance,
    check_process,
    check_weights,
)
from emlens.activations.memory import Activations
from emlens.activations.plan_file import begin_store, plan_to_record, read_plan
from emlens.activations.shards import shard_path
from emlens.activations.shared_trunk import SharedTrunk
from emlens.foundation.errors import InputError, IntegrityError, StateError, UnknownNameError
from emlens.models.hooked import HookedModel
from emlens.runs.locks import exclusive, shared

Advance = Callable[[], Any]
Output = StoreOutput | MemoryOutput
logger = logging.getLogger("emlens")
_PATIENCE = 1.0  # seconds
_BUSY = "another process is capturing into this store; wait for it, or pass another directory"


@dataclass(frozen=True)
class CaptureUnit:
    """One shard of one model."""

    model: str
    shard: int

    @property
    def id(self) -> str:
        return f"{self.model}/shard-{self.shard:05d}"


class CaptureJob:
    """One capture of one or several models, each into memory or into a store of its own.

    `CaptureJob.begin` writes the plan, or checks that the stores hold the same one;
    `CaptureJob.open` needs only the directories. Then comes `run(unit, model)` for every unit, in
    any process and order, and `finish` once.
    """

    def __init__(self, plan: CapturePlan, outputs: Mapping[str, Output]):
        self.plan = plan
        self._outputs = outputs
        self._cuts: dict[int, int] = {}
        self._checked_weights: set[tuple[int, Any]] = set()
        self._holds_exclusive_lock = False
        self._trunk: SharedTrunk | None = None
        self._trunk_in_use: SharedTrunk | None = None

    @classmethod
    def begin(
        cls,
        models: Mapping[str, HookedModel],
        plan: CapturePlan,
        *,
        stores: Mapping[str, str | Path],
        prompts_sha256: str = "",
    ) -> "CaptureJob":
        """Write the plan into the stores; a model without a store is captured into memory.

        Raises:
            InputError: a store for no model, or one directory for several.
            IntegrityError: a directory that holds something else, or a store of another plan.
        """
        _check_stores(models, stores)
        outputs: dict[str, Output] = {}
        job = cls(plan, outputs)
        if plan.share_trunk and len(models) > 1:
            job._trunk = SharedTrunk.of(models)
        for name, model in models.items():
            trunk = None
            if job._trunk is not None:
                trunk = job._trunk.record(name)
            provenance = capture_provenance(model, plan, prompts_sha256, trunk)
            if name in stores:
                job._checked_weights.add((id(model), model.weight_versions()))
                provenance[WEIGHTS] = model.weights_fingerprint()
                outputs[name] = _begin_store_output(Path(stores[name]), plan, provenance)
            else:
                outputs[name] = MemoryOutput(plan, provenance)
        return job

    @classmethod
    def open(cls, stores: Mapping[str, str | Path]) -> "CaptureJob":
        """A job that was begun before, from its directories.

        Raises:
            InputError: no store, or one that was not begun.
            IntegrityError: a damaged plan, or plans that do not belong together.
        """
        if not stores:
            raise InputError("stores is empty; pass the directory of each model")
        plans: list[CapturePlan] = []
        outputs: dict[str, StoreOutput] = {}
        for name, path in stores.items():
            plan, record, digest = read_plan(Path(path))
            plans.append(plan)
            outputs[name] = StoreOutput(Path(path), record, digest)
        _check_same_plan(list(outputs.values()))
        return cls(plans[0], outputs)

    @property
    def units(self) -> list[CaptureUnit]:
        """Every unit, model by model: the shards of a model follow each other."""
        shards = range(len(self.plan.layout.shards))
        return [CaptureUnit(name, shard) for name in self._outputs for shard in shards]

    @contextmanager
    def in_turn(self) -> Iterator[list[CaptureUnit]]:
        """All units for one process that runs them all: shard by shard where models have blocks in
        common, which inside the block are run once.
        """
        if self._trunk is None or not self._trunk.starts:
            yield self.units
            return
        self._trunk_in_use = self._trunk
        try:
            yield sorted(self.units, key=lambda unit: unit.shard)
        finally:
            self._trunk_in_use = None
            self._trunk.clear()

    def batch_count(self, unit: CaptureUnit) -> int:
        """Planned batches of a unit: what progress counts."""
        return len(self.plan.layout.batches_of(unit.shard))

    def missing(self, *, thorough: bool = False) -> list[CaptureUnit]:
        """Units that are not complete.

        `thorough` reads every byte and compares checksums; otherwise only sidecars and sizes are
        read.
        """
        layout = self.layout
        missing = []
        for unit in self.units:
            output = self._outputs[unit.model]
            if not output.has_shard(layout, unit.shard, thorough=thorough):
                missing.append(unit)
        return missing

    @property
    def layout(self) -> BatchLayout:
        """The batches as they have to run: as planned, with every cut that any model recorded."""
        layout = self.plan.layout.with_cuts(self._cuts)
        for output in self._outputs.values():
            layout = layout.with_cuts(output.recorded_cuts())
        return layout

    def run(
        self,
        unit: CaptureUnit,
        model: HookedModel,
        advance: Advance = lambda: None,
        found: Callable[[float], Any] = lambda batches: None,
    ) -> dict[str, Any]:
        """Run one unit and publish its shard; one that is complete is not run again.

        Args:
            advance: called after each batch. found: called with the batches of a complete shard.

        Returns:
            JSON-ready: `unit`, `rows`, `batches`, `reused`, and for a store `path` and `bytes`.

        Raises:
            UnknownNameError: no such unit.
            IntegrityError: the model, thread count or library versions are not as planned.
            StateError: the directory is held by a capture that takes it exclusively.
        """
        output = self._output_of(unit)
        with ExitStack() as stack:
            if isinstance(output, StoreOutput):
                planned = output.plan_record["provenance"]
                where, dtype = str(output.directory), self.plan.compute_dtype
                check_process(planned, model, where, dtype)
                self._check_weights(planned, model, where)
                if not self._holds_exclusive_lock:
                    stack.enter_context(_lock(output.directory, alone=False))
            reused = output.has_shard(self.layout, unit.shard, thorough=True)
            if reused:
                found(self.batch_count(unit))
            else:
                self._run_until_complete(unit, output, model, advance)
        record: dict[str, Any] = {
            "unit": unit.id,
            "rows": len(self.plan.layout.rows_of(unit.shard)),
            "batches": self.batch_count(unit),
            "reused": reused,
        }
        if isinstance(output, StoreOutput):
            path = shard_path(output.directory, unit.shard)
            record |= {"path": path.name, "bytes": path.stat().st_size}
        return record

    def _check_weights(self, planned: Mapping[str, Any], model: HookedModel, where: str) -> None:
        """Once for each model, and again where torch saw a weight change since.

        Raises:
            IntegrityError: weights in memory that are not those of the plan.
        """
        state = (id(model), model.weight_versions())
        if state not in self._checked_weights:
            check_weights(planned, model, where)
            self._checked_weights.add(state)

    def _output_of(self, unit: CaptureUnit) -> Output:
        if unit.model not in self._outputs or not 0 <= unit.shard < len(self.plan.layout.shards):
            raise UnknownNameError(
                f"unit {unit.id!r} is not part of this capture,"
                f" which has {len(self.units)} from {self.units[0].id!r} on"
            )
        return self._outputs[unit.model]

    def _run_until_complete(
        self, unit: CaptureUnit, output: Output, model: HookedModel, advance: Advance
    ) -> None:
        """Run a shard, and once more where another process has cut one of its batches meanwhile."""
        shard, layout = unit.shard, self.layout
        trunk = None
        if self._trunk_in_use is not None:
            trunk = self._trunk_in_use.of_model(unit.model)
        while not output.has_shard(layout, shard, thorough=True):
            values, layout_run = read_shard(model, self.plan, layout, shard, advance, trunk)
            self._record_cuts(shard, layout_run)
            output.add_shard(layout_run, shard, values)
            layout = self.layout

    def _record_cuts(self, shard: int, layout_run: BatchLayout) -> None:
        """Write new cuts beside the plan of every model, so that all run the same pieces."""
        cuts = layout_run.cuts_of(shard)
        if cuts == self.layout.cuts_of(shard):
            return
        logger.warning(
            "a batch did not fit into memory and was cut; shard %d runs with cuts %s", shard, cuts
        )
        self._cuts |= cuts
        for output in self._outputs.values():
            output.record_cuts(shard, self.layout.cuts_of(shard))

    def finish(self) -> dict[str, Activations]:
        """Publish the manifests: every store is complete.

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
        for output in self._outputs.values():
            if isinstance(output, StoreOutput):
                _remove_leftovers(output.directory)
        return {name: output.finish(self.plan, layout) for name, output in self._outputs.items()}

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold every store against other captures, until the end of the block or of the process.

        Raises:
            StateError: another process works in one of the directories.
        """
        with ExitStack() as stack:
            for output in self._outputs.values():
                if isinstance(output, StoreOutput):
                    stack.enter_context(_lock(output.directory, alone=True))
            self._holds_exclusive_lock = True
            try:
                yield
            finally:
                self._holds_exclusive_lock = False


def _check_stores(models: Mapping[str, HookedModel], stores: Mapping[str, str | Path]) -> None:
    unknown = sorted(set(stores) - set(models))
    if unknown:
        raise InputError(
            f"stores names {unknown[0]!r}, which is not among the models {', '.join(models)}",
            name=unknown[0],
            known=models,
        )
    directories = {Path(path).resolve() for path in stores.values()}
    if len(directories) != len(stores):
        raise InputError("stores gives one directory to several models; pass one for each")


def _begin_store_output(
    directory: Path, plan: CapturePlan, provenance: Mapping[str, Any]
) -> StoreOutput:
    record, rows_file = plan_to_record(plan, provenance)
    if not directory.exists():
        directory.mkdir(parents=True, exist_ok=True)
    # a file is refused inside
    with _lock(directory, alone=False) if directory.is_dir() else nullcontext():
        output = StoreOutput(directory, record, begin_store(directory, record, rows_file))
    _remove_leftovers(directory)
    return output


def _check_same_plan(outputs: list[StoreOutput]) -> None:
    """Plans of one capture differ in nothing but the provenance of their models."""
    first = outputs[0]
    for output in outputs:
        for key in sorted(set(output.plan_record) - {"provenance"}):
            if output.plan_record[key] != first.plan_record[key]:
                raise IntegrityError(
                    f"{output.directory}: was planned with other {key} than {first.directory};"
                    " pass the stores of one capture"
                )


def _remove_leftovers(directory: Path) -> None:
    """Remove half-written files of killed processes, unless another process works there."""
    if directory.is_dir():
        with suppress(StateError), _lock(directory, alone=True):
            for path in directory.glob(".*.part"):
                path.unlink(missing_ok=True)


def _lock(directory: Path, *, alone: bool) -> AbstractContextManager[None]:
    """Hold a directory, alone or shared with other workers.

    Who shares it waits for the moment that `_remove_leftovers` takes.

    Raises:
        StateError: another process holds it.
    """
    if not os.access(directory, os.W_OK):
        return nullcontext()  # nothing can be written, so there is nothing to guard
    if alone:
        return exclusive(directory, busy=_BUSY)
    return shared(directory, busy=_BUSY, patience=_PATIENCE)
