"""Sweeps: a base recipe times axes → runs with stable ids, as a plan that any executor of
`emlens.runs` works through.

Each run is one unit: a checkpoint directory under `OUT/runs`, published whole by `fit`. The parent
is loaded once per process. Killed at any moment and called again, locally, on ranks or on Ray, a
sweep goes on from its finished runs (with `resume_every` also inside a run) and ends with the same
bytes.
"""

import copy
import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pandas as pd

from emlens.data.prompts import PromptSet
from emlens.foundation.errors import InputError
from emlens.foundation.files import (
    one_line,
    safe_name,
    sha256_file,
    write_text,
)
from emlens.foundation.notebooks import Brief
from emlens.foundation.provenance import hash_json, qualified_name
from emlens.foundation.records import read_checked, write_checked
from emlens.models.checkpoint_files import checkpoint_hashes
from emlens.runs import Executor, LocalExecutor, Unit, Worker
from emlens.runs.units import UnitResult
from emlens.training.examples import Example
from emlens.training.fitting import (
    LOG,
    SIDECAR,
    Parent,
    Saving,
    fit,
    load_parent,
    read_record,
)
from emlens.training.objectives import Objective
from emlens.training.recipes import Recipe
from emlens.training.resuming import resume_directory
from emlens.training.stopping import TrainingCallback

RUNS: Final = "runs"
TABLE: Final = "runs.csv"
STEPS: Final = "steps.csv"
MEASURED: Final = "measured.json"
OBJECTIVES: Final = "objectives"
Axis = Sequence[Any] | Mapping[str, Any]


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Args:
        id: `axis=label` for each axis, in their order; stable, and unique within the sweep.
        labels: axis → label.
    """

    id: str
    labels: Mapping[str, str]
    recipe: Recipe
    objectives: tuple[Objective, ...] = ()


@dataclass(frozen=True)
class Sweep:
    """Every combination of the axes' values, each applied to the base recipe by `Recipe.varied`.

    Args:
        base: what all runs share.
        axes: axis → its values. A list holds values of the recipe's field of that name. A mapping
            holds, by label, the fields that change together (`{"triangular": {"schedule":
            "triangular", "cycles": 4, "base_learning_rate": 1e-5}}`); in the axis `objectives` it
            holds a sequence of objectives by label.

    Raises:
        InputError: an axis without values, a field that no recipe has, or that two axes change,
            equal labels, objectives that are none, or a combination that `Recipe` refuses.
    """

    base: Recipe
    axes: Mapping[str, Axis] = field(default_factory=dict)

    def __post_init__(self) -> None:
        axis_of_field: dict[str, str] = {}
        for axis, values in self.axes.items():
            if isinstance(values, str) or not isinstance(values, Sequence | Mapping) or not values:
                raise InputError(
                    f"axis {axis!r} holds {values!r}; pass a list of values,"
                    " or a mapping from labels to fields"
                )
            fields = {name for option in _options(axis, values) for name in option.changes}
            for name in fields:
                if name in axis_of_field:
                    raise InputError(
                        f"axes {axis_of_field[name]!r} and {axis!r} both change {name!r};"
                        " put their combinations into one axis"
                    )
                axis_of_field[name] = axis
        self.runs  # noqa: B018, refuses combinations that no recipe can be

    @cached_property
    def runs(self) -> tuple[SweepRun, ...]:
        """All runs, the last axis turning fastest."""
        options = [_options(axis, values) for axis, values in self.axes.items()]
        runs = [self._run(combination) for combination in itertools.product(*options)]
        seen: set[str] = set()
        for run in sorted(runs, key=lambda run: run.id):
            if run.id in seen:
                raise InputError(
                    f"the sweep holds the run {run.id!r} twice; labels of an axis must differ"
                )
            seen.add(run.id)
        return tuple(runs)

    def _run(self, combination: Sequence["_Option"]) -> SweepRun:
        labels = dict(zip(self.axes, (option.label for option in combination), strict=True))
        changes: dict[str, Any] = {}
        objectives: list[Objective] = []
        for option in combination:
            changes |= option.changes
            objectives.extend(option.objectives)
        name = " ".join(f"{axis}={label}" for axis, label in labels.items()) or "base"
        try:
            recipe = self.base.varied(**changes)
        except InputError as error:
            raise InputError(
                f"run {one_line(name, 120)!r} of the sweep cannot be: {error}"
            ) from None
        return SweepRun(name, labels, recipe, tuple(objectives))

    def __len__(self) -> int:
        return len(self.runs)

    @classmethod
    def from_yaml(cls, path: str | Path, rows: int | None = None) -> "Sweep":
        """A sweep from a YAML file with the keys `base` and `axes`; see
        `emlens.training.configuring.read_sweep`.

        Args:
            rows: of the training data; needed where the file says `epochs`, or a preset without
                steps.

        Raises:
            InputError: an unknown key, no base, or what `Sweep` refuses.
        """
        from emlens.training.configuring import read_sweep

        return read_sweep(path, rows)


@dataclass(frozen=True)
class _Option:
    """One value of an axis: its label, the fields it changes, the objectives it brings."""

    label: str
    changes: dict[str, Any]
    objectives: tuple[Objective, ...] = ()


def _options(axis: str, values: Axis) -> list[_Option]:
    if axis == OBJECTIVES:
        return _objective_options(values)
    if not isinstance(values, Mapping):
        return [_Option(_label(value), {axis: value}) for value in values]
    options = []
    for label, fields in values.items():
        if not isinstance(fields, Mapping):
            raise InputError(
                f"axis {axis!r} is a mapping, but not to fields; pass label: {{field: value}},"
                f" or a list of values of the field {axis!r}"
            )
        options.append(_Option(str(label), dict(fields)))
    return options


def _objective_options(values: Axis) -> list[_Option]:
    if not isinstance(values, Mapping):
        raise InputError(
            "axis 'objectives' holds a list; pass a mapping from labels to sequences of objectives"
        )
    options = []
    for label, objectives in values.items():
        if not isinstance(objectives, Sequence) or not all(
            isinstance(objective, Objective) for objective in objectives
        ):
            raise InputError(
                f"axis 'objectives' holds {objectives!r} under {label!r};"
                " pass a sequence of objectives, empty for none"
            )
        options.append(_Option(str(label), {}, tuple(objectives)))
    return options


def _label(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)


@dataclass(frozen=True, repr=False)
class SweepResult(Brief):
    """A finished sweep.

    Args:
        table: a row per run: its id, the axes' labels, steps_done, stopped, final loss, and what
            `measure` returned.
        steps: a row per step of every run: run, step, loss, learning_rate, grad_norm, and what
            callbacks added.
        paths: run id → checkpoint directory.
    """

    directory: Path
    table: pd.DataFrame
    steps: pd.DataFrame
    paths: Mapping[str, Path]


Measure = Callable[[Any, Path], Mapping[str, Any]]
"""`(trained model, its directory) -> JSON-ready numbers`: called once per run, before its
checkpoint is published.
"""

CallbacksOfRun = Callable[[SweepRun], Sequence[TrainingCallback]]
"""The callbacks that a run is trained with."""


class SweepWorker(Worker):
    """One process of a sweep: holds parent, tokenizer and data, and trains runs."""

    def __init__(
        self,
        sweep: Sweep,
        model: str | Path,
        data: PromptSet | Sequence[Example],
        out: str | Path,
        *,
        callbacks: CallbacksOfRun | None = None,
        measure: Measure | None = None,
        saving: Saving | None = None,
        device: str = "auto",
    ):
        self.sweep = sweep
        self.parent = Path(model)
        self.data = data
        self.out = Path(out)
        self.callbacks = callbacks
        self.measure = measure
        self.saving = saving or Saving()
        self.device = device
        self.model, self.tokenizer = self._loaded_parent()
        self._parent_hashes = checkpoint_hashes(self.parent)
        self._runs = {run.id: run for run in sweep.runs}

    def plan(self) -> Sequence[Unit]:
        shared: dict[str, Any] = {
            "parent": self._parent_hashes,
            "data": _data_hash(self.data),
            "save_dtype": self.saving.save_dtype,
            "keep_every": self.saving.keep_every,
        }
        if self.callbacks is not None:
            shared["callbacks"] = qualified_name(self.callbacks)
        if self.measure is not None:
            shared["measure"] = qualified_name(self.measure)
        return [self._unit(run, shared) for run in self.sweep.runs]

    def _unit(self, run: SweepRun, shared: Mapping[str, Any]) -> Unit:
        inputs = {
            **shared,
            "recipe": run.recipe.to_record(),
            "objectives": [objective.to_record() for objective in run.objectives],
        }
        return Unit(run.id, inputs, cost=float(run.recipe.steps))

    def run(self, unit: Unit) -> UnitResult:
        target = self.path(unit.id)
        run = self._runs[unit.id]
        if not self._is_published(target, run):
            self._train(run, target)
        shutil.rmtree(resume_directory(target), ignore_errors=True)
        record = read_record(target)
        log = pd.read_csv(target / LOG)
        result = {
            "steps_done": record["steps_done"],
            "stopped": record["stopped"],
            "final_loss": float(log["loss"].iloc[-1]),
        }
        if self.measure is not None:
            result |= read_checked(
                target / MEASURED,
                fields={},
                remedy=f"remove {target}, and it is trained again",
                checksum=False,
            )
        return result, sorted(path for path in target.rglob("*") if path.is_file())

    def _is_published(self, target: Path, run: SweepRun) -> bool:
        """Whether a process that died before it could answer has published just this run."""
        if not (target / SIDECAR).is_file():
            return False
        if self.measure is not None and not (target / MEASURED).is_file():
            return False
        record = read_record(target)
        objectives = [objective.to_record() for objective in run.objectives]
        return bool(
            record["recipe"] == run.recipe.to_record()
            and record.get(OBJECTIVES, []) == objectives
            and self._parent_hashes.items() <= record["parent"].items()
        )

    def _train(self, run: SweepRun, target: Path) -> None:
        shutil.rmtree(target, ignore_errors=True)
        for unfinished in target.parent.glob(f".{target.name}.*.part"):
            shutil.rmtree(unfinished, ignore_errors=True)
        has_adapter = run.recipe.method == "lora"
        model = self.model if has_adapter else copy.deepcopy(self.model)
        try:
            fitted = fit(
                run.recipe,
                Parent(model, directory=self.parent),
                self.data,
                target,
                tokenizer=self.tokenizer,
                objectives=run.objectives,
                callbacks=() if self.callbacks is None else self.callbacks(run),
                saving=replace(self.saving, before_publish=self._before_publish),
            )
            if has_adapter:
                self.model = fitted.model.unload()
        except BaseException:
            # The model in memory may hold half an adapter.
            self.model, self.tokenizer = self._loaded_parent()
            raise

    def _loaded_parent(self) -> tuple[Any, Any]:
        """One parent for all runs, so it has one dtype.

        Raises:
            InputError: recipes that ask for several.
        """
        dtypes = {run.recipe.parent_dtype for run in self.sweep.runs}
        if len(dtypes) > 1:
            raise InputError(
                "runs of one sweep share their parent, but recipes ask for parent_dtype"
                f" {sorted(dtypes)}; pass one"
            )
        return load_parent(self.parent, self.device, dtypes.pop())

    def _before_publish(self, directory: Path, trained: Any) -> None:
        if self.measure is not None:
            write_checked(directory / MEASURED, dict(self.measure(trained, directory)))
        if self.saving.before_publish is not None:
            self.saving.before_publish(directory, trained)

    def path(self, run_id: str) -> Path:
        """Where a run's checkpoint is, or will be."""
        return self.out / RUNS / safe_name(run_id)

    def finish(self, answers: Mapping[str, Any]) -> UnitResult:
        rows = []
        logs = []
        for run in self.sweep.runs:
            rows.append({"run": run.id, **run.labels, **answers[run.id]})
            logs.append(pd.read_csv(self.path(run.id) / LOG).assign(run=run.id))
        log = pd.concat(logs, ignore_index=True)
        steps = log[["run", *log.columns.drop("run")]]
        files = [self.out / TABLE, self.out / STEPS]
        write_text(files[0], pd.DataFrame(rows).to_csv(index=False))
        write_text(files[1], steps.to_csv(index=False))
        return {"files": {path.name: sha256_file(path) for path in files}}, files


def _data_hash(data: PromptSet | Sequence[Example]) -> str:
    if isinstance(data, PromptSet):
        return data.content_hash
    return hash_json([dict(row) for row in data])


def run_sweep(
    sweep: Sweep,
    model: str | Path,
    data: PromptSet | Sequence[Example],
    out: str | Path,
    *,
    executor: Executor | None = None,
    callbacks: CallbacksOfRun | None = None,
    measure: Measure | None = None,
    saving: Saving | None = None,
    device: str = "auto",
    progress: bool = True,
) -> SweepResult:
    """Train every run of a sweep that is not trained yet, and gather their tables.

    Args:
        model: checkpoint directory of the parent.
        data: chats with answers, or ready rows.
        out: directory for plan, answers, `runs/` and the tables; the same call goes on there.
        executor: who works: `LocalExecutor()` (default), `RankExecutor()` under torchrun or Slurm,
            `RayExecutor(actors=4)`.
        callbacks: run → its training callbacks.
        measure: (trained model, its directory) → numbers that join the run's row.
        saving: as for `fit`, for every run.
        device: where the parent is loaded to; `"auto"` takes a GPU where there is one.
        progress: show a progress bar on stderr.

    Raises:
        IntegrityError: `out` holds another sweep, or one of another parent, data, options,
            `callbacks` or `measure` (by name).
        StateError: runs failed as often as the executor allows; the others are kept.
    """
    directory = Path(out)

    def open_worker() -> SweepWorker:
        return SweepWorker(
            sweep,
            model,
            data,
            directory,
            callbacks=callbacks,
            measure=measure,
            saving=saving,
            device=device,
        )

    executor = executor or LocalExecutor()
    report = executor.run(open_worker, directory, title="sweep", progress=progress)
    return SweepResult(
        directory=report.directory,
        table=pd.read_csv(directory / TABLE),
        steps=pd.read_csv(directory / STEPS),
        paths={run.id: directory / RUNS / safe_name(run.id) for run in sweep.runs},
    )
