"""A mean over seeds and domains: its interval holds for both, and plain ones do not."""

import numpy as np
import pytest

from emlens.foundation.errors import InputError
from emlens.stats import t_interval, tost
from emlens.stats.crossed import crossed_mean

DRAWS = 400
TOLERANCE = 0.035
"""Three standard errors of a coverage of .95 over 400 draws."""


def drawn(rng: np.random.Generator, of_rows: float, of_columns: float) -> np.ndarray:
    """3 × 10 cells of mean 0, with so much spread between rows and between columns."""
    rows, columns = rng.normal(0, of_rows, (3, 1)), rng.normal(0, of_columns, (1, 10))
    return np.asarray(rows + columns + rng.normal(0, 0.1, (3, 10)))


@pytest.mark.parametrize(("of_rows", "of_columns"), [(0.3, 0.3), (0.0, 0.3), (0.3, 0.0)])
def test_the_interval_covers_whichever_of_both_varies(of_rows: float, of_columns: float) -> None:
    rng = np.random.default_rng(0)
    tables = [drawn(rng, of_rows, of_columns) for _ in range(DRAWS)]
    ours = [crossed_mean(table).interval() for table in tables]
    covered = np.mean([e.low <= 0 <= e.high for e in ours])
    assert covered >= 0.95 - TOLERANCE
    if of_rows:  # an interval over domains alone is too short where seeds differ
        plain = [t_interval(table.mean(axis=0)) for table in tables]
        assert np.mean([e.low <= 0 <= e.high for e in plain]) < 0.85


def test_of_one_row_it_is_students_interval_and_tost() -> None:
    values = np.random.default_rng(1).normal(0.02, 0.1, 10)
    crossed, student = crossed_mean(values[None]), t_interval(values)
    found = crossed.interval()
    assert (found.value, found.low, found.high) == pytest.approx(
        (student.value, student.low, student.high)
    )
    test = tost(values, np.zeros(10), 0.15, paired=True)
    assert crossed.equivalence_p(0.15) == pytest.approx(test.p)


def test_what_is_no_table_is_refused(unchecked: None) -> None:
    with pytest.raises(InputError, match=r"shape \(10,\); pass one row or more and two columns"):
        crossed_mean(np.zeros(10))
    with pytest.raises(InputError, match="a value that is not finite"):
        crossed_mean(np.full((2, 3), np.nan))
    with pytest.raises(InputError, match="margin=0 must be positive"):
        crossed_mean(np.eye(3)).equivalence_p(0)
    with pytest.raises(InputError, match="no spread"):
        crossed_mean(np.ones((2, 3))).equivalence_p(0.1)
