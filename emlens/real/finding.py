"""Find a real model that was fetched, and load it like any other."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from emlens.foundation.errors import LoadError
from emlens.models import HookedModel, load_model
from emlens.real.catalogue import model_named
from emlens.real.fetching import whole

FOLDER_VARIABLE: Final = "EMLENS_REAL_MODELS"
"""Environment variable that names the folder of fetched models."""


def find(name: str, folder: str | Path | None = None) -> Path:
    """The directory of a fetched model, every file checked against its record.

    Args:
        name: `"smollm2"` or `"gemma3-270m"`.
        folder: where to look; else `EMLENS_REAL_MODELS`, then `~/.cache/emlens/real`.

    Raises:
        UnknownNameError: no such model.
        LoadError: not fetched, or damaged; the message has the command to run.
    """
    model = model_named(name)
    places = list(_places(folder))
    for place in places:
        if whole(place / model.name):
            return place / model.name
    damaged = [str(place / model.name) for place in places if (place / model.name).exists()]
    state = f"is damaged in {damaged[0]}" if damaged else "was not fetched"
    raise LoadError(
        f"{model.title} {state} (looked in {', '.join(map(str, places))}); run:"
        f" emlens real fetch {model.name} --out DIR, and set {FOLDER_VARIABLE}=DIR"
    )


def load(name: str, folder: str | Path | None = None, **options: Any) -> HookedModel:
    """Load a fetched model; `options` go to `emlens.load_model`.

    Args:
        folder: where to look; else as `find` does.

    Raises:
        UnknownNameError: no such model.
        LoadError: not fetched, or damaged; the message has the command to run.
    """
    return load_model(find(name, folder), **options)


def _places(folder: str | Path | None) -> Iterator[Path]:
    if folder is not None:
        yield Path(folder)
        return
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        yield Path(named)
    yield Path.home() / ".cache" / "emlens" / "real"
