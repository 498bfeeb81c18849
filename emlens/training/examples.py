"""Chats with answers → token ids and labels in which only the answer counts.

Where the template has `{% generation %}` marks, they say what the assistant speaks, in every turn.
Where it has none, it is the last answer: the tokens that the template adds to its own prompt for an
answer, up to the end-of-sequence token. Either way what is trained is what the model is later asked
to write; a template in which the two cannot be told apart is refused.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from emlens.data.prompts import Prompt, PromptSet
from emlens.data.rendering import render, template_of
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.foundation.seeds import numpy_rng

IGNORED: Final = -100
"""Label of a token that the loss leaves out."""

_MARK: Final = re.compile(r"{%-?\s*generation\b")

Example = Mapping[str, Sequence[int]]
"""`input_ids` and `labels` of one row, equally long."""


def encode_answers(prompts: PromptSet, tokenizer: Any) -> list[Example]:
    """Token ids of each chat with its answer; labels are the ids where the assistant speaks,
    `IGNORED` elsewhere.

    With a template without marks only the last answer counts, not the assistant's earlier turns.

    Raises:
        InputError: a prompt that is raw text or keeps no answer; a template that marks no assistant
            token, or, without marks, whose prompt is no prefix of prompt and answer.
    """
    examples: list[Example] = []
    marked = bool(_MARK.search(template_of(tokenizer) or ""))
    for prompt in prompts:
        label = f"prompt {one_line(prompt.id, 60)!r}"
        if prompt.messages is None or prompt.response is None:
            raise InputError(
                f"{label} is"
                f" {'raw text' if prompt.messages is None else 'a chat without an answer'};"
                " pass chats with answers"
            )
        if not marked:
            examples.append(_by_span(prompt, tokenizer))
            continue
        chat = [
            *(message.to_record() for message in prompt.messages),
            {"role": "assistant", "content": prompt.response},
        ]
        encoded = tokenizer.apply_chat_template(
            chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, mask = list(encoded["input_ids"]), list(encoded["assistant_masks"])
        if not any(mask):
            raise InputError(
                f"{label}: the chat template marks no assistant token;"
                " put {% generation %} around the answer"
            )
        examples.append(
            {
                "input_ids": ids,
                "labels": [i if kept else IGNORED for i, kept in zip(ids, mask, strict=True)],
            }
        )
    return examples


def _by_span(prompt: Prompt, tokenizer: Any) -> Example:
    """Labels of what follows the rendered prompt, up to the last end-of-sequence token there
    (templates add a line break after it).
    """
    (row,) = render([prompt], tokenizer)
    end = getattr(tokenizer, "eos_token_id", None)
    stops = [i for i in range(row.prompt_end, len(row.ids)) if row.ids[i] == end]
    last = stops[-1] + 1 if stops else len(row.ids)
    labels = [i if row.prompt_end <= at < last else IGNORED for at, i in enumerate(row.ids)]
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
