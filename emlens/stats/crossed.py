"""A mean over two things that were both sampled: fine-tune seeds and domains, say.

Every seed is measured in every domain. What a seed happens to be moves all of its domains, what a
domain happens to be moves all seeds, and each alone would give an interval that is too short for
the other. The variance of the grand mean of an S × D table without repetition is, in mean squares
of rows, columns and residuals (Searle, Casella & McCulloch 1992),

    (MS_rows + MS_columns − MS_residual) / (S·D).

MS_residual is not subtracted here: from few rows it is known badly, and without it the interval is
never shorter. Degrees of freedom are Satterthwaite's (1946).
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats as scipy_stats

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.stats.samples import require_level


@dataclass(frozen=True)
class CrossedMean:
    """Grand mean of a table whose rows and columns were both sampled.

    Args:
        value: the mean. error: its standard error. freedom: degrees of freedom.
        rows, columns: how many there are.
    """

    value: float
    error: float
    freedom: float
    rows: int
    columns: int

    def interval(self, level: float = 0.95) -> Estimate:
        """The mean with its t interval; `n` counts the cells."""
        half = float(scipy_stats.t.ppf((1 + require_level(level)) / 2, self.freedom)) * self.error
        method = f"mean over {self.rows} × {self.columns} crossed units, {100 * level:g} % interval"
        cells = self.rows * self.columns
        return Estimate(self.value, self.value - half, self.value + half, cells, method)

    def equivalence_p(self, margin: float) -> float:
        """p of "the mean lies outside ±margin": the larger of two one-sided t tests.

        Raises:
            InputError: a margin that is not positive, or no spread to test with.
        """
        if not (math.isfinite(margin) and margin > 0):
            raise InputError(
                f"margin={margin!r} must be positive: the largest difference that counts as none"
            )
        if self.error == 0:
            raise InputError("the table has no spread, so there is nothing to test with")
        return float(scipy_stats.t.cdf((abs(self.value) - margin) / self.error, self.freedom))


def crossed_mean(table: Float[np.ndarray, "row column"]) -> CrossedMean:
    """Mean of every cell, as one of a population of rows and of columns.

    With one row there is no variance between rows: the interval is Student's over columns, and
    says nothing of other rows.

    Args:
        table: one number per row (seed) and column (domain); 2 columns or more.

    Raises:
        InputError: fewer than 2 columns, no row, or values that are not finite.
    """
    values = np.asarray(table, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] < 1 or values.shape[1] < 2:
        raise InputError(
            f"table has shape {values.shape}; pass one row or more and two columns or more"
        )
    if not np.isfinite(values).all():
        raise InputError("table has a value that is not finite; leave out its row or column")
    rows, columns = values.shape
    # a mean square of means of k cells is k times their variance
    of_columns = rows * float(values.mean(axis=0).var(ddof=1))
    squares, freedoms = [of_columns], [columns - 1]
    if rows > 1:
        squares.append(columns * float(values.mean(axis=1).var(ddof=1)))
        freedoms.append(rows - 1)
    total = sum(squares)
    freedom = float(columns - 1)
    if total > 0:
        parts = [square**2 / free for square, free in zip(squares, freedoms, strict=True)]
        freedom = total**2 / sum(parts)
    error = math.sqrt(total / (rows * columns))
    return CrossedMean(float(values.mean()), error, freedom, rows, columns)
