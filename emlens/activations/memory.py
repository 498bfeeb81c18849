"""`Activations`: residual streams in memory, rows paired to prompts by id.

`acts["resid_post.3"]` is (row, d_model) where one pooled position was captured, and an error naming
the positions where there were several; `acts["resid_post.3", "mean_prompt"]` is always valid. Rows
are in prompt order.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from emlens.foundation.errors import InputError, UnknownNameError
from emlens.foundation.files import one_line
from emlens.foundation.notebooks import Brief, Picture, as_table
from emlens.foundation.sites import Site

Key = tuple[str, str]
"""(site name, position name)."""


@dataclass(frozen=True, repr=False)
class TokenValues(Brief):
    """Every token of every row: row i holds `values[offsets[i]:offsets[i+1]]`."""

    values: Float[Tensor, "token d_model"]
    offsets: Int[Tensor, " row_plus_1"]
    token_ids: Int[Tensor, " token"]


def place_rows(target: Tensor, values: Tensor, index: Tensor, offsets: Tensor | None) -> None:
    """Copy `values`, which holds the rows `index` in that order, to where they belong in `target`.

    With `offsets`, a row is all tokens of a prompt: `target[offsets[i]:offsets[i+1]]`.
    """
    if offsets is None:
        # numpy copies row by row; torch would start threads for it
        bits(target)[index.numpy()] = bits(values)
        return
    start = 0
    for row in index.tolist():
        first, end = int(offsets[row]), int(offsets[row + 1])
        length = end - first
        target[first:end] = values[start : start + length]
        start += length


def empty_rows(like: Tensor, *shape: int) -> Tensor:
    """Uninitialised memory in the dtype of `like`.

    From numpy, which asks for large pages, so that its first use costs a third of torch's.
    """
    return torch.from_numpy(np.empty(shape, _INTEGERS[like.element_size()][1])).view(like.dtype)


def bits(value: Tensor) -> Any:
    """The same memory as integers, since numpy has no bfloat16."""
    return value.view(_INTEGERS[value.element_size()][0]).numpy()


_INTEGERS = {
    1: (torch.int8, np.int8),
    2: (torch.int16, np.int16),
    4: (torch.int32, np.int32),
    8: (torch.int64, np.int64),
}


class Activations:
    """Pooled residual streams by site and position; for `positions="all"`, token values by site.

    Args:
        values: (site, position) → (row, d_model); for every token, (token, d_model).
        ids: of the prompts, in the order of the rows.
        offsets: for every token: where each row's tokens begin, (row + 1,).
        token_ids: for every token: its id in the vocabulary, (token,).

    Raises:
        InputError: row counts that differ, a site or position without values, or repeated ids.
    """

    def __init__(
        self,
        values: Mapping[Key, Tensor],
        *,
        ids: Sequence[str],
        groups: Sequence[str],
        sites: Sequence[str],
        positions: Sequence[str],
        provenance: Mapping[str, Any],
        offsets: Tensor | None = None,
        token_ids: Tensor | None = None,
    ):
        self.ids = list(ids)
        self.groups = list(groups)
        self.sites = list(sites)
        self.positions = list(positions)
        self.provenance = dict(provenance)
        self._values = values
        self._offsets = offsets
        self._token_ids = token_ids
        self._row = {name: i for i, name in enumerate(self.ids)}
        if len(self._row) != len(self.ids):
            raise InputError("activations hold an id twice; ids must be unique")
        if len(self.groups) != len(self.ids):
            raise InputError(
                f"activations have {len(self.ids)} ids and {len(self.groups)} groups;"
                " pass one group for each id"
            )
        # a dict is held in memory; the lazy mapping of a store is checked when it is read
        is_in_memory = isinstance(values, dict)
        if is_in_memory:
            self._check_rows(values)

    def _check_rows(self, values: Mapping[Key, Tensor]) -> None:
        if "all" in self.positions and self._offsets is None:
            raise InputError(
                "activations hold every token but no offsets; pass offsets and token_ids"
            )
        for site in self.sites:
            for position in self.positions:
                self._check_shape(values.get((site, position)), site, position)

    def _check_shape(self, value: Tensor | None, site: str, position: str) -> None:
        count = len(self.ids)
        if position == "all" and self._offsets is not None:
            count = int(self._offsets[-1])
        if value is not None and value.ndim == 2 and len(value) == count:
            return
        received = "nothing" if value is None else f"shape {tuple(value.shape)}"
        raise InputError(
            f"activations at {site!r}, {position!r} have {received}; pass {count} rows of vectors"
        )

    def __len__(self) -> int:
        return len(self.ids)

    def _repr_html_(self) -> str:
        sites = self.sites
        if len(sites) > 2:
            sites = [sites[0], sites[-1]]
        cells = {
            "rows": len(self),
            "groups": len(set(self.groups)),
            "sites": " … ".join(sites),
            "positions": ", ".join(map(str, self.positions)),
        }
        return as_table(type(self).__name__, cells)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self)} rows, sites={self.sites[0]}…{self.sites[-1]},"
            f" positions={self.positions})"
        )

    def plot(self) -> Picture:
        """Length of the rows and of their mean, layer by layer; of deltas beside rounding alone."""
        from emlens.activations.pictures import picture_of_activations

        return picture_of_activations(self)

    @property
    def pooled_positions(self) -> list[str]:
        return [name for name in self.positions if name != "all"]

    def __getitem__(self, key: str | Site | tuple[str | Site, str]) -> Float[Tensor, "row d_model"]:
        return self._values[self._pooled_key(key)]

    def _pooled_key(self, key: str | Site | tuple[str | Site, str]) -> Key:
        if isinstance(key, tuple):
            site, position = str(Site.parse(key[0])), key[1]
        else:
            site = str(Site.parse(key))
            position = self._only_position(site)
        if site not in self.sites:
            raise UnknownNameError(
                f"site {site!r} was not captured; these were: {', '.join(self.sites)}",
                name=site,
                known=self.sites,
            )
        if position == "all" and "all" in self.positions:
            raise UnknownNameError(
                f"position 'all' keeps every token apart; read it with acts.tokens({site!r})"
            )
        if position not in self.pooled_positions:
            raise UnknownNameError(
                f"position {position!r} was not captured; these were: {', '.join(self.positions)}",
                name=position,
                known=self.positions,
            )
        return site, position

    def _only_position(self, site: str) -> str:
        """The pooled position that was captured, where there is exactly one."""
        pooled = self.pooled_positions
        if len(pooled) == 1:
            return pooled[0]
        remedy = f"pass acts[{site!r}, position]"
        if not pooled:
            remedy += f", or acts.tokens({site!r})"
        raise UnknownNameError(f"activations at {site!r} hold positions {pooled}; {remedy}")

    def stacked(
        self, position: str | None = None, kind: str | None = None
    ) -> Float[Tensor, "layer row d_model"]:
        """All captured layers of one kind of site at one position, in layer order.

        Raises:
            UnknownNameError: several kinds of site and no `kind`; a kind or position that was not
                captured.
        """
        sites = self._sites_of_kind(kind)
        keys: list[Any] = list(sites)
        if position is not None:
            keys = [(site, position) for site in sites]
        first = self[keys[0]]
        stacked = empty_rows(first, len(keys), *first.shape)
        # one layer at a time, so that a store is not read into a second copy in memory
        for i, key in enumerate(keys):
            stacked[i] = self[key]
        return stacked

    def _sites_of_kind(self, kind: str | None) -> list[str]:
        """The sites of one kind; of the only kind there is where none is given."""
        kinds = sorted({Site.parse(site).kind for site in self.sites})
        if kind is None and len(kinds) > 1:
            raise UnknownNameError(
                f"activations hold several kinds of site: {', '.join(kinds)}; pass kind="
            )
        kind = kind or kinds[0]
        sites = [site for site in self.sites if Site.parse(site).kind == kind]
        if not sites:
            raise UnknownNameError(
                f"kind {kind!r} was not captured; these were: {', '.join(kinds)}",
                name=kind,
                known=kinds,
            )
        return sites

    def tokens(self, site: str | Site) -> TokenValues:
        """Every token at a site, captured with `positions="all"`."""
        name = str(Site.parse(site))
        if self._offsets is None or self._token_ids is None or (name, "all") not in self._values:
            raise UnknownNameError(
                f"tokens at {name!r} were not captured; capture with positions='all'"
            )
        return TokenValues(self._values[name, "all"], self._offsets, self._token_ids)

    @property
    def rounding_floor(self) -> dict[Key, float]:
        """Of deltas: site and position → root mean square length that rounding alone gives a row,
        in the units of the stream; empty for activations.
        """
        by_site = self.provenance.get("rounding_floor", {})
        floors = {}
        for site, by_position in by_site.items():
            for position, floor in by_position.items():
                floors[site, position] = float(floor)
        return floors

    @property
    def keys(self) -> list[Key]:
        """Site and position of every tensor: all pooled ones, then "all" of each site."""
        keys = [(site, position) for site in self.sites for position in self.pooled_positions]
        if "all" in self.positions:
            keys += [(site, "all") for site in self.sites]
        return keys

    def value(self, key: Key) -> Float[Tensor, "row_or_token d_model"]:
        """A tensor by its key, at "all" the values of every token."""
        site, position = key
        if position == "all":
            return self.tokens(site).values
        return self[site, position]

    def select(self, ids: Iterable[str]) -> "Activations":
        """The rows with these ids, in the order given.

        Raises:
            UnknownNameError: an id that no row has.
        """
        ids = list(ids)
        for name in ids:
            if name not in self._row:
                raise UnknownNameError(
                    f"id {one_line(name)!r} is not among the {len(self)} rows",
                    name=name,
                    known=self.ids,
                )
        rows = [self._row[name] for name in ids]
        index = torch.tensor(rows, dtype=torch.long)
        offsets = token_ids = None
        tokens = index
        if self._offsets is not None and self._token_ids is not None:
            tokens, offsets = _tokens_of_rows(self._offsets, rows)
            token_ids = self._token_ids[tokens]
        values = {}
        for key in self.keys:
            values[key] = self._values[key][tokens if key[1] == "all" else index]
        return Activations(
            values,
            ids=ids,
            groups=[self.groups[row] for row in rows],
            sites=self.sites,
            positions=self.positions,
            provenance=self.provenance,
            offsets=offsets,
            token_ids=token_ids,
        )

    def save(self, directory: str | Path) -> Path:
        """Write as an activation store, which `ActivationStore.open` reads back.

        Raises:
            InputError: the path is a file.
            IntegrityError: the directory holds a store, or anything else.
        """
        from emlens.activations.store import write_store

        return write_store(self, Path(directory))


def _tokens_of_rows(offsets: Tensor, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Token indices of these rows one after another, and the offsets of the rows in them."""
    spans = [torch.arange(int(offsets[row]), int(offsets[row + 1])) for row in rows]
    lengths = torch.tensor([0, *map(len, spans)])
    # the empty tensor serves a selection of no rows, which cat refuses
    tokens = torch.cat([torch.zeros(0, dtype=torch.long), *spans])
    return tokens, lengths.cumsum(0)
