from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from emlens.foundation.errors import InputError
from emlens.probes.features import JoinedFeatures, MatrixFeatures, RepeatedFeatures, TextFeatures
from emlens.probes.projections import (
    FoldProjections,
    fold_projections,
    random_projections,
    training_distances,
    training_projections,
)

RNG = np.random.default_rng(0)
X, OTHER = RNG.standard_normal((20, 6)), RNG.standard_normal((40, 6)) * [5, 3, 1, 1, 1, 1] + 2
TRAIN, TEST = np.arange(14), np.arange(14, 20)


def test_random_projections_are_squares_along_orthonormal_directions(make: Any) -> None:
    acts = make(X)
    whole = random_projections(acts, 6, seeds=(0, 1))
    assert [f.name for f in whole] == [
        "random 0, resid_post.0@last_prompt",
        "random 1, resid_post.0@last_prompt",
    ]
    for features in whole:
        # an orthonormal basis keeps lengths
        np.testing.assert_allclose(features.values.sum(1), (X**2).sum(1))
    assert not np.allclose(whole[0].values, whole[1].values) and not whole[0].family_free
    signed, both = (
        random_projections(acts, 3, seeds=(0,), kind=kind)[0].values for kind in ("signed", "both")
    )
    squared = random_projections(acts, 3, seeds=(0,))[0].values
    np.testing.assert_allclose(signed**2, squared)
    np.testing.assert_allclose(both, np.hstack([signed, squared]))


def test_training_components_are_those_of_the_training_prompts(make: Any) -> None:
    found = training_projections(make(X), make(OTHER), 2, kind="signed")[0]
    reference = PCA(2).fit(OTHER).transform(X)
    np.testing.assert_allclose(np.abs(found.values), np.abs(reference), atol=1e-9)
    assert found.name == "training PCA, resid_post.0@last_prompt" and not found.family_free


def test_distances_are_those_of_a_loop_and_mean_the_same_in_every_model(make: Any) -> None:
    found = training_distances(make(X), make(OTHER), 2)[0]
    assert found.family_free and found.values.shape == (20, 3)
    mean = OTHER.mean(0)
    np.testing.assert_allclose(
        found.values[:, 1],
        [x @ mean / np.linalg.norm(x) / np.linalg.norm(mean) for x in X],
        rtol=1e-6,
    )
    axes = PCA(2).fit(OTHER).components_
    np.testing.assert_allclose(
        found.values[:, 2],
        [np.linalg.norm(axes @ (x - mean)) / np.linalg.norm(x - mean) for x in X],
        rtol=1e-6,
    )
    turn = np.linalg.qr(RNG.standard_normal((6, 6)))[0]
    turned = training_distances(make(3 * X @ turn), make(3 * OTHER @ turn), 2)[0]
    # another model's axes and unit
    np.testing.assert_allclose(turned.values, found.values, rtol=1e-6)
    far = training_distances(make(X + 50), make(OTHER), 2)[0]
    assert (far.values[:, 0] > 5 * found.values[:, 0]).all()


@pytest.mark.parametrize("kind", ["signed", "squared"])
def test_fold_components_see_training_rows_only(kind: Any) -> None:
    features = FoldProjections("x", X, 3, kind)
    train, test = features.split(TRAIN, TEST)
    pca = PCA(3).fit(X[TRAIN])
    expected = [pca.transform(X[rows]) for rows in (TRAIN, TEST)]
    expected = [e**2 if kind == "squared" else e for e in expected]
    scaler = StandardScaler().fit(expected[0])
    for found, wanted in zip((train, test), expected, strict=True):
        wanted = scaler.transform(wanted)
        # an axis has no sign
        found, wanted = (np.abs(found), np.abs(wanted)) if kind == "signed" else (found, wanted)
        np.testing.assert_allclose(found, wanted, atol=1e-7)
    moved = X.copy()
    moved[TEST] = 100 * moved[TEST]
    np.testing.assert_array_equal(FoldProjections("x", moved, 3, kind).split(TRAIN, TEST)[0], train)
    low = FoldProjections("x", np.outer(np.arange(20.0), np.ones(5)), 4, "signed").split(
        TRAIN, TEST
    )[0]
    assert low.shape == (14, 1)  # no component beyond the rank


def test_fold_components_of_every_cell(make: Any) -> None:
    acts = make({("resid_post.0", "last_prompt"): X, ("resid_post.1", "last_prompt"): X + 1})
    assert [f.name for f in fold_projections(acts, 2)] == [
        "fold PCA, resid_post.0@last_prompt",
        "fold PCA, resid_post.1@last_prompt",
    ]


def test_joined_sets_stand_side_by_side_with_equal_weight() -> None:
    a, b = MatrixFeatures("a", X[:, :1], family_free=True), MatrixFeatures("b", X[:, 1:5])
    joined, plain = JoinedFeatures([a, b]), JoinedFeatures([a, b], balanced=False, name="both")
    assert (joined.name, plain.name, joined.family_free) == ("a + b", "both", False)
    train, _ = joined.split(TRAIN, TEST)
    assert train.shape == (14, 5)
    # four columns weigh as much as one
    assert (train[:, :1] ** 2).sum() == pytest.approx((train[:, 1:] ** 2).sum())
    np.testing.assert_allclose(
        plain.split(TRAIN, TEST)[1], np.hstack([a.split(TRAIN, TEST)[1], b.split(TRAIN, TEST)[1]])
    )
    assert JoinedFeatures([a, TextFeatures("t", ["w"] * 20)]).family_free


def test_repeated_sets_read_questions_at_the_rows_of_a_long_table() -> None:
    index = np.r_[np.arange(20), np.arange(20)]
    found = RepeatedFeatures(MatrixFeatures("x", X), index)
    long = MatrixFeatures("x", X[index])
    for mine, wanted in zip(
        found.split(np.arange(25), np.arange(25, 40)),
        long.split(np.arange(25), np.arange(25, 40)),
        strict=True,
    ):
        np.testing.assert_allclose(mine, wanted)


def test_what_cannot_be_projected_is_refused(make: Any, unchecked: None) -> None:
    acts = make(X)
    with pytest.raises(InputError, match="k=7 must lie in 1 to the activations' width, 6"):
        random_projections(acts, 7)
    with pytest.raises(
        InputError, match="kind='cubed' is unknown; pass one of squared, signed, both"
    ):
        random_projections(acts, 2, kind="cubed")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="k=0 must be 1 or more"):
        FoldProjections("x", X, 0)
    with pytest.raises(InputError, match="parts is empty; pass at least one feature set to join"):
        JoinedFeatures([])
    with pytest.raises(InputError, match="acts"):
        training_projections(acts, make(OTHER[:, :5]), 2)
    tokens = make(X)
    tokens.positions = ["all"]
    with pytest.raises(InputError, match=r"acts hold positions \['all'\], none of them pooled"):
        fold_projections(tokens, 2)


def test_tensors_of_low_precision_are_read_as_they_are() -> None:
    values = torch.randn(20, 3).bfloat16()
    np.testing.assert_array_equal(MatrixFeatures("x", values).values, values.double().numpy())
