import numpy as np
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance
from sklearn.decomposition import PCA

from emlens import EmlensError
from emlens.geometry import (
    Subspace,
    projection_fraction,
    prompt_overlap,
    reconstruction_cosine,
    top_k_subspace,
)
from emlens.geometry.projections import explained_l2, residual_fraction, subspace_mahalanobis


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
    torch.testing.assert_close(
        projection_fraction(inside, space, centred=False), torch.ones(20, dtype=torch.float64)
    )


def test_uncentred_reconstruction_is_the_raw_fraction_and_more_components_help():
    plain = top_k_subspace(TRAIN, 4, center=False)
    torch.testing.assert_close(
        reconstruction_cosine(EVAL, plain), projection_fraction(EVAL, plain, centred=False)
    )
    fractions = [
        projection_fraction(EVAL, top_k_subspace(TRAIN, k, center=True), centred=True)
        for k in (1, 4, 8)
    ]
    assert (fractions[0] <= fractions[1]).all() and (fractions[1] <= fractions[2]).all()
    full = top_k_subspace(TRAIN, 12, center=True)
    torch.testing.assert_close(
        reconstruction_cosine(EVAL, full), torch.ones(25, dtype=torch.float64)
    )


def test_residual_and_explained_agree_with_a_loop_and_their_identities():
    space, pca = top_k_subspace(TRAIN, 3, center=True), PCA(3).fit(TRAIN.numpy())
    rebuilt = pca.inverse_transform(pca.transform(EVAL.numpy()))
    left = np.linalg.norm(EVAL.numpy() - rebuilt, axis=1)
    raw = left / np.linalg.norm(EVAL.numpy(), axis=1)
    centred = left / np.linalg.norm(EVAL.numpy() - pca.mean_, axis=1)
    np.testing.assert_allclose(residual_fraction(EVAL, space, centred=False), raw)
    np.testing.assert_allclose(residual_fraction(EVAL, space, centred=True), centred)
    np.testing.assert_allclose(explained_l2(EVAL, space, centred=False), 1 - raw**2)
    torch.testing.assert_close(
        explained_l2(EVAL, space, centred=True), projection_fraction(EVAL, space, centred=True) ** 2
    )
    plain = top_k_subspace(TRAIN, 3, center=False)
    torch.testing.assert_close(
        explained_l2(EVAL, plain, centred=False),
        projection_fraction(EVAL, plain, centred=False) ** 2,
    )
    torch.testing.assert_close(
        residual_fraction(EVAL, plain, centred=False), residual_fraction(EVAL, plain, centred=True)
    )


def test_a_mean_that_leads_away_explains_less_than_nothing():
    space = top_k_subspace(TRAIN, 1, center=True)
    against = -0.1 * space.mean[None]
    assert float(residual_fraction(against, space, centred=False)) > 1
    assert float(explained_l2(against, space, centred=False)) < 0


def test_mahalanobis_in_the_subspace():
    space, pca = top_k_subspace(TRAIN, 3, center=True), PCA(3, whiten=True).fit(TRAIN.numpy())
    np.testing.assert_allclose(
        subspace_mahalanobis(EVAL, space), np.linalg.norm(pca.transform(EVAL.numpy()), axis=1)
    )
    own = subspace_mahalanobis(TRAIN, space)
    assert float((own**2).mean()) == pytest.approx(3 * 59 / 60)
    whole = top_k_subspace(TRAIN, 12, center=True)
    classic = EmpiricalCovariance().fit(TRAIN.numpy()).mahalanobis(EVAL.numpy()) * 59 / 60
    np.testing.assert_allclose(subspace_mahalanobis(EVAL, whole) ** 2, classic)
    plain = top_k_subspace(TRAIN, 3, center=False)
    assert float((subspace_mahalanobis(TRAIN, plain) ** 2).mean()) == pytest.approx(3)


def test_batches_and_dtypes():
    train, evaluation = rows(2, 30, 8), rows(2, 5, 8, seed=1).float()
    spaces = top_k_subspace(train.float(), 3, center=True)
    one = top_k_subspace(train[1].float(), 3, center=True)
    for quantity in (
        lambda x, v: projection_fraction(x, v, centred=True),
        lambda x, v: residual_fraction(x, v, centred=False),
        lambda x, v: explained_l2(x, v, centred=True),
        prompt_overlap,
        reconstruction_cosine,
        subspace_mahalanobis,
    ):
        values = quantity(evaluation, spaces)
        assert values.shape == (2, 5) and values.dtype == torch.float32
        torch.testing.assert_close(values[1], quantity(evaluation[1], one))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda s: projection_fraction(torch.zeros(3, 12), s, centred=False),
            "deltas row 0 is zero; leave it out",
        ),
        (
            lambda s: projection_fraction(s.mean[None], s, centred=True),
            "deltas row 0 equals the mean of the subspace",
        ),
        (
            lambda s: projection_fraction(rows(3, 5), s, centred=False),
            "deltas has 5 coordinates and the subspace has 12",
        ),
        (
            lambda s: projection_fraction(rows(12), s, centred=False),
            r"deltas has shape \(12,\); pass rows",
        ),
        (
            lambda s: projection_fraction(rows(0, 12), s, centred=False),
            r"deltas has shape \(0, 12\); pass at least one vector",
        ),
        (
            lambda s: residual_fraction(torch.zeros(3, 12), s, centred=False),
            "deltas row 0 is zero; leave it out",
        ),
        (
            lambda s: explained_l2(torch.ones(3, 12).long(), s, centred=False),
            "deltas has dtype torch.int64; pass a floating-point tensor",
        ),
        (
            lambda s: subspace_mahalanobis(torch.ones(3, 12).long(), s),
            "vectors has dtype torch.int64",
        ),
        (
            lambda s: explained_l2(s.mean[None], s, centred=True),
            "deltas row 0 equals the mean of the subspace",
        ),
        (
            lambda s: prompt_overlap(torch.stack([EVAL[0], s.mean]), s),
            "x row 1 equals the mean of the subspace",
        ),
        (lambda s: prompt_overlap(rows(3, 5), s), "x has 5 coordinates"),
        (lambda s: reconstruction_cosine(torch.zeros(1, 2, 12), s), r"deltas row \(0, 0\) is zero"),
        (
            lambda s: reconstruction_cosine(
                torch.eye(12)[2:3].double(),
                top_k_subspace(torch.eye(12)[:1].double(), 1, center=False),
            ),
            "deltas row 0 has a reconstruction of zero",
        ),
        (
            lambda s: subspace_mahalanobis(
                EVAL, Subspace(s.basis, torch.zeros(3), torch.zeros(3), s.mean, 60, 3, "mean")
            ),
            "the subspace has a direction without variance; fit it with a smaller k",
        ),
    ],
)
def test_refusals(unchecked, call, message):
    with pytest.raises(EmlensError, match=message):
        call(top_k_subspace(TRAIN, 3, center=True))
