"""Chats with answers → token ids and labels in which only the answer counts.

Where the template has `{% generation %}` marks, they say what the assistant speaks, in every turn.
Where it has none, it is the last answer as `emlens.data.rendering` finds it: the tokens that a
capture and a likelihood read, a thought before them, and the token that ends the turn. The end of
the turn is learned, or the model would never stop; the line break that some templates put after it
is not. Either way, the model is trained on what it is later asked to write.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from emlens.data.chat_text import shared_start
from emlens.data.encoding import with_start
from emlens.data.prompts import Prompt, PromptSet
from emlens.data.rendering import render
from emlens.data.templates import template_of
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.foundation.seeds import numpy_rng

IGNORED: Final = -100
"""Label of a token that the loss leaves out."""

_GROUPED: Final = 50
"""Batches whose rows are sorted together."""

_MARK: Final = re.compile(r"{%-?\s*generation\b")

Example = Mapping[str, Sequence[int]]
"""`input_ids` and `labels` of one row, equally long."""


def encode_answers(prompts: PromptSet, tokenizer: Any) -> list[Example]:
    """Token ids of each chat with its answer; labels are the ids where the assistant speaks,
    `IGNORED` elsewhere.

    With a template without marks only the last answer counts, not the assistant's earlier turns.

    Raises:
        InputError: a prompt that is raw text or keeps no answer; a template that marks no assistant
            token, or, without marks, whose prompt is not a prefix of prompt and answer.
    """
    has_marks = bool(_MARK.search(template_of(tokenizer) or ""))
    encode = _by_marks if has_marks else _by_span
    examples = []
    for prompt in prompts:
        if prompt.messages is None or prompt.response is None:
            kind = "raw text" if prompt.messages is None else "a chat without an answer"
            raise InputError(f"{_label(prompt)} is {kind}; pass chats with answers")
        examples.append(encode(prompt, tokenizer))
    return examples


def _label(prompt: Prompt) -> str:
    return f"prompt {one_line(prompt.id, 60)!r}"


def _by_marks(prompt: Prompt, tokenizer: Any) -> Example:
    """Labels of what the template marks as spoken by the assistant, on the row of a capture.

    Where that row has other tokens than the template's text in one piece (`Rendered.apart`, and
    templates that always open an answer), the last answer is what the row says is written.
    """
    [row] = render([prompt], tokenizer)
    chat = [message.to_record() for message in prompt.messages or ()]
    chat.append({"role": "assistant", "content": prompt.response or ""})
    encoded = tokenizer.apply_chat_template(
        chat,
        chat_template=template_of(tokenizer),
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    marked = encoded["input_ids"]
    ids = list(with_start(tokenizer, marked))
    mask = [0] * (len(ids) - len(marked)) + list(encoded["assistant_masks"])
    if tuple(ids) != row.ids:
        shared = shared_start(ids, row.ids[: row.prompt_end])
        mask = [*mask[:shared], *(i in row.written for i in range(shared, len(row.ids)))]
        ids = list(row.ids)
    if not any(mask):
        raise InputError(
            f"{_label(prompt)}: the chat template marks no assistant token;"
            " put {% generation %} around the answer"
        )
    labels = [token if counts else IGNORED for token, counts in zip(ids, mask, strict=True)]
    return {"input_ids": ids, "labels": labels}


def _by_span(prompt: Prompt, tokenizer: Any) -> Example:
    """Labels of what the model writes: thought, answer, and what ends the turn."""
    [row] = render([prompt], tokenizer)
    labels = [IGNORED] * len(row.ids)
    written = row.written
    labels[written.start : written.stop] = row.ids[written.start : written.stop]
    return {"input_ids": list(row.ids), "labels": labels}


def pad_batch(examples: Sequence[Example], pad_id: int) -> dict[str, Tensor]:
    """Right-padded `input_ids`, `attention_mask` and `labels`, each int64 of shape (row, longest
    row).
    """
    longest = max(len(example["input_ids"]) for example in examples)
    batch = {"input_ids": pad_id, "attention_mask": 0, "labels": IGNORED}
    tensors = {
        name: torch.full((len(examples), longest), fill, dtype=torch.long)
        for name, fill in batch.items()
    }
    for row, example in enumerate(examples):
        length = len(example["input_ids"])
        tensors["input_ids"][row, :length] = torch.as_tensor(list(example["input_ids"]))
        tensors["attention_mask"][row, :length] = 1
        tensors["labels"][row, :length] = torch.as_tensor(list(example["labels"]))
    return tensors


def shuffled_batches(n: int, batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """Row numbers of each step: passes over all `n` rows, each pass in its own order; a batch may
    cross into the next.
    """
    order: list[int] = []
    epoch = 0
    while len(order) < steps * batch_size:
        order.extend(int(i) for i in numpy_rng(seed, "order", epoch).permutation(n))
        epoch += 1
    return [order[step * batch_size : (step + 1) * batch_size] for step in range(steps)]


def length_grouped_batches(
    lengths: Sequence[int], batch_size: int, steps: int, seed: int
) -> list[list[int]]:
    """`shuffled_batches` in which rows of like lengths share a batch.

    The shuffled rows of up to `_GROUPED` batches at a time are sorted by length, cut into batches,
    and the batches shuffled: every pass still reads each row once.
    """
    shuffled = shuffled_batches(len(lengths), batch_size, steps, seed)
    # not more than one pass, or rows of one pass would move far into the next
    window = max(1, min(_GROUPED, len(lengths) // batch_size))
    batches = []
    for start in range(0, steps, window):
        rows = [row for batch in shuffled[start : start + window] for row in batch]
        rows.sort(key=lambda row: -lengths[row])
        count = len(rows) // batch_size
        for i in numpy_rng(seed, "groups", start).permutation(count):
            batches.append(rows[int(i) * batch_size : (int(i) + 1) * batch_size])
    return batches
