"""Capture into stores over an executor: the same bytes whether one process, ranks or Ray actors ran
it.

Every worker loads the models once, plans the capture (the plan is written once and must come out
the same everywhere) and runs shards. The layout of batches is part of the plan, so who runs a shard
changes nothing; each worker pins the planned thread count. Who did what, when, and what failed lies
under `units/` in the first store; the rest of a store is the same bytes as without an executor.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from emlens.activations.capture_job import CaptureJob
from emlens.activations.capturing import PromptsLike, as_prompts, plan_capture
from emlens.activations.store import MANIFEST, PLAN, ActivationStore
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
    threads: int | None = None,
    progress: bool = True,
    **options: Any,
) -> ActivationStore:
    """`capture` into a store, its shards done by whatever the executor employs.

    Args:
        executor: `LocalExecutor`, `RankExecutor` or `RayExecutor` of `emlens.runs`.
        load: loads the model, e.g. `functools.partial(emlens.load_model, path)`; called once in
            every process that works.
        store: a directory that all workers see; the same call goes on where an interrupted one
            stopped.
        threads: computing threads of every worker; default: as many as this process has. Part of
            the plan.
        options: `sites`, `layers`, `positions` and the others of `capture`.

    Raises:
        InputError: as `capture`; `load` is not a function, or does not give a model.
        StateError: shards failed repeatedly; all others are done and kept.
        IntegrityError: `store` holds something else, or a worker's libraries, device or threads are
            not as planned.
    """
    worker = _Opening(
        load,
        as_prompts(prompts),
        {None: str(Path(store).resolve())},
        threads or torch.get_num_threads(),
        options,
    )
    executor.run(
        worker,
        Path(store) / RECORDS,
        title=f"capture {len(worker.prompts)} prompts",
        progress=progress,
    )
    return ActivationStore.open(store)


def capture_many_over(
    executor: Executor,
    load: Callable[[], "Models"],
    prompts: PromptsLike,
    stores: Mapping[str, str | Path],
    *,
    threads: int | None = None,
    progress: bool = True,
    **options: Any,
) -> dict[str, ActivationStore]:
    """`capture_many` into stores over an executor: several models of a family on identical padded
    batches.

    Args:
        load: loads a family or a mapping of models, e.g. `functools.partial(emlens.load_family,
            path, finetuned={...})`.
        stores: which of its models to capture → directory of each. The others as in `capture_over`.

    Raises:
        InputError, StateError, IntegrityError: as `capture_over`.
    """
    if not stores:
        raise InputError(
            "stores is empty; pass the directory of each model to capture, such as {'instruct':"
            " 'before', 'bad@0': 'after'}"
        )
    named: dict[str | None, str] = {
        name: str(Path(path).resolve()) for name, path in stores.items()
    }
    worker = _Opening(load, as_prompts(prompts), named, threads or torch.get_num_threads(), options)
    first = Path(next(iter(stores.values())))
    title = f"capture {len(worker.prompts)} prompts × {len(stores)} models"
    executor.run(
        worker, first / RECORDS / hash_json(list(stores))[:8], title=title, progress=progress
    )
    return {name: ActivationStore.open(path) for name, path in stores.items()}


class Models(Protocol):
    """Models by name: a `Family`, or a mapping."""

    def __getitem__(self, name: str, /) -> HookedModel: ...


@dataclass(frozen=True)
class _Opening:
    """Everything a worker needs to start in another process. The name None stands for the one model
    of `load`.
    """

    load: Callable[[], Any]
    prompts: PromptSet
    stores: Mapping[str | None, str]
    threads: int
    options: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not callable(self.load):
            raise InputError(
                f"load is a {type(self.load).__name__}; pass a function that loads it,"
                " such as functools.partial(emlens.load_model, path): every worker calls it once"
            )

    def __call__(self) -> Worker:
        torch.set_num_threads(self.threads)
        found = self.load()
        models: dict[str, HookedModel] = {}
        stores: dict[str, str] = {}
        for name, path in self.stores.items():
            model = found if name is None else found[name]
            if not isinstance(model, HookedModel):
                raise InputError(
                    f"load gave a {type(found).__name__} where a model was wanted;"
                    " return what emlens.load_model returns"
                )
            key = model.name if name is None else name
            models[key], stores[key] = model, path
        return _CaptureWorker(
            models, plan_capture(models, self.prompts, stores=stores, **self.options), stores
        )


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
        plans = {name: sha256_file(Path(path) / PLAN) for name, path in self._stores.items()}
        return [
            Unit(
                unit.id,
                {"model": unit.model, "shard": unit.shard, "plan": plans[unit.model]},
                cost=self._job.passes(unit),
            )
            for unit in self._job.units
        ]

    def run(self, unit: Unit) -> UnitResult:
        planned = self._units[unit.id]
        # a shard's own sidecar vouches for its bytes
        return self._job.run(planned, self._models[planned.model]), ()

    def damaged(self) -> Sequence[str]:
        return [unit.id for unit in self._job.missing(thorough=True)]

    def finish(self, answers: Mapping[str, Any]) -> UnitResult:
        self._job.finish()
        return {"stores": len(self._stores)}, [
            Path(path) / MANIFEST for path in self._stores.values()
        ]
