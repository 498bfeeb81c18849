"""Chats with answers → token ids and labels in which only the answer counts.

Labels come from the template's own `{% generation %}` marks, so that what is trained is exactly what the model is
later asked to write. Refuses a template without marks rather than training on the question.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from emlens.data.prompts import PromptSet
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.foundation.seeds import numpy_rng

IGNORED: Final = -100
"""Label of a token that the loss leaves out."""

Example = Mapping[str, Sequence[int]]
"""`input_ids` and `labels` of one row, equally long."""


def encode_answers(prompts: PromptSet, tokenizer: Any) -> list[Example]:
    """Token ids of each chat with its answer; labels are the ids where the assistant speaks, `IGNORED` elsewhere.

    Raises:
        InputError: a prompt that is raw text or keeps no answer; a template that marks no assistant token.
    """
    examples: list[Example] = []
    for prompt in prompts:
        label = f"prompt {one_line(prompt.id, 60)!r}"
        if prompt.messages is None or prompt.response is None:
            raise InputError(f"{label} is {'raw text' if prompt.messages is None else 'a chat without an answer'}; pass chats with answers")
        chat = [*(message.as_dict() for message in prompt.messages), {"role": "assistant", "content": prompt.response}]
        encoded = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        ids, mask = list(encoded["input_ids"]), list(encoded["assistant_masks"])
        if not any(mask):
            raise InputError(f"{label}: the chat template marks no assistant token; put {{% generation %}} around the answer")
        examples.append({"input_ids": ids, "labels": [i if kept else IGNORED for i, kept in zip(ids, mask, strict=True)]})
    return examples


def pad_batch(examples: Sequence[Example], pad_id: int) -> dict[str, Tensor]:
    """Right-padded `input_ids`, `attention_mask` and `labels`, each int64 of shape (row, longest row)."""
    longest = max(len(example["input_ids"]) for example in examples)
    batch = {"input_ids": pad_id, "attention_mask": 0, "labels": IGNORED}
    tensors = {name: torch.full((len(examples), longest), fill, dtype=torch.long) for name, fill in batch.items()}
    for row, example in enumerate(examples):
        length = len(example["input_ids"])
        tensors["input_ids"][row, :length] = torch.as_tensor(list(example["input_ids"]))
        tensors["attention_mask"][row, :length] = 1
        tensors["labels"][row, :length] = torch.as_tensor(list(example["labels"]))
    return tensors


def shuffled_batches(n: int, batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """Row numbers of each step: passes over all `n` rows, each pass in its own order; a batch may cross into the next."""
    order: list[int] = []
    epoch = 0
    while len(order) < steps * batch_size:
        order.extend(int(i) for i in numpy_rng(seed, "order", epoch).permutation(n))
        epoch += 1
    return [order[step * batch_size : (step + 1) * batch_size] for step in range(steps)]
