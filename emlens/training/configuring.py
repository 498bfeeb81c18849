"""Training described in a YAML file: a recipe or a preset with changes, its objectives, or a sweep
of them.

Objectives name files: chats as JSONL with `messages`, directions as directories that
`Direction.save` wrote. Paths are relative to the YAML file. What a kind does not read is refused.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from pydantic import ConfigDict, Field, ValidationError, field_validator

from emlens.data.configuration import (
    FieldError,
    Frozen,
    Origin,
    first_error,
    read_file,
    require_mapping,
    unknown_field,
)
from emlens.data.prompts import PromptSet
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.geometry import Direction
from emlens.training.defences import (
    BenignInterleaving,
    InoculationPrompt,
    PreventativeSteering,
    ProjectedOut,
)
from emlens.training.objectives import Objective
from emlens.training.parallel import Parallel
from emlens.training.penalties import FeatureDistance, ReferenceKL
from emlens.training.presets import recipe as preset_recipe
from emlens.training.recipes import Recipe, steps_of_epochs
from emlens.training.sweeps import OBJECTIVES, Sweep

PARALLEL: Final = "parallel"
"""Key of a run's file: how several processes train it."""
KINDS: Final[Mapping[str, Callable[..., Objective]]] = {
    kind.kind: kind
    for kind in (
        ReferenceKL,
        FeatureDistance,
        InoculationPrompt,
        PreventativeSteering,
        ProjectedOut,
        BenignInterleaving,
    )
}


class RunConfig(Frozen):
    """One run as a file describes it."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    recipe: Recipe
    objectives: tuple[Objective, ...] = ()
    parallel: Parallel | None = None


class _SweepFile(Frozen):
    """A file of a sweep: a run without objectives, and the axes along which it is varied."""

    base: Mapping[str, Any]
    axes: Mapping[str, Any] = Field(default_factory=dict)

    @field_validator("axes", mode="before")
    @classmethod
    def _no_axes(cls, axes: Any) -> Any:
        return {} if axes is None else axes


def read_run(path: str | Path, rows: int | None = None) -> RunConfig:
    """The run in a YAML file: a recipe's fields; or `preset` and changes; `epochs` in place of
    `steps`; and `objectives`.

    Args:
        rows: of the training data, which `epochs` counts in.

    Raises:
        InputError: steps beside epochs, an unknown key, or what a recipe or an objective refuses;
            the message has file and line.
    """
    content = require_mapping(read_file(path), path, "a run")
    entries = content.pop(OBJECTIVES, [])
    parallel = content.pop(PARALLEL, None)
    with _at(path):
        recipe = _recipe(content, rows)
        if not isinstance(entries, Sequence) or isinstance(entries, str):
            raise FieldError(
                f"objectives is a {type(entries).__name__}; pass a list, each entry with its kind",
                (OBJECTIVES,),
            )
        objectives = _objectives(entries, Path(path).parent, (OBJECTIVES,))
        if parallel is not None:
            parallel = _parallel(parallel)
    return RunConfig(recipe=recipe, objectives=objectives, parallel=parallel)


def _parallel(entry: Any) -> Parallel:
    """Raises:
    FieldError: what is no mapping with a known kind.
    """
    try:
        return Parallel.model_validate(entry)
    except ValidationError as error:
        place = (PARALLEL, *error.errors()[0]["loc"])
        raise FieldError(f"parallel: {first_error(error, Parallel)}", place) from None


def read_sweep(path: str | Path, rows: int | None = None) -> Sweep:
    """The sweep in a YAML file: `base` as a run, without objectives, and `axes`; the axis
    `objectives` holds lists of them by label.

    Raises:
        InputError: an unknown key, no base, or what `Sweep` and its parts refuse; the message has
            file and line.
    """
    content = require_mapping(read_file(path), path, "a sweep")
    try:
        file = _SweepFile.model_validate(content)
    except ValidationError as error:
        where = Origin(str(path)).place(error.errors()[0]["loc"])
        raise InputError(
            f"{where}{first_error(error, _SweepFile)};"
            f" a sweep has the mappings base and axes, got {', '.join(content) or 'nothing'}"
        ) from None
    with _at(path, "base"):
        base = _recipe(dict(file.base), rows)
    with _at(path, "axes"):
        axes = {str(axis): _axis(str(axis), values, path) for axis, values in file.axes.items()}
        return Sweep(base, axes)


@contextmanager
def _at(path: str | Path, *within: str) -> Iterator[None]:
    """Errors inside are raised with the file and the line of their field."""
    try:
        yield
    except FieldError as error:
        where = Origin(str(path)).place((*within, *error.place))
        raise InputError(f"{where}{error}") from None
    except InputError as error:
        raise InputError(f"{Origin(str(path)).place(within)}{error}") from None


def _axis(name: str, values: Any, path: str | Path) -> Any:
    if name == OBJECTIVES:
        return _objectives_axis(values, Path(path).parent)
    if isinstance(values, dict):
        return {str(label): fields for label, fields in values.items()}
    return values


def _objectives_axis(values: Any, folder: Path) -> dict[str, tuple[Objective, ...]]:
    is_valid = isinstance(values, dict) and all(isinstance(v, list) for v in values.values())
    if not is_valid:
        raise FieldError(
            "the axis objectives is a mapping from labels to lists of objectives, [] for none",
            (OBJECTIVES,),
        )
    return {
        str(label): _objectives(entries, folder, (OBJECTIVES, str(label)))
        for label, entries in values.items()
    }


def _objectives(
    entries: Sequence[Any], folder: Path, place: tuple[str, ...]
) -> tuple[Objective, ...]:
    objectives = []
    for number, entry in enumerate(entries):
        try:
            objectives.append(read_objective(entry, folder))
        except InputError as error:
            raise FieldError(str(error), (*place, number)) from None
    return tuple(objectives)


def _recipe(content: dict[str, Any], rows: int | None) -> Recipe:
    """The recipe of a run, whose length is said in steps or in epochs."""
    preset = content.pop("preset", None)
    epochs = content.pop("epochs", None)
    if epochs is not None and "steps" in content:
        raise FieldError(
            f"steps={content['steps']!r} was given with epochs={epochs!r}; pass one", ("epochs",)
        )
    if preset is not None:
        return _preset(str(preset), content, rows, epochs)
    if epochs is None:
        return Recipe.from_record(content)
    if rows is None:
        raise FieldError(
            f"epochs={epochs!r} counts passes over the data; pass rows, or steps in the file",
            ("epochs",),
        )
    batch_size = content.get("batch_size", Recipe.model_fields["batch_size"].default)
    steps = steps_of_epochs(rows, epochs, batch_size)
    return Recipe.from_record({**content, "steps": steps})


def _preset(name: str, changes: dict[str, Any], rows: int | None, epochs: float | None) -> Recipe:
    if "steps" in changes:
        return preset_recipe(name, **changes)
    return preset_recipe(name, rows=rows, epochs=1.0 if epochs is None else epochs, **changes)


def read_objective(entry: Any, folder: Path) -> Objective:
    """One objective from its `kind` and fields.

    Raises:
        InputError: no known kind, a field that the kind lacks, or what it refuses.
    """
    kind = str(entry.get("kind")) if isinstance(entry, Mapping) else ""
    if kind not in KINDS:
        raise InputError(
            f"objective {one_line(repr(entry), 80)} is of kind {kind!r};"
            f" pass one of {', '.join(KINDS)}",
            name=kind,
            known=KINDS,
        )
    values = {str(name): value for name, value in entry.items() if name != "kind"}
    make: Any = KINDS[kind]
    known = [field.name for field in fields(make) if field.init]
    for name in values:
        if name not in known:
            raise InputError(f"objective {kind!r}: field {name!r}: {unknown_field(name, known)}")
    try:
        objective: Objective = make(**_with_files(kind, values, folder))
    except TypeError as error:
        raise InputError(
            f"objective {kind!r} cannot be read ({one_line(str(error), 160)})"
        ) from None
    return objective


def _with_files(kind: str, values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The fields of an objective, with the files that they name read."""
    if isinstance(values.get("chats"), str):
        values["chats"] = PromptSet.from_jsonl(folder / values["chats"], upto="all")
    if isinstance(values.get("direction"), str):
        values["direction"] = Direction.load(folder / values["direction"])
    if isinstance(values.get("blocks"), list):
        values["blocks"] = tuple(values["blocks"])
    if kind == ReferenceKL.kind:
        values.setdefault("chats", None)
    return values
