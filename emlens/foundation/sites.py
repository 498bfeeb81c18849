"""Places in a decoder where a residual stream is read: `resid_post.3`, `final_norm`, ...

A layer is always a 0-based block index. A Hugging Face `hidden_states` index is a different thing
(its 0 is the embedding output and its last entry is after the final norm): `Site.from_hf_index`
converts. TransformerLens names such as `blocks.3.hook_resid_post` parse to the same site.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from emlens.foundation.errors import InputError

SITE_KINDS: Final = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "final_norm")
"""Kinds in the order in which one block computes them."""

_LENS_NAME = re.compile(r"blocks\.([0-9]+)\.hook_(resid_pre|attn_out|resid_mid|mlp_out|resid_post)")
_SITE_NAME = re.compile(r"(resid_pre|attn_out|resid_mid|mlp_out|resid_post)\.(-?[0-9]+)")


@dataclass(frozen=True)
class Site:
    """One place in the stream. `layer` is a 0-based block index, and None only for `final_norm`.

    Args:
        kind: "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out" or "final_norm".
    """

    kind: str
    layer: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in SITE_KINDS:
            raise InputError(
                f"site kind {self.kind!r} is unknown; pass one of {', '.join(SITE_KINDS)}",
                name=self.kind,
                known=SITE_KINDS,
            )
        if (self.layer is None) != (self.kind == "final_norm"):
            raise InputError(
                f"site kind {self.kind!r} was given with layer {self.layer!r};"
                " only final_norm has no layer"
            )

    def __str__(self) -> str:
        return self.kind if self.layer is None else f"{self.kind}.{self.layer}"

    @property
    def lens_name(self) -> str:
        """TransformerLens' name of the site: `blocks.3.hook_resid_post`, `ln_final.hook_out`."""
        if self.layer is None:
            return "ln_final.hook_out"
        return f"blocks.{self.layer}.hook_{self.kind}"

    def __lt__(self, other: "Site") -> bool:
        return self.order < other.order

    @property
    def order(self) -> tuple[float, int]:
        """Sort key: the order in which a forward pass reaches the sites."""
        layer = float("inf") if self.layer is None else float(self.layer)
        return layer, SITE_KINDS.index(self.kind)

    @classmethod
    def parse(cls, name: "str | Site", n_layers: int | None = None) -> "Site":
        """Read `resid_post.3`, `resid_post.-1` (needs `n_layers`), `final_norm` or a
        TransformerLens hook name.

        Raises:
            InputError: the name is none of these, or its layer does not exist in a model of
                `n_layers` blocks.
        """
        site = name if isinstance(name, Site) else cls._from_name(name)
        if site.layer is None:
            return site
        if n_layers is None:
            if site.layer < 0:
                raise InputError(
                    f"site {name!r} counts from the end, which needs the model's number of layers"
                )
            return site
        if not -n_layers <= site.layer < n_layers:
            raise InputError(
                f"site {str(name)!r} names block {site.layer},"
                f" but the model has blocks 0 to {n_layers - 1}"
            )
        return cls(site.kind, site.layer % n_layers)

    @classmethod
    def _from_name(cls, name: str) -> "Site":
        if name in ("final_norm", "ln_final.hook_out"):
            return cls("final_norm")
        lens_name = _LENS_NAME.fullmatch(str(name))
        if lens_name:
            return cls(lens_name[2], int(lens_name[1]))
        site_name = _SITE_NAME.fullmatch(str(name))
        if site_name:
            return cls(site_name[1], int(site_name[2]))
        raise InputError(
            f"site {name!r} is not a site name;"
            " pass a kind and a block index such as 'resid_post.3', or 'final_norm'",
            name=name,
            known=SITE_KINDS,
        )

    @classmethod
    def from_hf_index(cls, index: int, n_layers: int) -> "Site":
        """The site that Hugging Face's `hidden_states[index]` holds, for a model of `n_layers`
        blocks.

        `[0]` is the embedding output (`resid_pre.0`), `[i]` is `resid_post.{i-1}`, and `[n_layers]`
        is `final_norm`: `resid_post` of the last block is in no entry.
        """
        if not 0 <= index <= n_layers:
            raise InputError(
                f"hidden_states index {index} does not exist; a model of {n_layers} blocks has 0 to"
                f" {n_layers}"
            )
        if index == 0:
            return cls("resid_pre", 0)
        if index == n_layers:
            return cls("final_norm")
        return cls("resid_post", index - 1)


def resolve_sites(
    sites: "str | Site | Iterable[str | Site]",
    n_layers: int,
    layers: int | Sequence[int] | None = None,
) -> list[Site]:
    """Expand names and bare kinds to concrete sites, in the order a forward pass reaches them,
    without repeats.

    A bare kind (`"resid_post"`) means every layer, or those in `layers`, which are block indices
    (or one) and may be negative.

    Raises:
        InputError: an unknown name, a layer that does not exist, or `layers` beside a site that
            already names its own.
    """
    names = [sites] if isinstance(sites, str | Site) else list(sites)
    if not names:
        raise InputError("sites is empty; pass at least one site such as 'resid_post'")
    if isinstance(layers, int):
        layers = (layers,)
    if layers is not None:
        _require_layers(layers)
    resolved: set[Site] = set()
    for name in names:
        if isinstance(name, str) and name in SITE_KINDS and name != "final_norm":
            for layer in range(n_layers) if layers is None else layers:
                resolved.add(Site.parse(f"{name}.{layer}", n_layers))
            continue
        site = Site.parse(name, n_layers)
        if layers is not None and site.layer is not None:
            raise InputError(
                f"layers={list(layers)} was given beside site {str(name)!r},"
                " which names its own layer; pass one"
            )
        resolved.add(site)
    return sorted(resolved, key=lambda site: site.order)


def spread_layers(n_layers: int, count: int) -> list[int]:
    """Blocks spread evenly over the depth, ascending: the middle of each of `count` equal parts.

    Of 30 blocks and five parts: 3, 9, 15, 21, 27. A model with no more blocks gives all of them.
    """
    if n_layers <= count:
        return list(range(n_layers))
    return [int((part + 0.5) / count * n_layers) for part in range(count)]


def _require_layers(layers: Sequence[int]) -> None:
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        raise InputError(
            f"layers={layers!r} is not a list; pass block indices such as [0, -1],"
            " or None for every layer"
        )
    if not len(layers):
        raise InputError("layers is empty; pass block indices, or None for every layer")
