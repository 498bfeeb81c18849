"""Activations to and from other tools' files: `.npz`, the persona-vectors layout, TransformerLens
names.

Three layouts. `"npz"` keeps everything emlens knows (ids, groups, positions, tokens, provenance)
and comes back bit for bit. `"persona_vectors"` is one array (index, row, d_model) over Hugging Face
`hidden_states` indices: index 0 is the embedding output, index i is after block i − 1, and the last
is after the final norm, so `resid_post` of the last block is in none of it. `"transformer_lens"` is
one array (row, d_model) a hook name, such as `blocks.3.hook_resid_post`. Files are `.npz` or
`.safetensors`; `.pt` is read, by the one safe importer, and never written. Nothing is pickled.
"""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from emlens.activations.record import Activations, Key
from emlens.data.foreign import read_tensors
from emlens.foundation.errors import InputError, LoadError
from emlens.foundation.files import canonical_json, one_line, publishing, write_bytes
from emlens.foundation.sites import Site

Layout = Literal["npz", "persona_vectors", "transformer_lens"]
LAYOUTS: Final = ("npz", "persona_vectors", "transformer_lens")
_FACTS = "emlens"


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
    if layout not in LAYOUTS:
        raise InputError(f"layout={layout!r} is unknown; pass one of {', '.join(LAYOUTS)}")
    if path.suffix not in (".npz", ".safetensors") or (layout == "npz" and path.suffix != ".npz"):
        raise InputError(
            f"{path}: the {layout} layout is written as"
            f" .npz{'' if layout == 'npz' else ' or .safetensors'}; pass such a path"
        )
    if layout == "npz":
        _write_npz(path, _everything(acts))
        return path
    if layout == "persona_vectors":
        tensors = {"activations": to_hidden_states(acts, position)}
    else:
        tensors = {lens_name(site): _of(acts, site, position) for site in acts.sites}
    if path.suffix == ".npz":
        _write_npz(
            path,
            {name: _array(value) for name, value in tensors.items()} | {"ids": np.array(acts.ids)},
        )
    else:
        write_bytes(
            path,
            save(
                {name: value.contiguous() for name, value in tensors.items()},
                {"ids": json.dumps(acts.ids)},
            ),
        )
    return path


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
    if layout not in LAYOUTS:
        raise InputError(f"layout={layout!r} is unknown; pass one of {', '.join(LAYOUTS)}")
    if layout == "npz":
        return _from_npz(path)
    named: dict[str, Tensor]
    facts: dict[str, Any] = {"imported": layout}
    found_ids: list[str] | None = None
    if path.suffix == ".npz":
        arrays = _read_npz(path)
        if "ids" in arrays:
            found_ids = [str(name) for name in arrays.pop("ids")]
        named = {name: torch.from_numpy(array) for name, array in arrays.items()}
    else:
        named = read_tensors(path)
    if layout == "persona_vectors":
        if len(named) != 1:
            raise InputError(
                f"{path}: holds {len(named)} arrays; the persona-vectors layout is one, (index,"
                " row, d_model)"
            )
        values = from_hidden_states(next(iter(named.values())), str(path))
        facts["n_layers"] = len(values) - 1
    else:
        values = {str(_site_of(name, path)): value for name, value in named.items()}
    values = {site: value[None] if value.ndim == 1 else value for site, value in values.items()}
    shapes = sorted({tuple(value.shape) for value in values.values()})
    if len(shapes) != 1 or len(shapes[0]) != 2:
        raise InputError(
            f"{path}: holds arrays of shapes {shapes[:4]}; pass one (row, d_model) a site"
        )
    n = shapes[0][0]
    names = list(ids) if ids is not None else found_ids or [f"row-{i}" for i in range(n)]
    if len(names) != n:
        raise InputError(
            f"{path}: holds {n} rows, but there are {len(names)} ids; pass one for each"
        )
    sites = sorted(values, key=lambda site: Site.parse(site).order)
    return Activations(
        {(site, position): values[site] for site in sites},
        ids=names,
        groups=list(groups) if groups is not None else [""] * n,
        sites=sites,
        positions=[position],
        provenance=facts,
    )


def to_hidden_states(
    acts: Activations, position: str | None = None
) -> Float[Tensor, "index row d_model"]:
    """Rows by Hugging Face `hidden_states` index: the embedding output, every block but the last,
    after the final norm.

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
    wanted = [str(Site.from_hf_index(i, n_layers)) for i in range(n_layers + 1)]
    missing = [site for site in wanted if site not in acts.sites]
    if missing:
        raise InputError(
            f"the persona-vectors layout needs {', '.join(missing[:4])},"
            f" which {'was' if len(missing) == 1 else 'were'} not captured;"
            " capture sites=['resid_pre.0', 'resid_post', 'final_norm']"
        )
    return torch.stack([_of(acts, site, position) for site in wanted])


def from_hidden_states(stacked: Tensor, name: str = "activations") -> dict[str, Tensor]:
    """By site, an array over Hugging Face `hidden_states` indices.

    Raises:
        InputError: fewer than two indices, or not (index, d_model) or (index, row, d_model).
    """
    if stacked.ndim not in (2, 3) or len(stacked) < 2:
        raise InputError(
            f"{name}: has shape {tuple(stacked.shape)}; the persona-vectors layout is (index, row,"
            " d_model) or (index, d_model)"
        )
    return {
        str(Site.from_hf_index(i, len(stacked) - 1)): stacked[i].contiguous()
        for i in range(len(stacked))
    }


def lens_name(site: str | Site) -> str:
    """TransformerLens' name of a site: `blocks.3.hook_resid_post`, `ln_final.hook_out`."""
    found = Site.parse(site)
    return "ln_final.hook_out" if found.layer is None else f"blocks.{found.layer}.hook_{found.kind}"


def _site_of(name: str, path: Path) -> Site:
    try:
        return Site.parse(name)
    except InputError:
        raise InputError(
            f"{path}: {one_line(name, 60)!r} is no hook that emlens has a site for;"
            " leave it out of the file"
        ) from None


def _of(acts: Activations, site: str, position: str | None) -> Tensor:
    return acts[site] if position is None else acts[site, position]


# ---- npz


def _array(value: Tensor) -> Any:
    return (value.float() if value.dtype == torch.bfloat16 else value).contiguous().numpy()


def _everything(acts: Activations) -> dict[str, Any]:
    values: dict[Key, Tensor] = {
        (s, p): acts[s, p] for s in acts.sites for p in acts.pooled_positions
    }
    arrays: dict[str, Any] = {}
    if "all" in acts.positions:
        held = acts.tokens(acts.sites[0])
        values |= {(s, "all"): acts.tokens(s).values for s in acts.sites}
        arrays |= {"offsets": held.offsets.numpy(), "token_ids": held.token_ids.numpy()}
    arrays |= {f"{site}@{position}": _array(value) for (site, position), value in values.items()}
    facts = {
        "ids": acts.ids,
        "groups": acts.groups,
        "sites": acts.sites,
        "positions": acts.positions,
        "provenance": acts.provenance,
        "dtypes": {
            f"{s}@{p}": str(value.dtype).removeprefix("torch.") for (s, p), value in values.items()
        },
    }
    arrays[_FACTS] = np.array(canonical_json(facts, None))
    return arrays


def _write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """Uncompressed, in name order, without times: the same arrays give the same bytes."""
    with publishing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name in sorted(arrays):
            entry = zipfile.ZipInfo(f"{name}.npy")
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asarray(arrays[name]), allow_pickle=False)
            archive.writestr(entry, content.getvalue())


def _read_npz(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise LoadError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # a damaged zip or header fails in many ways
        raise LoadError(
            f"{path}: not an npz file of plain arrays ({type(error).__name__}:"
            f" {one_line(str(error), 120)})"
        ) from None


def _from_npz(path: Path) -> Activations:
    arrays = _read_npz(path)
    try:
        facts = json.loads(str(arrays[_FACTS]))
        values = {
            (site, position): (
                torch.from_numpy(arrays[f"{site}@{position}"]).to(
                    getattr(torch, facts["dtypes"][f"{site}@{position}"])
                )
            )
            for site in facts["sites"]
            for position in facts["positions"]
        }
        tokens = (
            [torch.from_numpy(arrays[name]) for name in ("offsets", "token_ids")]
            if "all" in facts["positions"]
            else [None, None]
        )
        described = {
            name: facts[name] for name in ("ids", "groups", "sites", "positions", "provenance")
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: is no npz file of emlens ({type(error).__name__}:"
            f" {one_line(str(error), 80)}); pass layout= for another tool's"
        ) from None
    return Activations(values, offsets=tokens[0], token_ids=tokens[1], **described)
