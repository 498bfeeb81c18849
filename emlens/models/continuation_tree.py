"""Scores after many short continuations of the same prompts, every token run once.

A judge's reply may be any of 101 numbers: 110 beginnings of one to three tokens after each prompt.
The prompt's keys and values are computed once. Each further token is one more column, which attends
to its prompt, to the tokens before it in its own continuation and to itself. So nothing of the
prompt is run again, and nothing of its cache is copied.

It needs a model whose memory of a row is keys and values and which takes a mask of its own
(`why_no_tree`). That it gives the scores of whole rows is proved once for each model, on two short
rows. Memory: keys and values of the batch, with one column a continuation.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.data.rendering import Rendered
from emlens.models.batches import Batch, pad
from emlens.models.cache_proof import equal_scores, proof_rows
from emlens.models.counted_logits import only_counted
from emlens.models.hooked import LOGITS, HookedModel
from emlens.models.likelihoods import last_tokens
from emlens.models.pass_counts import note_pass
from emlens.models.row_cache import RowCache
from emlens.models.transformers_backend import TransformersModel

Continuation = tuple[int, tuple[int, ...]]
"""Number of a row in the batch, and the tokens after it."""
_MASKED: Final = ("sdpa", "eager")
"""Kinds of attention that take a mask for each query."""


def why_no_tree(model: HookedModel, longest: int) -> str | None:
    """Why continuations of rows of at most `longest` tokens need whole rows; None: they do not."""
    if not isinstance(model, TransformersModel) or model.no_sharing is not None:
        return model.no_sharing
    if model.edit_blocks.active:
        return "an intervention or an adapter in memory is active"
    outer: Any = model.module.config
    config: Any = outer.get_text_config()
    if getattr(config, "_attn_implementation", None) not in _MASKED:
        return f"attention {config._attn_implementation!r} takes no mask for each query"
    if model.threshold is not None:
        return "its positions change with the length of a row"
    window = getattr(config, "sliding_window", None)
    if isinstance(window, int) and window < longest:
        return f"a row is longer than its window of {window} tokens"
    if not model.trees_proved:
        model.trees_proved.append(_holds(model))
    return None if model.trees_proved[0] else "its scores are not those of whole rows"


class ContinuationTree:
    """The prompts of one batch, and all continuations asked for so far.

    Args:
        batch: right-padded; first tokens that its rows share are run once.
    """

    def __init__(self, model: TransformersModel, batch: Batch):
        self._model = model
        self._batch = batch
        self._cache = RowCache()
        self._columns: dict[Continuation, int] = {}

    @torch.no_grad()
    def prompt_scores(self) -> Float[Tensor, "row vocab"]:
        """Logits after each prompt, rows in the order of the batch; comes first."""
        batch, model = self._batch, self._model
        counted = last_tokens(batch)
        mask = batch.mask.long()
        if batch.shared:
            self._run(batch.ids[:1, : batch.shared], mask[:1, : batch.shared], None, counted[:0])
            rows = torch.zeros(len(batch.rows), dtype=torch.long, device=model.device)
            self._cache = RowCache.join([(self._cache, rows, 0)], batch.shared)
        return self._run(batch.ids[:, batch.shared :], mask, None, counted[:, batch.shared :])

    @torch.no_grad()
    def scores(self, continuations: Sequence[Continuation]) -> Float[Tensor, "continuation vocab"]:
        """Logits after each continuation; the one without its last token was asked for before."""
        by_row: dict[int, list[int]] = {}
        for number, (row, _) in enumerate(continuations):
            by_row.setdefault(row, []).append(number)
        widest = max(map(len, by_row.values()))
        # so many columns at once that their logits fit
        step = max(1, LOGITS // (self._model.vocab_size * len(by_row)))
        scores: list[Tensor | None] = [None] * len(continuations)
        for start in range(0, widest, step):
            part = {row: numbers[start : start + step] for row, numbers in by_row.items()}
            numbers = [number for row in sorted(part) for number in part[row]]
            values = self._scores_of(continuations, part)
            for number, value in zip(numbers, values, strict=True):
                scores[number] = value
        return torch.stack([score for score in scores if score is not None])

    def _scores_of(
        self, continuations: Sequence[Continuation], part: dict[int, list[int]]
    ) -> Float[Tensor, "continuation vocab"]:
        """One pass over a column for each continuation of each row."""
        batch = self._batch
        n_rows = len(batch.rows)
        width = max(map(len, part.values()))
        used = self._cache.get_seq_length()
        ids = torch.full((n_rows, width), self._model.pad_id, dtype=torch.long)
        positions = torch.zeros(n_rows, width, dtype=torch.long)
        counted = torch.zeros(n_rows, width, dtype=torch.bool)
        sees = torch.zeros(n_rows, width, used + width, dtype=torch.bool)
        sees[:, :, : batch.mask.shape[1]] = batch.mask.cpu()[:, None]
        sees[:, torch.arange(width), used + torch.arange(width)] = True
        for row, numbers in part.items():
            for column, number in enumerate(numbers):
                tokens = continuations[number][1]
                ids[row, column] = tokens[-1]
                positions[row, column] = len(batch.rows[row].ids) + len(tokens) - 1
                counted[row, column] = True
                for n in range(1, len(tokens)):
                    sees[row, column, self._columns[row, tokens[:n]]] = True
                self._columns[row, tokens] = used + column
        mask = torch.zeros(sees.shape, dtype=self._model.dtype)
        mask.masked_fill_(~sees, torch.finfo(mask.dtype).min)
        return self._run(ids, mask[:, None], positions, counted)

    def _run(
        self, ids: Tensor, mask: Tensor, positions: Tensor | None, counted: Tensor
    ) -> Float[Tensor, "counted vocab"]:
        """Logits at the counted tokens of a pass whose keys and values are kept."""
        model = self._model
        inputs: dict[str, Any] = {
            "input_ids": ids.to(model.device),
            "attention_mask": mask.to(model.device),
            "past_key_values": self._cache,
            "use_cache": True,
        }
        if positions is not None:
            inputs["position_ids"] = positions.to(model.device)
        note_pass(ids.numel(), ids.numel(), int(counted.sum()))
        rows = replace(self._batch.padded_rows(), width=ids.shape[1])
        passing = model._pass(rows, {})
        if not len(counted):
            model._called("decoder", inputs, passing)
            return torch.empty(0, model.vocab_size)
        with model.bank.selected(model.adapter), only_counted(model.module, counted) as selected:
            return selected.of(model._called("model", inputs, passing).logits)


def _holds(model: TransformersModel) -> bool:
    """Whether a tree gives the scores of whole rows."""
    plain = copy.copy(model)
    rows = proof_rows(plain)
    prompts = [replace(row, ids=row.ids[: row.prompt_end]) for row in rows]
    batch = pad(prompts, range(len(prompts)), plain.pad_id, "right", plain.device)
    asked: list[Continuation] = []
    for row, whole in enumerate(rows):
        first, second = whole.ids[whole.prompt_end : whole.prompt_end + 2]
        asked += [(row, (first,)), (row, (second,)), (row, (first, second))]
    try:
        tree = ContinuationTree(plain, batch)
        found = [tree.prompt_scores()]
        for depth in (1, 2):
            found.append(tree.scores([each for each in asked if len(each[1]) == depth]))
    except Exception:  # a model that does not know this mask or cache raises what it likes
        return False
    expected = [_whole(plain, prompts, [(row, ()) for row in range(len(rows))])]
    for depth in (1, 2):
        expected.append(_whole(plain, prompts, [e for e in asked if len(e[1]) == depth]))
    return equal_scores(plain, found, expected)


def _whole(
    model: TransformersModel, prompts: Sequence[Rendered], asked: Sequence[Continuation]
) -> Float[Tensor, "continuation vocab"]:
    """The same scores from passes over whole rows."""
    scores = []
    for row, tokens in asked:
        longer = prompts[row].with_continuation(tokens)
        batch = pad([longer], [0], model.pad_id, "right", model.device)
        with torch.no_grad():
            scores.append(model.logits_at(batch, last_tokens(batch))[0])
    return torch.stack(scores)
