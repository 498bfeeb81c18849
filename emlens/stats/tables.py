"""Many comparisons as one tidy table, one row per comparison, with corrected p-values.

The correction runs over the rows of one table, so put every comparison into it that was looked at,
not only those to show.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain, combinations
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from emlens.foundation.errors import InputError
from emlens.stats.comparisons import paired_test, permutation_test, tost, welch_test
from emlens.stats.corrections import Correction, adjust_p_values
from emlens.stats.outcomes import TestResult
from emlens.stats.ranks import rank_sum_test, signed_rank_test
from emlens.stats.spread import brown_forsythe, f_test

TestName = Literal[
    "welch",
    "rank_sum",
    "permutation",
    "f",
    "brown_forsythe",
    "tost",
    "paired_t",
    "signed_rank",
    "paired_tost",
]


_TESTS: dict[str, Any] = {
    "welch": welch_test,
    "rank_sum": rank_sum_test,
    "permutation": permutation_test,
    "f": f_test,
    "brown_forsythe": brown_forsythe,
    "tost": tost,
    "paired_t": paired_test,
    "signed_rank": signed_rank_test,
    "paired_tost": partial(tost, paired=True),
}


def comparison_table(
    results: Mapping[Any, TestResult], correction: Correction = "holm"
) -> pd.DataFrame:
    """Tests as a table, in the given order.

    A test without a p-value (no spread) does not count in the correction.

    Returns:
        One row per test: comparison (its name), statistic, estimate, low, high (in the units of the
            data), p, p_corrected, correction, effect, effect_low, effect_high, effect_name, n, n_a,
            n_b (missing for pairs), method, interval (how the interval was made).

    Raises:
        InputError: no test.
    """
    if not results:
        raise InputError("results is empty; pass at least one test by its name")
    raw = np.array([result.p for result in results.values()])
    corrected = np.full(len(raw), np.nan)
    is_tested = ~np.isnan(raw)
    if is_tested.any():
        corrected[is_tested] = adjust_p_values(raw[is_tested], correction)
    rows = []
    for (name, result), p in zip(results.items(), corrected, strict=True):
        rows.append(_row(_comparison_name(name), result, float(p), correction))
    # nullable integers: the sizes of pairs are missing
    return pd.DataFrame(rows).astype({"n_a": "Int64", "n_b": "Int64"})


def _comparison_name(name: Any) -> str:
    """A tuple of groups reads as a difference, "a − b"."""
    if isinstance(name, tuple):
        return " − ".join(map(str, name))
    return str(name)


def _row(
    name: str, result: TestResult, p_corrected: float, correction: Correction
) -> dict[str, Any]:
    n_a, n_b = result.sizes if len(result.sizes) == 2 else (pd.NA, pd.NA)
    return {
        "comparison": name,
        "statistic": result.statistic,
        "estimate": result.estimate.value,
        "low": result.estimate.low,
        "high": result.estimate.high,
        "p": result.p,
        "p_corrected": p_corrected,
        "correction": correction,
        "effect": result.effect,
        "effect_low": result.effect_low,
        "effect_high": result.effect_high,
        "effect_name": result.effect_name,
        "n": result.n,
        "n_a": n_a,
        "n_b": n_b,
        "method": result.method,
        "interval": result.estimate.method,
    }


def compare_groups(
    groups: Mapping[str, ArrayLike],
    *,
    test: TestName = "welch",
    reference: str | None = None,
    pairs: Sequence[tuple[str, str]] | None = None,
    correction: Correction = "holm",
    **options: Any,
) -> pd.DataFrame:
    """Compare named groups by one test, every difference in the order a − b.

    Args:
        groups: name → one number per unit; for paired tests all in one order of units.
        test: which; `"tost"` and `"paired_tost"` need `margin=`.
        reference: compare each other group with this one; None: all pairs.
        pairs: the comparisons themselves, (a, b), instead.
        options: passed to the test: `side`, `level`, `margin`, `alpha`, `strata`, `draws`, `seed`.

    Returns:
        As `comparison_table`, with columns a and b before the others instead of comparison.

    Raises:
        InputError: fewer than two groups, an unknown test or group, or what the test refuses.
    """
    if test not in get_args(TestName):
        raise InputError(
            f"test={test!r} is unknown; pass one of {', '.join(get_args(TestName))}",
            name=test,
            known=get_args(TestName),
        )
    if "tost" in test and "margin" not in options:
        raise InputError(f"test={test!r} needs margin=, the largest difference that counts as none")
    if len(groups) < 2:
        raise InputError(f"groups holds {len(groups)} group; pass at least 2")
    if pairs is None:
        pairs = _pairs(groups, reference)
    _require_groups(pairs, reference, groups)
    compute = _TESTS[test]
    results = {(a, b): compute(groups[a], groups[b], **options) for a, b in pairs}
    table = comparison_table(results, correction).drop(columns="comparison")
    table.insert(0, "a", [a for a, _ in results])
    table.insert(1, "b", [b for _, b in results])
    return table


def _require_groups(
    pairs: Sequence[tuple[str, str]], reference: str | None, groups: Mapping[str, ArrayLike]
) -> None:
    """Raises:
    InputError: a pair, or the reference, names a group that does not exist.
    """
    names = [*chain.from_iterable(pairs)]
    if reference is not None:
        names.append(reference)
    for name in names:
        if name not in groups:
            raise InputError(
                f"group {name!r} is not among {', '.join(map(repr, groups))}",
                name=name,
                known=groups,
            )


def _pairs(groups: Mapping[str, ArrayLike], reference: str | None) -> list[tuple[str, str]]:
    """Each other group with the reference, or all pairs."""
    if reference is None:
        return list(combinations(groups, 2))
    return [(name, reference) for name in groups if name != reference]
