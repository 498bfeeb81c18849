"""Models as commands name them: a directory or hub id, and adapters of it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from emlens.cli.settings import Setting, text

if TYPE_CHECKING:
    from emlens.models.hooked import HookedModel

MODEL_SETTINGS: Mapping[str, Setting] = {
    "device": text("auto (a GPU if there is one), cpu, cuda, cuda:1 (auto)"),
    "dtype": text("auto (float32 on the CPU), float32, bfloat16, float16 (auto)"),
    "revision": text("revision of a hub id (none)"),
    "template": text("chat template in place of the tokenizer's own, such as plain (its own)"),
}
"""Of a model that a command loads."""


def model_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `load_model` among the settings of a command."""
    options = {name: values[name] for name in ("device", "dtype", "revision") if name in values}
    if "template" in values:
        options["chat_template"] = values["template"]
    return options


def load_named(
    model: str, adapters: Sequence[str], options: Mapping[str, Any]
) -> "dict[str, HookedModel]":
    """The model by the last part of its path, or its adapters by theirs.

    Args:
        adapters: `NAME=PATH` or `PATH`; where there is any, the model itself is not among them.

    Raises:
        InputError: two adapters of one name.
        LoadError: a path that does not load.
    """
    from emlens.foundation.errors import InputError
    from emlens.models import load_family, load_model

    if not adapters:
        loaded = load_model(model, **options)
        return {loaded.name: loaded}
    paths: dict[str, str] = {}
    for word in adapters:
        name, equals, path = word.partition("=")
        if not equals:
            name, path = word.rstrip("/").rpartition("/")[2], word
        if name in paths:
            raise InputError(f"--adapter {name!r} was given twice; name each: --adapter NAME=PATH")
        paths[name] = path
    family = load_family(model, finetuned=paths, **options)
    return {name: family[name] for name in paths}
