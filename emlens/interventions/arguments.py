"""The arguments that all interventions share, parsed and checked: sites, tokens, vectors.

Sites are resolved against a model before anything is hooked; one that matches nothing is an error.
`resid_mid` lies between two modules and is the output of neither, so it can be read but not edited.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, cast

from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.intervention import TokenScope, Touched
from emlens.foundation.positions import Chosen, Index, Last, Position, Span, parse_position
from emlens.foundation.shapes import as_float64
from emlens.foundation.sites import SITE_KINDS, Site
from emlens.geometry import Direction, Subspace

At = Literal["all_layers", "own_site", "inputs_and_writes"] | Sequence[str | Site]
Positions = str | Position | Callable[[Tensor, Tensor], Tensor]
"""`"all"`, `"prompt"`, `"response"`, `"last_prompt"`, `"last"`, `Index(...)`, `Span(...)`, or a
callable from ids and mask to a boolean mask.
"""
BySite = Tensor | Mapping[str | Site, Tensor]
"""One vector for every site, or one vector per site."""

_KINDS: Final[dict[str, tuple[str, ...]]] = {
    "all_layers": ("resid_post",),
    "inputs_and_writes": ("resid_pre", "attn_out", "mlp_out"),
}
_SCOPES: Final = ("all", "prompt", "response")
_SINGLE: Final = ("last_prompt", "last")


# ---- sites


def resolve(at: At, own_site: str | None, sites: Sequence[Site]) -> list[Site]:
    """The sites of a model that `at` names, in the order of a forward pass.

    Args:
        own_site: where the direction was read, if that is known.
        sites: all sites of the model.

    Raises:
        InputError: a site that matches nothing; 'own_site' without one.
    """
    if isinstance(at, str) and at in _KINDS:
        lacking = set(_KINDS[at]) - {site.kind for site in sites}
        if lacking:
            raise InputError(
                f"at={at!r} needs {', '.join(sorted(lacking))}, which this model does not have;"
                " pass at='all_layers'"
            )
        return [site for site in sites if site.kind in _KINDS[at]]
    names = _site_names(at, own_site)
    n_layers = 1 + max(site.layer for site in sites if site.layer is not None)
    targets = sorted({Site.parse(name, n_layers) for name in names})
    for site in targets:
        _require_site(site, sites)
    return targets


def _site_names(at: At, own_site: str | None) -> Sequence[str | Site]:
    if not at:
        raise InputError("at is an empty list; pass at least one site")
    if at != "own_site":
        return at
    if own_site is None:
        raise InputError(
            "at='own_site' needs a Direction that knows its site;"
            " pass at=['resid_post.3'] or at='all_layers'"
        )
    return [own_site]


def _require_site(site: Site, sites: Sequence[Site]) -> None:
    if site in sites:
        return
    kinds = {present.kind for present in sites}
    # blocks whose parts are known but have no resid_mid are parallel
    if site.kind == "resid_mid" and "resid_mid" not in kinds and "attn_out" in kinds:
        raise InputError(
            f"site {site} matches nothing in this model: its blocks run attention and MLP side"
            " by side, so no stream lies between them;"
            " pass resid_pre, attn_out, mlp_out or resid_post"
        )
    if site.kind not in kinds:
        listed = ", ".join(kind for kind in SITE_KINDS if kind in kinds)
        raise InputError(
            f"site {site} matches nothing in this model, which has no {site.kind}; it has {listed}"
        )
    raise InputError(f"site {site} matches nothing in this model; it has {sites[0]} to {sites[-1]}")


def parse_at(at: At) -> At:
    """`at` as an intervention keeps it: a name, or a tuple.

    Raises:
        InputError: neither a known name nor a list.
    """
    if isinstance(at, str):
        is_known = at in (*_KINDS, "own_site")
    else:
        is_known = isinstance(at, Sequence)
    if not is_known:
        raise InputError(
            f"at={at!r} is unknown; pass 'all_layers', 'own_site',"
            " 'inputs_and_writes' or a list of sites",
            name=at,
            known=(*_KINDS, "own_site"),
        )
    return at if isinstance(at, str) else tuple(at)


def at_to_record(at: At) -> Any:
    """JSON-ready; what `parse_at` reads."""
    if isinstance(at, str):
        return at
    return [str(site) for site in at]


def at_or_all(at: At | None, values: Mapping[Site, Tensor]) -> At:
    """`at`, or all sites that have values."""
    if at is None:
        return tuple(values)
    return parse_at(at)


# ---- tokens


def parse_touched(positions: Positions) -> Touched:
    """Which tokens an intervention touches.

    Raises:
        InputError: an unknown name, or a mean over tokens.
    """
    if isinstance(positions, str) and positions in _SCOPES:
        return cast(TokenScope, positions)
    if isinstance(positions, str):
        is_known = positions in _SINGLE
    else:
        is_known = isinstance(positions, Position) or callable(positions)
    if not is_known:
        raise InputError(
            f"positions={positions!r} is unknown;"
            f" pass one of {', '.join((*_SCOPES, *_SINGLE))}, Index(...), Span(...) or a callable",
            name=positions,
            known=(*_SCOPES, *_SINGLE),
        )
    position = parse_position(positions)
    return position if position.pooled else "all"


def touched_to_record(positions: Touched) -> Any:
    """JSON-ready; what `touched_from_record` reads."""
    if isinstance(positions, str):
        return positions
    if isinstance(positions, Index):
        return {"index": positions.index, "of": positions.of}
    if isinstance(positions, Span):
        return {
            "start": positions.start,
            "stop": positions.stop,
            "of": positions.of,
            "skip_first": positions.skip_first,
        }
    if isinstance(positions, Last):
        return positions.name
    return {"callable": positions.name}


def touched_from_record(record: Any) -> Touched:
    if not isinstance(record, Mapping):
        return parse_touched(record)
    if "index" in record:
        return Index(**record)
    return Span(**record)


def touched_name(positions: Touched) -> str:
    return positions if isinstance(positions, str) else positions.name


def require_savable(positions: Touched) -> None:
    if isinstance(positions, Chosen):
        raise InputError(
            f"position {positions.name} is a callable, which cannot be written down;"
            " pass Index(...) or Span(...) instead"
        )


# ---- vectors


def as_vector(direction: Direction | Tensor) -> Tensor:
    return direction.vector if isinstance(direction, Direction) else direction


def vector_of(direction: Direction | Tensor, argument: str) -> tuple[Tensor, str | None]:
    """A non-zero vector (d_model,) in float64, and the site where it was read, if that is known.

    Raises:
        InputError: a zero or misshapen vector.
    """
    if isinstance(direction, Direction):
        return as_float64(direction.vector, argument), str(direction.site)
    vector = as_float64(direction, argument)
    if vector.ndim != 1 or not bool((vector != 0).any()):
        raise InputError(
            f"{argument} has shape {tuple(vector.shape)} and norm {float(vector.norm()):.3g};"
            " pass a non-zero vector of shape (d_model,)"
        )
    return vector, None


def unit_vector(vector: Tensor) -> Tensor:
    # divided by its largest entry first: the square of a tiny or huge entry leaves float64
    scaled = vector / vector.abs().max()
    return scaled / scaled.norm()


def basis_of(direction: Direction | Subspace | Tensor, argument: str) -> tuple[Tensor, str | None]:
    """Orthonormal columns (d_model, k) in float64 that span a direction or subspace.

    Returns:
        The columns, and the site where the direction was read, if that is known.

    Raises:
        InputError: a zero or misshapen vector, a batch of subspaces.
    """
    if not isinstance(direction, Subspace):
        vector, site = vector_of(direction, argument)
        return unit_vector(vector)[:, None], site
    basis = as_float64(direction.basis, argument)
    if basis.ndim != 2:
        raise InputError(
            f"{argument} holds a batch of subspaces, basis of shape {tuple(basis.shape)};"
            " pass one of shape (d_model, k)"
        )
    return basis, None


def span_of(
    direction: Direction | Subspace | Tensor | None, values: Mapping[Site, Tensor]
) -> Tensor | None:
    """Orthonormal columns of the span in which values are replaced; None: all of the stream.

    Raises:
        InputError: the direction has another width than the values.
    """
    if direction is None:
        return None
    basis, _ = basis_of(direction, "direction")
    width = next(iter(values.values())).shape[-1]
    if len(basis) != width:
        raise InputError(f"direction has {len(basis)} coordinates, but the values have {width}")
    return basis


def site_values(values: Mapping[str | Site, Tensor], argument: str) -> dict[Site, Tensor]:
    """Tensors by site, in the order of a forward pass.

    Raises:
        InputError: no site, a site named twice or counted from the end, widths that differ.
    """
    if not isinstance(values, Mapping):
        raise InputError(
            f"{argument} is a {type(values).__name__}; pass a mapping from sites to tensors"
        )
    if not values:
        raise InputError(f"{argument} is empty; pass a mapping from sites to tensors")
    by_site: dict[Site, Tensor] = {}
    widths = set()
    for name, value in values.items():
        site = Site.parse(name)
        if site in by_site:
            raise InputError(f"{argument} names site {site} twice; pass it once")
        as_float64(value, f"{argument}[{str(site)!r}]")
        by_site[site] = value.detach()
        widths.add(value.shape[-1] if value.ndim else 0)
    if len(widths) > 1:
        raise InputError(
            f"{argument} holds vectors of {sorted(widths)} coordinates;"
            " pass vectors of one residual stream"
        )
    return dict(sorted(by_site.items()))


def require_width(activation: Tensor, d_model: int) -> None:
    if activation.shape[-1] != d_model:
        raise InputError(
            f"direction has {d_model} coordinates,"
            f" but the model's stream has {activation.shape[-1]}"
        )
