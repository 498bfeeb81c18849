"""Tables `shifts` and `overlap_shift` of `delta_overlap`: does a prompt that lies near the training
prompts shift like them?

Both quantities contain the activation before, so permutations are within domains, and length and
norms are partialled out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.seeds import torch_rng
from emlens.geometry import cosine_to_mean, prompt_overlap, top_k_subspace
from emlens.stats import correlation_null, mantel_test, partial_correlation, pearson
from emlens.studies.null_columns import null_columns
from emlens.studies.overlap_shifts import Place, ShiftsAtPlace

EXPLAINED = 0.95
"""Share of variance of the training prompts that the subspace has to hold."""
PERMUTATIONS = 999


@dataclass(frozen=True, eq=False)
class PromptsAtPlace:
    """Each evaluation prompt at one place: where it lies before, and how it shifts.

    Args:
        ids, groups, texts, lengths: of the prompts; lengths in words.
        before, shifts: (prompt, d), float64.
        overlap: share of a prompt, from the training prompts' mean, that lies in their subspace.
        random_overlap: the same for a random subspace of that dimension.
        cosine: of a prompt's shift with the mean training shift.
    """

    ids: Sequence[str]
    groups: Sequence[str]
    texts: Sequence[str]
    lengths: np.ndarray
    before: Tensor
    shifts: Tensor
    overlap: Tensor
    random_overlap: Tensor
    cosine: Tensor

    def rows(self, place: Place) -> pd.DataFrame:
        """Rows of the table `shifts`, one per prompt."""
        table = pd.DataFrame(
            {
                "id": self.ids,
                "group": self.groups,
                "text": self.texts,
                "prompt_overlap": self.overlap.double().numpy(),
                "random_overlap": self.random_overlap.numpy(),
                "cosine_to_mean_train": self.cosine.numpy(),
                "delta_norm": self.shifts.norm(dim=1).numpy(),
            }
        )
        for number, (column, value) in enumerate(place.columns.items()):
            table.insert(number, column, value)
        return table


def prompts_at_place(
    place: Place,
    shifts: ShiftsAtPlace,
    ids: Sequence[str],
    groups: Sequence[str],
    texts: Mapping[str, str],
    seed: int,
) -> PromptsAtPlace:
    """Measure every evaluation prompt against the training prompts.

    Args:
        ids, groups: of the evaluation prompts, in the order of the rows.
        texts: id → text.
    """
    before = shifts.before_evaluation.double()
    space = top_k_subspace(shifts.before_train.double(), EXPLAINED, center=True)
    rng = torch_rng(seed, "random basis", place.site, place.position)
    noise = torch.randn(before.shape[1], space.k, dtype=torch.float64, generator=rng)
    random = torch.linalg.qr(noise).Q
    centred = before - space.mean
    evaluation = shifts.evaluation.double()
    return PromptsAtPlace(
        ids,
        groups,
        [texts[name] for name in ids],
        np.array([len(texts[name].split()) for name in ids], dtype=float),
        before,
        evaluation,
        prompt_overlap(before, space),
        (centred @ random).norm(dim=1) / centred.norm(dim=1),
        cosine_to_mean(evaluation, shifts.train.double().mean(0)),
    )


def relation_row(
    place: Place, prompts: PromptsAtPlace, mantel_draws: int, seed: int
) -> dict[str, object]:
    """The row of the table `overlap_shift`: correlation of a prompt's overlap with its shift's
    cosine, plain and partial, and the Mantel test.
    """
    x, y, groups = prompts.overlap.numpy(), prompts.cosine.numpy(), list(prompts.groups)
    # prompts of one domain are alike, so domains are the units
    domains = groups if len(set(groups)) > 1 else None
    correlation = pearson(x, y, clusters=domains)
    null = None
    # within domains nothing can be permuted where each has one prompt
    if correlation.defined and len(set(groups)) < len(groups):
        null = correlation_null(x, y, strata=groups, draws=PERMUTATIONS, seed=seed)
    covariates = [prompts.shifts.norm(dim=1).numpy(), prompts.before.norm(dim=1).numpy()]
    if np.ptp(prompts.lengths):
        covariates.append(prompts.lengths)
    partial = partial_correlation(x, y, np.column_stack(covariates), clusters=domains)
    return {
        **place.columns,
        "pearson": correlation.value,
        "low": correlation.low,
        "high": correlation.high,
        **null_columns(null, correlation.value, "two-sided"),
        "partial": partial.value,
        "partial_low": partial.low,
        "partial_high": partial.high,
        "mean_overlap": float(prompts.overlap.mean()),
        "mean_random_overlap": float(prompts.random_overlap.mean()),
        **mantel_columns(
            prompts.before,
            prompts.shifts,
            groups,
            prompts.lengths,
            draws=mantel_draws,
            seed=seed,
        ),
        "n": len(x),
    }


def mantel_columns(
    before: Tensor,
    shifts: Tensor,
    groups: Sequence[str],
    lengths: Sequence[float] | np.ndarray,
    *,
    draws: int,
    seed: int,
) -> dict[str, float]:
    """Do prompts that lie alike before shift alike? Stratified partial Mantel test over prompts.

    Cosines of centred activations against cosines of shifts; prompts are permuted within their
    group, and length and both norms are partialled out. `nan` with fewer than 4 prompts, and where
    all prompts shift alike.
    """
    covariates: list[Any] = [before.norm(dim=1).numpy(), shifts.norm(dim=1).numpy()]
    if np.ptp(lengths):
        covariates.append(np.asarray(lengths))
    strata = list(groups) if len(set(groups)) < len(groups) else None
    try:
        test = mantel_test(
            _cosines(before - before.mean(0)),
            _cosines(shifts),
            covariates=covariates,
            strata=strata,
            draws=draws,
            seed=seed,
        )
    except InputError:
        return {"mantel": np.nan, "mantel_p": np.nan}
    return {"mantel": test.effect, "mantel_p": test.p}


def _cosines(rows: Tensor) -> np.ndarray:
    """Cosine of every row with every row."""
    units = torch.nn.functional.normalize(rows, dim=1)
    return (units @ units.T).numpy()
