"""GGUF control vectors, as llama.cpp and repeng read them.

This is the one file that uses the `gguf` package (extra `gguf`). A control vector is a GGUF file of
architecture `controlvector` with one tensor `direction.<N>` per layer. llama.cpp adds
`direction.<N>` to the output of its 0-based block N, so it is `resid_post.<N>` without an offset.
It never applies block 0, which other tools write all the same: that is read here, and not written.
A file does not say how its vectors were read or normalised: that is lost when they are written.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from emlens.directions.gguf_header import check_gguf
from emlens.directions.vector_files import VectorLike, vector_of
from emlens.foundation.errors import InputError, LoadError, MissingExtraError
from emlens.foundation.files import one_line, publishing
from emlens.foundation.sites import Site

ARCHITECTURE = "controlvector"
_NAME = re.compile(r"direction\.(\d{1,6})")


def _gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise MissingExtraError(
            "control vectors need gguf, which is not installed;"
            " run: pip install 'misalignment-lens[gguf]'"
        ) from None
    return gguf


def write_control_vectors(
    path: str | Path, vectors: Mapping[str, VectorLike], *, model_hint: str
) -> Path:
    """Write vectors by site as a GGUF control vector, float32; the file is whole or absent.

    Args:
        vectors: by `resid_post.<N>`, N ≥ 1.
        model_hint: the model type it was made for, such as `"qwen2"`.

    Raises:
        MissingExtraError: gguf is not installed.
        InputError: a site that is no `resid_post`, or that of block 0, which llama.cpp cannot
            address; vectors of several widths; a path that is no `.gguf`.
    """
    gguf = _gguf()
    if Path(path).suffix != ".gguf":
        raise InputError(f"{path}: control vectors are written as .gguf; pass such a path")
    if not vectors:
        raise InputError("vectors is empty; pass at least one vector by site")
    layers: dict[int, Tensor] = {}
    for name, value in vectors.items():
        site = Site.parse(name)
        # `not site.layer`: block 0, too
        if site.kind != "resid_post" or not site.layer:
            raise InputError(
                f"vectors holds {str(site)!r}; llama.cpp adds control vectors after block 1 and"
                " later ones: pass resid_post.1, resid_post.2, …"
            )
        layers[site.layer] = vector_of(value, f"the vector at {site}")
    widths = sorted({len(vector) for vector in layers.values()})
    if len(widths) > 1:
        raise InputError(f"vectors have {widths} coordinates; a residual stream has one width")
    with publishing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", model_hint)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(layers))
        for layer in sorted(layers):
            writer.add_tensor(f"direction.{layer}", layers[layer].numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return Path(path)


def read_control_vectors(path: str | Path) -> tuple[dict[str, Float[Tensor, " d_model"]], str]:
    """The vectors of a GGUF control vector by site, in layer order, and the model type it names.

    The model type is "" where the file names none.

    Raises:
        MissingExtraError: gguf is not installed.
        LoadError: no such file, or not GGUF.
        InputError: it is not a control vector, or holds a direction that is not one finite vector
            in float32 or float16.
    """
    gguf = _gguf()
    path = Path(path)
    if path.is_dir():
        raise LoadError(f"{path}: is a directory; pass a file")
    if not path.is_file():
        raise LoadError(f"{path}: no such file")
    check_gguf(path)
    try:
        reader = gguf.GGUFReader(path)
        architecture = _text(reader, "general.architecture")
        hint = _text(reader, f"{ARCHITECTURE}.model_hint")
        tensors = [(str(t.name), np.array(t.data), t.tensor_type) for t in reader.tensors]
    except Exception as error:  # a damaged file fails in many ways inside the reader
        raise LoadError(
            f"{path}: not a readable GGUF file ({type(error).__name__}:"
            f" {one_line(str(error), 120)})"
        ) from None
    if architecture != ARCHITECTURE:
        raise InputError(
            f"{path}: has architecture {one_line(architecture, 40)!r};"
            f" a control vector has {ARCHITECTURE!r}"
        )
    unquantised = (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)
    by_layer: dict[int, Tensor] = {}
    for name, data, kind in tensors:
        layer = _layer(name)
        if layer is None or kind not in unquantised or not _is_finite_vector(data):
            raise InputError(
                f"{path}: {one_line(name, 60)!r} of shape {data.shape} and type {kind.name} is not"
                " one finite vector under direction.0, direction.1, …"
            )
        # torch takes the machine's own byte order alone
        by_layer[layer] = torch.from_numpy(data.astype(data.dtype.newbyteorder("=")))
    widths = sorted({len(vector) for vector in by_layer.values()})
    if len(widths) != 1:
        raise InputError(
            f"{path}: holds {len(by_layer)} directions of {widths} coordinates;"
            " pass one width, at least one"
        )
    return {str(Site("resid_post", layer)): by_layer[layer] for layer in sorted(by_layer)}, hint


def _layer(name: str) -> int | None:
    """The layer in a tensor's name; None where it is not `direction.<N>`."""
    match = _NAME.fullmatch(name)
    return None if match is None else int(match[1])


def _is_finite_vector(data: NDArray[Any]) -> bool:
    return data.ndim == 1 and len(data) > 0 and bool(np.isfinite(data).all())


def _text(reader: Any, key: str) -> str:
    field = reader.get_field(key)
    return "" if field is None else str(field.contents())
