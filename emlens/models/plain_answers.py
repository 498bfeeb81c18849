"""Greedy answers beside those of plain transformers, as they are and under an edit.

Each row is generated alone by the plain model, by its own `generate` and by whole passes without a
cache. Cost: for each token, a pass over the whole row and one step of `generate`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from emlens.data.prompts import PromptSet
from emlens.foundation.sites import Site
from emlens.models.checkpoint import CheckpointModel
from emlens.models.plain_edits import edited_alike


@dataclass
class AnswerComparison:
    """What was compared.

    Args:
        length: of the longest answers, in tokens.
        tokens: how many of plain transformers.
        note: what plain transformers does not agree with itself about.
    """

    length: int = 0
    tokens: int = 0
    wrong: str = ""
    note: str = ""


def compare_greedy(
    model: CheckpointModel, plain: Any, prompts: PromptSet, new_tokens: int
) -> AnswerComparison:
    """Greedy answers, as they are and under an edit, beside those of plain transformers."""
    comparison = AnswerComparison(new_tokens)
    site = Site("resid_post", model.n_layers // 2)
    _compare_answers(comparison, model, plain, prompts, "")
    with edited_alike(model, plain, site):
        _compare_answers(comparison, model, plain, prompts, " under an edit")
    return comparison


def _compare_answers(
    comparison: AnswerComparison, model: CheckpointModel, plain: Any, prompts: PromptSet, under: str
) -> None:
    answers = model.generate(prompts, max_new_tokens=comparison.length, temperature=0)
    for row, answer in zip(model.render(prompts), answers, strict=True):
        by_passes = _text(model, _by_whole_passes(model, plain, row.ids, comparison.length))
        try:
            by_generate = _text(model, _by_generate(model, plain, row.ids, comparison.length))
        except Exception as error:  # some classes cannot generate with their own cache
            by_generate = by_passes
            comparison.note = f"generate of transformers fails ({type(error).__name__})"
        comparison.tokens += len(by_generate.split())
        if answer == by_generate:
            continue
        if answer == by_passes:  # what emlens gives is what whole passes give
            comparison.note = (
                "generate of transformers gives other tokens than its own whole passes"
            )
            continue
        comparison.wrong = f"generates {answer!r}{under}, plain transformers {by_generate!r}"


def _text(model: CheckpointModel, tokens: Sequence[int]) -> str:
    return str(model.tokenizer.decode(tokens, skip_special_tokens=True)).strip()


def _by_generate(
    model: CheckpointModel, plain: Any, ids: Sequence[int], length: int
) -> Sequence[int]:
    row = torch.tensor([ids])
    with torch.no_grad():
        output = plain.generate(
            row,
            attention_mask=torch.ones_like(row),
            max_new_tokens=length,
            do_sample=False,
            pad_token_id=model.pad_id,
            eos_token_id=sorted(model.stops.ids),
        )
    new: list[int] = output[0, len(ids) :].tolist()
    return new


def _by_whole_passes(
    model: CheckpointModel, plain: Any, ids: Sequence[int], length: int
) -> Sequence[int]:
    new: list[int] = []
    while len(new) < length:
        with torch.no_grad():
            logits = plain(torch.tensor([[*ids, *new]]), use_cache=False).logits
        token = int(logits[0, -1].argmax())
        if token in model.stops.ids:
            break
        new.append(token)
    return new
