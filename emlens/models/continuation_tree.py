"""Scores after many short continuations of the same prompts, every token run once.

A judge's reply may be any of 101 numbers: 110 beginnings of one to three tokens after each prompt.
The prompt's keys and values are computed once. Each further token is one more column, which attends
to its prompt, to the tokens before it in its own continuation and to itself. So nothing of the
prompt is run again, and nothing of its cache is copied. In the same way prompts about one answer
(one for each metric) are columns of one row: question and answer are run once, and so is what all
prompts begin with.

It needs a model whose memory of a row is keys and values and which takes a mask of its own
(`why_no_tree`). That it gives the scores of whole rows is proved once for each model, on two short
rows. Memory: keys and values of the batch, with one column a continuation.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from emlens.data.rendering import Rendered
from emlens.models.batches import pad
from emlens.models.cache_proof import equal_scores, proof_rows
from emlens.models.counted_logits import only_counted
from emlens.models.hooked import HookedModel
from emlens.models.likelihoods import last_tokens
from emlens.models.packing import Packing, mask_of, plan_packing
from emlens.models.pass_counts import note_pass, uncounted_passes
from emlens.models.pass_memory import LOGITS
from emlens.models.row_cache import RowCache
from emlens.models.transformers_backend import TransformersModel

Continuation = tuple[int, tuple[int, ...]]
"""Number of a prompt in its tree, and the tokens after it."""
_MASKED: Final = ("sdpa", "eager")
"""Kinds of attention that take a mask for each query."""


def why_no_tree(model: HookedModel, longest: int) -> str | None:
    """Why continuations of rows of at most `longest` tokens need whole rows; None: they do not."""
    if model.edit_blocks.active:
        return "an intervention or an adapter in memory is active"
    return why_no_masks(model, longest)


def why_no_masks(model: HookedModel, longest: int) -> str | None:
    """Why rows of at most `longest` tokens cannot have a mask for each query; None: they can."""
    if not isinstance(model, TransformersModel) or model.no_sharing is not None:
        return model.no_sharing or f"backend {model.backend!r} runs whole rows"
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
        with uncounted_passes():
            model.trees_proved.append(_holds(model))
    return None if model.trees_proved[0] else "its scores are not those of whole rows"


def trees_of(
    model: TransformersModel, rows: Sequence[Rendered], batch_tokens: int
) -> Iterator[tuple[list[int], "ContinuationTree"]]:
    """Trees of all prompts, with the numbers of the prompts of each.

    First tokens that all prompts share are run once, before the first tree.

    Args:
        batch_tokens: padded tokens of the prompts of a tree at most.
    """
    plan = plan_packing(rows, batch_tokens, [len(row.ids) - 1 for row in rows])
    beginning = RowCache()
    if plan.shared:
        _run_beginning(model, rows[0], plan.shared, beginning)
    for groups in plan.batches:
        packing = Packing([[rows[i] for i in group] for group, _ in groups], [o for _, o in groups])
        numbers = [i for group, _ in groups for i in group]
        yield numbers, ContinuationTree(model, packing, plan.shared, beginning)


@torch.no_grad()
def _run_beginning(model: TransformersModel, row: Rendered, shared: int, cache: RowCache) -> None:
    """Keys and values of the first tokens of a row."""
    ids = torch.tensor([row.ids[:shared]])
    rows = replace(pad([row], [0], 0, "right", ids.device).padded_rows(), width=shared)
    inputs = {
        "input_ids": ids.to(model.device),
        "attention_mask": torch.ones_like(ids).to(model.device),
        "past_key_values": cache,
        "use_cache": True,
    }
    note_pass(shared, shared)
    model._called("decoder", inputs, model._pass(rows, {}))


class ContinuationTree:
    """Some prompts, and all continuations asked for so far.

    Args:
        packing: the prompts, several in a row where they share much.
        shared: first tokens of all prompts that were run.
        beginning: what that pass left.
    """

    def __init__(
        self,
        model: TransformersModel,
        packing: Packing,
        shared: int = 0,
        beginning: RowCache | None = None,
    ):
        self._model, self._packing, self._shared = model, packing, shared
        self.prompts = packing.prompts
        self._cache = RowCache()
        if shared and beginning is not None:
            rows = torch.zeros(len(packing.groups), dtype=torch.long, device=model.device)
            self._cache = RowCache.join([(beginning, rows, 0)], shared)
        self._columns: dict[Continuation, int] = {}

    @torch.no_grad()
    def prompt_scores(self) -> Float[Tensor, "prompt vocab"]:
        """Logits after each prompt; comes first."""
        packing, start = self._packing, self._shared
        counted = torch.zeros(len(packing.groups), packing.width, dtype=torch.bool)
        for row, places in zip(packing.row_of, packing.places, strict=True):
            counted[row, places[-1]] = True
        mask = mask_of(packing.sees()[:, start:], self._model.dtype)
        ids = packing.ids(self._model.pad_id)
        positions = packing.positions()
        return self._run(ids[:, start:], mask, positions[:, start:], counted[:, start:])

    def scores(
        self, continuations: Sequence[Continuation]
    ) -> Iterator[tuple[list[int], Float[Tensor, "continuation vocab"]]]:
        """Logits after each continuation; the one without its last token was asked for before.

        Yields numbers of continuations and their logits, at most `LOGITS` of these at a time: those
        of all continuations together are never held.
        """
        by_row: dict[int, list[int]] = {}
        for number, (prompt, _) in enumerate(continuations):
            by_row.setdefault(self._packing.row_of[prompt], []).append(number)
        widest = max(map(len, by_row.values()))
        # so many columns at once that their logits fit
        step = max(1, LOGITS // (self._model.vocab_size * len(by_row)))
        for start in range(0, widest, step):
            part = {row: numbers[start : start + step] for row, numbers in by_row.items()}
            numbers = [number for row in sorted(part) for number in part[row]]
            yield numbers, self._scores_of(continuations, part)

    @torch.no_grad()
    def _scores_of(
        self, continuations: Sequence[Continuation], part: dict[int, list[int]]
    ) -> Float[Tensor, "continuation vocab"]:
        """One pass over a column for each continuation of each row."""
        n_rows = len(self._packing.groups)
        width = max(map(len, part.values()))
        used = self._cache.get_seq_length()
        ids = torch.full((n_rows, width), self._model.pad_id, dtype=torch.long)
        positions = torch.zeros(n_rows, width, dtype=torch.long)
        counted = torch.zeros(n_rows, width, dtype=torch.bool)
        sees = torch.zeros(n_rows, width, used + width, dtype=torch.bool)
        sees[:, torch.arange(width), used + torch.arange(width)] = True
        for row, numbers in part.items():
            for column, number in enumerate(numbers):
                prompt, tokens = continuations[number]
                ids[row, column] = tokens[-1]
                positions[row, column] = len(self.prompts[prompt].ids) + len(tokens) - 1
                counted[row, column] = True
                sees[row, column, self._packing.places[prompt]] = True
                for n in range(1, len(tokens)):
                    sees[row, column, self._columns[prompt, tokens[:n]]] = True
                self._columns[prompt, tokens] = used + column
        return self._run(ids, mask_of(sees, self._model.dtype), positions, counted)

    def _run(
        self,
        ids: Int[Tensor, "row column"],
        mask: Float[Tensor, "row 1 column seen"],
        positions: Int[Tensor, "row column"],
        counted: Bool[Tensor, "row column"],
    ) -> Float[Tensor, "counted vocab"]:
        """Logits at the counted tokens of a pass whose keys and values are kept."""
        model = self._model
        inputs: dict[str, Any] = {
            "input_ids": ids.to(model.device),
            "attention_mask": mask.to(model.device),
            "position_ids": positions.to(model.device),
            "past_key_values": self._cache,
            "use_cache": True,
        }
        note_pass(ids.numel(), ids.numel(), int(counted.sum()))
        passing = model._pass(replace(self._packing.rows(0), width=ids.shape[1]), {})
        with model.bank.selected(model.adapter), only_counted(model.module, counted) as selected:
            return selected.of(model._called("model", inputs, passing).logits)


def _holds(model: TransformersModel) -> bool:
    """Whether a tree gives the scores of whole rows."""
    plain = copy.copy(model)
    rows = proof_rows(plain)
    # a third prompt, which leaves the first one after four tokens and is a column of its row
    prompts = [replace(row, ids=row.ids[: row.prompt_end]) for row in rows]
    prompts.insert(1, replace(prompts[0], ids=prompts[0].ids[:4] + prompts[1].ids))
    tails = [rows[0], rows[1], rows[1]]
    asked: list[Continuation] = []
    for number, whole in enumerate(tails):
        first, second = whole.ids[whole.prompt_end : whole.prompt_end + 2]
        asked += [(number, (first,)), (number, (second,)), (number, (first, second))]
    try:
        tree = ContinuationTree(plain, Packing([prompts[:2], prompts[2:]], [4, 0]))
        found = [tree.prompt_scores()]
        for depth in (1, 2):
            found.append(_together(tree, [each for each in asked if len(each[1]) == depth]))
    except Exception:  # a model that does not know this mask or cache raises what it likes
        return False
    expected = [_whole(plain, prompts, [(number, ()) for number in range(len(prompts))])]
    for depth in (1, 2):
        expected.append(_whole(plain, prompts, [e for e in asked if len(e[1]) == depth]))
    return equal_scores(plain, found, expected)


def _together(
    tree: ContinuationTree, asked: Sequence[Continuation]
) -> Float[Tensor, "continuation vocab"]:
    """Logits after a few continuations, in their order."""
    scores: dict[int, Tensor] = {}
    for numbers, values in tree.scores(asked):
        scores.update(zip(numbers, values, strict=True))
    return torch.stack([scores[number] for number in range(len(asked))])


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
