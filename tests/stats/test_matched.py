"""The matched-loss test: level under each of its nulls, power for a planted group, what noise of
the losses does, what is refused.
"""

import numpy as np
import pytest
import statsmodels.api as sm

from emlens.foundation import InputError
from emlens.stats.matched import matched_loss_test

REPEATS = 100
# a true level of .05 lies below it in 998 of 1,000 runs of this test
LEVEL_BOUND = 0.05 + 3 * np.sqrt(0.05 * 0.95 / REPEATS)


def sweep(seed, *, n=48, groups=6, effect=0.0, shift=0.0, loss_noise=0.0, curved=False):
    """Losses, scores and group labels; group 1 lies `effect` standard deviations above the
    relation, group 0 has higher losses.
    """
    rng = np.random.default_rng(seed)
    label = np.arange(n) % groups
    loss = rng.normal(size=n) + shift * (label == 0)
    score = (
        (4 * np.tanh(1.5 * loss) if curved else 3 * loss)
        + rng.normal(size=n)
        + effect * (label == 1)
    )
    return loss + loss_noise * rng.normal(size=n), score, label


def rate(repeats=REPEATS, single=False, relation="linear", loss_error=0.0, draws=99, **world):
    """Share of sweeps in which something is found at .05, and in which all simultaneous intervals
    hold 0.
    """
    result, held = 0, 0
    for seed in range(repeats):
        loss, score, label = sweep(seed, **world)
        test = matched_loss_test(
            loss,
            score,
            groups=None if single else label,
            relation=relation,
            loss_error=loss_error,
            draws=draws,
            seed=seed,
        )
        result += test.p <= 0.05
        rows = test.table.dropna()
        held += bool(((rows["gap_low"] <= 0) & (rows["gap_high"] >= 0)).all())
    return result / repeats, held / repeats


@pytest.mark.parametrize("single", [False, True], ids=["groups", "single runs"])
def test_nothing_is_found_where_every_run_follows_one_relation(single):
    false, held = rate(single=single, n=24 if single else 48)
    assert false <= LEVEL_BOUND and held >= 1 - LEVEL_BOUND


def test_a_planted_better_group_is_found_and_named():
    tests = [
        matched_loss_test(*sweep(seed, effect=2.0)[:2], groups=sweep(seed)[2], draws=199, seed=seed)
        for seed in range(20)
    ]
    hits = [test for test in tests if test.p <= 0.05 and test.best.method.startswith("1: ")]
    assert len(hits) >= 18
    assert np.mean([test.best.value for test in tests]) == pytest.approx(2.0, abs=0.3)
    assert all(
        test.table.set_index("group").loc["1", "gap_low"]
        < 2.0
        < test.table.set_index("group").loc["1", "gap_high"]
        for test in tests[:5]
    )


def test_one_run_that_stands_out_is_found():
    loss, score, _ = sweep(3)
    score[7] += 8
    test = matched_loss_test(loss, score, draws=999)
    assert test.p <= 0.005 and test.table["t"].idxmax() == 7 and test.best.low > 0
    score[7] -= 16  # a worse run is not a finding
    assert matched_loss_test(loss, score, draws=999).table.loc[7, "p"] > 0.9


def test_noise_of_losses_makes_high_groups_look_better_and_its_error_takes_that_out():
    naive, _ = rate(repeats=60, n=72, shift=2.0, loss_noise=0.6)
    corrected, _ = rate(n=72, shift=2.0, loss_noise=0.6, loss_error=0.6)
    assert naive > 0.2 and corrected <= LEVEL_BOUND


def test_a_curved_relation_is_what_isotonic_is_for():
    false, _ = rate(repeats=40, relation="isotonic", curved=True, draws=39)
    assert false <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 40)
    loss, score, label = sweep(1, effect=2.5, curved=True)
    test = matched_loss_test(loss, score, groups=label, relation="isotonic", draws=199)
    assert test.p <= 0.02 and test.best.method.startswith(
        "1: isotonic relation, residuals permuted"
    )
    assert (np.diff(test.fitted[np.argsort(loss)]) >= 0).all() and test.slope > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"single": True}, {"relation": "isotonic", "curved": True, "repeats": 300, "draws": 99}],
    ids=str,
)
def test_level_over_many_sweeps(options):
    false, _ = rate(**{"repeats": 2000, **options})
    assert false <= 0.065


def test_gap_and_t_are_those_of_a_regression_with_a_dummy():
    loss, score, label = sweep(5)
    test = matched_loss_test(loss, score, groups=label, draws=19)
    for i, name in enumerate(test.table["group"]):
        fit = sm.OLS(score, np.column_stack([np.ones(48), loss, label == int(name)])).fit()
        assert test.table["gap"][i] == pytest.approx(fit.params[2]) and test.table["t"][
            i
        ] == pytest.approx(fit.tvalues[2])
    assert test.slope == pytest.approx(np.polyfit(loss, score, 1)[0])
    assert test.scatter == pytest.approx(
        np.sqrt(sm.OLS(score, sm.add_constant(loss)).fit().mse_resid)
    )


def test_units_change_nothing_and_the_seed_everything_random():
    loss, score, label = sweep(2, effect=1.0)
    test = matched_loss_test(loss, score, groups=label, draws=99)
    same = matched_loss_test(10 + 3 * loss, 5 - 0.0 + 100 * score, groups=label, draws=99)
    assert np.allclose(test.table["t"], same.table["t"]) and np.allclose(
        test.table["p"], same.table["p"]
    )
    assert np.allclose(100 * test.table["gap_low"], same.table["gap_low"])
    assert (
        matched_loss_test(loss, score, groups=label, draws=99, seed=1).null.mean != test.null.mean
    )


def test_a_run_of_the_highest_loss_has_nothing_to_be_compared_with():
    loss = np.arange(12.0)
    score = 0.2 * loss + np.random.default_rng(0).normal(size=12)
    table = matched_loss_test(loss, score, relation="isotonic", draws=99).table
    assert table["gap"].isna().tolist() == [False] * 11 + [True]
    tied = matched_loss_test(np.repeat(loss[:6], 2), score, relation="isotonic", draws=99).table
    assert tied["gap"].notna().all()


def test_strata_keep_residuals_where_they_are():
    rng = np.random.default_rng(4)
    # scatter differs by learning rate, and one schedule has only one rate
    rate_of_run = np.repeat([0, 1], 24)
    loss = rng.normal(size=48)
    score = loss + rng.normal(size=48) * np.where(rate_of_run == 0, 0.1, 3.0)
    schedule = np.where(rate_of_run == 0, "slow", np.where(np.arange(48) % 2, "a", "b"))
    free, kept = (
        matched_loss_test(loss, score, groups=schedule, strata=s, draws=499)
        for s in (None, rate_of_run)
    )
    assert "within strata" in kept.method and kept.null.sd != free.null.sd


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": np.arange(5.0), "score": np.arange(5.0)}, "loss has 5 values; pass at least 8"),
        ({"relation": "cubic"}, "relation='cubic' is unknown; pass one of 'linear', 'isotonic'"),
        ({"groups": None, "strata": [0, 1] * 6}, "strata and loss_error need groups="),
        (
            {"relation": "isotonic", "loss_error": 0.1},
            "loss_error=0.1 was given with relation='isotonic'",
        ),
        (
            {"loss": np.ones(12)},
            "every loss is equal, so there is no relation to compare scores with",
        ),
        (
            {"score": 2 * np.arange(12.0)},
            "12 runs leave 10 degrees of freedom and no scatter about the linear relation",
        ),
        (
            {"score": np.arange(12.0) ** 2, "relation": "isotonic"},
            "12 runs leave 1 degrees of freedom and no scatter about the isotonic relation",
        ),
        (
            {"groups": ["a"] * 12},
            "groups has one label, 'a'; pass two groups or more, or None for single runs",
        ),
        (
            {"groups": range(12)},
            (
                "groups puts each of 12 runs in a group of its own, which permuting cannot test;"
                " pass groups=None"
            ),
        ),
        ({"groups": ["a", "b"]}, "groups has 2 labels for 12 runs; pass one label per run"),
        (
            {"loss_error": 5.0},
            (
                r"loss_error=5 beside losses that spread by 3.61:"
                r" noise must be above 0 and leave half of their variance"
            ),
        ),
        ({"draws": 0}, "draws=0 must be an integer of 1 or more"),
        (
            {
                "groups": ["low"] * 11 + ["high"],
                "relation": "isotonic",
                "loss": [*[1.0, 2.0] * 5, 2.0, 1.0],
            },
            None,
        ),
        ({"groups": ["high", "low"] * 6, "relation": "isotonic", "loss": [3.0, 1.0] * 6}, None),
    ],
)
def test_what_cannot_be_tested_is_refused(unchecked, options, message):
    rng = np.random.default_rng(0)
    given = {
        "loss": np.arange(12.0),
        "score": rng.normal(size=12),
        "groups": ["a", "b"] * 6,
        "draws": 19,
        **options,
    }
    if message is None:
        assert (
            matched_loss_test(given.pop("loss"), given.pop("score"), **given)
            .table["t"]
            .notna()
            .any()
        )
        return
    with pytest.raises(InputError, match=message):
        matched_loss_test(given.pop("loss"), given.pop("score"), **given)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", [5, 12])
def test_few_runs_some_of_whose_draws_fit_without_residue_are_still_tested(seed):
    loss = np.arange(9.0)
    score = loss + np.random.default_rng(seed).normal(scale=3, size=9)
    test = matched_loss_test(loss, score, groups=[0, 1, 2] * 3, relation="isotonic", draws=99)
    assert 0 < test.p <= 1 and np.isfinite(test.null.draws).all()
