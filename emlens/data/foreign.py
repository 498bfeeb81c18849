"""The one importer of other people's tensors: `.pt` files and safetensors.

A `.pt` file is a pickle, which can run code when it is read. Here it is read with
`weights_only=True` and nothing else, onto the CPU; a file that holds anything but tensors, numbers,
text and plain containers is refused. Numbers and text beside the tensors are passed over. emlens
itself writes safetensors. Cost: the whole file is
read, then each tensor is copied out of its storage (a saved slice carries the storage of what it
was sliced from).
"""

import logging
import pickle
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from emlens.foundation.bounded import MOST_TENSORS, check_archive, check_tensor_file
from emlens.foundation.errors import InputError, LoadError
from emlens.foundation.files import one_line
from emlens.foundation.shapes import as_float64
from emlens.foundation.sites import Site

_LAYER_KEY = re.compile(r"(?:layer_)?(\d{1,6})")
_MAX_DEPTH = 16
_MOST_ENTRIES = 50_000
MOST_LAYERS = 512
"""No model has as many blocks."""

logger = logging.getLogger("emlens")


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a file by name, on the CPU, in the dtype they were saved in.

    Nested dicts and lists become names joined by dots (`answer.24`); a bare tensor gets the name
    `tensor`. Numbers and text beside them (`{"vectors": {...}, "model": "m"}`) are passed over.

    Raises:
        LoadError: no such file, not a file of tensors, or one that holds Python objects.
        InputError: it holds no tensor, something that is neither tensor nor plain value, or two
            names that become one.
    """
    path = Path(path)
    if path.is_dir():
        raise LoadError(f"{path}: is a directory; pass a file")
    if not path.exists():
        raise LoadError(f"{path}: no such file")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    tensors: dict[str, Tensor] = {}
    for name, tensor in _leaves(content, "", path, 0, Counter()):
        if name in tensors:
            raise InputError(f"{path}: two entries are both named {one_line(name, 60)!r}")
        if len(tensors) >= MOST_TENSORS:
            raise InputError(f"{path}: holds more than {MOST_TENSORS} tensors")
        _check_stored(tensor, name, path)
        tensors[name] = tensor.detach().clone()
    if not tensors:
        raise InputError(f"{path}: holds no tensor")
    return tensors


def read_layer_means(path: str | Path, part: str = "answer") -> dict[str, Tensor]:
    """Residual-stream means saved as `{part: {layer: vector}}`, by site.

    The layout of the released Clarifying-EM directions: parts `question` and `answer`, layers as
    integers or as `layer_<i>`, each the mean after that block.

    Returns:
        `{"resid_post.<i>": vector}` in layer order, in the dtype they were saved in.

    Raises:
        InputError: the part is not there, a key that is not a layer, a layer that is missing,
            vectors of several widths or not finite.
    """
    layers = _layers_of(read_tensors(path), part, path)
    check_layer_numbers(list(layers), str(path))
    missing = sorted(set(range(max(layers) + 1)) - set(layers))
    if missing:
        raise InputError(f"{path}: part {part!r} lacks layer {missing[0]} of 0 to {max(layers)}")
    widths = sorted({len(tensor) for tensor in layers.values()})
    if len(widths) > 1:
        raise InputError(
            f"{path}: part {part!r} holds vectors of {widths} coordinates;"
            " a residual stream has one width"
        )
    return {str(Site("resid_post", layer)): layers[layer] for layer in sorted(layers)}


def check_layer_numbers(numbers: Sequence[int], where: str) -> None:
    """Refuse numbers that can be no layers, and warn of those that look like training steps.

    Raises:
        InputError: a number that no model has as many blocks for.
    """
    ordered = sorted(numbers)
    listed = ", ".join(str(number) for number in ordered[:4])
    if ordered[-1] >= MOST_LAYERS:
        raise InputError(
            f"{where}: vectors are numbered {listed}, … {ordered[-1]}, which are no layers;"
            " they may be training steps: pass the vectors of one step by layer"
        )
    gaps = {after - before for before, after in pairwise(ordered)}
    if len(ordered) >= 4 and len(gaps) == 1 and min(gaps) >= 5:
        logger.warning(
            "%s: vectors are numbered %s, …: taken for layers, though evenly spaced numbers are"
            " often training steps",
            where,
            listed,
        )


def _layers_of(tensors: Mapping[str, Tensor], part: str, path: str | Path) -> dict[int, Tensor]:
    """The vectors of one part by layer."""
    parts = sorted({name.partition(".")[0] for name in tensors})
    if part not in parts:
        names = [one_line(name, 40) for name in parts[:8]]
        raise InputError(f"{path}: has no part {part!r}; it holds {names}")
    layers: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        head, _, key = name.partition(".")
        if head != part:
            continue
        match = _LAYER_KEY.fullmatch(key)
        if not match or tensor.ndim != 1 or int(match[1]) in layers:
            raise InputError(
                f"{path}: {one_line(name, 60)!r} of shape {tuple(tensor.shape)} is not one vector"
                " under a layer such as 24 or 'layer_24'"
            )
        as_float64(tensor, f"{path}: {one_line(name, 60)!r}")
        layers[int(match[1])] = tensor
    return layers


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    check_tensor_file(path)
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise LoadError(f"{path}: not a safetensors file: {one_line(str(error), 120)}") from None


def _read_pickle(path: Path) -> Any:
    check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(path, weights_only=True, map_location="cpu")
    except OSError as error:
        raise LoadError(f"{path}: cannot be read ({error.strerror})") from None
    except pickle.UnpicklingError as error:
        raise _pickle_refusal(path, str(error)) from None
    except Exception as error:  # a damaged file fails in many ways inside the unpickler
        raise LoadError(
            f"{path}: not a file of tensors ({type(error).__name__}: {one_line(str(error), 120)})"
        ) from None


def _pickle_refusal(path: Path, message: str) -> LoadError:
    """What torch's unpickler refused: a Python object, which it may name, or no pickle at all."""
    match = re.search(r"(?i:unsupported (?:global|class)):?(?: GLOBAL)? ([\w.]+)", message)
    if match is None and "Unsupported class" not in message and "is blocked" not in message:
        return LoadError(f"{path}: not a file of tensors")
    object_name = f" ({match[1]})" if match else ""
    return LoadError(
        f"{path}: holds Python objects{object_name}, which could run code when read;"
        " have it saved again as plain tensors"
    )


def _check_stored(tensor: Tensor, name: str, path: Path) -> None:
    """Refuse a tensor that stands for more numbers than are stored: a view, a sparse one.

    A copy of it could take any amount of memory.
    """
    if tensor.layout is torch.strided and tensor.device.type == "cpu":
        stored = tensor.untyped_storage().nbytes()
        if tensor.numel() * tensor.element_size() <= stored:
            return
    raise InputError(
        f"{path}: {one_line(name, 60)!r} stands for {tensor.numel()} numbers that are not stored;"
        " have it saved again as a plain tensor"
    )


def _leaves(
    value: Any, name: str, path: Path, depth: int, seen: Counter[str]
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor with its dotted name."""
    if isinstance(value, Tensor):
        yield name or "tensor", value
    elif isinstance(value, dict | list | tuple) and depth < _MAX_DEPTH:
        seen["entries"] += len(value)
        if seen["entries"] > _MOST_ENTRIES:
            raise InputError(f"{path}: holds more than {_MOST_ENTRIES} entries")
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _leaves(item, f"{name}.{key}" if name else str(key), path, depth + 1, seen)
    elif value is not None and not isinstance(value, bool | int | float | str):
        raise InputError(
            f"{path}: {one_line(name, 60) or 'the file'!r} holds a {type(value).__name__};"
            " only tensors, and numbers and text beside them, can be read"
        )
