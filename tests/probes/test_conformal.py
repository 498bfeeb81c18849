import numpy as np
import pytest

from emlens.foundation.errors import InputError
from emlens.probes.conformal import conformal_quantile, group_weights, jackknife_plus


def test_groups_weigh_alike_and_leave_room_for_one_more() -> None:
    weights = group_weights(["a", "a", "a", "b"])
    np.testing.assert_allclose(weights, [1 / 9, 1 / 9, 1 / 9, 1 / 3])
    assert group_weights(range(9)).sum() == pytest.approx(0.9)


def test_the_quantile_is_that_of_the_plain_rule_with_rows_as_groups() -> None:
    values = np.random.default_rng(0).standard_normal(39)
    weights = group_weights(range(39))
    for level in (0.5, 0.8, 0.95):
        rank = int(np.ceil(level * 40 - 1e-9))  # the ⌈level (n + 1)⌉-th smallest
        assert conformal_quantile(values, weights, level) == np.sort(values)[rank - 1]
    assert conformal_quantile(values, weights, 0.99) == np.inf
    # 9 of 10: rounding must not lose it
    assert np.isfinite(conformal_quantile(values[:9], group_weights(range(9)), 0.9))


def draw(rng: np.random.Generator, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and labels; a large group is calm and a small one is wild, so rows of calm groups
    outnumber the others.
    """
    values, labels = [], []
    for g in range(groups):
        wild = rng.random() < 0.5
        n = 2 if wild else 40
        values.append((6 if wild else 0.5) * rng.standard_normal() + 0.1 * rng.standard_normal(n))
        labels += [g] * n
    return np.concatenate(values), np.array(labels)


def covered(level: float, simulations: int, weigh: str) -> float:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(simulations):
        values, labels = draw(rng, 13)
        known, new = labels < 12, np.flatnonzero(labels == 12)
        y, g = values[known], labels[known]
        # each group's fit without it
        means = np.array(
            [np.mean([y[g == h].mean() for h in range(12) if h != k]) for k in range(12)]
        )
        weights = group_weights(g) if weigh == "groups" else group_weights(range(len(y)))
        residuals = np.abs(y - means[g])
        low, high = jackknife_plus(means[None, :], np.ones(12), residuals, g, weights, level)
        target = values[rng.choice(new)]
        hits += bool(low[0] <= target <= high[0])
    return hits / simulations


def test_intervals_cover_a_row_of_a_new_group_and_would_not_if_rows_counted() -> None:
    error = 3 * np.sqrt(0.8 * 0.2 / 200)
    assert covered(0.8, 200, "groups") > 0.8 - error
    # positive control: pooled rows are sure of what calm groups show
    assert covered(0.8, 200, "rows") < 0.8 - error


def test_an_interval_is_as_wide_as_the_spread_expected_of_it() -> None:
    centres, residuals, fold = np.zeros((1, 2)), np.array([1.0, 2, 3, 4]), np.array([0, 0, 1, 1])
    ends = [
        jackknife_plus(centres, np.full(2, s), residuals, fold, group_weights(range(4)), 0.6)
        for s in (1.0, 3.0)
    ]
    assert ends[0][1] == 3 and ends[1][1] == 9 and ends[0][0] == -3


def test_what_has_no_quantile_is_refused() -> None:
    with pytest.raises(InputError, match=r"level=1\.0 must lie in \(0, 1\)"):
        conformal_quantile(np.ones(3), group_weights(range(3)), 1.0)
    with pytest.raises(InputError, match="weights has 2 entries for 3 values; pass one each"):
        conformal_quantile(np.ones(3), group_weights(range(2)), 0.5)
