from itertools import combinations, product

import numpy as np
import pytest
import torch
from scipy import stats

from emlens import EmlensError
from emlens.geometry import (
    label_permutation_null,
    neutral_text_null,
    subspace_overlap,
    top_k_subspace,
)
from emlens.geometry.permutations import sign_flip_null

SPECTRUM = 1 / torch.arange(1, 13, dtype=torch.float64).sqrt()


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def signed(signs: tuple[float, ...], x: torch.Tensor) -> torch.Tensor:
    return torch.tensor(signs, dtype=torch.float64) @ x


def cosine(x: torch.Tensor, y: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(x, y, dim=0))


def test_all_sign_patterns_of_few_deltas_each_once():
    x, r = rows(5, 8) + 0.5, rows(8, seed=1)
    along = sign_flip_null(x, statistic="mean_along", direction=3 * r)
    every = [
        float(signed(s, x).mul(r).sum() / (5 * r.norm())) for s in product((1.0, -1.0), repeat=5)
    ]
    assert along.observed == pytest.approx(every[0]) and along.distinct == 32 and along.exhaustive
    np.testing.assert_allclose(along.draws, sorted(every[1:]))
    norm = sign_flip_null(x)
    sizes = [float(signed((1.0, *s), x).norm() / 5) for s in product((1.0, -1.0), repeat=4)]
    assert norm.observed == pytest.approx(sizes[0]) and norm.distinct == 16
    np.testing.assert_allclose(norm.draws, sorted(sizes[1:]))
    assert norm.p_value() == np.mean(np.array(sizes) >= sizes[0] - 1e-12)
    with pytest.raises(
        EmlensError,
        match="p=0.01 cannot be reached by any number of draws: the null 'mean_norm of 5 deltas",
    ):
        norm.require_resolution(0.01)


def test_sign_flips_of_two_sets_move_the_cosine_of_their_means():
    a, b = rows(3, 8) + 0.5, rows(2, 8, seed=1)
    null = sign_flip_null(a, b, statistic="cosine_of_means")
    every = [
        cosine(signed((1.0, *s[:2]), a), signed(s[2:], b)) for s in product((1.0, -1.0), repeat=4)
    ]
    assert null.observed == pytest.approx(every[0]) and null.distinct == 16
    np.testing.assert_allclose(null.draws, sorted(every[1:]), atol=1e-12)


def test_random_signs_agree_with_all_of_them():
    x = rows(12, 8) + 0.2
    every, some = sign_flip_null(x), sign_flip_null(x, draws=1500)
    assert (
        every.exhaustive and not some.exhaustive and (every.distinct, some.distinct) == (2048, 2048)
    )
    assert stats.ks_2samp(every.draws, some.draws).pvalue > 1e-4
    assert sign_flip_null(rows(80, 8)).distinct is None
    assert (sign_flip_null(x, draws=9).draws == sign_flip_null(x, draws=9).draws).all()
    assert (sign_flip_null(x, draws=9).draws != sign_flip_null(x, draws=9, seed=1).draws).any()


def test_why_sign_flips_are_no_null_for_an_overlap():
    """Whatever the signs, the uncentred span stays: such a null would be one number, the observed
    one.
    """
    a, b = rows(20, 30), rows(20, 30, seed=1)
    signs = torch.where(rows(20, seed=2) > 0, 1.0, -1.0).double()[:, None]
    as_it_was = subspace_overlap(
        top_k_subspace(a, 3, center=False), top_k_subspace(b, 3, center=False)
    )
    flipped = subspace_overlap(
        top_k_subspace(a * signs, 3, center=False), top_k_subspace(b, 3, center=False)
    )
    torch.testing.assert_close(as_it_was, flipped)


@pytest.mark.parametrize(("n_a", "n_b", "distinct"), [(3, 3, 10), (2, 4, 15), (4, 2, 15)])
def test_all_labellings_of_few_vectors_each_once(n_a, n_b, distinct):
    x = rows(6, 5) + 100
    null = label_permutation_null(x[:n_a], x[n_a:])
    every = []
    for chosen in combinations(range(6), n_a):
        others = [i for i in range(6) if i not in chosen]
        every.append(float((x[list(chosen)].mean(0) - x[others].mean(0)).norm()))
    assert (
        null.observed == pytest.approx(every[0]) and null.distinct == distinct and null.exhaustive
    )
    np.testing.assert_allclose(
        sorted([null.observed, *null.draws]), sorted(every)[:: len(every) // distinct], rtol=1e-9
    )
    along = label_permutation_null(
        x[:n_a], x[n_a:], statistic="mean_difference_along", direction=torch.eye(5)[0]
    )
    assert along.observed == pytest.approx(float((x[:n_a].mean(0) - x[n_a:].mean(0))[0]))
    assert along.distinct == len(every)


def test_random_labels_agree_with_all_of_them():
    x = rows(12, 5)
    every, some = (label_permutation_null(x[:5], x[5:], draws=draws) for draws in (9999, 700))
    assert every.exhaustive and some.n_draws == 700 and some.distinct == 792
    assert stats.ks_2samp(every.draws, some.draws).pvalue > 1e-4
    assert stats.ks_2samp(every.draws, label_permutation_null(x[:2], x[2:]).draws).pvalue < 1e-4
    assert label_permutation_null(rows(60, 3), rows(60, 3, seed=1), draws=5).distinct is None


@pytest.mark.parametrize("kind", ["signs", "labels"])
def test_level_and_power(kind):
    def p(seed: int, shift: float) -> float:
        a, b = rows(2, 10, 12, seed=seed) * SPECTRUM
        null = (
            sign_flip_null(a + shift, draws=99)
            if kind == "signs"
            else label_permutation_null(a + shift, b, draws=99)
        )
        return null.p_value()

    assert 0.0 < np.mean([p(seed, 0.0) <= 0.05 for seed in range(150)]) < 0.12
    assert np.mean([p(seed, 0.8) <= 0.05 for seed in range(20)]) > 0.9


def test_neutral_text_explains_what_the_template_alone_gives():
    """All deltas share the template's directions; only in the second case do training and
    evaluation share more.
    """
    template, topic = 4 * torch.eye(30)[:2].double(), 4 * torch.eye(30)[2:4].double()

    def deltas(seed: int, about_topic: bool, n: int = 24) -> torch.Tensor:
        x = rows(n, 30, seed=seed) + rows(n, 2, seed=seed + 1) @ template
        return x + rows(n, 2, seed=seed + 2) @ topic if about_topic else x

    p = {}
    for about_topic in (False, True):
        null = neutral_text_null(
            deltas(0, True),
            deltas(10, about_topic),
            deltas(20, False, 120),
            4,
            center=True,
            draws=99,
        )
        p[about_topic] = null.p_value()
        assert null.mean > 0.3  # far above 4/30: the template is in the null
    assert p[True] == 0.01 and p[False] > 0.05


def test_neutral_null_is_the_loop_over_all_choices():
    train, evaluation, neutral = rows(8, 9), rows(3, 9, seed=1), rows(3, 9, seed=2)
    null = neutral_text_null(train, evaluation, neutral, 2, center=True, measure="min_cos")
    pooled, base = torch.cat([evaluation, neutral]), top_k_subspace(train, 2, center=True)
    every = [
        float(subspace_overlap(base, top_k_subspace(pooled[list(c)], 2, center=True), "min_cos"))
        for c in combinations(range(6), 3)
    ]
    assert null.observed == pytest.approx(every[0]) and null.distinct == 20 and null.exhaustive
    np.testing.assert_allclose(null.draws, sorted(every[1:]), atol=1e-9)


def test_neutral_null_is_exact_under_anisotropy():
    def p(seed: int) -> float:
        null = neutral_text_null(*(rows(3, 8, 12, seed=seed) * SPECTRUM), 2, center=True, draws=39)
        return null.p_value()

    values = [p(seed) for seed in range(120)]
    assert 0.0 < np.mean(np.array(values) <= 0.05) < 0.12
    assert stats.kstest(values, "uniform").pvalue > 1e-4


X = rows(6, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: sign_flip_null(X, statistic="subspace_overlap"),
            "leaves the span that they have as it is, so this is not a null for an overlap; use",
        ),
        (
            lambda: sign_flip_null(X, statistic="principal_angles"),
            "statistic='principal_angles': turning deltas round",
        ),
        (
            lambda: label_permutation_null(X, X, statistic="overlap"),
            "statistic='overlap': permuting the labels of two sets asks whether both are one",
        ),
        (
            lambda: label_permutation_null(X, X, statistic="variance_captured"),
            "which is the ceiling of an overlap and not chance; use split_half_ceiling",
        ),
        (
            lambda: sign_flip_null(X, statistic="median"),
            "statistic='median' is unknown; pass one of mean_norm, mean_along, cosine_of_means",
        ),
        (
            lambda: label_permutation_null(X, X, statistic="mean"),
            "pass one of mean_difference_norm, mean_difference_along",
        ),
        (
            lambda: sign_flip_null(X, statistic="mean_along"),
            "statistic='mean_along' needs direction, a vector of shape",
        ),
        (
            lambda: sign_flip_null(X, statistic="mean_along", direction=X),
            r"direction has shape \(6, 5\); pass a vector",
        ),
        (
            lambda: sign_flip_null(X, statistic="mean_along", direction=torch.zeros(5)),
            "direction is zero; pass a vector of positive",
        ),
        (
            lambda: sign_flip_null(X, statistic="mean_along", direction=torch.ones(4)),
            "the rows has 5 coordinates and direction has 4",
        ),
        (
            lambda: sign_flip_null(X, statistic="cosine_of_means"),
            "statistic='cosine_of_means' needs other, the deltas of the second set",
        ),
        (lambda: sign_flip_null(X, X), "statistic='mean_norm' takes one set; leave other out"),
        (
            lambda: sign_flip_null(X[:1]),
            "there is one arrangement only, the observed one; more rows are needed",
        ),
        (lambda: sign_flip_null(X, draws=0), "draws=0 must be an integer of 1 or more"),
        (lambda: label_permutation_null(X, X[:, :4]), "a has 5 coordinates and b has 4"),
        (
            lambda: neutral_text_null(X, X, X, 2, center="mean"),
            "center='mean' must be True or False here",
        ),
        (
            lambda: neutral_text_null(X, X, X, 6, center=True),
            "train: a sample of 6 vectors has rank below k=6",
        ),
        (
            lambda: neutral_text_null(X, X[:2], X, 2, center=True),
            "evaluation or neutral: a sample of 2 vectors has rank below k=2",
        ),
    ],
)
def test_refusals(unchecked, call, message):
    with pytest.raises(EmlensError, match=message):
        call()
