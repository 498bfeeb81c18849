"""Mean score over questions."""

from collections.abc import Sequence

import pandas as pd

from emlens.data.rates import mean_over_questions
from emlens.foundation.estimate import Estimate

SCALE = (0.0, 100.0)
DIFFERENCES = (-100.0, 100.0)


def mean_score(
    scores: pd.Series,
    questions: Sequence[str],
    seed: int,
    *,
    limits: tuple[float, float] = SCALE,
) -> Estimate:
    """Mean of the scores of these questions, with a 95 % bootstrap interval over base questions
    that stays within the limits.

    Undefined of none that has a score; without an interval of one base question.

    Args:
        scores: by the question's id; NaN where a question has none.
    """
    return mean_over_questions(scores[list(questions)], limits=limits, seed=seed)
