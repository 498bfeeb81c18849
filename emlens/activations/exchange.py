"""Activations to and from the files of other tools.

Three layouts. `"npz"` keeps everything emlens knows (ids, groups, positions, tokens, provenance)
and comes back bit for bit. `"persona_vectors"` is one array (index, row, d_model) over Hugging Face
`hidden_states` indices: index 0 is the embedding output, index i is after block i − 1, and the last
is after the final norm, so `resid_post` of the last block is in none of them. `"transformer_lens"`
is one array (row, d_model) per hook name, such as `blocks.3.hook_resid_post`. Files are `.npz` or
`.safetensors`; `.pt` is read, by the one safe importer, and never written. Nothing is pickled.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from emlens.activations.memory import Activations
from emlens.activations.npz import from_npz, read_npz, to_array, to_npz, write_npz
from emlens.data.foreign import read_tensors
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line, write_bytes
from emlens.foundation.sites import Site

Layout = Literal["npz", "persona_vectors", "transformer_lens"]
LAYOUTS: Final = ("npz", "persona_vectors", "transformer_lens")


def export_activations(
    acts: Activations, path: str | Path, *, layout: Layout = "npz", position: str | None = None
) -> Path:
    """Write activations for another tool.

    Args:
        path: ends in `.npz` (values of 16-bit brain floats are widened to float32, exactly) or
            `.safetensors`.
        layout: see above; `"npz"` needs a `.npz`.
        position: which one, where several were captured; the layouts of other tools hold one.

    Raises:
        InputError: an unknown layout or suffix; sites that the layout has no place for, or lacks.
        UnknownNameError: a position that was not captured, or none named of several.
    """
    path = Path(path)
    _check_layout(layout)
    suffixes = (".npz",) if layout == "npz" else (".npz", ".safetensors")
    if path.suffix not in suffixes:
        raise InputError(
            f"{path}: the {layout} layout is written as {' or '.join(suffixes)}; pass such a path"
        )
    if layout == "npz":
        write_npz(path, to_npz(acts))
        return path
    if layout == "persona_vectors":
        tensors = {"activations": to_hidden_states(acts, position)}
    else:
        tensors = {Site.parse(site).lens_name: _at(acts, site, position) for site in acts.sites}
    if path.suffix == ".npz":
        arrays = {name: to_array(value) for name, value in tensors.items()}
        write_npz(path, {**arrays, "ids": np.array(acts.ids)})
    else:
        contiguous = {name: value.contiguous() for name, value in tensors.items()}
        write_bytes(path, save(contiguous, {"ids": json.dumps(acts.ids)}))
    return path


def _check_layout(layout: str) -> None:
    if layout not in LAYOUTS:
        raise InputError(
            f"layout={layout!r} is unknown; pass one of {', '.join(LAYOUTS)}",
            name=layout,
            known=LAYOUTS,
        )


def import_activations(
    path: str | Path,
    *,
    layout: Layout = "npz",
    position: str = "last_prompt",
    ids: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
) -> Activations:
    """Read activations that another tool wrote, as rows by id.

    Args:
        path: `.npz`, `.safetensors` or (never trusted, tensors only) `.pt`.
        layout: see above. In the persona-vectors layout a matrix (index, d_model) is one row.
        position: what the rows are; `"npz"` files know it themselves.
        ids, groups: of the rows; by default the file's own ids, or `row-0`, `row-1`, …

    Returns:
        `Activations` whose provenance says only that they were imported: `activation_deltas` will
            not pair them with captured ones.

    Raises:
        LoadError: the file is missing, damaged, or holds Python objects.
        InputError: it does not hold what the layout says.
    """
    path = Path(path)
    _check_layout(layout)
    if layout == "npz":
        return from_npz(path)
    arrays, file_ids = _read_arrays(path)
    provenance: dict[str, Any] = {"imported": layout}
    if layout == "persona_vectors":
        values = _from_persona_vectors(arrays, path)
        provenance["n_layers"] = len(values) - 1
    else:
        values = {str(_site_of(name, path)): value for name, value in arrays.items()}
    # a vector is one row
    values = {site: value[None] if value.ndim == 1 else value for site, value in values.items()}
    count = _row_count(values, path)
    if ids is None:
        ids = file_ids or [f"row-{i}" for i in range(count)]
    if len(ids) != count:
        raise InputError(
            f"{path}: holds {count} rows, but there are {len(ids)} ids; pass one for each"
        )
    sites = sorted(values, key=lambda site: Site.parse(site).order)
    return Activations(
        {(site, position): values[site] for site in sites},
        ids=ids,
        groups=[""] * count if groups is None else list(groups),
        sites=sites,
        positions=[position],
        provenance=provenance,
    )


def _read_arrays(path: Path) -> tuple[dict[str, Tensor], list[str] | None]:
    """The arrays of a file by name, and the row ids that an `.npz` may hold beside them."""
    if path.suffix != ".npz":
        return read_tensors(path), None
    arrays = read_npz(path)
    ids = None
    if "ids" in arrays:
        ids = [str(name) for name in arrays.pop("ids")]
    return {name: torch.from_numpy(array) for name, array in arrays.items()}, ids


def _from_persona_vectors(arrays: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    if len(arrays) != 1:
        raise InputError(
            f"{path}: holds {len(arrays)} arrays;"
            " the persona-vectors layout is one, (index, row, d_model)"
        )
    (stacked,) = arrays.values()
    return from_hidden_states(stacked, str(path))


def _row_count(values: Mapping[str, Tensor], path: Path) -> int:
    shapes = sorted({tuple(value.shape) for value in values.values()})
    if len(shapes) != 1 or len(shapes[0]) != 2:
        raise InputError(
            f"{path}: holds arrays of shapes {shapes[:4]}; pass one (row, d_model) per site"
        )
    return shapes[0][0]


def to_hidden_states(
    acts: Activations, position: str | None = None
) -> Float[Tensor, "index row d_model"]:
    """Rows by Hugging Face `hidden_states` index.

    The embedding output, then after every block but the last, then after the final norm.

    Raises:
        InputError: a site is missing (the message says which to capture), or the number of blocks
            is not known.
    """
    n_layers = acts.provenance.get("n_layers")
    if not isinstance(n_layers, int):
        raise InputError(
            "these activations do not say how many blocks their model has,"
            " so no index can be called the last; capture them with emlens"
        )
    sites = [str(Site.from_hf_index(i, n_layers)) for i in range(n_layers + 1)]
    missing = [site for site in sites if site not in acts.sites]
    if missing:
        verb = "was" if len(missing) == 1 else "were"
        raise InputError(
            f"the persona-vectors layout needs {', '.join(missing[:4])}, which {verb} not captured;"
            " capture sites=['resid_pre.0', 'resid_post', 'final_norm']"
        )
    return torch.stack([_at(acts, site, position) for site in sites])


def from_hidden_states(stacked: Tensor, name: str = "activations") -> dict[str, Tensor]:
    """By site, an array over Hugging Face `hidden_states` indices.

    Raises:
        InputError: fewer than two indices, or not (index, d_model) or (index, row, d_model).
    """
    if stacked.ndim not in (2, 3) or len(stacked) < 2:
        raise InputError(
            f"{name}: has shape {tuple(stacked.shape)};"
            " the persona-vectors layout is (index, row, d_model) or (index, d_model)"
        )
    n_layers = len(stacked) - 1  # one index more than blocks: the embedding output
    values = {}
    for i, rows in enumerate(stacked):
        values[str(Site.from_hf_index(i, n_layers))] = rows.contiguous()
    return values


def _site_of(name: str, path: Path) -> Site:
    try:
        return Site.parse(name)
    except InputError:
        raise InputError(
            f"{path}: {one_line(name, 60)!r} is not a hook that emlens has a site for;"
            " leave it out of the file"
        ) from None


def _at(acts: Activations, site: str, position: str | None) -> Tensor:
    if position is None:
        return acts[site]
    return acts[site, position]
