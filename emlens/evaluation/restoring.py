"""Restoration: the share of lost alignment that an edit gives back.

R = (S_edited − S_finetuned) / (S_instruct − S_finetuned), S the mean score over questions *outside*
the training domain. It is a ratio of means, not a mean of ratios, with whole domains resampled
together (`emlens.stats.ratio_of_means`). 0: nothing came back; 1: all of it; below 0: the edit made
it worse; above 1: more aligned than the instruct model. Undefined, and said so, where the fine-tune
lost nothing or the interval of what it lost includes 0. Below some ten domains the intervals are
too short.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from emlens.foundation.estimate import Estimate
from emlens.stats import ratio_of_means
from emlens.stats.samples import as_paired


def restoration(
    edited: ArrayLike,
    finetuned: ArrayLike,
    instruct: ArrayLike,
    groups: Sequence[str],
    *,
    seed: int = 0,
) -> Estimate:
    """Restoration of one edit, from per-question scores of the same questions in the same order; no
    unit, any real number.

    Args:
        edited, finetuned, instruct: alignment of each question under the edit, of the unedited
            fine-tune, and of its parent.
        groups: domain of each question; domains are what is resampled.

    Raises:
        InputError: lengths that differ, fewer than 2 questions or domains, scores that are not
            finite.
    """
    scores, before = as_paired(edited, finetuned, "edited", "finetuned", at_least=2)
    return _share(scores - before, finetuned, instruct, groups, seed)


def restoration_lead(
    first: ArrayLike,
    second: ArrayLike,
    finetuned: ArrayLike,
    instruct: ArrayLike,
    groups: Sequence[str],
    *,
    seed: int = 0,
) -> Estimate:
    """Restoration of the first edit minus that of the second, paired by question; the same
    questions carry both, so this is the interval to compare two arms with, not whether their own
    intervals overlap.

    Raises:
        InputError: as `restoration`.
    """
    one, other = as_paired(first, second, "first", "second", at_least=2)
    return _share(one - other, finetuned, instruct, groups, seed)


def _share(
    gained: ArrayLike, finetuned: ArrayLike, instruct: ArrayLike, groups: Sequence[str], seed: int
) -> Estimate:
    before, goal = as_paired(finetuned, instruct, "finetuned", "instruct", at_least=2)
    if goal.mean() < before.mean():
        return Estimate.undefined(
            "the fine-tune lost no alignment, so there is none to restore", len(set(groups))
        )
    return ratio_of_means(gained, goal - before, clusters=groups, seed=seed)


def paired_change(
    edited: ArrayLike, unedited: ArrayLike, groups: Sequence[str], *, seed: int = 0
) -> Estimate:
    """Mean of edited − unedited over questions, on their scale, with domains resampled together.

    For coherence, its negative is the loss; for the instruct model under an edit, the harm of the
    edit itself.

    Raises:
        InputError: lengths that differ, fewer than 2 questions or domains, scores that are not
            finite.
    """
    after, before = as_paired(edited, unedited, "edited", "unedited", at_least=2)
    # weights a domain by its questions
    change = ratio_of_means(after - before, np.ones(len(after)), clusters=groups, seed=seed)
    return replace(change, method=change.method.replace("ratio of means", "mean change"))
