"""Swapping: touched tokens take what a recorded run had there (activation patching).

The run is a capture: of single positions, or of every token. Rows are paired by prompt id, tokens
by their order. Where a prompt has more or fewer touched tokens than the run recorded, that is an
error: values are never cut or repeated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.foundation.intervention import PaddedRows, Touched
from emlens.foundation.positions import Index, Last
from emlens.foundation.sites import Site
from emlens.geometry import Direction, Subspace
from emlens.interventions.arguments import (
    At,
    Positions,
    at_or_all,
    parse_touched,
    site_values,
    span_of,
    touched_to_record,
)
from emlens.interventions.arithmetic import Placing
from emlens.interventions.plain_intervention import tensors_by_site
from emlens.interventions.replacement import Replacement


@runtime_checkable
class TokenRows(Protocol):
    """Every token of every row: row i holds `values[offsets[i]:offsets[i+1]]`."""

    @property
    def values(self) -> Tensor: ...

    @property
    def offsets(self) -> Tensor: ...


@runtime_checkable
class RecordedRun(Protocol):
    """What a swap reads of a run; `Activations` and activation stores have it."""

    @property
    def ids(self) -> Sequence[str]: ...

    @property
    def sites(self) -> Sequence[str]: ...

    @property
    def positions(self) -> Sequence[str]: ...

    def __getitem__(self, key: tuple[str, str], /) -> Tensor: ...

    def tokens(self, site: str, /) -> TokenRows: ...


@dataclass(frozen=True, eq=False, repr=False)
class Swap(Replacement):
    """h ← what the recorded run had at the same site, token by token.

    Args:
        ids: prompts of the run; prompt i holds rows `offsets[i]` to `offsets[i + 1]` of the values.
        source: id of a prompt → id of the recorded prompt; by default the same id.
    """

    kind: ClassVar[str] = "swap"
    by_prompt: ClassVar[bool] = True
    ids: tuple[str, ...]
    offsets: Int[Tensor, " row_plus_1"]
    source: Mapping[str, str]

    def bind(self, site: Site, rows: PaddedRows) -> Placing:
        row_of = {id: row for row, id in enumerate(self.ids)}
        pieces: list[Tensor] = []
        piece_rows: list[range] = []
        n_placed = 0
        for prompt_id, tokens in zip(rows.ids, rows.touched(self.positions), strict=True):
            row = row_of.get(self.source.get(prompt_id, prompt_id))
            if row is None:
                raise InputError(
                    f"prompt {one_line(prompt_id, 60)!r} is not among the {len(self.ids)} of the"
                    f" recorded run, such as {one_line(self.ids[0], 60)!r};"
                    " pass source={id: id of the recorded prompt}",
                    name=prompt_id,
                    known=self.ids,
                )
            start, stop = int(self.offsets[row]), int(self.offsets[row + 1])
            if stop - start != len(tokens):
                generated = ", those to be generated included" if rows.new_tokens else ""
                raise InputError(
                    f"prompt {one_line(prompt_id, 60)!r} has {len(tokens)} tokens at positions"
                    f" {touched_to_record(self.positions)}{generated},"
                    f" but the recorded run has {stop - start} of {one_line(self.ids[row], 60)!r};"
                    " pass positions that are equally many in both, such as 'last_prompt'"
                )
            piece_rows.append(range(n_placed, n_placed + len(tokens)))
            pieces.append(self.values[site][start:stop])
            n_placed += len(tokens)
        source = self.placed_from(torch.cat(pieces))
        return Placing(source, rows.by_column(piece_rows, self.positions))

    def options(self) -> dict[str, Any]:
        return {**super().options(), "ids": list(self.ids), "source": dict(self.source)}

    def shown_options(self) -> dict[str, object]:
        return {**super().options(), "recorded": len(self.ids), "swapped": len(self.source)}

    def tensors(self) -> dict[str, Tensor]:
        return {**super().tensors(), "offsets": self.offsets}

    @classmethod
    def restored(
        cls, at: At, positions: Touched, options: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> "Swap":
        values = tensors_by_site(tensors, "values")
        return cls(
            values,
            tensors.get("basis"),
            at,
            positions,
            tuple(options["ids"]),
            tensors["offsets"],
            dict(options["source"]),
        )


def swap(
    recorded: RecordedRun,
    at: At | None = None,
    positions: Positions = "last_prompt",
    source: Mapping[str, str] | None = None,
    direction: Direction | Subspace | Tensor | None = None,
) -> Swap:
    """Put a recorded run's activations in the place of this one's.

    Args:
        recorded: a capture, made with the same `positions` (for one token of a prompt), or with
            `positions="all"`.
        at: sites among those captured; None: all of them.
        positions: one token (`"last_prompt"`, `"last"`, `Index(...)`), all of the `"prompt"`, or
            `"all"` tokens.
        source: id of a prompt → id of the recorded prompt whose values it takes; None: its own.
        direction: swap the part in its span alone.

    Returns:
        An intervention. Swapping a run with itself changes nothing.

    Raises:
        InputError: the capture lacks what `positions` needs, `source` names a prompt that it lacks,
            an unknown `at`; and, in a pass, a prompt without a recorded one, or with another number
            of touched tokens.

    Reference: Meng et al., 2202.05262; Heimersheim and Nanda, 2404.15255.
    """
    touched = parse_touched(positions)
    recorded_ids = set(recorded.ids)
    for id in (source or {}).values():
        if id not in recorded_ids:
            raise InputError(
                f"source names prompt {one_line(id, 60)!r}, which is not in the recorded run;"
                f" pass ids of its {len(recorded.ids)} prompts",
                name=id,
                known=recorded.ids,
            )
    recorded_values, offsets = _recorded_rows(recorded, touched)
    values = site_values(recorded_values, "recorded")
    return Swap(
        values,
        span_of(direction, values),
        at_or_all(at, values),
        touched,
        tuple(recorded.ids),
        offsets,
        dict(source or {}),
    )


def _recorded_rows(
    recorded: RecordedRun, touched: Touched
) -> tuple[dict[str | Site, Tensor], Tensor]:
    """Rows of values by site, and the offset at which each prompt's rows begin."""
    if isinstance(touched, Index | Last) and touched.name in recorded.positions:
        by_position: dict[str | Site, Tensor] = {
            site: recorded[site, touched.name] for site in recorded.sites
        }
        # one row per prompt
        return by_position, torch.arange(len(recorded.ids) + 1)
    if touched in ("all", "prompt") and "all" in recorded.positions:
        tokens = {site: recorded.tokens(site) for site in recorded.sites}
        by_token: dict[str | Site, Tensor] = {site: rows.values for site, rows in tokens.items()}
        # every site holds the same tokens, so the offsets of one serve all
        return by_token, tokens[recorded.sites[0]].offsets.to(torch.long)
    raise InputError(
        f"recorded holds positions {', '.join(recorded.positions)},"
        f" which do not give a token for each of {touched_to_record(touched)};"
        " capture the same single position, or capture 'all' and pass positions='all' or 'prompt'"
    )
