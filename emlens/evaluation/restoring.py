"""Restoration: the share of lost alignment that an edit gives back.

R = (S_edited − S_finetuned) / (S_instruct − S_finetuned), S the mean score over questions *outside*
the training domain. It is a ratio of means, not a mean of ratios: a question that lost almost
nothing has a ratio of almost anything. What is resampled for the interval are whole domains, with
all their questions (`emlens.stats.ratio_of_means`). 0: nothing was restored; 1: all of it; below 0:
the edit made it worse; above 1: more aligned than the instruct model. It is undefined where the
fine-tune lost nothing, or where the interval of the loss includes 0; the estimate says so. With
fewer than about ten domains the intervals are too short.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from emlens.foundation.estimate import Estimate
from emlens.stats import ratio_of_means
from emlens.stats.samples import as_paired

SCALE = 100.0
"""Width of the scale of scores."""


def restoration(
    edited: ArrayLike,
    finetuned: ArrayLike,
    instruct: ArrayLike,
    groups: Sequence[str],
    *,
    seed: int = 0,
) -> Estimate:
    """Restoration of one edit; no unit, any real number.

    Scores are per question, of the same questions in the same order.

    Args:
        edited, finetuned, instruct: alignment of each question under the edit, of the unedited
            fine-tune, and of its parent.
        groups: domain of each question; whole domains are resampled.

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
    """Restoration of the first edit minus that of the second, paired by question.

    Both are measured on the same questions, so this is the interval to compare two arms with, not
    whether their own intervals overlap.

    Raises:
        InputError: as `restoration`.
    """
    first, second = as_paired(first, second, "first", "second", at_least=2)
    # (a − f)/(i − f) − (b − f)/(i − f) = (a − b)/(i − f)
    return _share(first - second, finetuned, instruct, groups, seed)


def _share(
    gain: ArrayLike, finetuned: ArrayLike, instruct: ArrayLike, groups: Sequence[str], seed: int
) -> Estimate:
    """Mean gain over the mean loss of the fine-tune."""
    before, goal = as_paired(finetuned, instruct, "finetuned", "instruct", at_least=2)
    if goal.mean() < before.mean():
        return Estimate.undefined(
            "the fine-tune lost no alignment, so there is none to restore", len(set(groups))
        )
    return ratio_of_means(gain, goal - before, clusters=groups, seed=seed)


def paired_change(
    edited: ArrayLike, unedited: ArrayLike, groups: Sequence[str], *, seed: int = 0
) -> Estimate:
    """Mean of edited − unedited over questions, with domains resampled together; the interval stays
    within what scores from 0 to 100 can change by.

    For coherence, its negative is the loss; for the instruct model under an edit, the harm of the
    edit itself.

    Raises:
        InputError: lengths that differ, fewer than 2 questions or domains, scores that are not
            finite.
    """
    after, before = as_paired(edited, unedited, "edited", "unedited", at_least=2)
    # over ones: the mean, with each domain weighted by its number of questions
    change = ratio_of_means(after - before, np.ones(len(after)), clusters=groups, seed=seed)
    # few domains give intervals that no change on the scale could reach
    low, high = np.clip([change.low, change.high], -SCALE, SCALE).tolist()
    method = change.method.replace("ratio of means", "mean change")
    return replace(change, low=low, high=high, method=method)
