"""Hidden states that a server wrote, one file per prompt, as rows of `Activations`.

Inference servers can leave the hidden states of each request in a safetensors file: one array
(token, d_model) per layer, or one (layer, token, d_model) for all. A layer read one off looks
plausible and is wrong, so the caller says how layers are numbered:

* `"block"`: i is the output of block i, counted from 0 (`resid_post.i`);
* `"hidden_states"`: Hugging Face's index: 0 is the embedding output, i is after block i − 1, and
  the last index is after the final norm.

The row of a prompt is its last token, or the mean over its tokens. Files are tensors only; nothing
in them is run. Rows carry no record of the model, so `activation_deltas` pairs them only with rows
that were imported in the same way.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.activations.memory import Activations
from emlens.data.foreign import read_tensors
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.foundation.shapes import as_float64
from emlens.foundation.sites import Site

Numbering = Literal["block", "hidden_states"]
_LAYER = re.compile(r"(?:.*[._])?(\d{1,4})")
_ROWS = {"last_prompt": "the last token", "mean_prompt": "the mean over tokens"}


def import_server_captures(
    folder: str | Path,
    *,
    numbering: Numbering,
    n_layers: int,
    position: str = "last_prompt",
    ids: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
) -> Activations:
    """Rows of a folder with one safetensors file per prompt.

    Args:
        numbering: see above.
        n_layers: blocks of the model.
        position: `last_prompt` or `mean_prompt`.
        ids: prompts in the order wanted, named as the files without their ending; None: all files
            by name.
        groups: of the rows.

    Returns:
        `Activations` with the sites that every file has.

    Raises:
        LoadError: a file that is missing, damaged, or holds Python objects.
        InputError: no file, an unknown numbering or position, a layer that the model has not,
            arrays that are no tokens × width, rows that are not finite, files of other layers or
            widths.
    """
    folder = Path(folder)
    if numbering not in ("block", "hidden_states"):
        raise InputError(
            f"numbering={numbering!r} is unknown; pass 'block' or 'hidden_states'",
            name=numbering,
            known=("block", "hidden_states"),
        )
    if position not in _ROWS:
        raise InputError(
            f"position={position!r} is unknown here; pass {' or '.join(_ROWS)}",
            name=position,
            known=_ROWS,
        )
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder; pass the one with a file per prompt")
    names = list(ids) if ids is not None else _names(folder)
    if not names:
        raise InputError(f"{folder}: holds no .safetensors file")
    rows: dict[str, list[Tensor]] = {}
    first_sites: list[str] = []
    for number, name in enumerate(names):
        path = folder / f"{name}.safetensors"
        by_site = _by_site(path, numbering, n_layers)
        if number == 0:
            first_sites = list(by_site)
        elif list(by_site) != first_sites:
            raise InputError(
                f"{path}: holds other layers than the first file ({len(by_site)} against"
                f" {len(first_sites)}); write the same layers for every prompt"
            )
        for site, tokens in by_site.items():
            row = _row(tokens, position)
            as_float64(row, f"{path}: {site}")
            rows.setdefault(site, []).append(row)
    widths = sorted({len(row) for of_site in rows.values() for row in of_site})
    if len(widths) > 1:
        raise InputError(f"{folder}: holds rows of {widths} coordinates; a stream has one width")
    return Activations(
        {(site, position): torch.stack(of_site) for site, of_site in rows.items()},
        ids=names,
        groups=[""] * len(names) if groups is None else list(groups),
        sites=first_sites,
        positions=[position],
        provenance={"imported": f"server, {numbering}", "n_layers": n_layers},
    )


def _names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.safetensors"))


def _by_site(path: Path, numbering: Numbering, n_layers: int) -> dict[str, Tensor]:
    """The arrays of one file by site, in order of the layers."""
    found: dict[Site, Tensor] = {}
    for layer, tokens in _by_number(path).items():
        most = n_layers if numbering == "hidden_states" else n_layers - 1
        if layer > most:
            raise InputError(
                f"{path}: holds layer {layer}, and {n_layers} blocks numbered as {numbering!r} end"
                f" at {most}; check numbering= and n_layers="
            )
        if tokens.ndim != 2 or 0 in tokens.shape:
            raise InputError(
                f"{path}: layer {layer} has shape {tuple(tokens.shape)}; write (token, d_model)"
            )
        site = Site("resid_post", layer)
        if numbering == "hidden_states":
            site = Site.from_hf_index(layer, n_layers)
        found[site] = tokens
    return {str(site): found[site] for site in sorted(found, key=lambda site: site.order)}


def _by_number(path: Path) -> dict[int, Tensor]:
    tensors = {
        name: tensor for name, tensor in read_tensors(path).items() if tensor.is_floating_point()
    }
    if len(tensors) == 1:
        [whole] = tensors.values()
        if whole.ndim == 3:
            return dict(enumerate(whole))
    numbered: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        match = _LAYER.fullmatch(name)
        if match is None or int(match[1]) in numbered:
            raise InputError(
                f"{path}: {one_line(name, 60)!r} is not one array under a layer's number, such as"
                " 'layer_12' or 'hidden_states.12'"
            )
        numbered[int(match[1])] = tensor
    if not numbered:
        raise InputError(f"{path}: holds no array of hidden states")
    return numbered


def _row(tokens: Float[Tensor, "token d_model"], position: str) -> Float[Tensor, " d_model"]:
    if position == "last_prompt":
        return tokens[-1]
    return tokens.float().mean(0)
