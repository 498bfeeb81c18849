import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.decomposition import PCA

from emlens.foundation.errors import InputError
from emlens.geometry import local_cosine, weight_update
from emlens.geometry.trajectories import (
    cosine_to_final,
    path_components,
    path_gram,
    path_norms,
    path_speed,
    spectrum_flatness,
    summed,
    update_gram,
)
from emlens.geometry.turns import sharpest_turn, turn_null

TIGHT = 1e-10
"""float64 through a Gram matrix of paths of length about 1."""


def noisy_path(seed: int, steps: int = 40, d: int = 6) -> torch.Tensor:
    return torch.randn(
        steps, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).cumsum(0)


def adapters(seed: int, steps: int = 7, r: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(steps, r, 5, generator=rng, dtype=torch.float64), torch.randn(
        steps, 4, r, generator=rng, dtype=torch.float64
    )


def test_signs_straight_right_angle_and_reversal():
    line = torch.arange(9.0, dtype=torch.float64)[:, None] * torch.tensor(
        [[1.0, 2.0]], dtype=torch.float64
    )
    cosines = local_cosine(path_gram(line), 2)
    assert torch.allclose(cosines[2:7], torch.full((5,), -1.0, dtype=torch.float64), atol=TIGHT)
    assert cosines[:2].isnan().all() and cosines[7:].isnan().all()
    corner = torch.tensor(
        [[0.0, 0], [1, 0], [2, 0], [3, 0], [3, 1], [3, 2], [3, 3]], dtype=torch.float64
    )
    assert float(local_cosine(path_gram(corner), 3)[3]) == pytest.approx(0.0, abs=TIGHT)
    there_and_back = torch.tensor([[0.0, 0], [1, 1], [2, 2], [1, 1], [0, 0]], dtype=torch.float64)
    assert float(local_cosine(path_gram(there_and_back), 2)[2]) == pytest.approx(1.0, abs=TIGHT)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), window=st.integers(1, 8))
def test_local_cosine_is_that_of_a_loop_and_blind_to_rotation_shift_and_scale(
    seed: int, window: int
):
    path = noisy_path(seed)
    cosines = local_cosine(path_gram(path), window, threshold=0.0)
    for t in range(window, len(path) - window):
        back, forth = path[t - window] - path[t], path[t + window] - path[t]
        assert float(cosines[t]) == pytest.approx(
            float(back @ forth / back.norm() / forth.norm()), abs=1e-9
        )
    turn = torch.linalg.qr(
        torch.randn(6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )[0]
    moved = local_cosine(path_gram(7.0 * (path @ turn) + 1.0), window, threshold=0.0)
    assert torch.allclose(cosines, moved, atol=1e-7, equal_nan=True)


def test_only_where_both_chords_are_short_is_a_row_left_out():
    path = torch.tensor([[0.0], [0.001], [0.002], [1.0], [2.0]], dtype=torch.float64)
    cosines = local_cosine(path_gram(path), 1, threshold=0.0035)
    assert cosines[1].isnan()  # both chords are .001
    assert float(cosines[2]) == pytest.approx(-1.0, abs=1e-6)  # one is
    still = torch.tensor([[0.0], [0.0], [1.0], [2.0]], dtype=torch.float64)
    assert local_cosine(path_gram(still), 1)[1].isnan()  # a chord without length has no direction


def test_updates_are_compared_without_forming_them_and_whatever_their_gauge():
    a, b = adapters(0)
    whole = 0.5 * (b @ a).flatten(1)
    gram = update_gram(a, b, 0.5)
    assert torch.allclose(gram, whole @ whole.T, atol=TIGHT)
    assert torch.allclose(
        path_norms(gram),
        torch.stack([weight_update(x, y, 0.5).norm for x, y in zip(a, b, strict=True)]),
        atol=TIGHT,
    )
    gauge = torch.randn(
        7, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ) + 3 * torch.eye(3, dtype=torch.float64)
    other = update_gram(torch.linalg.solve(gauge, a), b @ gauge, 0.5)
    assert torch.allclose(gram, other, atol=1e-8)
    # the path of B does depend on it
    assert not torch.allclose(path_gram(b.flatten(1)), path_gram((b @ gauge).flatten(1)), atol=0.1)
    zero = update_gram(a, torch.zeros_like(b))
    assert not zero.any()  # where weight_update has nothing to span


def test_grams_of_modules_add_up():
    first, second = adapters(2), adapters(3)
    both = torch.cat([(b @ a).flatten(1) for a, b in (first, second)], dim=1)
    assert torch.allclose(
        summed([update_gram(*first), update_gram(*second)]), path_gram(both), atol=TIGHT
    )


def test_norms_speed_and_cosine_to_the_end():
    path = torch.cat([torch.zeros(1, 6, dtype=torch.float64), noisy_path(4)])
    gram = path_gram(path)
    assert torch.allclose(path_norms(gram), path.norm(dim=1), atol=TIGHT)
    assert torch.allclose(path_speed(gram), path.diff(dim=0).norm(dim=1), atol=1e-8)
    cosine = cosine_to_final(gram)
    assert cosine[0].isnan() and float(cosine[-1]) == pytest.approx(1.0)
    assert torch.allclose(
        cosine[1:], torch.nn.functional.cosine_similarity(path[1:], path[-1:], dim=1), atol=TIGHT
    )


def test_components_are_those_of_scikit_learn():
    path = noisy_path(5)
    components, reference = path_components(path_gram(path), 3), PCA(3).fit(path.numpy())
    ours, theirs = components.coordinates.numpy(), reference.transform(path.numpy())
    assert np.allclose(np.abs(ours), np.abs(theirs), atol=1e-8) and (ours[-1] >= 0).all()
    assert np.allclose(
        components.explained_variance_ratio.numpy(), reference.explained_variance_ratio_, atol=1e-10
    )


def test_a_planted_turn_is_found_at_its_place_and_a_straight_noisy_path_has_none():
    rng = np.random.default_rng(6)
    steps = rng.normal(0, 0.3, (60, 20))
    steps[:, 0] += 1.0
    straight = path_gram(torch.from_numpy(steps.cumsum(0)))
    steps[30:, 0] -= 1.0
    steps[30:, 1] += 1.0
    turned = path_gram(torch.from_numpy(steps.cumsum(0)))
    excess, where = sharpest_turn(turned, 10)
    assert abs(where - 29) <= 2 and excess > 0.5
    assert turn_null(turned, 10, draws=99, seed=0).p_value() <= 0.02
    p = [
        turn_null(
            path_gram(torch.from_numpy((rng.normal(0, 0.3, (40, 20)) + np.eye(20)[0]).cumsum(0))),
            5,
            draws=59,
            seed=i,
        ).p_value()
        for i in range(30)
    ]
    assert np.mean(np.array(p) <= 0.05) <= 0.17  # 30 draws of a rate of .05 exceed it in 1 of 100
    assert turn_null(straight, 10, draws=99, seed=0).p_value() > 0.05


def test_an_even_curve_has_no_sharpest_turn():
    angle = torch.linspace(0, math.pi / 2, 50, dtype=torch.float64)
    assert sharpest_turn(path_gram(torch.stack([angle.cos(), angle.sin()], 1)), 5)[0] < 1e-6


def test_flatness_is_1_for_equal_singular_values_and_1_over_r_for_one():
    for measure in ("entropy", "participation"):
        result = spectrum_flatness(
            torch.tensor([[2.0, 2, 2, 2], [5, 0, 0, 0], [4, 2, 1, 1], [0, 0, 0, 0]]),
            measure=measure,
        )
        assert (
            result[:2].tolist() == pytest.approx([1.0, 0.25])
            and 0.25 < float(result[2]) < 1.0
            and result[3].isnan()
        )
    shares = np.array([0.5, 0.25, 0.125, 0.125])
    assert float(spectrum_flatness(torch.tensor([4.0, 2, 1, 1]).sqrt())) == pytest.approx(
        math.exp(-(shares * np.log(shares)).sum()) / 4
    )


def test_what_makes_no_sense_is_refused(unchecked):
    gram = path_gram(noisy_path(0, steps=5))
    a, b = adapters(0)
    for call, message in (
        (lambda: path_gram(torch.zeros(3)), "path has shape"),
        (
            lambda: update_gram(a, b[:3]),
            r"a has shape \(7, 3, 5\) and b \(3, 4, 3\); pass A \(step, r, d_in\)",
        ),
        (lambda: path_norms(torch.zeros(2, 3)), r"gram has shape \(2, 3\); pass the square matrix"),
        (lambda: cosine_to_final(torch.zeros(3, 3)), "the path ends at the zero vector"),
        (
            lambda: local_cosine(gram, 3),
            "window=3 must be an integer of 1 or more, and 2·window below the 5 rows",
        ),
        (lambda: local_cosine(gram, 1, threshold=-1.0), "threshold=-1.0 must be 0 or more"),
        (
            lambda: sharpest_turn(gram, 2),
            "window=2 leaves 1 of 5 rows with a local cosine; pass a shorter window",
        ),
        (lambda: path_components(gram, 5), "k=5 must be an integer from 1 to 4"),
        (
            lambda: spectrum_flatness(torch.tensor([1.0, -1.0])),
            "singular_values holds -1; singular values are 0 or more",
        ),
        (
            lambda: spectrum_flatness(torch.ones(2), measure="range"),
            "measure='range' is unknown; pass 'entropy' or 'participation'",
        ),
        (lambda: summed([]), r"grams have shapes \[\]; pass at least one"),
    ):
        with pytest.raises(InputError, match=message):
            call()
