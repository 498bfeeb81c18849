"""Where an intervention acts: sites of a model, tokens of a row, and how both are written down.

Sites are resolved against a model before anything is hooked; one that matches nothing is an error.
`resid_mid` lies between two modules and is nobody's output, so it can be read but not edited.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, cast

from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.intervention import TokenScope, Touched
from emlens.foundation.positions import Chosen, Index, Position, Span, parse_position
from emlens.foundation.shapes import as_float64
from emlens.foundation.sites import Site
from emlens.geometry import Direction, Subspace

At = Literal["all_layers", "own_site", "inputs_and_writes"] | Sequence[str | Site]
Positions = str | Position | Callable[[Tensor, Tensor], Tensor]
"""`"all"`, `"prompt"`, `"response"`, `"last_prompt"`, `"last"`, `Index(...)`, `Span(...)`, or a
callable from ids and mask to a boolean mask.
"""
BySite = Tensor | Mapping[str | Site, Tensor]
"""One vector for every site, or one for each."""

_KINDS: Final[dict[str, tuple[str, ...]]] = {
    "all_layers": ("resid_post",),
    "inputs_and_writes": ("resid_pre", "attn_out", "mlp_out"),
}
_SCOPES: Final = ("all", "prompt", "response")
_SINGLE: Final = ("last_prompt", "last")


def resolve(at: At, own: Site | None, sites: Sequence[Site]) -> list[Site]:
    """Concrete sites of the model, in the order of a pass.

    Raises:
        InputError: a site that matches nothing; 'own_site' without one.
    """
    if isinstance(at, str) and at in _KINDS:
        return [site for site in sites if site.kind in _KINDS[at]]
    if at == "own_site" and own is None:
        raise InputError(
            "at='own_site' needs a Direction that knows its site;"
            " pass at=['resid_post.3'] or at='all_layers'"
        )
    names: Sequence[str | Site] = [own] if at == "own_site" and own is not None else at
    if not names:
        raise InputError("at is an empty list; pass at least one site")
    n_layers = 1 + max(site.layer for site in sites if site.layer is not None)
    found = sorted({Site.parse(name, n_layers) for name in names})
    kinds = {site.kind for site in sites}
    for site in found:
        if site in sites:
            continue
        if site.kind not in kinds and site.kind == "resid_mid":
            raise InputError(
                f"site {site} matches nothing in this model: its blocks run attention and MLP side"
                " by side, so no stream lies between them; pass resid_pre, attn_out,"
                " mlp_out or resid_post"
            )
        raise InputError(
            f"site {site} matches nothing in this model; it has {sites[0]} to {sites[-1]}"
        )
    return found


def parse_at(at: At) -> At:
    """`at` as it is kept: a name, or a tuple.

    Raises:
        InputError: neither a known name nor a list.
    """
    if isinstance(at, str):
        if at not in (*_KINDS, "own_site"):
            raise InputError(
                f"at={at!r} is unknown; pass 'all_layers', 'own_site',"
                " 'inputs_and_writes' or a list of sites"
            )
        return at
    if not isinstance(at, Sequence):
        raise InputError(
            f"at={at!r} is unknown; pass 'all_layers', 'own_site',"
            " 'inputs_and_writes' or a list of sites"
        )
    return tuple(at)


def parse_touched(positions: Positions) -> Touched:
    """Which tokens are touched.

    Raises:
        InputError: an unknown name, or a mean over tokens.
    """
    if isinstance(positions, str) and positions in _SCOPES:
        return cast(TokenScope, positions)
    if (isinstance(positions, str) and positions not in _SINGLE) or not (
        isinstance(positions, str | Position) or callable(positions)
    ):
        raise InputError(
            f"positions={positions!r} is unknown; pass one of {', '.join((*_SCOPES, *_SINGLE))},"
            " Index(...), Span(...) or a callable"
        )
    found = parse_position(positions)
    return found if found.pooled else "all"


def record_at(at: At) -> Any:
    return at if isinstance(at, str) else [str(site) for site in at]


def record_touched(positions: Touched) -> Any:
    """JSON-ready; what `restore_touched` reads."""
    if isinstance(positions, Index):
        return {"index": positions.index, "of": positions.of}
    if isinstance(positions, Span):
        return {
            "start": positions.start,
            "stop": positions.stop,
            "of": positions.of,
            "skip_first": positions.skip_first,
        }
    return positions if isinstance(positions, str) else {"callable": positions.name}


def restore_touched(record: Any) -> Touched:
    if isinstance(record, Mapping):
        return Index(**record) if "index" in record else Span(**record)
    return parse_touched(record)


def require_savable(positions: Touched) -> None:
    if isinstance(positions, Chosen):
        raise InputError(
            f"position {positions.name} is a callable, which cannot be written down;"
            " pass Index(...) or Span(...) instead"
        )


def vector_of(direction: Direction | Tensor, argument: str) -> tuple[Tensor, Site | None]:
    """A non-zero vector in float64, and the site it was read at where it knows that.

    Raises:
        InputError: a zero or misshapen vector.
    """
    if isinstance(direction, Direction):
        return as_float64(direction.vector, argument), direction.site
    vector = as_float64(direction, argument)
    if vector.ndim != 1 or not bool((vector != 0).any()):
        raise InputError(
            f"{argument} has shape {tuple(vector.shape)} and norm {float(vector.norm()):.3g};"
            " pass a non-zero vector of shape (d_model,)"
        )
    return vector, None


def unit_vector(vector: Tensor) -> Tensor:
    # so that the square of a tiny or huge entry stays a float64
    scaled = vector / vector.abs().max()
    return scaled / scaled.norm()


def basis_of(direction: Direction | Subspace | Tensor, argument: str) -> tuple[Tensor, Site | None]:
    """Orthonormal columns that span it, (d_model, k) in float64, and the site it was read at where
    it knows that.

    Raises:
        InputError: a zero or misshapen vector, a batch of subspaces.
    """
    if not isinstance(direction, Subspace):
        vector, own = vector_of(direction, argument)
        return unit_vector(vector)[:, None], own
    basis = as_float64(direction.basis, argument)
    if basis.ndim != 2:
        raise InputError(
            f"{argument} holds a batch of subspaces, basis of shape {tuple(basis.shape)};"
            " pass one of shape (d_model, k)"
        )
    return basis, None


def site_values(values: Mapping[str | Site, Tensor], argument: str) -> dict[Site, Tensor]:
    """Tensors by site, in the order of a pass.

    Raises:
        InputError: no site, a site named twice or counted from the end, widths that differ.
    """
    if not isinstance(values, Mapping) or not values:
        raise InputError(
            f"{argument} is"
            f" {'empty' if isinstance(values, Mapping) else f'a {type(values).__name__}'};"
            " pass a mapping from sites to tensors"
        )
    found: dict[Site, Tensor] = {}
    for name, value in values.items():
        site = Site.parse(name)
        if site in found:
            raise InputError(f"{argument} names site {site} twice; pass it once")
        as_float64(value, f"{argument}[{str(site)!r}]")
        found[site] = value.detach()
    widths = {value.shape[-1] if value.ndim else 0 for value in found.values()}
    if len(widths) > 1:
        raise InputError(
            f"{argument} holds vectors of {sorted(widths)} coordinates;"
            " pass vectors of one residual stream"
        )
    return dict(sorted(found.items()))


def kept_sites(at: At | None, values: Mapping[Site, Tensor]) -> At:
    """`at`, or all sites that have values."""
    return tuple(values) if at is None else parse_at(at)


def span_of(
    direction: Direction | Subspace | Tensor | None, values: Mapping[Site, Tensor]
) -> Tensor | None:
    """Orthonormal columns of the span in which values are replaced; None: everywhere.

    Raises:
        InputError: a direction of another width than the values.
    """
    if direction is None:
        return None
    basis, _ = basis_of(direction, "direction")
    width = next(iter(values.values())).shape[-1]
    if len(basis) != width:
        raise InputError(f"direction has {len(basis)} coordinates, but the values have {width}")
    return basis
