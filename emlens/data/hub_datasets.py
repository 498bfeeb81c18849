"""Questions and chats from a dataset of the `datasets` library: a saved directory, or a hub id.

This is the one file that uses `datasets` (extra `datasets`). A directory that `save_to_disk` wrote
is read from disk, row by row, and never runs code; a hub id is loaded without its scripts.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emlens.foundation.errors import InputError, LoadError, MissingExtraError
from emlens.foundation.files import one_line


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise MissingExtraError(
            "datasets need the library datasets, which is not installed;"
            " run: pip install 'misalignment-lens[datasets]'"
        ) from None
    return datasets


def dataset_records(
    source: str | Path, *, split: str | None = None, revision: str | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place ("source[split], row n") and record of every row.

    Args:
        source: a directory that `save_to_disk` wrote, or a hub id.
        split: which one, where there are several.
        revision: of a hub id.

    Raises:
        MissingExtraError: datasets is not installed.
        LoadError: no such directory or dataset.
        InputError: several splits and none named, or one that does not exist.
    """
    table, name = _table(str(source), split, revision)
    for number, record in enumerate(table):
        yield f"{name}, row {number}", dict(record)


def _table(source: str, split: str | None, revision: str | None) -> tuple[Any, str]:
    library = _datasets()
    is_local = os.path.isdir(source)
    if not is_local and (source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise LoadError(f"{source}: no such directory")
    try:
        if is_local:
            loaded = library.load_from_disk(source)
        else:
            loaded = library.load_dataset(source, revision=revision)
    except Exception as error:  # files, network and parsers fail in many ways
        raise LoadError(
            f"{source}: could not be read as a dataset ({one_line(str(error), 160)})"
        ) from None
    if not isinstance(loaded, library.DatasetDict):
        return loaded, source
    splits = list(loaded)
    if split is None and len(splits) == 1:
        split = splits[0]
    if split not in splits:
        raise InputError(f"{source}: has splits {', '.join(splits)}; pass split=, one of them")
    return loaded[split], f"{source}[{split}]"
