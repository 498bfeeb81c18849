import math

import numpy as np
import pytest
import torch

from emlens.foundation import InputError
from emlens.geometry import direction_cosine, split_half_cosine
from emlens.geometry.contrast_sums import ContrastSums
from emlens.geometry.recovery import expected_mean_cosine
from emlens.geometry.reliability import bootstrap_cone, cosine_between, jackknife, sample_cosine

D, N = 200, 64


def sample(seed: int, length: float, n: int = N, d: int = D) -> tuple[ContrastSums, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    truth = torch.zeros(d, dtype=torch.float64)
    truth[0] = length
    up = torch.randn(n, d, dtype=torch.float64, generator=rng) + truth
    down = torch.randn(n, d, dtype=torch.float64, generator=rng)
    return ContrastSums.from_rows(up, down), truth


def test_split_halves_predict_the_cosine_with_the_truth():
    for length in (1.5, 3.0, 6.0):
        values, reached = [], []
        for seed in range(6):
            contrast, truth = sample(seed, length)
            values.append(sample_cosine(split_half_cosine(contrast, splits=40).value))
            reached.append(direction_cosine(contrast.difference, truth))
        assert np.mean(values) == pytest.approx(np.mean(reached), abs=0.06)
        assert np.mean(reached) == pytest.approx(
            expected_mean_cosine([length] + [0] * (D - 1), [1.0] * D, N, N), abs=0.04
        )


def test_without_a_signal_halves_are_unrelated():
    contrast, _ = sample(1, 0.0)
    estimate = split_half_cosine(contrast)
    assert abs(estimate.value) < 0.15 and estimate.low < 0 < estimate.high and estimate.n == 32
    assert sample_cosine(-0.1) == 0.0 and sample_cosine(1.0) == 1.0


def test_the_cone_holds_the_truth_and_narrows_with_the_data():
    inside, angles = [], []
    for seed in range(20):
        contrast, truth = sample(seed, 12.0, d=20)
        cone = bootstrap_cone(contrast, draws=200)
        angles.append(cone.angle)
        inside.append(math.acos(direction_cosine(contrast.difference, truth)) <= cone.angle)
    assert sum(inside) >= 17  # 95 % of directions; 96 of 100 seeds held it when this was written
    wider = bootstrap_cone(sample(0, 12.0, n=16, d=20)[0], draws=200)
    assert wider.angle > 1.5 * np.mean(angles) and wider.degrees == pytest.approx(
        math.degrees(wider.angle)
    )
    narrow = bootstrap_cone(sample(0, 12.0, d=20)[0], level=0.5, draws=200)
    assert narrow.angle < angles[0] and narrow.mean_cosine == pytest.approx(
        math.cos(narrow.angle), abs=0.02
    )


def test_the_cone_of_rows_that_do_not_vary_is_closed():
    up, down = torch.ones(8, 4, dtype=torch.float64), torch.zeros(8, 4, dtype=torch.float64)
    assert bootstrap_cone(ContrastSums.from_rows(up, down), draws=20).angle < 1e-12


def test_the_jackknife_is_exact_for_a_mean():
    contrast, _ = sample(3, 1.0, n=16, d=3)
    estimate = jackknife(lambda v: float(v[0]), contrast)
    left = contrast.leave_one_out()[:, 0].numpy()
    error = math.sqrt(31 / 32 * ((left - left.mean()) ** 2).sum())
    assert estimate.value == pytest.approx(float(contrast.difference[0]))
    assert (estimate.high - estimate.low) / 2 == pytest.approx(2.0395134 * error)  # t(31), 97.5 %
    draws = contrast.bootstrap(4000)[:, 0]
    assert error == pytest.approx(float(draws.std()), rel=0.15)


def test_cosines_between_two_models_on_the_same_units():
    first, _ = sample(1, 6.0)
    same = cosine_between(first, first)
    assert same.value == pytest.approx(1) and same.high - same.low < 1e-9
    other = ContrastSums(
        first.positive_weight,
        first.positive + sample(2, 6.0)[0].positive,
        first.negative_weight,
        first.negative,
    )
    estimate = cosine_between(first, other)
    assert 0 < estimate.high - estimate.low < 0.2 and estimate.n == 32
    assert estimate.value == pytest.approx(direction_cosine(first.difference, other.difference))


def test_the_same_block_is_left_out_of_both_where_each_lacks_another():
    whole, _ = sample(3, 6.0, n=24, d=6)

    def lacking(block):
        keep = torch.ones(len(whole.positive), dtype=torch.float64)
        keep[block] = 0
        return ContrastSums(
            whole.positive_weight * keep,
            whole.positive * keep[:, None],
            whole.negative_weight * keep,
            whole.negative * keep[:, None],
        )

    first, last = lacking(0), lacking(len(whole.positive) - 1)
    counts = 1 - torch.eye(len(whole.positive), dtype=torch.float64)
    pairs = zip(first.differences(counts), last.differences(counts), strict=True)
    values = np.array([direction_cosine(a, b) for a, b in pairs])
    error = math.sqrt((len(values) - 1) / len(values) * ((values - values.mean()) ** 2).sum())
    estimate = cosine_between(first, last)
    assert estimate.n == len(values) and (estimate.high - estimate.low) / 2 == pytest.approx(
        error * 2.0395, rel=1e-4
    )


def test_refusals(unchecked):
    contrast, _ = sample(0, 1.0, n=8, d=3)
    with pytest.raises(InputError, match="split_half=1.5 must be a cosine from -1 to 1"):
        sample_cosine(1.5)
    with pytest.raises(InputError, match="level=95 must lie strictly between 0 and 1"):
        bootstrap_cone(contrast, level=95)
    with pytest.raises(
        InputError,
        match=(
            r"contrasts are sums over \[16, 32\] blocks; pass contrasts over the same units and"
            r" seed"
        ),
    ):
        jackknife(direction_cosine, contrast, sample(0, 1.0, n=20, d=3)[0])
    with pytest.raises(InputError, match=r"contrasts are sums over \[\] blocks"):
        jackknife(direction_cosine)
    with pytest.raises(
        InputError, match="statistic is not finite on all data or on some block left out"
    ):
        jackknife(lambda v: math.nan, contrast)
