import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.decomposition import PCA

from emlens import EmlensError
from emlens.geometry import Subspace, subspace_overlap, top_k_subspace, variance_captured

EXACT = 1e-12  # float64 sums of some hundred terms


def rows(n: int, d: int, seed: int = 0, **named) -> torch.Tensor:
    return torch.randn(
        n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed), **named
    )


def test_agrees_with_scikit_learn_pca():
    x = rows(40, 12) * torch.arange(1, 13) + 5
    space, pca = top_k_subspace(x, 4, center=True), PCA(4).fit(x.numpy())
    np.testing.assert_allclose(space.singular_values[:4], pca.singular_values_, rtol=EXACT)
    np.testing.assert_allclose(
        space.explained_variance_ratio, pca.explained_variance_ratio_, rtol=EXACT
    )
    np.testing.assert_allclose(space.mean, pca.mean_, rtol=EXACT)
    np.testing.assert_allclose(
        np.abs(np.diag(pca.components_ @ space.basis.numpy())), 1, rtol=EXACT
    )
    np.testing.assert_allclose(
        space.coordinates(x).abs(), np.abs(pca.transform(x.numpy())), rtol=1e-10
    )
    assert (space.n, space.rank, space.center, space.d_model, space.k) == (40, 12, "mean", 12, 4)


@pytest.mark.parametrize("shape", [(9, 30), (30, 9)])
def test_basis_is_orthonormal_and_projection_idempotent(shape):
    x = rows(*shape)
    space = top_k_subspace(x, 5, center=False)
    torch.testing.assert_close(
        space.basis.T @ space.basis, torch.eye(5, dtype=torch.float64), atol=EXACT, rtol=0
    )
    once = space.project(x)
    torch.testing.assert_close(space.project(once), once, atol=EXACT, rtol=0)
    torch.testing.assert_close(
        (x - once) @ space.basis, torch.zeros(len(x), 5, dtype=torch.float64), atol=1e-11, rtol=0
    )


def test_centring_is_what_it_says():
    shift = torch.zeros(6, dtype=torch.float64)
    shift[0] = 100
    x = rows(50, 6) * torch.tensor([0.1, 3, 1, 1, 1, 1]) + shift
    axis = {
        center: int(top_k_subspace(x, 1, center=center).basis[:, 0].abs().argmax())
        for center in (True, False)
    }
    assert axis == {True: 1, False: 0}  # the common shift dominates exactly where it is left in
    given_space = top_k_subspace(x, 2, center=x.mean(dim=0))
    torch.testing.assert_close(given_space.basis, top_k_subspace(x, 2, center="mean").basis)
    assert given_space.center == "given"
    assert not top_k_subspace(x, 1, center=False).mean.any()


def test_batches_equal_a_loop():
    x = torch.randn(2, 3, 20, 9, dtype=torch.float64)
    spaces = top_k_subspace(x, 4, center=True)
    shares = variance_captured(x, spaces)
    for i in range(2):
        for j in range(3):
            one = top_k_subspace(x[i, j], 4, center=True)
            torch.testing.assert_close(spaces.basis[i, j], one.basis, atol=1e-10, rtol=0)
            torch.testing.assert_close(shares[i, j], variance_captured(x[i, j], one))
    assert spaces.project(x).shape == x.shape


def test_dtype_follows_the_input():
    for dtype, out in (
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
    ):
        space = top_k_subspace(rows(20, 6).to(dtype), 2, center=True)
        assert {space.basis.dtype, space.mean.dtype, space.singular_values.dtype} == {out}


def test_planted_subspace_is_recovered_and_noise_is_not():
    planted = torch.linalg.qr(rows(60, 3, 1)).Q
    x = rows(200, 3, 2) @ planted.T * 10 + rows(200, 60, 3)
    assert float(subspace_overlap(top_k_subspace(x, 3, center=True), planted)) > 0.98
    assert float(subspace_overlap(top_k_subspace(rows(200, 60, 3), 3, center=True), planted)) < 0.3


def test_share_of_variance_takes_the_fewest_components():
    x = rows(300, 20) * (0.7 ** torch.arange(20))
    cumulative = np.cumsum(PCA().fit(x.numpy()).explained_variance_ratio_)
    for share in (0.5, 0.8, 0.95):
        space = top_k_subspace(x, share, center=True)
        assert space.k == int(np.searchsorted(cumulative, share)) + 1
        assert float(space.explained_variance_ratio.sum()) >= share
    exact = torch.diag(torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    # a share met exactly needs no further component
    assert top_k_subspace(exact, 0.5, center=False).k == 2


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1e-8, 0.5, 1e8]), st.booleans())
def test_invariant_to_order_and_scale_and_moves_with_rotations(seed, scale, center):
    x = rows(12, 7, seed)
    turn = torch.linalg.qr(rows(7, 7, seed + 1)).Q
    space = top_k_subspace(x, 3, center=center)
    moved = top_k_subspace(scale * x[torch.randperm(12)] @ turn, 3, center=center)
    assert float(subspace_overlap(turn.T @ space.basis, moved)) == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(
        moved.explained_variance_ratio, space.explained_variance_ratio, rtol=1e-9, atol=0
    )
    assert (torch.gather(space.basis, 0, space.basis.abs().argmax(0, keepdim=True)) > 0).all()


def test_rank_is_numerical_and_knows_the_input_precision():
    low = rows(30, 4) @ rows(4, 20, 1)
    assert top_k_subspace(low, 4, center=False).rank == 4
    assert top_k_subspace(low.float(), 4, center=False).rank == 4
    # centring leaves rounding of the mean behind
    assert top_k_subspace(low + 1e6, 4, center=True).rank == 4
    # a small signal is a signal
    assert top_k_subspace(low + 1e-6 * rows(30, 20, 2), 4, center=False).rank == 20
    assert top_k_subspace(rows(5, 20), 4, center=True).rank == 4


def test_variance_captured():
    x = rows(50, 8) * torch.arange(1, 9)
    space = top_k_subspace(x, 3, center=True)
    assert float(variance_captured(x, space)) == pytest.approx(
        float(space.explained_variance_ratio.sum()), abs=EXACT
    )
    assert float(variance_captured(x, top_k_subspace(x, 8, center=True))) == pytest.approx(
        1, abs=EXACT
    )
    other = Subspace(
        torch.linalg.qr(rows(8, 3, 5)).Q,
        space.singular_values,
        space.explained_variance_ratio,
        space.mean,
        50,
        8,
        "mean",
    )
    # none beats the top components
    assert float(variance_captured(x, other)) < float(variance_captured(x, space))
    isotropic = rows(4000, 8, 7)
    assert float(variance_captured(isotropic, other)) == pytest.approx(
        float(
            (((isotropic - other.mean) @ other.basis) ** 2).sum()
            / ((isotropic - other.mean) ** 2).sum()
        )
    )
    plain = top_k_subspace(x, 3, center=False)
    assert float(variance_captured(isotropic, plain)) == pytest.approx(3 / 8, abs=0.02)


def test_captured_against_the_best_that_k_directions_could():
    x, other = rows(50, 8) * torch.arange(1, 9) + 3, rows(60, 8, 4) * torch.arange(8, 0, -1)
    own, foreign = top_k_subspace(x, 3, center=True), top_k_subspace(other, 3, center=True)
    assert float(variance_captured(x, own, against="best")) == pytest.approx(1, abs=EXACT)
    moved = x - foreign.mean
    best = float(torch.linalg.svdvals(moved)[:3].square().sum())
    inside = float(torch.linalg.matrix_norm(moved @ foreign.basis) ** 2)
    assert float(variance_captured(x, foreign, against="best")) == pytest.approx(
        inside / best, rel=EXACT
    )
    assert inside / best < 0.6
    # isotropic: k directions hold k/d at most, and every subspace holds just that
    flat = torch.linalg.qr(rows(9, 9)).Q
    anywhere = top_k_subspace(rows(30, 9, 2), 2, center=False)
    assert float(variance_captured(flat, anywhere)) == pytest.approx(2 / 9)
    assert float(variance_captured(flat, anywhere, against="best")) == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"k": 5},
            r"k=5 is above the rank: the 5 vectors have rank 4 with center='mean'; pass k <= 4",
        ),
        (
            {"k": 0},
            (
                r"k=0 must be a count of 1 or more, a share of variance between 0 and 1 such as"
                r" .95, or 'elbow'"
            ),
        ),
        ({"k": 1.0}, r"k=1.0 must be a count"),
        ({"k": True}, r"k=True must be a count"),
        (
            {"center": "median"},
            r"center='median' is unknown; pass True or 'mean', False, or the vector",
        ),
        ({"center": None}, r"center=None is unknown"),
        ({"center": torch.zeros(3)}, r"vectors has 9 coordinates and center has 3"),
        ({"center": torch.tensor(1.0)}, r"center has shape \(\); pass a vector of shape \(d,\)"),
        ({"vectors": torch.ones(4)}, r"vectors has shape \(4,\); pass rows of vectors"),
        ({"vectors": torch.ones(0, 4)}, r"vectors has shape \(0, 4\); pass at least one vector"),
        (
            {"vectors": torch.full((5, 9), float("nan"))},
            r"vectors holds 45 values that are NaN or infinite",
        ),
        (
            {"vectors": torch.ones(5, 9), "k": 0.9},
            r"the 5 vectors have rank 0 with center='mean', so k=0.9 has nothing",
        ),
        ({"method": "fast"}, r"method='fast' is unknown; pass 'exact' or 'randomised'"),
        (
            {"vectors": torch.randn(2, 5, 9), "k": 0.9},
            r"k=0.9 asks for a share of variance, which differs over a batch",
        ),
    ],
)
def test_refusals(unchecked, change, message):
    arguments = {"vectors": rows(5, 9), "k": 2, "center": True} | change
    with pytest.raises(EmlensError, match=message):
        top_k_subspace(arguments.pop("vectors"), arguments.pop("k"), **arguments)


def test_center_has_no_default():
    with pytest.raises(TypeError, match="center"):
        top_k_subspace(rows(5, 9), 2)


def test_refusals_of_projections(unchecked):
    space = top_k_subspace(rows(20, 6), 2, center=False)
    with pytest.raises(EmlensError, match="x has 5 coordinates and the subspace has 6"):
        space.project(rows(3, 5))
    with pytest.raises(EmlensError, match=r"x has shape \(6,\); pass rows"):
        space.coordinates(torch.ones(6))
    with pytest.raises(EmlensError, match="vectors has 5 coordinates and the subspace has 6"):
        variance_captured(rows(3, 5), space)
    with pytest.raises(EmlensError, match=r"vectors has shape \(6,\)"):
        variance_captured(torch.ones(6), space)
    with pytest.raises(EmlensError, match="vectors all equal the mean of the subspace"):
        variance_captured(torch.zeros(3, 6), space)
    with pytest.raises(EmlensError, match="against='most' is unknown; pass 'total' or 'best'"):
        variance_captured(rows(3, 6), space, against="most")


def tied_rows() -> torch.Tensor:
    """Four directions of one length each way: the second and third singular values are equal."""
    return torch.cat([torch.diag(torch.tensor([3.0, 2.0, 2.0, 1.0])), torch.zeros(2, 4)])


def test_a_tie_at_k_is_said_and_no_other_gap(caplog):
    x = tied_rows()
    top_k_subspace(x, 2, center=False)
    assert "singular values 2 and 3 are equal to rounding" in caplog.text
    assert "which directions are the top 2 is arbitrary; pass another k" in caplog.text
    caplog.clear()
    for k in (1, 3, 4):
        top_k_subspace(x, k, center=False)
    top_k_subspace(rows(20, 9), 3, center=True)
    assert not caplog.text
    top_k_subspace(torch.stack([rows(6, 4).float(), x]), 2, center=False)
    assert "equal to rounding at batch index (1,), so" in caplog.text


def test_a_tie_is_what_makes_a_subspace_depend_on_the_order_of_rows():
    """Rows of a regular simplex have equal singular values: any top k of them is arbitrary."""
    x = torch.eye(9, dtype=torch.float64)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    shared = [
        float(
            subspace_overlap(
                top_k_subspace(x, k, center=True), top_k_subspace(x[order], k, center=True)
            )
        )
        for k in (3, 8)
    ]
    assert shared[0] < 0.9
    assert shared[1] == pytest.approx(1, abs=EXACT)
