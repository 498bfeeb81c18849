import math

import pytest
import torch

from emlens import EmlensError
from emlens.geometry import cosine_to_mean, delta_summary
from emlens.geometry.shifts import components_above_rounding


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


TRAIN, EVAL = rows(60, 12) * torch.arange(1, 13) + 4, rows(25, 12, seed=1) * torch.arange(1, 13) + 2


def test_cosine_to_mean():
    reference = TRAIN.mean(0)
    expected = torch.nn.functional.cosine_similarity(EVAL, reference[None])
    torch.testing.assert_close(cosine_to_mean(EVAL, reference), expected)
    torch.testing.assert_close(
        cosine_to_mean(reference[None] * -2, reference), torch.tensor([-1.0], dtype=torch.float64)
    )


def test_summary_of_deltas_that_go_one_way():
    one_way = torch.linspace(1, 2, 30, dtype=torch.float64)[:, None] * rows(7)
    summary = delta_summary(one_way)
    torch.testing.assert_close(summary.cosines, torch.ones(30, dtype=torch.float64))
    torch.testing.assert_close(summary.cosines_to_others, torch.ones(30, dtype=torch.float64))
    torch.testing.assert_close(summary.norms, one_way.norm(dim=1))
    assert float(summary.mean_norm) == pytest.approx(float(one_way.mean(0).norm()))
    assert summary.n == 30 and summary.rms_norm >= summary.mean_norm
    same = delta_summary(rows(7).expand(9, 7))
    assert float(same.spread) == pytest.approx(0, abs=1e-12)
    assert float(same.common_share) == pytest.approx(1) and float(
        same.unbiased_common_share
    ) == pytest.approx(1)


def test_summary_of_deltas_with_nothing_in_common():
    nothing = [delta_summary(rows(50, 400, seed=seed)) for seed in range(20)]
    assert float(nothing[0].common_share) == pytest.approx(1 / 50, rel=0.2)
    # biased, as its docstring says
    assert float(nothing[0].cosines.mean()) == pytest.approx(math.sqrt(1 / 50), rel=0.1)
    for unbiased in (
        [float(s.unbiased_common_share) for s in nothing],
        [float(s.cosines_to_others.mean()) for s in nothing],
    ):
        mean = sum(unbiased) / 20
        assert abs(mean) < 4 * (sum((x - mean) ** 2 for x in unbiased) / 19 / 20) ** 0.5


def test_summary_agrees_with_loops():
    x = EVAL
    summary = delta_summary(x)
    others = [torch.cat([x[:i], x[i + 1 :]]).mean(0) for i in range(len(x))]
    expected = torch.stack(
        [
            torch.nn.functional.cosine_similarity(row, other, dim=0)
            for row, other in zip(x, others, strict=True)
        ]
    )
    torch.testing.assert_close(summary.cosines_to_others, expected)
    assert float(summary.spread) == pytest.approx(float(x.var(dim=0).sum().sqrt()))
    pairs = [float(x[i] @ x[j]) for i in range(25) for j in range(25) if i != j]
    assert float(summary.unbiased_common_share) == pytest.approx(
        sum(pairs) / len(pairs) / float((x**2).sum(1).mean())
    )
    assert float(summary.rms_norm**2) == pytest.approx(
        float(summary.mean_norm**2 + summary.spread**2 * 24 / 25)
    )


def test_signal_to_noise_is_measured_against_rebatching():
    noise = 0.01 * rows(40, 12, seed=3)
    summary = delta_summary(TRAIN, floor=noise)
    assert float(summary.noise_norm) == pytest.approx(float((noise**2).sum(1).mean().sqrt()))
    assert float(summary.signal_to_noise) == pytest.approx(
        float(summary.rms_norm / summary.noise_norm)
    )
    assert float(delta_summary(0.01 * rows(400, 12), floor=noise).signal_to_noise) == pytest.approx(
        1, rel=0.1
    )
    assert float(delta_summary(TRAIN, floor=torch.zeros(3, 12)).signal_to_noise) == math.inf


def test_summaries_over_layers_and_positions_equal_a_loop():
    x, noise = rows(2, 3, 10, 5), rows(2, 3, 4, 5, seed=1)
    whole = delta_summary(x.float(), floor=noise)
    for i in range(2):
        for j in range(3):
            one = delta_summary(x[i, j].float(), floor=noise[i, j])
            for name in (
                "norms",
                "cosines",
                "cosines_to_others",
                "mean_norm",
                "rms_norm",
                "spread",
                "noise_norm",
                "common_share",
                "unbiased_common_share",
                "signal_to_noise",
            ):
                torch.testing.assert_close(getattr(whole, name)[i, j], getattr(one, name))
    assert whole.norms.dtype == torch.float32


def test_one_delta_has_no_spread():
    summary = delta_summary(rows(1, 4))
    assert (
        summary.spread.isnan()
        and summary.unbiased_common_share.isnan()
        and summary.cosines_to_others.isnan().all()
    )
    assert float(summary.cosines) == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_components_above_rounding_are_those_that_were_planted(dtype):
    before = rows(40, 12).to(dtype)
    for planted in (0, 1, 3):
        shift = (
            1.0 + rows(40, planted, seed=5) @ rows(planted, 12, seed=6)
            if planted
            else torch.ones(40, 12)
        )
        after = (before.double() + shift.double()).to(dtype)
        deltas = (after.double() - before.double()).to(dtype)
        assert components_above_rounding(deltas, before) == planted
        exact = deltas.double() - deltas.double().mean(0)
        assert torch.linalg.matrix_rank(exact) == 12  # what is left beside them is rounding


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: cosine_to_mean(EVAL, torch.zeros(12)),
            "reference is zero and so has no direction",
        ),
        (
            lambda: cosine_to_mean(EVAL, torch.tensor(1.0)),
            r"reference has shape \(\); pass a vector",
        ),
        (
            lambda: cosine_to_mean(EVAL, torch.ones(5)),
            "deltas has 12 coordinates and reference has 5",
        ),
        (
            lambda: components_above_rounding(EVAL, torch.ones(3, 5)),
            "deltas has 12 coordinates and before has 5",
        ),
        (
            lambda: components_above_rounding(torch.ones(4), torch.ones(3, 4)),
            r"deltas has shape \(4,\); pass rows",
        ),
        (
            lambda: delta_summary(torch.ones(0, 4)),
            r"deltas has shape \(0, 4\); pass at least one vector",
        ),
        (lambda: delta_summary(torch.tensor([[1.0, 2], [-1, -2]])), "deltas have mean zero"),
        (
            lambda: delta_summary(torch.tensor([[[1.0, 2]], [[0, 0]]])),
            r"deltas row \(1, 0\) is zero; leave it out",
        ),
        (
            lambda: delta_summary(EVAL, floor=torch.ones(3, 5)),
            "floor has 5 coordinates and deltas has 12",
        ),
        (
            lambda: delta_summary(EVAL, floor=torch.ones(2, 3, 12)),
            r"floor has batch axes \(2,\) and deltas \(\); pass one floor",
        ),
        (
            lambda: delta_summary(EVAL).signal_to_noise,
            "the summary was made without a floor; pass floor= to delta_summary",
        ),
    ],
)
def test_refusals(unchecked, call, message):
    with pytest.raises(EmlensError, match=message):
        call()
