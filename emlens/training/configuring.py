"""Training described in a YAML file: a recipe or a preset with changes, its objectives, or a sweep
of them.

Objectives name files: chats as JSONL with `messages`, directions as directories that
`Direction.save` wrote. Paths are relative to the YAML file. What a kind does not read is refused.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

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
from emlens.training.penalties import FeatureDistance, ReferenceKL
from emlens.training.presets import recipe
from emlens.training.recipes import Recipe, read_mapping
from emlens.training.sweeps import OBJECTIVES, Sweep

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


@dataclass(frozen=True)
class RunConfig:
    """One run as a file describes it."""

    recipe: Recipe
    objectives: tuple[Objective, ...]


def read_run(path: str | Path, rows: int | None = None) -> RunConfig:
    """The run in a YAML file: a recipe's fields; or `preset` and changes; `epochs` in place of
    `steps`; and `objectives`.

    Args:
        rows: of the training data, which `epochs` counts in.

    Raises:
        InputError: steps beside epochs, an unknown key, or what a recipe or an objective refuses.
    """
    content = read_mapping(path)
    given = content.pop(OBJECTIVES, [])
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise InputError(
            f"{path}: objectives is a {type(given).__name__}; pass a list, each entry with its kind"
        )
    return RunConfig(
        _recipe(content, rows, path),
        tuple(read_objective(entry, Path(path).parent) for entry in given),
    )


def read_sweep(path: str | Path, rows: int | None = None) -> Sweep:
    """The sweep in a YAML file: `base` as a run, without objectives, and `axes`; the axis
    `objectives` holds lists of them by label.

    Raises:
        InputError: an unknown key, no base, or what `Sweep` and its parts refuse.
    """
    content = read_mapping(path)
    unknown = sorted(set(map(str, content)) - {"base", "axes"})
    axes = content.get("axes") or {}
    if unknown or not isinstance(content.get("base"), dict) or not isinstance(axes, dict):
        raise InputError(
            f"{path}: a sweep has the mappings base and axes;"
            f" got {', '.join(map(str, content)) or 'nothing'}"
        )
    found = {
        str(axis): {str(k): v for k, v in values.items()} if isinstance(values, dict) else values
        for axis, values in axes.items()
    }
    if OBJECTIVES in found:
        if not isinstance(found[OBJECTIVES], dict) or not all(
            isinstance(given, list) for given in found[OBJECTIVES].values()
        ):
            raise InputError(
                f"{path}: the axis objectives is a mapping from labels to lists of objectives,"
                " [] for none"
            )
        found[OBJECTIVES] = {
            label: tuple(read_objective(entry, Path(path).parent) for entry in given)
            for label, given in found[OBJECTIVES].items()
        }
    return Sweep(_recipe(dict(content["base"]), rows, path), found)


def _recipe(content: dict[str, Any], rows: int | None, path: str | Path) -> Recipe:
    preset, epochs = content.pop("preset", None), content.pop("epochs", None)
    if epochs is not None and "steps" in content:
        raise InputError(
            f"{path}: steps={content['steps']!r} came with epochs={epochs!r}; pass one"
        )
    if preset is not None:
        length: dict[str, Any] = (
            {"steps": content.pop("steps")}
            if "steps" in content
            else {"rows": rows, "epochs": 1.0 if epochs is None else epochs}
        )
        return recipe(str(preset), **length, **content)
    if epochs is None:
        return Recipe.from_record(content)
    size = {"batch_size": content["batch_size"]} if "batch_size" in content else {}
    if rows is None:
        raise InputError(
            f"{path}: epochs={epochs!r} counts passes over the data;"
            " pass rows, or steps in the file"
        )
    return Recipe.from_record(
        {**content, "steps": Recipe(method="full", **size).for_rows(rows, epochs).steps}
    )


def read_objective(entry: Any, folder: Path) -> Objective:
    """One objective from its `kind` and fields.

    Raises:
        InputError: no known kind, a field that the kind lacks, or what it refuses.
    """
    kind = str(entry.get("kind")) if isinstance(entry, Mapping) else ""
    if kind not in KINDS:
        raise InputError(
            f"objective {one_line(repr(entry), 80)} is of kind {kind!r};"
            f" pass one of {', '.join(KINDS)}"
        )
    made: Any = KINDS[kind]
    known = [field.name for field in fields(made) if field.init]
    unknown = sorted(set(map(str, entry)) - {"kind", *known})
    if unknown:
        raise InputError(
            f"objective {kind!r} has unknown keys {unknown}; known are {', '.join(known)}"
        )
    values = {str(name): value for name, value in entry.items() if name != "kind"}
    if isinstance(values.get("chats"), str):
        values["chats"] = PromptSet.from_jsonl(folder / values["chats"], upto="all")
    if isinstance(values.get("direction"), str):
        values["direction"] = Direction.load(folder / values["direction"])
    if isinstance(values.get("blocks"), list):
        values["blocks"] = tuple(values["blocks"])
    if kind == ReferenceKL.kind:
        values.setdefault("chats", None)
    try:
        objective: Objective = made(**values)
    except TypeError as error:
        raise InputError(
            f"objective {kind!r} cannot be read ({one_line(str(error), 160)})"
        ) from None
    return objective
