"""`Activations`: residual streams in memory, rows paired to prompts by id.

`acts["resid_post.3"]` is (row, d_model) where one pooled position was captured, and an error naming
the positions where there were several; `acts["resid_post.3", "mean_prompt"]` is always valid. Rows
stand in prompt order.
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
from emlens.foundation.notebooks import as_table
from emlens.foundation.sites import Site

Key = tuple[str, str]
"""(site name, position name)."""


@dataclass(frozen=True)
class TokenValues:
    """Every token of every row: row i holds `values[offsets[i]:offsets[i+1]]`."""

    values: Float[Tensor, "token d_model"]
    offsets: Int[Tensor, " row_plus_1"]
    token_ids: Int[Tensor, " token"]


def place_rows(found: Tensor, part: Tensor, index: Tensor, offsets: Tensor | None) -> None:
    """Put `part`, which holds the rows `index` in that order, where they belong; with `offsets`,
    every token of a row.
    """
    if offsets is None:
        # numpy copies row by row; torch would start threads for it
        bits(found)[index.numpy()] = bits(part)
        return
    start = 0
    for row in index.tolist():
        a, b = int(offsets[row]), int(offsets[row + 1])
        found[a:b] = part[start : start + b - a]
        start += b - a


def empty_rows(like: Tensor, *shape: int) -> Tensor:
    """Uninitialised memory in the dtype of `like`; from numpy, which asks for large pages, so that
    its first use costs a third.
    """
    return torch.from_numpy(np.empty(shape, _INTEGERS[like.element_size()][1])).view(like.dtype)


def bits(value: Tensor) -> Any:
    """The same memory as numpy integers, which has no bfloat16."""
    return value.view(_INTEGERS[value.element_size()][0]).numpy()


_INTEGERS = {
    1: (torch.int8, np.int8),
    2: (torch.int16, np.int16),
    4: (torch.int32, np.int32),
    8: (torch.int64, np.int64),
}


class Activations:
    """Pooled residual streams by site and position; for `positions="all"`, token values by site.

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
        if isinstance(values, dict):  # what is read from disk is checked when it is read
            self._check_rows(values)

    def _check_rows(self, values: Mapping[Key, Tensor]) -> None:
        for site in self.sites:
            for position in self.positions:
                pooled = position != "all"
                if not pooled and self._offsets is None:
                    raise InputError(
                        "activations hold every token but no offsets; pass offsets and token_ids"
                    )
                wanted = (
                    len(self.ids) if pooled or self._offsets is None else int(self._offsets[-1])
                )
                found = values.get((site, position))
                if found is None or found.ndim != 2 or len(found) != wanted:
                    came = "nothing" if found is None else f"shape {tuple(found.shape)}"
                    raise InputError(
                        f"activations at {site!r}, {position!r} have {came};"
                        f" pass {wanted} rows of vectors"
                    )

    def __len__(self) -> int:
        return len(self.ids)

    def _repr_html_(self) -> str:
        ends = [self.sites[0], self.sites[-1]] if len(self.sites) > 2 else self.sites
        facts = {
            "rows": len(self),
            "groups": len(set(self.groups)),
            "sites": " … ".join(ends),
            "positions": ", ".join(map(str, self.positions)),
        }
        return as_table(type(self).__name__, facts)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self)} rows, sites={self.sites[0]}…{self.sites[-1]},"
            f" positions={self.positions})"
        )

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
            if len(self.pooled_positions) != 1:
                raise UnknownNameError(
                    f"activations at {site!r} hold positions {self.pooled_positions};"
                    f" pass acts[{site!r}, position]"
                    + ("" if self.pooled_positions else f", or acts.tokens({site!r})")
                )
            position = self.pooled_positions[0]
        if site not in self.sites:
            raise UnknownNameError(
                f"site {site!r} was not captured; these were: {', '.join(self.sites)}"
            )
        if position == "all" and "all" in self.positions:
            raise UnknownNameError(
                f"position 'all' keeps every token apart; read it with acts.tokens({site!r})"
            )
        if position not in self.pooled_positions:
            raise UnknownNameError(
                f"position {position!r} was not captured; these were: {', '.join(self.positions)}"
            )
        return site, position

    def stacked(
        self, position: str | None = None, kind: str | None = None
    ) -> Float[Tensor, "layer row d_model"]:
        """All captured layers of one kind of site at one position, in layer order."""
        kinds = sorted({Site.parse(name).kind for name in self.sites})
        if kind is None and len(kinds) > 1:
            raise UnknownNameError(
                f"activations hold several kinds of site: {', '.join(kinds)}; pass kind="
            )
        wanted = kind or kinds[0]
        names = [name for name in self.sites if Site.parse(name).kind == wanted]
        if not names:
            raise UnknownNameError(
                f"kind {wanted!r} was not captured; these were: {', '.join(kinds)}"
            )
        first = self[names[0] if position is None else (names[0], position)]
        found = empty_rows(first, len(names), *first.shape)
        # one layer at a time: a store need not hold two copies in memory
        for i, name in enumerate(names):
            found[i] = self[name if position is None else (name, position)]
        return found

    def tokens(self, site: str | Site) -> TokenValues:
        """Every token at a site, captured with `positions="all"`."""
        name = str(Site.parse(site))
        if self._offsets is None or self._token_ids is None or (name, "all") not in self._values:
            raise UnknownNameError(
                f"tokens at {name!r} were not captured; capture with positions='all'"
            )
        return TokenValues(self._values[name, "all"], self._offsets, self._token_ids)

    def select(self, ids: Iterable[str]) -> "Activations":
        """The rows with these ids, in the order given."""
        wanted = list(ids)
        for name in wanted:
            if name not in self._row:
                raise UnknownNameError(f"id {one_line(name)!r} is not among the {len(self)} rows")
        rows = [self._row[name] for name in wanted]
        index = torch.tensor(rows, dtype=torch.long)
        values = {
            (s, p): self._values[s, p][index] for s in self.sites for p in self.pooled_positions
        }
        offsets = token_ids = None
        if self._offsets is not None and self._token_ids is not None:
            spans = [torch.arange(int(self._offsets[r]), int(self._offsets[r + 1])) for r in rows]
            flat = torch.cat(spans) if spans else torch.zeros(0, dtype=torch.long)
            offsets = torch.tensor([0, *(len(s) for s in spans)]).cumsum(0)
            token_ids = self._token_ids[flat]
            values.update({(s, "all"): self._values[s, "all"][flat] for s in self.sites})
        return Activations(
            values,
            ids=wanted,
            groups=[self.groups[r] for r in rows],
            sites=self.sites,
            positions=self.positions,
            provenance=self.provenance,
            offsets=offsets,
            token_ids=token_ids,
        )

    def save(self, directory: str | Path) -> Path:
        """Write as an activation store, which `ActivationStore.open` reads back; the directory must
        not hold one yet.
        """
        from emlens.activations.store import write_store

        return write_store(self, Path(directory))
