"""Prompts to answers as text, whatever backend decodes them: checks, seeds, ends and thoughts.

A backend decodes tokens (`HookedModel.decode`). Here rows are checked against the context, each
gets its random numbers, texts that end a turn are found, and every step runs under the edits that
were active when the answers were asked for.
"""

from collections.abc import Collection, Iterator, Sequence

from emlens.data.encoding import text_with_thought
from emlens.data.prompts import Prompt
from emlens.data.rendering import Rendered
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.models.edit_blocks import ActiveEdit
from emlens.models.finite import NotFiniteScores
from emlens.models.hooked import HookedModel
from emlens.models.pass_memory import PassShape, rows_that_fit
from emlens.models.sampling import RowSampler
from emlens.models.stops import Ends, never_ends

Answered = list[tuple[int, str, str]]
"""Number of the prompt, text, and `"stop"` or `"length"`."""


def answers_as_they_end(
    model: HookedModel,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch_tokens: int,
) -> Iterator[Answered]:
    """`HookedModel.generate_each`.

    Raises:
        InputError: `max_new_tokens` below 1, a negative temperature, or a row that would outgrow
            the context.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens={max_new_tokens} must be 1 or more")
    if not 0 <= temperature < float("inf"):
        raise InputError(f"temperature={temperature} must be 0 or more")
    rows = model.render(prompts)
    longest = max(rows, key=lambda row: len(row.ids))
    tokens = len(longest.ids) + max_new_tokens
    if model.max_length is not None and tokens > model.max_length:
        raise InputError(
            f"prompt {one_line(longest.id, 60)!r} has {len(longest.ids)} tokens and"
            f" max_new_tokens is {max_new_tokens},"
            f" but the model's context is {model.max_length}; ask for fewer"
        )
    slots = rows_at_once(model, rows, max_new_tokens, batch_tokens)
    sampler = RowSampler(seed, [row.id for row in rows], temperature)
    chats = {number for number, prompt in enumerate(prompts) if prompt.is_chat}
    edits = model.edit_blocks.active
    return _answers(model, rows, chats, sampler, max_new_tokens, slots, edits)


def rows_at_once(
    model: HookedModel, rows: Sequence[Rendered], max_new_tokens: int, batch_tokens: int
) -> int:
    """Rows in the model at most, if each gets as long as the longest may."""
    tokens = max(len(row.ids) for row in rows) + max_new_tokens
    return rows_that_fit(PassShape.of(model), tokens, batch_tokens)


def _answers(
    model: HookedModel,
    rows: Sequence[Rendered],
    chats: Collection[int],
    sampler: RowSampler,
    max_new_tokens: int,
    slots: int,
    edits: tuple[ActiveEdit, ...],
) -> Iterator[Answered]:
    """Finished answers as text; each step runs under `edits`, the caller's code does not."""
    stops = model.stops
    with model.edit_blocks.opened(edits, alone=True):
        chunks = model.decode(rows, sampler, max_new_tokens, slots, _ends(model, chats))
    while True:
        with model.edit_blocks.opened(edits, alone=True):
            try:
                chunk = next(chunks, None)
            except NotFiniteScores as error:
                row = rows[error.row].with_continuation(error.tokens)
                model.refuse_not_finite(row, f"the logits of token {len(error.tokens) + 1}")
        if chunk is None:
            return
        finished = []
        for answer in chunk:
            text = text_with_thought(model.tokenizer, answer.tokens)
            if answer.index in chats:
                text = stops.cut(text)
            finished.append((answer.index, text.strip(), str(answer.finish_reason)))
        yield finished


def _ends(model: HookedModel, rows_of_chats: Collection[int]) -> Ends:
    """Whether the last tokens of a row's answer complete a text that ends it.

    Only in chats: in raw text the header of a turn is a text like any other.
    """
    stops = model.stops
    if not stops.texts or not rows_of_chats:
        return never_ends

    def ends(row: int, tokens: Sequence[int]) -> bool:
        if row not in rows_of_chats:
            return False
        text = text_with_thought(model.tokenizer, tokens[-stops.window :])
        return stops.cut(text) != text

    return ends
