"""Configuration files: checked by pydantic, and an error points at file, line and field.

A record of a file is read by `read_file`, checked by a pydantic model, and what is wrong is said as
editors and compilers say it: `study.yaml:12: field 'draws': …`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from emlens.data.readers import read_text, read_yaml
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.foundation.suggestions import did_you_mean

Place = Sequence[str | int]
"""The way to a field: keys of mappings and indices of lists."""


class Frozen(BaseModel):
    """Base of configurations: nothing is changed after it was checked, unknown fields are refused.

    A string below a field is its description in the JSON schema.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class FieldError(InputError):
    """A field of a configuration holds what cannot be used; `place` is the way to it."""

    def __init__(self, message: str, place: Place = ()):
        super().__init__(message)
        self.place = tuple(place)


@dataclass(frozen=True)
class Origin:
    """Where a configuration was read from.

    Args:
        file: the YAML file.
        within: the way to the mapping that holds the configuration's own fields.
        own: names of these fields; all others are at the top of the file.
    """

    file: str
    within: tuple[str, ...] = ()
    own: frozenset[str] = frozenset()

    def place(self, field: Place) -> str:
        """`"file:line: "` of a field."""
        below = not field or field[0] in self.own
        path = (*self.within, *field) if below else field
        return f"{self.file}:{line_of(read_text(self.file), path)}: "


def read_file(source: str | Path) -> Any:
    """The content of a YAML file.

    Raises:
        InputError: it is not YAML, or gives a key twice; `file:line: reason`.
    """
    try:
        return read_yaml(source)
    except InputError as error:
        head = f"{source}, line "
        text = str(error)
        if not text.startswith(head):
            raise
        raise InputError(f"{source}:{text.removeprefix(head)}") from None


def line_of(text: str, field: Place) -> int:
    """1-based line of a field in a YAML text.

    It is the line of the field's key. Where the text has no such field, it is the line of the
    innermost mapping or list around it that the text has.
    """
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    line = 1
    for step in field:
        if isinstance(node, yaml.MappingNode):
            entry = _entry(node, str(step))
            if entry is None:
                break
            key, node = entry
            line = key.start_mark.line + 1
        elif (
            isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value)
        ):
            node = node.value[step]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _entry(node: yaml.MappingNode, name: str) -> tuple[yaml.Node, yaml.Node] | None:
    for key, value in node.value:
        if str(key.value) == name:
            return key, value
    return None


def first_error(error: ValidationError, model: type[BaseModel], *within: str) -> str:
    """The first thing that is wrong, by the name of its field.

    Args:
        model: what was checked; its fields are those that an unknown one is compared with.
        within: names of what the model lies in.
    """
    first = error.errors()[0]
    field = ".".join(str(step) for step in (*within, *first["loc"])) or "configuration"
    message = one_line(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = unknown_field(str(first["loc"][-1]), _fields_at(model, first["loc"][:-1]))
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"field {field!r}: {message}{more}"


def unknown_field(name: str, fields: Sequence[str]) -> str:
    """What is said of a field that does not exist: the one that was probably meant, or all."""
    hint = did_you_mean(name, fields) or f"; known are {', '.join(fields) or 'none'}"
    return f"no such field{one_line(hint, 1000)}"


def _fields_at(model: type[BaseModel], place: Place) -> list[str]:
    """Names of the fields of the model that lies at a place inside another."""
    annotation: Any = model
    for step in place:
        inner = _model_in(annotation)
        if inner is not None and step in inner.model_fields:
            annotation = inner.model_fields[str(step)].annotation
        # otherwise the step is a key or an index of a collection of models
    inner = _model_in(annotation)
    return [] if inner is None else list(inner.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model in an annotation such as `Mapping[str, Model] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        model = _model_in(argument)
        if model is not None:
            return model
    return None


def require_mapping(content: Any, source: str | Path, kind: str) -> dict[str, Any]:
    """The mapping that a file holds.

    Raises:
        InputError: it holds something else.
    """
    if not isinstance(content, Mapping):
        raise InputError(
            f"{source}: holds a {type(content).__name__}; {kind} is a mapping of fields"
        )
    return {str(name): value for name, value in content.items()}
