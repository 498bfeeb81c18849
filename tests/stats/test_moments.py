import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from emlens import EmlensError
from emlens.stats.moments import StreamingMoments


def rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 40), max_size=4))
def test_any_cut_and_any_merge_equal_numpy(seed, cuts):
    x = rows(40, 5, seed) * torch.arange(1, 6) + 3
    edges = [0, *sorted(cuts), 40]
    parts = [x[a:b] for a, b in itertools.pairwise(edges)]
    serial, merged = StreamingMoments(5), StreamingMoments(5)
    for part in parts:
        serial.update(part)
    for part in reversed(parts):
        merged.merge(StreamingMoments(5).update(part))
    for moments in (serial, merged):
        assert moments.n == 40
        np.testing.assert_allclose(moments.mean, x.numpy().mean(0), rtol=1e-12)
        np.testing.assert_allclose(moments.covariance, np.cov(x.numpy().T), rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(moments.variance, x.numpy().var(0, ddof=1), rtol=1e-12)
        assert (moments.covariance == moments.covariance.T).all()


def test_far_from_zero_nothing_cancels():
    x = rows(1000, 3) + 1e8
    moments = StreamingMoments(3, covariance=False)
    for part in x.split(100):
        moments.update(part)
    exact = x.numpy().astype(np.longdouble).var(axis=0, ddof=1)
    np.testing.assert_allclose(moments.variance, exact.astype(float), rtol=1e-7)
    naive = (x**2).mean(0) - x.mean(0) ** 2
    # the textbook formula has lost it
    assert abs(naive.numpy() / exact.astype(float) - 1).max() > 1e-2


def test_merging_is_as_exact_as_two_passes():
    """Against rational arithmetic: a thousand merges of one row each, far from 0, lose no more than
    the two-pass formula.
    """
    x = rows(1000, 2, seed=1) * torch.tensor([1.0, 1e-3]) + torch.tensor([1e6, 1e3])
    exact = [[Fraction(v) for v in column] for column in x.T.tolist()]
    means = [sum(column) / 1000 for column in exact]
    centred = [[v - m for v in column] for column, m in zip(exact, means, strict=True)]
    truth = [
        [float(sum(a * b for a, b in zip(p, q, strict=True)) / 999) for q in centred]
        for p in centred
    ]
    whole, merged, chunks = StreamingMoments(2).update(x), StreamingMoments(2), StreamingMoments(2)
    for row in x.split(1):
        merged.merge(StreamingMoments(2).update(row))
    for part in x.split(64):
        chunks.update(part)
    two_pass = np.cov(x.numpy().T)
    for moments, tolerance in ((whole, 1e-14), (chunks, 1e-14), (merged, 1e-13)):
        error = np.abs(moments.covariance.numpy() / truth - 1).max()
        assert error <= max(tolerance, 2 * np.abs(two_pass / truth - 1).max()), error
        np.testing.assert_allclose(moments.mean, [float(m) for m in means], rtol=1e-15)


def test_half_precision_rows_and_an_untouched_partner():
    x = rows(50, 4).to(torch.bfloat16)
    one, other = StreamingMoments(4).update(x[:20]), StreamingMoments(4).update(x[20:])
    before = other.mean
    one.merge(other).merge(StreamingMoments(4))
    assert one.mean.dtype == torch.float64
    np.testing.assert_allclose(one.mean, x.double().mean(0), rtol=1e-12)
    assert other.n == 30 and (other.mean == before).all()
    one.mean.zero_()
    assert one.mean.any()  # what is handed out is a copy


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: StreamingMoments(0), "d=0 must be an integer of 1 or more"),
        (lambda: StreamingMoments(3).mean, "there was no row, so there is no mean"),
        (
            lambda: StreamingMoments(3).update(torch.ones(1, 3)).covariance,
            "1 rows were seen, too few for a covariance",
        ),
        (lambda: StreamingMoments(3).variance, "0 rows were seen, too few for a variance"),
        (
            lambda: StreamingMoments(3, covariance=False).covariance,
            "were made with covariance=False",
        ),
        (
            lambda: StreamingMoments(3).update(torch.ones(2, 4)),
            r"rows has shape \(2, 4\); pass \(row, 3\)",
        ),
        (
            lambda: StreamingMoments(3).update(torch.ones(2, 3) / 0),
            "rows holds 6 values that are NaN or infinite",
        ),
        (
            lambda: StreamingMoments(3).merge(StreamingMoments(4)),
            "cannot merge moments of d=4, covariance=True into d=3",
        ),
    ],
)
def test_refusals(unchecked, call, message):
    with pytest.raises(EmlensError, match=message):
        call()
