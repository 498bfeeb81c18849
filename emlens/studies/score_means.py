"""Mean score over questions."""

from collections.abc import Sequence

import pandas as pd

from emlens.foundation.estimate import Estimate
from emlens.stats import bootstrap_mean


def mean_score(scores: pd.Series, questions: Sequence[str], seed: int) -> Estimate:
    """Mean of the scores of these questions with a 95 % bootstrap interval over questions.

    Undefined of fewer than two.

    Args:
        scores: by the question's id.
    """
    if len(questions) < 2:
        return Estimate.undefined("fewer than 2 questions", len(questions))
    return bootstrap_mean(scores[list(questions)].to_numpy(), seed=seed)
