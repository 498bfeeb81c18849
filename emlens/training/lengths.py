"""How long a training row may be: never longer than the model's context, and never cut unasked.

A rotary model runs on rows beyond its context without an error and learns from positions that mean
nothing to it. Such a row is refused here, or cut by the recipe's `max_length`; how many rows were
cut is recorded. A row that loses its whole answer to the cut teaches nothing and is refused.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from emlens.foundation.errors import InputError
from emlens.training.examples import IGNORED, Example

_log = logging.getLogger("emlens")


def context_of(model: Any) -> int | None:
    """Tokens that a model reads at most; None where its configuration names no limit."""
    config: Any = getattr(model, "config", None)
    # a model of several modalities has the language model's configuration inside
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    length = getattr(config, "max_position_embeddings", None)
    if not isinstance(length, int) or length < 1:
        return None
    return length


def counted_tokens(rows: Sequence[Example]) -> int:
    """Labels that count: those after a row's first token that are not masked."""
    return sum(label != IGNORED for row in rows for label in row["labels"][1:])


@dataclass(frozen=True)
class LengthLimit:
    """The longest row of a run.

    Args:
        context: tokens that the model reads at most; None: it has no limit.
        max_length: tokens at which longer rows are cut; None: they are refused.

    Raises:
        InputError: `max_length` above the context.
    """

    context: int | None
    max_length: int | None = None

    def __post_init__(self) -> None:
        if (
            self.max_length is not None
            and self.context is not None
            and self.max_length > self.context
        ):
            raise InputError(
                f"max_length={self.max_length} is above the model's context of {self.context}"
                " tokens; pass at most that"
            )

    def apply(self, rows: Sequence[Example], owner: str) -> tuple[list[Example], int]:
        """The rows, cut at the limit, and how many of them were cut.

        Args:
            owner: whose rows they are, for messages.

        Raises:
            InputError: a row longer than the context, without `max_length`; a row in which no label
                counts, or none after the cut.
        """
        _require_answers(rows, owner)
        if self.max_length is None:
            self.require_fit(rows, owner)
            return list(rows), 0
        cut = [_first_tokens(row, self.max_length) for row in rows]
        n_cut = sum(len(row["input_ids"]) > self.max_length for row in rows)
        emptied = [i for i, row in enumerate(cut) if not counted_tokens([row])]
        if emptied:
            raise InputError(
                f"max_length={self.max_length} leaves no token of the answer in {len(emptied)} of"
                f" {len(rows)} rows of {owner}, first row {emptied[0]};"
                " raise it, or leave them out"
            )
        if n_cut:
            _log.warning(
                "max_length=%d cut %d of %d rows of %s; their answers end without an end of turn",
                self.max_length,
                n_cut,
                len(rows),
                owner,
            )
        return cut, n_cut

    def require_fit(self, rows: Sequence[Example], owner: str) -> None:
        """Refuse rows that are longer than the context.

        Raises:
            InputError: there is one.
        """
        if self.context is None:
            return
        too_long = [i for i, row in enumerate(rows) if len(row["input_ids"]) > self.context]
        if too_long:
            first = too_long[0]
            raise InputError(
                f"{len(too_long)} of {len(rows)} rows of {owner} are longer than the model's"
                f" context of {self.context} tokens, first row {first} with"
                f" {len(rows[first]['input_ids'])}; shorten them, leave them out,"
                " or cut them by max_length= of the recipe"
            )

    def require_width(self, width: int, step: int) -> None:
        """Refuse a ready batch of more columns than the context.

        Raises:
            InputError: it has more.
        """
        if self.context is not None and width > self.context:
            raise InputError(
                f"the batch of step {step} has {width} columns, but the model's context is"
                f" {self.context} tokens; shorten its rows"
            )


def _first_tokens(row: Example, length: int) -> Example:
    return {name: list(values)[:length] for name, values in row.items()}


def _require_answers(rows: Sequence[Example], owner: str) -> None:
    for i, row in enumerate(rows):
        if not counted_tokens([row]):
            raise InputError(
                f"row {i} of {owner} has no label that counts after its first token,"
                " so nothing is learned from it; leave it out"
            )
