"""Capture into stores over an executor: the same bytes whether one process, ranks or Ray actors ran
it.

Every worker loads the models once, plans the capture (the plan is written once and must come out
the same everywhere) and runs shards. The layout of batches is part of the plan, so who runs a shard
changes nothing; each worker sets the planned thread count. Who did what, when, and what failed lies
under `units/` in the first store; the other files of a store are the same bytes as without an
executor.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from emlens.activations.capture_job import CaptureJob
from emlens.activations.capture_spec import CaptureSpec
from emlens.activations.capturing import plan_capture
from emlens.activations.store import MANIFEST, PLAN, ActivationStore
from emlens.data.prompt_inputs import PromptsLike, as_prompts
from emlens.data.prompts import PromptSet
from emlens.foundation.errors import InputError
from emlens.foundation.files import sha256_file
from emlens.foundation.provenance import hash_json
from emlens.models.hooked import HookedModel
from emlens.runs import Executor, Unit, Worker
from emlens.runs.units import UnitResult

RECORDS = "units"


def capture_over(
    executor: Executor,
    load: Callable[[], HookedModel],
    prompts: PromptsLike,
    store: str | Path,
    *,
    spec: CaptureSpec | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> ActivationStore:
    """`capture` into a store, its shards run by the workers of an executor.

    Args:
        executor: `LocalExecutor`, `RankExecutor` or `RayExecutor` of `emlens.runs`.
        load: loads the model, such as `functools.partial(emlens.load_model, path)`; called once in
            every worker's process.
        store: a directory that all workers see; the same call goes on where an interrupted one
            stopped.
        spec: what is read and how.
        threads: computing threads of every worker; default: as many as this process has. Part of
            the plan.

    Raises:
        InputError: as `capture`; `load` is not a function, or does not give a model.
        StateError: shards failed repeatedly; the finished ones are kept.
        IntegrityError: `store` holds something else, or a worker's libraries, device or threads are
            not as planned.
    """
    start = _WorkerStart(
        load,
        as_prompts(prompts),
        {None: str(Path(store).resolve())},
        threads or torch.get_num_threads(),
        spec or CaptureSpec(),
    )
    title = f"capture {len(start.prompts)} prompts"
    executor.run(start, Path(store) / RECORDS, title=title, progress=progress)
    return ActivationStore.open(store)


def capture_many_over(
    executor: Executor,
    load: Callable[[], "Models"],
    prompts: PromptsLike,
    stores: Mapping[str, str | Path],
    *,
    spec: CaptureSpec | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> dict[str, ActivationStore]:
    """`capture_many` into stores over an executor: several models of a family on identical padded
    batches.

    Args:
        load: loads a family or a mapping of models, such as `functools.partial(emlens.load_family,
            path, finetuned={...})`.
        stores: model to capture → its directory.
        spec, threads: as in `capture_over`.

    Raises:
        InputError, StateError, IntegrityError: as `capture_over`.
    """
    if not stores:
        raise InputError(
            "stores is empty; pass the directory of each model to capture,"
            " such as {'instruct': 'before', 'bad@0': 'after'}"
        )
    directories: dict[str | None, str] = {}
    for name, path in stores.items():
        directories[name] = str(Path(path).resolve())
    start = _WorkerStart(
        load,
        as_prompts(prompts),
        directories,
        threads or torch.get_num_threads(),
        spec or CaptureSpec(),
    )
    first = Path(next(iter(stores.values())))
    records = first / RECORDS / hash_json(list(stores))[:8]
    title = f"capture {len(start.prompts)} prompts × {len(stores)} models"
    executor.run(start, records, title=title, progress=progress)
    return {name: ActivationStore.open(path) for name, path in stores.items()}


class Models(Protocol):
    """Models by name: a `Family`, or a mapping."""

    def __getitem__(self, name: str, /) -> HookedModel: ...


@dataclass(frozen=True)
class _WorkerStart:
    """Everything that a worker needs to start in another process.

    The key None of `stores` stands for the one model that `load` gives.
    """

    load: Callable[[], Any]
    prompts: PromptSet
    stores: Mapping[str | None, str]
    threads: int
    spec: CaptureSpec

    def __post_init__(self) -> None:
        if not callable(self.load):
            raise InputError(
                f"load is a {type(self.load).__name__}; pass a function that loads it,"
                " such as functools.partial(emlens.load_model, path): every worker calls it once"
            )

    def __call__(self) -> Worker:
        torch.set_num_threads(self.threads)
        loaded = self.load()
        models: dict[str, HookedModel] = {}
        stores: dict[str, str] = {}
        for name, path in self.stores.items():
            model = loaded if name is None else loaded[name]
            if not isinstance(model, HookedModel):
                raise InputError(
                    f"load gave a {type(loaded).__name__} where a model was expected;"
                    " return what emlens.load_model returns"
                )
            key = model.name if name is None else name
            models[key], stores[key] = model, path
        job = plan_capture(models, self.prompts, self.spec, stores=stores)
        return _CaptureWorker(models, job, stores)


class _CaptureWorker(Worker):
    """Models in memory and a planned capture."""

    def __init__(
        self, models: Mapping[str, HookedModel], job: CaptureJob, stores: Mapping[str, str]
    ):
        self._models = models
        self._job = job
        self._stores = stores
        self._units = {unit.id: unit for unit in job.units}

    def plan(self) -> Sequence[Unit]:
        # the hash of the plan is an input of every unit: under another plan it has to run again
        plans = {name: sha256_file(Path(path) / PLAN) for name, path in self._stores.items()}
        units = []
        for unit in self._job.units:
            inputs = {"model": unit.model, "shard": unit.shard, "plan": plans[unit.model]}
            units.append(Unit(unit.id, inputs, cost=self._job.batch_count(unit)))
        return units

    def run(self, unit: Unit) -> UnitResult:
        capture_unit = self._units[unit.id]
        record = self._job.run(capture_unit, self._models[capture_unit.model])
        return record, ()  # no files to check: the sidecar of a shard has its checksums

    def damaged(self) -> Sequence[str]:
        return [unit.id for unit in self._job.missing(thorough=True)]

    def finish(self, answers: Mapping[str, Any]) -> UnitResult:
        self._job.finish()
        manifests = [Path(path) / MANIFEST for path in self._stores.values()]
        return {"stores": len(self._stores)}, manifests
