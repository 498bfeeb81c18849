"""Generation without a cache of our own: batch by batch through `generate`, or by reading whole
rows again for every token.

Batches are how other backends generate, and models whose memory of a row is more than its keys and
values (state-space models, linear attention). These read rows of equal length together, so that no
padding enters their state. Reading whole rows again needs no memory of the model at all: it is
right wherever a forward pass is, and costs a pass over the row for every token.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from emlens.data.rendering import Rendered
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.models.batches import pad, plan_batches
from emlens.models.sampling import Generated, RowSampler, SampledScores
from emlens.models.stops import Ends

if TYPE_CHECKING:
    from emlens.models.decoding import Decoding
    from emlens.models.hooked import HookedModel


def decode_in_batches(
    model: "HookedModel",
    rows: Sequence[Rendered],
    sampler: RowSampler,
    max_new_tokens: int,
    slots: int,
    ends: Ends,
) -> Iterator[list[Generated]]:
    """Answers of whole batches through the backend's own `generate`.

    Raises:
        InputError: a row that would grow across the model's length threshold.
    """
    lengths = [len(row.ids) for row in rows]
    _check_threshold(model, rows, max_new_tokens)
    plan = plan_batches(lengths, slots * max(lengths), model.threshold)
    if not model.pads_while_generating:
        plan = [part for batch in plan for part in _equal(batch, lengths)]
    stop_ids = model.stops.ids
    for index in plan:
        batch = pad([rows[i] for i in index], index, model.pad_id, "left", model.device)
        new = model._generate(batch, max_new_tokens, SampledScores(sampler, index))
        answers = zip(index, new.tolist(), strict=True)
        yield [Generated.cut(i, tokens, stop_ids, ends) for i, tokens in answers]


def _check_threshold(model: "HookedModel", rows: Sequence[Rendered], max_new_tokens: int) -> None:
    if model.threshold is None:
        return
    for row in rows:
        # the last token is not read again
        if len(row.ids) <= model.threshold < len(row.ids) + max_new_tokens - 1:
            raise InputError(
                f"prompt {one_line(row.id, 60)!r} would grow beyond {model.threshold} tokens, where"
                f" positions of {model.name!r} change, which backend {model.backend!r} cannot"
                " follow; ask for fewer tokens, or load with backend='transformers'"
            )


def _equal(index: list[int], lengths: Sequence[int]) -> list[list[int]]:
    """A batch, longest row first, cut where the length changes."""
    return [list(part) for _, part in groupby(index, key=lambda i: lengths[i])]


def decode_again(
    setting: "Decoding", rows: Sequence[Rendered], slots: int
) -> Iterator[list[Generated]]:
    """Answers by a pass over the whole row, prompt and answer, for every token."""
    lengths = [len(row.ids) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (-lengths[i], i))
    # rows of one length stay of one length, so they are read together without padding
    for index in _equal(order, lengths):
        for start in range(0, len(index), slots):
            yield from _read_again(setting, rows, index[start : start + slots])


def _read_again(
    setting: "Decoding", rows: Sequence[Rendered], index: Sequence[int]
) -> Iterator[list[Generated]]:
    answers = [Generated(i) for i in index]
    for _ in range(setting.max_new_tokens):
        whole = [rows[answer.index].with_continuation(answer.tokens) for answer in answers]
        batch = pad(whole, range(len(whole)), setting.pad_id, "left", setting.device)
        inputs = {"input_ids": batch.ids, "attention_mask": batch.mask.long()}
        scores = setting.forward(batch.padded_rows(setting.max_new_tokens), inputs)
        tokens = setting.next_tokens(answers, scores)
        finished = []
        for answer, token in zip(answers, tokens.tolist(), strict=True):
            if setting.ended_by(answer, token):
                finished.append(answer)
        if finished:
            yield finished
        answers = [answer for answer in answers if answer not in finished]
        if not answers:
            return
