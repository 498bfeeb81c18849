"""`Activations` as one `.npz` file of plain arrays, which comes back bit for bit.

Each tensor is an array named `site@position`. Ids, groups, provenance and dtypes are JSON in an
array named `emlens`. Nothing is pickled.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emlens.activations.memory import Activations
from emlens.foundation.bounded import check_archive
from emlens.foundation.errors import InputError, LoadError
from emlens.foundation.files import canonical_json, one_line, publishing

_DESCRIPTION = "emlens"


def to_array(value: Tensor) -> Any:
    """A numpy array; bfloat16, which numpy lacks, is widened to float32, exactly."""
    if value.dtype == torch.bfloat16:
        value = value.float()
    return value.contiguous().numpy()


def to_npz(acts: Activations) -> dict[str, Any]:
    """Every array of the file, by name."""
    arrays: dict[str, Any] = {}
    dtypes: dict[str, str] = {}
    for key in acts.keys:
        name = "@".join(key)
        value = acts.value(key)
        arrays[name] = to_array(value)
        dtypes[name] = str(value.dtype).removeprefix("torch.")
    if "all" in acts.positions:
        tokens = acts.tokens(acts.sites[0])
        arrays["offsets"] = tokens.offsets.numpy()
        arrays["token_ids"] = tokens.token_ids.numpy()
    description = {
        "ids": acts.ids,
        "groups": acts.groups,
        "sites": acts.sites,
        "positions": acts.positions,
        "provenance": acts.provenance,
        "dtypes": dtypes,
    }
    arrays[_DESCRIPTION] = np.array(canonical_json(description, None))
    return arrays


def write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """Uncompressed, in name order, without times: the same arrays give the same bytes."""
    with publishing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name in sorted(arrays):
            entry = zipfile.ZipInfo(f"{name}.npy")
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asarray(arrays[name]), allow_pickle=False)
            archive.writestr(entry, content.getvalue())


def read_npz(path: Path) -> dict[str, Any]:
    """The arrays of a file.

    Raises:
        LoadError: the file is missing, damaged, or holds Python objects.
    """
    if not path.is_file():
        raise LoadError(f"{path}: no such file")
    check_archive(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # a damaged zip or header fails in many ways
        raise LoadError(
            f"{path}: not an npz file of plain arrays"
            f" ({type(error).__name__}: {one_line(str(error), 120)})"
        ) from None


def from_npz(path: Path) -> Activations:
    """Activations from a file whose arrays are those of `to_npz`.

    Raises:
        LoadError: the file is missing, damaged, or holds Python objects.
        InputError: it is a file of another tool.
    """
    arrays = read_npz(path)
    # another tool's file has no description, or lacks a key, an array or a dtype that it needs
    try:
        description = json.loads(str(arrays[_DESCRIPTION]))
        values = {}
        for site in description["sites"]:
            for position in description["positions"]:
                name = f"{site}@{position}"
                dtype = getattr(torch, description["dtypes"][name])
                values[site, position] = torch.from_numpy(arrays[name]).to(dtype)
        names = ("ids", "groups", "sites", "positions", "provenance")
        fields = {name: description[name] for name in names}
        if "all" in description["positions"]:
            for name in ("offsets", "token_ids"):
                fields[name] = torch.from_numpy(arrays[name])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: is not an npz file of emlens"
            f" ({type(error).__name__}: {one_line(str(error), 80)});"
            " pass layout= for another tool's"
        ) from None
    return Activations(values, **fields)
