"""What a backend needs to know of an intervention: where it acts, on which tokens, and a pure
function on activations.

An `Intervention` is plain data. For one padded batch and one site it is bound to an `Edit`,
`(activation, mask) → activation`, before the model is touched; binding is where a recorded run
finds the rows of the batch. Tokens are counted within the unpadded row, so neither padding nor
batch mates shift them; in a generation, tokens yet to come are counted on.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.positions import Index, Last, Position, RowSpans, Span
from emlens.foundation.sites import Site

TokenScope = Literal["all", "prompt", "response"]
"""Every token, those of the prompt, or those after it (generated ones, thoughts and the closing of
the turn included).
"""
Touched = TokenScope | Position
"""Tokens that an intervention touches; a position names single tokens, and is never a mean here."""


_FROM_THE_END: Final = (
    "position {} counts from the end of a row that is being generated;"
    " pass one that counts from its start, or of='prompt'"
)


@dataclass(frozen=True)
class PaddedRows:
    """The rows of a padded batch, as interventions see them.

    Args:
        ids: of the prompts; several rows may share one (other continuations of the same prompt).
        tokens: token ids of each unpadded row, as far as they were given.
        offsets: column of each row's first token; negative where a pass holds only later tokens of
            the row.
        width: columns that a pass goes through, in a generation those of all its steps.
        new_tokens: how many tokens a generation may add to each row.
    """

    ids: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    spans: tuple[RowSpans, ...]
    offsets: tuple[int, ...]
    width: int
    new_tokens: int = 0

    def later(self) -> "PaddedRows":
        """The same columns one token further on."""
        return replace(self, offsets=tuple(offset - 1 for offset in self.offsets))

    def touched(self, positions: Touched) -> list[Sequence[int]]:
        """Token indices of each row, counted within the row.

        Raises:
            InputError: a row that lacks the position; in a generation, one that counts from the end
                of the growing row.
        """
        rows = zip(self.tokens, self.spans, strict=True)
        return [_touched(positions, tokens, spans, self.new_tokens) for tokens, spans in rows]

    def mask(self, positions: Touched) -> Bool[Tensor, "row column"]:
        """The same as columns of the padded batch; padding is never touched.

        Raises:
            InputError: as `touched`.
        """
        ones = [[1] * len(tokens) for tokens in self.touched(positions)]
        return self.by_column(ones, positions).bool()

    def by_column(
        self, values: Sequence[Sequence[int]], positions: Touched
    ) -> Int[Tensor, "row column"]:
        """Integers given for the touched tokens of each row, in the columns of these tokens; 0
        elsewhere.
        """
        columns = np.zeros((len(self.ids), self.width), dtype=np.int64)
        rows = zip(columns, values, self.offsets, self.touched(positions), strict=True)
        for row, row_values, offset, tokens in rows:
            if isinstance(tokens, range):
                # Adjacent tokens are one slice, cut to the columns there are; this is the hot path.
                start = max(tokens.start, -offset)
                stop = min(tokens.stop, self.width - offset)
                if start < stop:
                    part = row_values[start - tokens.start : stop - tokens.start]
                    row[start + offset : stop + offset] = part
                continue
            for value, token in zip(row_values, tokens, strict=True):
                if 0 <= token + offset < self.width:
                    row[token + offset] = value
        return torch.from_numpy(columns)


def _touched(
    positions: Touched, tokens: Sequence[int], spans: RowSpans, new_tokens: int
) -> Sequence[int]:
    end = spans.n_tokens + new_tokens
    if isinstance(positions, str):
        ranges = {
            "all": range(end),
            "prompt": range(spans.prompt_end),
            "response": range(spans.prompt_end, end),
        }
        return ranges[positions]
    if not new_tokens or (isinstance(positions, Index | Span) and positions.of == "prompt"):
        return positions.tokens(tokens, spans)
    return _in_a_growing_row(positions, spans, end)


def _in_a_growing_row(position: Position, spans: RowSpans, end: int) -> list[int]:
    if isinstance(position, Last):
        raise InputError(_FROM_THE_END.format(position.name))
    if isinstance(position, Index):
        start = position.index
        stop = position.index + 1
        skip = 0
        counts_from_end = start < 0
    elif isinstance(position, Span):
        start = position.start
        stop = end if position.stop is None else position.stop
        skip = position.skip_first
        counts_from_end = start < 0 or stop < 0
    else:
        raise InputError(
            f"position {position.name} cannot be used on tokens that are not generated yet;"
            " pass 'all', 'prompt', 'response', Index or Span"
        )
    if counts_from_end:
        raise InputError(_FROM_THE_END.format(position.name))
    if position.of == "end_of_turn":
        raise InputError(
            f"position {position.name} lies after the answer that is being generated;"
            " pass one inside prompt or response"
        )
    first = spans.content[0] if position.of == "response" else 0
    tokens = range(max(skip, first + start), min(end, first + stop))
    if not tokens:
        raise InputError(
            f"position {position.name} lies beyond the {end - spans.n_tokens} tokens that are to be"
            " generated; pass an earlier one"
        )
    return list(tokens)


class Edit(ABC):
    """An intervention bound to one site and the rows of one batch: a pure function."""

    @abstractmethod
    def __call__(
        self,
        activation: Float[Tensor, "batch token d_model"],
        mask: Bool[Tensor, "batch token"] | None,
    ) -> Float[Tensor, "batch token d_model"]:
        """The new activation; tokens where `mask` is False come back unchanged. None: every token
        is edited.
        """

    def over(self, start: int, stop: int) -> "Edit":
        """This edit for the columns `start` to `stop` alone; itself where every token is treated
        alike.
        """
        return self

    def then(self, after: "Edit") -> "Edit | None":
        """One edit that equals this one followed by `after` on the same tokens; None where there is
        no such edit.
        """
        return None


@runtime_checkable
class Intervention(Protocol):
    """Plain data; a backend resolves `targets` and binds every site before it sets any hook."""

    @property
    def positions(self) -> Touched: ...

    @property
    def d_model(self) -> int:
        """Width of the stream it was made for."""
        ...

    @property
    def by_prompt(self) -> bool:
        """Whether what it does to a row depends on the prompt's id, not on its tokens alone."""
        ...

    def targets(self, sites: Sequence[Site]) -> list[Site]:
        """The sites acted on, given all sites of the model; an error where one matches nothing."""
        ...

    def bind(self, site: Site, rows: PaddedRows) -> Edit:
        """What it does at one site to these rows; an error where the rows lack what it needs."""
        ...

    def describe(self) -> dict[str, Any]:
        """JSON-ready record for provenance; tensors by their hash."""
        ...


def as_interventions(
    interventions: Intervention | Sequence[Intervention],
) -> tuple[Intervention, ...]:
    """One intervention or several, as a tuple."""
    if isinstance(interventions, Intervention):
        return (interventions,)
    return tuple(interventions)
