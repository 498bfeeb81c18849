"""Sweeps: a base recipe times axes → runs with stable ids, as a plan that any executor of
`emlens.runs` works through.

Each run is one unit: a checkpoint directory under `OUT/runs`, published whole by `fit`. The parent
is loaded once a process. Killed at any moment and called again, locally, on ranks or on Ray, a
sweep goes on from its finished runs (with `resume_every` also inside a run) and ends with the same
bytes.
"""

import copy
import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import pandas as pd

from emlens.data.prompts import PromptSet
from emlens.foundation.errors import InputError
from emlens.foundation.files import (
    one_line,
    read_json,
    safe_name,
    sha256_file,
    write_json,
    write_text,
)
from emlens.foundation.provenance import hash_directory, hash_json, qualified_name
from emlens.runs import Executor, LocalExecutor, Unit, Worker
from emlens.runs.units import UnitResult
from emlens.training.examples import Example
from emlens.training.fitting import LOG, SIDECAR, fit, load_parent, read_record
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
        changed: dict[str, str] = {}
        for axis, values in self.axes.items():
            if isinstance(values, str) or not isinstance(values, Sequence | Mapping) or not values:
                raise InputError(
                    f"axis {axis!r} holds {values!r}; pass a list of values,"
                    " or a mapping from labels to fields"
                )
            for name in {name for _, change, _ in _options(axis, values) for name in change}:
                if name in changed:
                    raise InputError(
                        f"axes {changed[name]!r} and {axis!r} both change {name!r};"
                        " put their combinations into one axis"
                    )
                changed[name] = axis
        self.runs  # noqa: B018, refuses combinations that no recipe can be

    @cached_property
    def runs(self) -> tuple[SweepRun, ...]:
        """All runs, the last axis turning fastest."""
        found = []
        for chosen in itertools.product(
            *(_options(axis, values) for axis, values in self.axes.items())
        ):
            labels = dict(zip(self.axes, (label for label, _, _ in chosen), strict=True))
            changes = {name: value for _, change, _ in chosen for name, value in change.items()}
            objectives = tuple(objective for _, _, given in chosen for objective in given)
            name = " ".join(f"{axis}={label}" for axis, label in labels.items()) or "base"
            try:
                found.append(SweepRun(name, labels, self.base.varied(**changes), objectives))
            except InputError as error:
                raise InputError(
                    f"run {one_line(name, 120)!r} of the sweep cannot be: {error}"
                ) from None
        names = [run.id for run in found]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(
                f"the sweep holds the run {twice[0]!r} twice; labels of an axis must differ"
            )
        return tuple(found)

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


def _options(axis: str, values: Axis) -> list[tuple[str, dict[str, Any], tuple[Objective, ...]]]:
    """(label, fields changed, objectives) of each value of an axis."""
    if axis == OBJECTIVES:
        if not isinstance(values, Mapping):
            raise InputError(
                "axis 'objectives' holds a list; pass a mapping from labels to sequences of"
                " objectives"
            )
        for label, given in values.items():
            if not isinstance(given, Sequence) or not all(
                isinstance(objective, Objective) for objective in given
            ):
                raise InputError(
                    f"axis 'objectives' holds {given!r} under {label!r};"
                    " pass a sequence of objectives, empty for none"
                )
        return [(str(label), {}, tuple(given)) for label, given in values.items()]
    if isinstance(values, Mapping):
        if not all(isinstance(change, Mapping) for change in values.values()):
            raise InputError(
                f"axis {axis!r} is a mapping, but not to fields; pass label: {{field:"
                f" value}}, or a list of values of the field {axis!r}"
            )
        return [(str(label), dict(change), ()) for label, change in values.items()]
    return [(_label(value), {axis: value}, ()) for value in values]


def _label(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep.

    Args:
        table: a row a run: its id, the axes' labels, steps_done, stopped, final loss, and what
            `measure` returned.
        steps: a row a step of every run: run, step, loss, learning_rate, grad_norm, and what
            callbacks added.
        paths: run id → checkpoint directory.
    """

    directory: Path
    table: pd.DataFrame
    steps: pd.DataFrame
    paths: Mapping[str, Path]


Measure = Callable[[Any, Path], Mapping[str, Any]]
"""`(trained model, its directory) -> JSON-ready numbers`: called once a run, before its checkpoint
is published.
"""


class SweepWorker(Worker):
    """One process's part in a sweep: holds parent, tokenizer and data, and trains the runs it is
    given.
    """

    def __init__(
        self,
        sweep: Sweep,
        model: str | Path,
        data: PromptSet | Sequence[Example],
        out: str | Path,
        *,
        callbacks: Callable[[SweepRun], Sequence[TrainingCallback]] | None = None,
        measure: Measure | None = None,
        save_dtype: Literal["float32", "float16", "bfloat16"] | None = None,
        keep_every: int | None = None,
        resume_every: int | None = None,
        device: str = "cpu",
    ):
        self.sweep, self.parent, self.out = sweep, Path(model), Path(out)
        self.callbacks, self.measure = callbacks, measure
        self.save_dtype, self.keep_every, self.resume_every, self.device = (
            save_dtype,
            keep_every,
            resume_every,
            device,
        )
        self.model, self.tokenizer = load_parent(self.parent, device)
        self.data = data
        self._sha256 = hash_directory(self.parent)
        self._data_sha256 = (
            data.content_hash
            if isinstance(data, PromptSet)
            else hash_json([dict(row) for row in data])
        )
        self._runs = {run.id: run for run in sweep.runs}

    def plan(self) -> Sequence[Unit]:
        shared: dict[str, Any] = {
            "parent": self._sha256,
            "data": self._data_sha256,
            "save_dtype": self.save_dtype,
            "keep_every": self.keep_every,
        }
        for name, given in (("callbacks", self.callbacks), ("measure", self.measure)):
            if given is not None:
                shared[name] = qualified_name(given)
        return [
            Unit(
                run.id,
                {
                    **shared,
                    "recipe": run.recipe.to_record(),
                    "objectives": [objective.to_record() for objective in run.objectives],
                },
                cost=float(run.recipe.steps),
            )
            for run in self.sweep.runs
        ]

    def run(self, unit: Unit) -> UnitResult:
        target = self.path(unit.id)
        if not self._stands(target, self._runs[unit.id]):
            self._train(self._runs[unit.id], target)
        shutil.rmtree(resume_directory(target), ignore_errors=True)
        record, log = read_record(target), pd.read_csv(target / LOG)
        result = {
            "steps_done": record["steps_done"],
            "stopped": record["stopped"],
            "final_loss": float(log["loss"].iloc[-1]),
        }
        if self.measure is not None:
            result |= read_json(target / MEASURED)
        return result, sorted(path for path in target.rglob("*") if path.is_file())

    def _stands(self, target: Path, run: SweepRun) -> bool:
        """Whether a process that died before it could answer has published just this run."""
        if not (target / SIDECAR).is_file() or (
            self.measure is not None and not (target / MEASURED).is_file()
        ):
            return False
        found = read_record(target)
        return bool(
            found["recipe"] == run.recipe.to_record()
            and found.get(OBJECTIVES, []) == [objective.to_record() for objective in run.objectives]
            and found["parent"]["sha256"] == self._sha256
        )

    def _train(self, run: SweepRun, target: Path) -> None:
        shutil.rmtree(target, ignore_errors=True)
        for left in target.parent.glob(f".{target.name}.*.part"):
            shutil.rmtree(left, ignore_errors=True)

        def add(directory: Path, trained: Any) -> None:
            if self.measure is not None:
                write_json(directory / MEASURED, dict(self.measure(trained, directory)))

        adapted = run.recipe.method == "lora"
        try:
            fitted = fit(
                run.recipe,
                self.model if adapted else copy.deepcopy(self.model),
                self.data,
                target,
                tokenizer=self.tokenizer,
                parent=self.parent,
                objectives=run.objectives,
                callbacks=() if self.callbacks is None else self.callbacks(run),
                save_dtype=self.save_dtype,
                keep_every=self.keep_every,
                resume_every=self.resume_every,
                before_publish=add,
            )
            if adapted:
                self.model = fitted.model.unload()
        except BaseException:
            # the old one may hold half an adapter
            self.model, self.tokenizer = load_parent(self.parent, self.device)
            raise

    def path(self, run_id: str) -> Path:
        """Where a run's checkpoint stands, or will."""
        return self.out / RUNS / safe_name(run_id)

    def finish(self, answers: Mapping[str, Any]) -> UnitResult:
        rows, steps = [], []
        for run in self.sweep.runs:
            rows.append({"run": run.id, **run.labels, **answers[run.id]})
            steps.append(pd.read_csv(self.path(run.id) / LOG).assign(run=run.id))
        log = pd.concat(steps, ignore_index=True)
        for name, frame in (
            (TABLE, pd.DataFrame(rows)),
            (STEPS, log[["run", *log.columns.drop("run")]]),
        ):
            write_text(self.out / name, frame.to_csv(index=False))
        files = [self.out / TABLE, self.out / STEPS]
        return {"files": {path.name: sha256_file(path) for path in files}}, files


def run_sweep(
    sweep: Sweep,
    model: str | Path,
    data: PromptSet | Sequence[Example],
    out: str | Path,
    *,
    executor: Executor | None = None,
    progress: bool = True,
    **options: Any,
) -> SweepResult:
    """Train every run of a sweep that is not trained yet, and gather their tables.

    Args:
        model: checkpoint directory of the parent.
        data: chats with answers, or ready rows.
        out: directory for plan, answers, `runs/` and the tables; the same call goes on there.
        executor: who works: `LocalExecutor()` (default), `RankExecutor()` under torchrun or Slurm,
            `RayExecutor(actors=4)`.
        options: of `SweepWorker`: `callbacks` (run → training callbacks), `measure` ((model,
            directory) → numbers), `save_dtype`, `keep_every`, `resume_every`, `device`.

    Raises:
        IntegrityError: `out` holds another sweep, or one of another parent, data, options,
            `callbacks` or `measure` (by name).
        StateError: runs failed as often as the executor allows; the others are kept.
    """
    directory = Path(out)
    report = (executor or LocalExecutor()).run(
        lambda: SweepWorker(sweep, model, data, directory, **options),
        directory,
        title="sweep",
        progress=progress,
    )
    paths = {run.id: directory / RUNS / safe_name(run.id) for run in sweep.runs}
    return SweepResult(
        report.directory, pd.read_csv(directory / TABLE), pd.read_csv(directory / STEPS), paths
    )
