import numpy as np
import pytest
import torch
import torch.nn.functional as F

from emlens import EmlensError
from emlens.geometry.steered import add_mean_shift, steered_evaluation


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


BEFORE = rows(9, 6) + 1
MEAN = torch.linspace(0.5, 2, 6, dtype=torch.float64)
AFTER = BEFORE + MEAN + 0.3 * rows(9, 6, seed=1)


def test_modes():
    torch.testing.assert_close(add_mean_shift(BEFORE, MEAN, 0.5), BEFORE + 0.5 * MEAN)
    direction, lengths = MEAN / MEAN.norm(), BEFORE.norm(dim=1, keepdim=True)
    torch.testing.assert_close(
        add_mean_shift(BEFORE, MEAN, 2.0, mode="relative_norm"), BEFORE + 2 * lengths * direction
    )
    torch.testing.assert_close(
        add_mean_shift(BEFORE, MEAN, 2.0, mode="match_mean_norm"),
        BEFORE + 2 * lengths.mean() * direction,
    )
    batch = add_mean_shift(rows(2, 3, 4, 6), rows(2, 3, 6, seed=2), mode="match_mean_norm")
    one = add_mean_shift(
        rows(2, 3, 4, 6)[1, 2], rows(2, 3, 6, seed=2)[1, 2], mode="match_mean_norm"
    )
    torch.testing.assert_close(batch[1, 2], one)
    assert add_mean_shift(BEFORE.float(), MEAN.float()).dtype == torch.float32


def test_agrees_with_a_loop():
    result = steered_evaluation(BEFORE, AFTER, MEAN, 0.5)
    for x, values in ((BEFORE, result.unsteered), (BEFORE + 0.5 * MEAN, result.steered)):
        gap = x - AFTER
        cosines = F.cosine_similarity(x, AFTER)
        forward = float(F.kl_div(F.log_softmax(x, -1), F.softmax(AFTER, -1), reduction="batchmean"))
        backward = float(
            F.kl_div(F.log_softmax(AFTER, -1), F.softmax(x, -1), reduction="batchmean")
        )
        expected = {
            "mse": float((gap**2).mean()),
            "rmse": float((gap**2).mean().sqrt()),
            "mae": float(gap.abs().mean()),
            "mean_l2_error": float(gap.norm(dim=1).mean()),
            "median_l2_error": float(np.median(gap.norm(dim=1).numpy())),
            "mean_cosine": float(cosines.mean()),
            "median_cosine": float(np.median(cosines.numpy())),
            "kl_true_to_compare": forward,
            "kl_compare_to_true": backward,
            "symmetric_kl": (forward + backward) / 2,
        }
        assert values == pytest.approx(expected)
    gain = (
        100
        * (result.steered["mean_cosine"] - result.unsteered["mean_cosine"])
        / result.unsteered["mean_cosine"]
    )
    less = 100 * (result.unsteered["rmse"] - result.steered["rmse"]) / result.unsteered["rmse"]
    assert (result.improvement["mean_cosine"], result.improvement["rmse"]) == pytest.approx(
        (gain, less)
    )
    assert (result.alpha, result.mode, result.n) == (0.5, "raw", 9)


def test_the_true_shift_helps_and_a_wrong_one_does_not():
    right, wrong = steered_evaluation(BEFORE, AFTER, MEAN), steered_evaluation(BEFORE, AFTER, -MEAN)
    assert right.improvement["rmse"] > 50 and right.improvement["mean_cosine"] > 0
    assert wrong.improvement["rmse"] < -50 and wrong.improvement["mean_cosine"] < 0
    exact = steered_evaluation(BEFORE, BEFORE + MEAN, MEAN)
    assert exact.steered["mse"] == pytest.approx(0, abs=1e-25) and exact.steered[
        "symmetric_kl"
    ] == pytest.approx(0, abs=1e-12)
    still = steered_evaluation(BEFORE, BEFORE, MEAN)
    assert np.isnan(still.improvement["mse"])  # a percentage of nothing


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: add_mean_shift(BEFORE, MEAN, mode="norm"),
            "mode='norm' is unknown; pass one of raw, relative_norm, match_mean_norm",
        ),
        (
            lambda: add_mean_shift(BEFORE, torch.zeros(6), mode="relative_norm"),
            "mean_delta row 0 is zero and has no direction",
        ),
        (lambda: add_mean_shift(BEFORE, torch.ones(5)), "x has 6 coordinates and mean_delta has 5"),
        (
            lambda: add_mean_shift(BEFORE, torch.tensor(1.0)),
            r"mean_delta has shape \(\); pass a vector of shape \(d,\), the mean training delta",
        ),
        (
            lambda: steered_evaluation(BEFORE, AFTER[:4], MEAN),
            r"before has shape \(9, 6\) and after \(4, 6\); pass the same prompts at one site",
        ),
        (
            lambda: steered_evaluation(BEFORE[None], AFTER[None], MEAN),
            r"before has shape \(1, 9, 6\)",
        ),
        (
            lambda: steered_evaluation(torch.zeros(9, 6), AFTER, MEAN),
            "before row 0 is zero; leave it out",
        ),
        (
            lambda: steered_evaluation(BEFORE, torch.zeros(9, 6), MEAN),
            "after row 0 is zero; leave it out",
        ),
    ],
)
def test_refusals(unchecked, call, message):
    with pytest.raises(EmlensError, match=message):
        call()
