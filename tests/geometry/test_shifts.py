import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.decomposition import PCA

from emlens import EmlensError
from emlens.geometry import (
    components_above_rounding,
    cosine_to_mean,
    delta_summary,
    projection_fraction,
    prompt_overlap,
    reconstruction_cosine,
    top_k_subspace,
)


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


TRAIN, EVAL = rows(60, 12) * torch.arange(1, 13) + 4, rows(25, 12, seed=1) * torch.arange(1, 13) + 2


def test_agree_with_scikit_learn_and_a_loop():
    space, pca = top_k_subspace(TRAIN, 3, center=True), PCA(3).fit(TRAIN.numpy())
    rebuilt = pca.inverse_transform(pca.transform(EVAL.numpy()))
    centred = EVAL.numpy() - pca.mean_
    fraction = np.linalg.norm(rebuilt - pca.mean_, axis=1) / np.linalg.norm(centred, axis=1)
    np.testing.assert_allclose(projection_fraction(EVAL, space, centred=True), fraction)
    np.testing.assert_allclose(prompt_overlap(EVAL, space), fraction)
    raw = [np.linalg.norm(pca.components_ @ row) / np.linalg.norm(row) for row in EVAL.numpy()]
    np.testing.assert_allclose(projection_fraction(EVAL, space, centred=False), raw)
    cosine = [
        row @ other / np.linalg.norm(row) / np.linalg.norm(other)
        for row, other in zip(EVAL.numpy(), rebuilt, strict=True)
    ]
    np.testing.assert_allclose(reconstruction_cosine(EVAL, space), cosine)


def test_isotropic_deltas_give_the_square_root_of_k_over_d():
    space = top_k_subspace(rows(40, 100), 9, center=False)
    fractions = projection_fraction(rows(3000, 100, seed=2), space, centred=False)
    assert float((fractions**2).mean()) == pytest.approx(9 / 100, rel=0.03)
    inside = rows(20, 9, seed=3) @ space.basis.T
    torch.testing.assert_close(projection_fraction(inside, space, centred=False), torch.ones(20, dtype=torch.float64))


def test_uncentred_reconstruction_is_the_raw_fraction_and_more_components_help():
    plain = top_k_subspace(TRAIN, 4, center=False)
    torch.testing.assert_close(reconstruction_cosine(EVAL, plain), projection_fraction(EVAL, plain, centred=False))
    fractions = [projection_fraction(EVAL, top_k_subspace(TRAIN, k, center=True), centred=True) for k in (1, 4, 8)]
    assert (fractions[0] <= fractions[1]).all() and (fractions[1] <= fractions[2]).all()
    full = top_k_subspace(TRAIN, 12, center=True)
    torch.testing.assert_close(reconstruction_cosine(EVAL, full), torch.ones(25, dtype=torch.float64))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1e-5, 7.0]))
def test_invariant_to_scale_and_rotation(seed, scale):
    turn = scale * torch.linalg.qr(rows(12, 12, seed=seed)).Q
    space, moved = top_k_subspace(TRAIN, 3, center=True), top_k_subspace(TRAIN @ turn, 3, center=True)
    for quantity in (
        lambda x, v: projection_fraction(x, v, centred=True),
        lambda x, v: projection_fraction(x, v, centred=False),
        prompt_overlap,
        reconstruction_cosine,
        lambda x, v: cosine_to_mean(x, v.mean),
    ):
        torch.testing.assert_close(quantity(EVAL @ turn, moved), quantity(EVAL, space), atol=1e-9, rtol=0)


def test_cosine_to_mean():
    reference = TRAIN.mean(0)
    expected = torch.nn.functional.cosine_similarity(EVAL, reference[None])
    torch.testing.assert_close(cosine_to_mean(EVAL, reference), expected)
    torch.testing.assert_close(
        cosine_to_mean(reference[None] * -2, reference), torch.tensor([-1.0], dtype=torch.float64)
    )


def test_batches_and_dtypes():
    train, evaluation = rows(2, 30, 8), rows(2, 5, 8, seed=1).float()
    spaces = top_k_subspace(train.float(), 3, center=True)
    values = projection_fraction(evaluation, spaces, centred=True)
    assert values.shape == (2, 5) and values.dtype == torch.float32
    one = projection_fraction(evaluation[1], top_k_subspace(train[1].float(), 3, center=True), centred=True)
    torch.testing.assert_close(values[1], one)
    assert reconstruction_cosine(evaluation, spaces).shape == (2, 5)
    assert cosine_to_mean(evaluation, spaces.mean).shape == (2, 5)


def test_delta_summary():
    one_way = torch.linspace(1, 2, 30, dtype=torch.float64)[:, None] * rows(7)
    summary = delta_summary(one_way)
    torch.testing.assert_close(summary.cosines, torch.ones(30, dtype=torch.float64))
    torch.testing.assert_close(summary.norms, one_way.norm(dim=1))
    assert summary.mean_norm == pytest.approx(float(one_way.mean(0).norm()))
    assert summary.n == 30 and summary.rms_norm >= summary.mean_norm
    nothing_common = delta_summary(rows(50, 400))
    assert nothing_common.common_share == pytest.approx(1 / 50, rel=0.2)
    assert delta_summary(one_way * 9).common_share == pytest.approx(summary.common_share)
    assert float(nothing_common.cosines.mean()) == pytest.approx(
        math.sqrt(1 / 50), rel=0.1
    )  # biased, as its docstring says


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_components_above_rounding_are_those_that_were_planted(dtype):
    before = rows(40, 12).to(dtype)
    for planted in (0, 1, 3):
        shift = 1.0 + rows(40, planted, seed=5) @ rows(planted, 12, seed=6) if planted else torch.ones(40, 12)
        after = (before.double() + shift.double()).to(dtype)
        deltas = (after.double() - before.double()).to(dtype)
        assert components_above_rounding(deltas, before) == planted
        exact = deltas.double() - deltas.double().mean(0)
        assert torch.linalg.matrix_rank(exact) == 12  # what is left beside them is rounding


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: projection_fraction(torch.zeros(3, 12), s, centred=False), "deltas row 0 is zero; leave it out"),
        (lambda s: projection_fraction(s.mean[None], s, centred=True), "deltas row 0 equals the mean of the subspace"),
        (
            lambda s: projection_fraction(rows(3, 5), s, centred=False),
            "deltas has 5 coordinates and the subspace has 12",
        ),
        (lambda s: projection_fraction(rows(12), s, centred=False), r"deltas has shape \(12,\); pass rows"),
        (lambda s: prompt_overlap(torch.stack([EVAL[0], s.mean]), s), "x row 1 equals the mean of the subspace"),
        (lambda s: prompt_overlap(rows(3, 5), s), "x has 5 coordinates"),
        (lambda s: reconstruction_cosine(torch.zeros(1, 2, 12), s), r"deltas row \(0, 0\) is zero"),
        (
            lambda s: reconstruction_cosine(
                torch.eye(12)[2:3].double(), top_k_subspace(torch.eye(12)[:1].double(), 1, center=False)
            ),
            "deltas row 0 has a reconstruction of zero",
        ),
        (lambda s: cosine_to_mean(EVAL, torch.zeros(12)), "reference is zero and so has no direction"),
        (lambda s: cosine_to_mean(EVAL, torch.tensor(1.0)), r"reference has shape \(\); pass a vector"),
        (lambda s: cosine_to_mean(EVAL, torch.ones(5)), "deltas has 12 coordinates and reference has 5"),
        (lambda s: delta_summary(torch.ones(2, 3, 4)), r"deltas has shape \(2, 3, 4\); pass one set"),
        (lambda s: components_above_rounding(EVAL, torch.ones(3, 5)), "deltas has 12 coordinates and before has 5"),
        (lambda s: components_above_rounding(torch.ones(4), torch.ones(3, 4)), r"deltas has shape \(4,\); pass rows"),
        (lambda s: delta_summary(torch.ones(0, 4)), r"deltas has shape \(0, 4\)"),
        (lambda s: delta_summary(torch.tensor([[1.0, 2], [-1, -2]])), "deltas have mean zero"),
    ],
)
def test_refusals(unchecked, call, message):
    with pytest.raises(EmlensError, match=message):
        call(top_k_subspace(TRAIN, 3, center=True))
