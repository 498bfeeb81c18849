"""Vectors by site, to and from the files of other tools: persona vectors and steering vectors.

Each layout numbers layers in its own way, and a vector read one layer off looks plausible and is
wrong:

* `persona_vectors`: one tensor (n_layers + 1, d) over Hugging Face `hidden_states` indices. Index 0
  is the embedding output, index i the stream after block i − 1, and the last lies after the final
  norm: `resid_post` of the last block is not in it.
* `steering_vectors`: block index → vector, and a layer type: `decoder_block` is `resid_post`;
  `self_attn` and `mlp` are the modules' outputs, which are `attn_out` and `mlp_out` only where no
  norm or multiplier is between a module and the stream.

Files are read by the one safe importer (`.pt` tensors only, `.safetensors`) and written as
`.safetensors`; nothing is pickled. GGUF control vectors are in `control_vectors`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, Protocol

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from emlens.data.foreign import check_layer_numbers, read_tensors
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line, write_bytes
from emlens.foundation.shapes import as_float64
from emlens.foundation.sites import Site

LayerType = Literal["decoder_block", "self_attn", "mlp"]
_KINDS: Final[dict[str, str]] = {
    "decoder_block": "resid_post",
    "self_attn": "attn_out",
    "mlp": "mlp_out",
}
_LAYER = re.compile(r"(?:(?:layer_activations|vectors|directions)\.)?(\d{1,6})")


class HasVector(Protocol):
    """A `Direction`, or anything else that carries a vector."""

    @property
    def vector(self) -> Tensor: ...


VectorLike = Tensor | HasVector
"""What is exported: tensors of shape (d,), or directions, whose vectors are taken with their
lengths.
"""


def read_persona_vectors(path: str | Path) -> dict[str, Float[Tensor, " d_model"]]:
    """The vectors of a persona-vectors file by site, in the saved dtype.

    Sites are `resid_pre.0`, `resid_post.0`, …, `final_norm`.

    Raises:
        LoadError: no such file, not tensors, or one that holds Python objects.
        InputError: it is not one tensor (n_layers + 1, d) of finite numbers.
    """
    tensors = read_tensors(path)
    if len(tensors) != 1:
        raise InputError(
            f"{path}: holds {len(tensors)} tensors; a persona-vectors file is one tensor of shape"
            " (n_layers + 1, d)"
        )
    table = next(iter(tensors.values()))
    if table.ndim != 2 or len(table) < 2 or table.shape[1] == 0:
        raise InputError(
            f"{path}: holds a tensor of shape {tuple(table.shape)};"
            " a persona-vectors file is (n_layers + 1, d)"
        )
    as_float64(table, str(path))
    n_layers = len(table) - 1
    vectors = {}
    for i in range(n_layers + 1):
        vectors[str(Site.from_hf_index(i, n_layers))] = table[i].clone()
    return vectors


def write_persona_vectors(
    path: str | Path,
    vectors: Mapping[str, VectorLike],
    n_layers: int,
    *,
    missing: Literal["error", "zero"] = "error",
) -> Path:
    """Write vectors by site as one float32 tensor `vectors` (n_layers + 1, d) in `.safetensors`.

    Args:
        n_layers: blocks of the model.
        missing: a site of the layout without a vector is refused, or filled with zeros (which steer
            nothing).

    Raises:
        InputError: a site that the layout has no row for (`resid_post` of the last block has none),
            one that is missing, vectors of several widths, a path that is no `.safetensors`.
    """
    path = _safetensors(path)
    row_of = {str(Site.from_hf_index(i, n_layers)): i for i in range(n_layers + 1)}
    by_site = _checked(vectors, n_layers)
    for site in by_site:
        if site not in row_of:
            raise InputError(
                f"vectors holds {site!r}, which has no place in the persona-vectors layout of"
                f" {n_layers} layers: resid_pre.0, resid_post.0 to resid_post.{n_layers - 2},"
                " final_norm; leave it out"
            )
    absent = [site for site in row_of if site not in by_site]
    if absent and missing != "zero":
        raise InputError(
            f"vectors lacks {absent[0]!r} (and {len(absent) - 1} more) of the layout;"
            " pass it, or missing='zero'"
        )
    table = torch.zeros(n_layers + 1, len(next(iter(by_site.values()))))
    for site, vector in by_site.items():
        table[row_of[site]] = vector
    write_bytes(path, save({"vectors": table}))
    return path


def read_steering_vectors(
    path: str | Path, layer_type: LayerType = "decoder_block"
) -> dict[str, Float[Tensor, " d_model"]]:
    """The vectors of a steering-vectors file by site, in layer order and the saved dtype.

    Args:
        path: a file of block index → vector, by itself or under `layer_activations`, `vectors` or
            `directions`.
        layer_type: that of the steering vector; see above for what it means.

    Raises:
        LoadError: no such file, not tensors, or one that holds Python objects (a pickled
            `SteeringVector`: save its `layer_activations`).
        InputError: an unknown layer type, a name that is not a block index, vectors of several
            widths or not finite.
    """
    kind = _kind(layer_type)
    by_layer: dict[int, Tensor] = {}
    for name, tensor in read_tensors(path).items():
        match = _LAYER.fullmatch(name)
        if not match or tensor.ndim != 1 or int(match[1]) in by_layer:
            raise InputError(
                f"{path}: {one_line(name, 60)!r} of shape {tuple(tensor.shape)} is not one vector"
                " under a block index such as 24"
            )
        as_float64(tensor, f"{path}: {name}")
        by_layer[int(match[1])] = tensor
    check_layer_numbers(list(by_layer), str(path))
    widths = sorted({len(tensor) for tensor in by_layer.values()})
    if len(widths) > 1:
        raise InputError(
            f"{path}: holds vectors of {widths} coordinates; a residual stream has one width"
        )
    return {str(Site(kind, layer)): by_layer[layer] for layer in sorted(by_layer)}


def write_steering_vectors(path: str | Path, vectors: Mapping[str, VectorLike]) -> Path:
    """Write vectors by site as block index → vector, float32, in `.safetensors`.

    The layer type is in the file's metadata.
    `SteeringVector({int(i): v for i, v in load_file(path).items()})` reads it back in the
    steering-vectors library.

    Raises:
        InputError: sites of several kinds, or of one without a layer type; vectors of several
            widths; a path that is no `.safetensors`.
    """
    path = _safetensors(path)
    by_site = {Site.parse(name): vector for name, vector in _checked(vectors, None).items()}
    kinds = sorted({site.kind for site in by_site})
    layer_types = {kind: layer_type for layer_type, kind in _KINDS.items()}
    if len(kinds) != 1 or kinds[0] not in layer_types:
        raise InputError(
            f"vectors lie at sites of kind {', '.join(kinds)};"
            f" a steering vector has one kind of {', '.join(layer_types)}"
        )
    tensors = {str(site.layer): vector.contiguous() for site, vector in by_site.items()}
    write_bytes(path, save(tensors, {"layer_type": layer_types[kinds[0]]}))
    return path


def vector_of(value: VectorLike, name: str) -> Float[Tensor, " d_model"]:
    """One finite vector as float32 on the CPU.

    Raises:
        InputError: another shape, or values that are not finite, or that float32 cannot hold.
    """
    tensor = value if isinstance(value, Tensor) else value.vector
    wide = as_float64(tensor, name)
    if wide.ndim != 1 or len(wide) == 0:
        raise InputError(f"{name} has shape {tuple(wide.shape)}; pass one vector of shape (d,)")
    narrow = wide.float().cpu()
    if not bool(torch.isfinite(narrow).all()):
        raise InputError(f"{name} holds values too large for float32, in which it would be written")
    return narrow


def _checked(vectors: Mapping[str, VectorLike], n_layers: int | None) -> dict[str, Tensor]:
    if not vectors:
        raise InputError("vectors is empty; pass at least one vector by site")
    by_site = {}
    for site, value in vectors.items():
        by_site[str(Site.parse(site, n_layers))] = vector_of(value, f"the vector at {site}")
    widths = sorted({len(vector) for vector in by_site.values()})
    if len(widths) > 1:
        raise InputError(f"vectors have {widths} coordinates; a residual stream has one width")
    return by_site


def _safetensors(path: str | Path) -> Path:
    if Path(path).suffix != ".safetensors":
        raise InputError(f"{path}: vectors are written as .safetensors; pass such a path")
    return Path(path)


def _kind(layer_type: str) -> str:
    if layer_type not in _KINDS:
        raise InputError(
            f"layer_type={layer_type!r} is unknown; pass one of {', '.join(_KINDS)}",
            name=layer_type,
            known=_KINDS,
        )
    return _KINDS[layer_type]
