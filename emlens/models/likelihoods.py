"""Log-probabilities of continuations: which rows to run, and the sum over the tokens of each."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from emlens.data.encoding import encode
from emlens.data.rendering import Rendered
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.models.batches import Batch
from emlens.models.finite import unusable_scores


def equal_choices(
    continuations: Sequence[str] | Sequence[Sequence[str]], prompts: int
) -> list[list[str]]:
    """The continuations of each prompt, equally many for every prompt.

    Raises:
        InputError: one string; lengths that do not fit.
    """
    if isinstance(continuations, str):
        raise InputError("continuations is one string; pass a list with one for each prompt")
    choices = [[item] if isinstance(item, str) else list(item) for item in continuations]
    if len(choices) != prompts:
        raise InputError(
            f"continuations has {len(choices)} entries for {prompts} prompts; pass one for each"
        )
    width = len(choices[0])
    if width == 0 or any(len(items) != width for items in choices):
        raise InputError(
            "continuations differ in how many choices they give;"
            " pass equally many, at least one, for each prompt"
        )
    return choices


def with_continuation(row: Rendered, text: str, tokenizer: Any, max_length: int | None) -> Rendered:
    """The row followed by a text, which is tokenised by itself, without special tokens.

    Raises:
        InputError: a text without tokens; more tokens than the model's context.
    """
    ids = encode(tokenizer, text)
    if not ids:
        raise InputError(
            f"continuation {one_line(text, 60)!r} of prompt {one_line(row.id, 60)!r} has no token"
        )
    longer = row.with_continuation(ids)
    if max_length is not None and len(longer.ids) > max_length:
        raise InputError(
            f"prompt {one_line(row.id, 60)!r} and its continuation have {len(longer.ids)} tokens,"
            f" but the model's context is {max_length}; shorten them"
        )
    return longer


def response_start(row: Rendered) -> int:
    """Number of the first token of a row's response.

    Raises:
        InputError: the row has no response, or one without a token.
    """
    response = row.spans.part("response")
    if not response:
        raise InputError(
            f"prompt {one_line(row.id, 60)!r} has no token of a response; pass prompts that keep an"
            " answer"
        )
    return response.start


def through_response(row: Rendered) -> Rendered:
    """The row up to the last token of its response: what follows has no bearing on it."""
    return replace(row, ids=row.ids[: row.spans.content[1]], content_end=None, turn_end=None)


_AT_ONCE: Final = 256
"""Rows of logits that are widened at once, so that a large vocabulary takes no second copy."""
_CACHED: Final = 2**19
"""Values that are widened at once on a processor: 4 MiB in float64 stay in its cache, which makes
sums over a vocabulary of 49k three to nine times faster (measured on one core).
"""


@dataclass(frozen=True)
class AllLogits:
    """Logits at every token of a batch, those of shared tokens once.

    Args:
        beginnings: at the shared tokens of the rows that stand for the others; None: no token is
            shared.
        of_row: for each row, which of them stands for it.
        rest: at the other tokens, padded as the batch is.
    """

    rest: Float[Tensor, "row rest vocab"]
    beginnings: Float[Tensor, "distinct shared vocab"] | None = None
    of_row: Int[Tensor, " row"] | None = None


Logits = Callable[[Batch], AllLogits]
"""Logits at every token of a batch."""
LogitsAt = Callable[[Batch, Tensor], Tensor]
"""Logits at the tokens of a batch that a mask (row, token) counts, row by row."""
Refuse = Callable[[Rendered, str], NoReturn]
"""Raises the error for a row whose values are not finite, seen at a place."""


def last_logits(
    batches: Iterable[Batch], logits_at: LogitsAt, refuse: Refuse
) -> dict[int, Float[Tensor, " vocab"]]:
    """Row → logits after its last token; float32, CPU."""
    logits_of_row: dict[int, Tensor] = {}
    for batch in batches:
        logits = logits_at(batch, last_tokens(batch)).float().cpu()
        for row, number, last in zip(batch.rows, batch.index, logits, strict=True):
            if bool(unusable_scores(last)):
                refuse(row, "its logits")
            logits_of_row[number] = last.clone()
    return logits_of_row


def last_tokens(batch: Batch) -> Bool[Tensor, "row token"]:
    """The last token of each row of a batch."""
    last = torch.zeros(batch.ids.shape, dtype=torch.bool)
    for i, row in enumerate(batch.rows):
        last[i, batch.offset(i) + len(row.ids) - 1] = True
    return last


def logprobs_by_token(
    batches: Iterable[Batch], logits_of: Logits, refuse: Refuse
) -> dict[int, Float[Tensor, "token vocab"]]:
    """Row → log-probabilities over the next token after each of its tokens; float32, CPU."""
    logprobs_of_row: dict[int, Tensor] = {}
    for batch in batches:
        logits = logits_of(batch)
        beginnings: list[Tensor] = []
        shared = 0
        if logits.beginnings is not None:
            beginnings = [_logprobs(beginning) for beginning in logits.beginnings]
            shared = logits.beginnings.shape[1]
        for i, row in enumerate(batch.rows):
            start = batch.offset(i)
            logprobs = _logprobs(logits.rest[i, start : start + len(row.ids) - shared])
            if logits.of_row is not None:
                logprobs = torch.cat([beginnings[int(logits.of_row[i])], logprobs])
            # one logit that is not finite makes every log-probability of its token NaN
            if bool(logprobs[:, 0].isnan().any()):
                refuse(row, "its logits")
            logprobs_of_row[batch.index[i]] = logprobs
    return logprobs_of_row


def logprobs_in_trees(
    batches: Iterable[Batch], logits_at: LogitsAt, refuse: Refuse
) -> dict[int, Float[Tensor, "token vocab"]]:
    """`logprobs_by_token` where a row of a batch holds several of the rows."""
    logprobs_of_row: dict[int, Tensor] = {}
    for batch in batches:
        assert batch.packing is not None
        packing = batch.packing
        filled = packing.filled()
        logprobs = _logprobs(logits_at(batch, filled))
        # number of each column among those that hold a token
        numbers = filled.flatten().cumsum(0).view(filled.shape) - 1
        is_lost = logprobs[:, 0].isnan()
        places = zip(batch.index, packing.row_of, packing.places, packing.prompts, strict=True)
        for number, row, columns, prompt in places:
            taken = numbers[row, columns]
            # one logit that is not finite makes every log-probability of its token NaN
            if bool(is_lost[taken].any()):
                refuse(prompt, "its logits")
            logprobs_of_row[number] = logprobs[taken]
    return logprobs_of_row


def _logprobs(logits: Float[Tensor, "token vocab"]) -> Float[Tensor, "token vocab"]:
    return logits.float().log_softmax(-1).cpu()


def summed_logprobs(
    batches: Iterable[Batch],
    starts: Sequence[int],
    logits_at: LogitsAt,
    refuse: Refuse,
) -> Float[Tensor, " row"]:
    """Sum of the log-probabilities (nats) of each row's tokens from its start on; float64, CPU.

    Args:
        starts: number of the first token that counts, for each row, as `Batch.index` numbers them.
    """
    sums = torch.zeros(len(starts), dtype=torch.float64)
    for batch in batches:
        counted = torch.zeros(batch.ids.shape, dtype=torch.bool)
        for i, row in enumerate(batch.rows):
            # logits at a token score the token after it
            first = batch.offset(i) + starts[batch.index[i]] - 1
            counted[i, first : batch.offset(i) + len(row.ids) - 1] = True
        batch_rows, columns = counted.nonzero(as_tuple=True)
        logits = logits_at(batch, counted)
        tokens = batch.ids.cpu()[batch_rows, columns + 1].to(logits.device)
        values = _logprobs_of(logits, tokens)
        if bool(values.isnan().any()):
            refuse(batch.rows[int(batch_rows[int(values.isnan().int().argmax())])], "its logits")
        sums.index_add_(0, torch.tensor(batch.index)[batch_rows], values)
    return sums


def packed_logprobs(
    batches: Iterable[Batch],
    rows: Sequence[Rendered],
    starts: Sequence[int],
    logits_at: LogitsAt,
    refuse: Refuse,
) -> Float[Tensor, " row"]:
    """`summed_logprobs` where a row of a batch holds several of the rows."""
    sums = torch.zeros(len(rows), dtype=torch.float64)
    for batch in batches:
        assert batch.packing is not None
        # which row of all a column belongs to, and the token that comes after it there
        owner = torch.full(batch.ids.shape, -1)
        following = torch.zeros(batch.ids.shape, dtype=torch.long)
        places = zip(batch.index, batch.packing.row_of, batch.packing.places, strict=True)
        for number, row, columns in places:
            start = starts[number]
            scored = columns[start - 1 : -1]
            owner[row, scored] = number
            following[row, scored] = torch.tensor(rows[number].ids[start:])
        counted = owner >= 0
        logits = logits_at(batch, counted)
        values = _logprobs_of(logits, following[counted].to(logits.device))
        owners = owner[counted]
        if bool(values.isnan().any()):
            refuse(rows[int(owners[int(values.isnan().int().argmax())])], "its logits")
        sums.index_add_(0, owners, values)
    return sums


def rows_widened(logits: Float[Tensor, "token vocab"]) -> int:
    """Rows of logits, or of log-probabilities, to be widened to float64 at once."""
    if logits.device.type != "cpu":
        return _AT_ONCE
    return min(_AT_ONCE, max(1, _CACHED // logits.shape[-1]))


def _logprobs_of(
    logits: Float[Tensor, "token vocab"], tokens: Int[Tensor, " token"]
) -> Float[Tensor, " token"]:
    """Log-probability of each token; float64 for a few at a time, CPU."""
    values = []
    count = rows_widened(logits)
    for some, of_some in zip(logits.split(count), tokens.split(count), strict=True):
        values.append(some.double().log_softmax(-1).gather(-1, of_some[:, None])[:, 0].cpu())
    return torch.cat(values)
