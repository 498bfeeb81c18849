"""How may a model generate? Proved once, by the scores that it gives.

Scores after each token of a row are the same whether the row is read at once without a cache, or
token by token with one. The first way that keeps this is taken: our cache of rows that come and go,
the model's own `generate` in batches of equal length, or reading whole rows again for every token.
Cost: some passes over a few tokens, at the first generation of a model that is not in the table.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from torch import Tensor

from emlens.data.rendering import Rendered
from emlens.foundation.sites import Site
from emlens.models.batches import pad
from emlens.models.row_cache import RowCache

if TYPE_CHECKING:
    from emlens.models.checkpoint import CheckpointModel

Way = Literal["rows", "batches", "again"]
_PROMPTS: Final = (9, 6)
"""Lengths of two rows that share our cache."""
_STEPS: Final = 3
_RELATIVE: Final = 1e-3
"""float32: other kernels for one token than for many; a lost state changes everything."""
_RELATIVE_16: Final = 0.1


def way_to_generate(model: "CheckpointModel", has_row_cache: bool) -> Way:
    """The first way whose scores are those of whole passes.

    Args:
        model: without interventions.
        has_row_cache: whether `"rows"` is one of the ways.
    """
    rows = proof_rows(model)
    with model.bank.selected(model.adapter), torch.no_grad():
        expected = _by_whole_passes(model.module, rows, model.device)
        if has_row_cache and _holds(model, lambda: _by_row_cache(model, rows), expected):
            return "rows"
        if _holds(model, lambda: _by_generate(model, rows), expected):
            return "batches"
    return "again"


def proof_rows(model: "CheckpointModel") -> list[Rendered]:
    """Two rows of other tokens, the prompts followed by what is to be generated."""
    vocabulary = model.vocab_size
    stops = model.stops.ids
    usable = [token for token in range(3, min(vocabulary, 60)) if token not in stops]
    rows = []
    for i, length in enumerate(_PROMPTS):
        ids = [usable[(7 * i + 5 * t) % len(usable)] for t in range(length + _STEPS)]
        rows.append(Rendered(f"r{i}", "", tuple(ids), length))
    return rows


def _prompt(row: Rendered) -> Rendered:
    return Rendered(row.id, "", row.ids[: row.prompt_end], row.prompt_end)


def _by_whole_passes(module: Any, rows: Sequence[Rendered], device: Any) -> list[Tensor]:
    """Scores (step, vocab) after the prompt and after each further token but the last."""
    scores = []
    for row in rows:
        logits = module(torch.tensor([row.ids], device=device), use_cache=False).logits[0]
        scores.append(logits[row.prompt_end - 1 : -1])
    return scores


def _by_row_cache(model: "CheckpointModel", rows: Sequence[Rendered]) -> list[Tensor]:
    batch = pad(
        [_prompt(row) for row in rows], range(len(rows)), model.pad_id, "left", model.device
    )
    mask = batch.mask.long()
    cache = RowCache()
    ids, positions = batch.ids, (mask.cumsum(-1) - 1).clamp(min=0)
    scores = []
    for step in range(_STEPS):
        logits = model.module(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).logits
        scores.append(logits[:, -1])
        following = [[row.ids[row.prompt_end + step]] for row in rows]
        ids = torch.tensor(following, device=model.device)
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        positions = mask.sum(-1, keepdim=True) - 1
    return list(torch.stack(scores, 1))


def _by_generate(model: "CheckpointModel", rows: Sequence[Rendered]) -> list[Tensor]:
    """Row by row; the tokens that follow the prompt are forced."""
    scores_of_rows = []
    for row in rows:
        batch = pad([_prompt(row)], [0], model.pad_id, "left", model.device)
        scores: list[Tensor] = []

        def force(
            _ids: Tensor, logits: Tensor, row: Rendered = row, scores: list[Tensor] = scores
        ) -> Tensor:
            scores.append(logits[0].clone())
            token = row.ids[row.prompt_end + len(scores) - 1]
            forced = torch.full_like(logits, -torch.inf)
            forced[:, token] = 0
            return forced

        # a site, so that a model which reads the whole row at every step is told from one that
        # keeps its past
        model._generate(batch, _STEPS, force, {Site("resid_pre", 0): lambda stream: None})
        scores_of_rows.append(torch.stack(scores))
    return scores_of_rows


def _holds(
    model: "CheckpointModel", compute: Callable[[], list[Tensor]], expected: list[Tensor]
) -> bool:
    try:
        scores = compute()
    except Exception:  # a model that does not know this cache raises what it likes
        return False
    return equal_scores(model, scores, expected)


def equal_scores(
    model: "CheckpointModel", scores: Sequence[Tensor], expected: Sequence[Tensor]
) -> bool:
    """Whether scores differ by rounding alone."""
    wide = next(model.module.parameters()).dtype in (torch.float32, torch.float64)
    limit = _RELATIVE
    if not wide:
        limit = _RELATIVE_16
    return all(
        a.shape == b.shape and bool((a - b).abs().max() <= limit * b.abs().max())
        for a, b in zip(scores, expected, strict=True)
    )
