import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.covariance import OAS, oas
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from emlens import EmlensError
from emlens.foundation import Site
from emlens.geometry import (
    Direction,
    direction_cosine,
    mean_difference_direction,
    text_content,
    whitened_direction,
)
from emlens.geometry.contrasts import direction_from_deltas
from emlens.geometry.shrinkage import oas_shrinkage, whiten_by_covariance, whiten_by_rows

SITE = Site("resid_post", 3)


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


D = Direction(rows(4), SITE)


def test_mean_difference_points_to_positive_and_keeps_the_baseline():
    planted = rows(16, seed=5)
    negative, positive = rows(400, 16), rows(300, 16, seed=1) + 3 * planted
    direction = mean_difference_direction(
        positive,
        negative,
        site="resid_post.3",
        position="last_prompt",
        ids={"positive": ["a", "b"]},
        provenance={"x": 1},
    )
    torch.testing.assert_close(direction.vector, positive.mean(0) - negative.mean(0))
    torch.testing.assert_close(direction.baseline, negative.mean(0))
    assert direction_cosine(direction, planted) > 0.99
    assert direction.norm == pytest.approx(float(direction.vector.norm()))
    assert float(direction.unit.norm()) == pytest.approx(1)
    assert (direction.site, direction.position, direction.d_model) == (SITE, "last_prompt", 16)
    assert dict(direction.ids) == {"positive": ("a", "b")} and dict(direction.provenance) == {
        "x": 1
    }
    backwards = mean_difference_direction(negative, positive, site=SITE)
    assert direction_cosine(direction, backwards) == pytest.approx(-1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_a_common_shift_does_not_turn_it(seed):
    positive, negative, shift = (
        rows(6, 5, seed=seed),
        rows(9, 5, seed=seed + 1),
        50 * rows(5, seed=seed + 2),
    )
    plain = mean_difference_direction(positive, negative, site=SITE)
    moved = mean_difference_direction(positive + shift, negative + shift, site=SITE)
    torch.testing.assert_close(moved.vector, plain.vector, atol=1e-12, rtol=0)


def test_dtype_follows_the_input():
    assert (
        mean_difference_direction(
            rows(4, 3).float(), rows(4, 3, seed=1).float(), site=SITE
        ).vector.dtype
        == torch.float32
    )
    assert (
        mean_difference_direction(rows(4, 3).float(), rows(4, 3, seed=1), site=SITE).vector.dtype
        == torch.float64
    )
    assert Direction(rows(3).to(torch.bfloat16), SITE).unit.dtype == torch.float32


def test_from_deltas():
    planted = torch.linalg.qr(rows(12, 1)).Q[:, 0]
    deltas = (
        0.05 * rows(80, 12, seed=1)
        - torch.linspace(1, 3, 80, dtype=torch.float64)[:, None] * planted
    )
    mean = direction_from_deltas(deltas, site="resid_post.3")
    torch.testing.assert_close(mean.vector, deltas.mean(0))
    component = direction_from_deltas(
        deltas, site=SITE, kind="top_component", position="last", ids={"rows": ["q"]}
    )
    assert direction_cosine(component, -planted) > 0.999  # signed like the mean delta
    assert component.norm == pytest.approx(
        float((deltas @ planted).square().mean().sqrt()), rel=1e-3
    )
    opposed = torch.cat([deltas, -deltas])
    assert (
        abs(
            direction_cosine(
                direction_from_deltas(opposed, site=SITE, kind="top_component"), planted
            )
        )
        > 0.999
    )


def anisotropic(n: int, d: int, seed: int) -> torch.Tensor:
    return rows(n, d, seed=seed) / torch.arange(1, d + 1, dtype=torch.float64)


@pytest.mark.parametrize("d", [6, 60])
def test_whitening_is_the_discriminant_of_scikit_learn(d):
    positive, negative = anisotropic(20, d, 1) + 0.3, anisotropic(15, d, 2)
    direction = whitened_direction(
        positive, negative, site=SITE, shrinkage=0.2, position="last", ids={"positive": ["a"]}
    )
    centred = torch.cat([positive - positive.mean(0), negative - negative.mean(0)])
    pooled = centred.T @ centred / 33
    shrunk = 0.8 * pooled + 0.2 * pooled.trace() / d * torch.eye(d, dtype=torch.float64)
    expected = torch.linalg.inv(shrunk) @ (positive.mean(0) - negative.mean(0))
    assert direction_cosine(direction, expected) == pytest.approx(1, abs=1e-10)
    difference = positive.mean(0) - negative.mean(0)
    # one step along it moves one mean to the other
    assert direction.norm == pytest.approx(float(difference @ direction.unit))
    torch.testing.assert_close(direction.baseline, negative.mean(0))
    assert (
        direction.provenance["shrinkage"] == 0.2
        and direction.position == "last"
        and direction.ids == {"positive": ("a",)}
    )
    labels = np.r_[np.ones(20), np.zeros(15)]
    sklearn = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=_Given(shrunk.numpy()))
    weights = sklearn.fit(torch.cat([positive, negative]).numpy(), labels).coef_[0]
    assert direction_cosine(direction, torch.tensor(weights)) == pytest.approx(1, abs=1e-10)


class _Given:
    """A covariance estimator that has its answer already; scikit-learn mixes the classes' estimates
    by their sizes.
    """

    def __init__(self, covariance):
        self.covariance_ = covariance

    def fit(self, x):
        return self


def test_shrinkage_is_that_of_scikit_learn():
    x = anisotropic(40, 12, 3).numpy()
    _, expected = oas(x, assume_centered=False)
    covariance = OAS(store_precision=False).fit(x)  # the empirical covariance there divides by n
    sample = np.cov(x.T, bias=True)
    assert oas_shrinkage(np.trace(sample), np.trace(sample @ sample), 12, 40) == pytest.approx(
        expected
    )
    assert covariance.shrinkage_ == pytest.approx(expected)
    assert oas_shrinkage(3.0, 3.0, 3, 10) == 1.0


def test_few_rows_and_many_give_the_same_inverse():
    x, vector = rows(7, 20), rows(20, seed=4)
    for shrinkage in ("oas", 0.1, 1.0):
        few, rho = whiten_by_rows(x, vector, 5, shrinkage)
        many, again = whiten_by_covariance(x.T @ x / 5, vector, 5, shrinkage)
        torch.testing.assert_close(few, many, rtol=1e-9, atol=0)
        assert rho == pytest.approx(again)


def test_whitening_finds_what_causes_nothing_where_noise_is_anisotropic():
    """With noise along e1 far above the rest and a shift along e1 + e2, the discriminant turns to
    e2; the mean difference does not.
    """
    noise = torch.tensor([5.0, 0.2, 1.0, 1.0], dtype=torch.float64)
    shift = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    positive, negative = rows(4000, 4, seed=1) * noise + shift, rows(4000, 4, seed=2) * noise
    plain = mean_difference_direction(positive, negative, site=SITE)
    white = whitened_direction(positive, negative, site=SITE, shrinkage=0.0)
    assert direction_cosine(white, shift / noise**2) > 0.999
    assert direction_cosine(plain, shift) > 0.98 > 0.8 > direction_cosine(white, shift)
    same = whitened_direction(positive, negative, site=SITE, shrinkage=1.0)
    assert direction_cosine(same, plain) == pytest.approx(1)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_whitening_turns_with_the_rows(seed):
    q = torch.linalg.qr(rows(8, 8, seed=seed)).Q
    positive, negative = anisotropic(9, 8, 1) + 1, anisotropic(6, 8, 2)
    plain = whitened_direction(positive, negative, site=SITE)
    turned = whitened_direction(positive @ q, negative @ q, site=SITE)
    torch.testing.assert_close(turned.vector, plain.vector @ q, atol=1e-9, rtol=0)


def test_what_the_text_alone_shows_is_taken_away():
    text, added = rows(30, seed=1), rows(30, seed=2)
    added -= (added @ text) / (text @ text) * text
    ids = {"misaligned": ("a",), "aligned": ("b",)}
    own = Direction(
        text + added,
        SITE,
        "mean_response",
        baseline=rows(30),
        ids=ids,
        provenance={"model": {"name": "bad"}},
    )
    other = Direction(
        text, SITE, "mean_response", ids=ids, provenance={"model": {"name": "instruct"}}
    )
    content = text_content(own, other)
    torch.testing.assert_close(content.remainder.vector, added)
    assert content.cosine == pytest.approx(float(text.norm() / (text + added).norm()))
    assert content.share == pytest.approx(
        float(text @ text) / float((text + added) @ (text + added))
    )
    assert content.remainder.provenance[
        "text_content"
    ] == "subtract" and content.remainder.provenance["text_content_model"] == {"name": "instruct"}
    assert torch.equal(content.remainder.baseline, own.baseline)
    double = Direction(2 * text, SITE, "mean_response", ids=ids)
    projected = text_content(own, double, "project")
    # blind to how long the other model's difference is
    torch.testing.assert_close(projected.remainder.vector, added)
    assert direction_cosine(text_content(own, double).remainder, added) < 0.99  # subtraction is not


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: mean_difference_direction(rows(3, 4), rows(3, 5), site=SITE),
            "positive has 4 coordinates and negative has 5",
        ),
        (
            lambda: mean_difference_direction(rows(0, 4), rows(3, 4), site=SITE),
            r"positive has shape \(0, 4\); pass at least one",
        ),
        (
            lambda: mean_difference_direction(rows(3, 4), rows(4), site=SITE),
            r"negative has shape \(4,\); pass rows",
        ),
        (
            lambda: mean_difference_direction(rows(2, 3, 4), rows(3, 4), site=SITE),
            r"positive has shape \(2, 3, 4\) and negative",
        ),
        (
            lambda: mean_difference_direction(
                rows(50, 4), rows(50, 4)[torch.randperm(50)], site=SITE
            ),
            (
                r"positive and negative have the same mean \(they differ by .*\),"
                r" so no direction lies between them"
            ),
        ),
        (
            lambda: direction_from_deltas(torch.cat([rows(9, 4), -rows(9, 4)]), site=SITE),
            "deltas have mean zero",
        ),
        (
            lambda: direction_from_deltas(rows(9, 4), site=SITE, kind="median"),
            "kind='median' is unknown; pass 'mean'",
        ),
        (
            lambda: direction_from_deltas(rows(2, 9, 4), site=SITE),
            r"deltas has shape \(2, 9, 4\); pass one",
        ),
        (
            lambda: whitened_direction(rows(1, 4), rows(3, 4), site=SITE),
            "positive has 1 rows and negative 3; a covariance within classes needs 2 of each",
        ),
        (
            lambda: whitened_direction(rows(3, 9), rows(3, 9, seed=1), site=SITE, shrinkage=0.0),
            (
                "shrinkage=0 with 4 degrees of freedom in 9 dimensions has no inverse;"
                " pass 'oas' or more rows"
            ),
        ),
        (
            lambda: whitened_direction(rows(3, 4), rows(3, 4, seed=1), site=SITE, shrinkage=1.1),
            "shrinkage=1.1 must be 'oas' or a number from 0",
        ),
        (
            lambda: whitened_direction(torch.ones(3, 4), torch.zeros(3, 4), site=SITE),
            "rows do not vary within their class, so there is no covariance to whiten with",
        ),
        (lambda: text_content(D, D, "drop"), "how='drop' is unknown; pass 'subtract' or 'project'"),
        (
            lambda: text_content(D, Direction(rows(4), "resid_post.2")),
            "direction has site 'resid_post.3' and other 'resid_post.2'",
        ),
        (
            lambda: text_content(D, Direction(rows(4), SITE, "last")),
            "direction has position 'None' and other 'last'",
        ),
        (
            lambda: text_content(D, Direction(rows(4), SITE, ids={"aligned": ["x"]})),
            "come from different rows; have both models read the same",
        ),
        (lambda: text_content(D, D), "nothing of the direction is left without its text content"),
    ],
)
def test_refusals(unchecked, call, message):
    with pytest.raises(EmlensError, match=message):
        call()
