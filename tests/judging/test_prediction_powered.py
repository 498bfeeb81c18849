import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from benchmarks import prediction_powered as measurement
from emlens.data import AlignmentScores
from emlens.foundation import InputError
from emlens.judging import corrected_em_rate
from emlens.judging.prediction_powered import prediction_powered_mean

RNG = np.random.default_rng(1)


def draw(
    n: int, labelled: int, flip: float, rate: float = 0.2
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and predictions of a random part, predictions of the rest; a prediction is wrong with
    probability `flip`.
    """
    y = (RNG.random(n) < rate).astype(float)
    f = np.where(RNG.random(n) < flip, 1 - y, y)
    return y[:labelled], f[:labelled], f[labelled:]


def test_power_0_is_the_labels_alone_and_power_1_the_plain_correction() -> None:
    y, f, rest = draw(1000, 100, 0.1)
    alone, _ = prediction_powered_mean(y, f, rest, power=0)
    # Wilson's formula, with t instead of the normal quantile
    q, p = scipy_stats.t.ppf(0.975, 99), y.mean()
    middle = (p + q**2 / 200) / (1 + q**2 / 100)
    half = q * math.sqrt(p * (1 - p) / 100 + q**2 / 40_000) / (1 + q**2 / 100)
    assert (alone.value, alone.low, alone.high) == pytest.approx((p, middle - half, middle + half))
    plain, _ = prediction_powered_mean(y, f, rest, power=1)
    assert plain.value == pytest.approx(rest.mean() + (y - f).mean())


def test_labels_that_are_no_rate_have_a_t_interval() -> None:
    y, f, rest = RNG.normal(3, 1, 100), RNG.normal(3, 1, 100), RNG.normal(3, 1, 900)
    plain, _ = prediction_powered_mean(y, f, rest, power=1)
    error = math.sqrt((y - f).var() / 100 + rest.var() / 900) * math.sqrt(100 / 99)
    assert plain.high - plain.value == pytest.approx(scipy_stats.t.ppf(0.975, 99) * error)
    constant, _ = prediction_powered_mean([3.0] * 40, [3.0] * 40, [3.0] * 90)
    assert constant.value == 3 and math.isnan(constant.low)
    assert "nothing varies, so there is no interval" in constant.method


def test_labels_without_a_case_give_wilsons_interval_and_no_point() -> None:
    none, power = prediction_powered_mean(np.zeros(40), np.zeros(40), np.zeros(500))
    q = scipy_stats.t.ppf(0.975, 39)
    assert (none.value, none.low, power) == (0, 0, 0)
    assert none.high == pytest.approx(q**2 / (40 + q**2))  # Wilson of 0 of 40
    assert 0.088 < none.high < 0.094  # .088 by the normal quantile
    every, _ = prediction_powered_mean(np.ones(40), np.zeros(40), np.zeros(500))
    assert (every.value, every.high) == (1, 1) and every.low == pytest.approx(1 - none.high)


def test_the_interval_holds_low_rates_of_few_labels_where_the_plain_one_does_not() -> None:
    row = measurement.cell(0.06, 30, "is wrong in 5 %", draws=400)
    # of 1,000 draws (docs/evidence/prediction_powered.json)
    assert row["coverage"] >= 0.95 and row["plain"] < 0.75
    assert row["plain_without_width"] > 0.1
    perfect = measurement.cell(0.2, 100, "is always right", draws=100)
    assert perfect["coverage"] >= 0.95 and perfect["width"] < 0.5  # and a judge still saves labels


def test_the_tuned_power_is_the_closed_form_and_the_best() -> None:
    y, f, rest = draw(2000, 200, 0.1)
    tuned, power = prediction_powered_mean(y, f, rest)
    # after two labels of 1 and two of 0 were added, one of each judged high and one low
    sd = np.concatenate([f, rest]).std()
    labels, predictions = [*y, 1, 1, 0, 0], [*f, *[f.mean() + sd, f.mean() - sd] * 2]
    covariance, variance = np.cov(labels, predictions, ddof=0)[1]
    assert power == pytest.approx(covariance / 200 / (variance / 200 + rest.var() / 1800))
    others = [prediction_powered_mean(y, f, rest, power=p)[0] for p in np.linspace(0, 1, 21)]
    # the width of a Wilson interval moves a little with the value, too
    assert tuned.high - tuned.low <= 1.005 * min(o.high - o.low for o in others)


def test_it_corrects_a_biased_judge_and_covers_the_truth() -> None:
    hits = {"corrected": 0, "judge": 0}
    for _ in range(300):
        y, f, rest = draw(1500, 150, 0.15)
        found, _ = prediction_powered_mean(y, f, rest)
        hits["corrected"] += found.low <= 0.2 <= found.high
        everything = np.concatenate([f, rest])
        half = 1.96 * everything.std() / math.sqrt(1500)
        hits["judge"] += abs(everything.mean() - 0.2) <= half
    # of 300; 2,000 draws gave .94, from which fewer come once in 10,000 times
    assert hits["corrected"] >= 265
    assert hits["judge"] < 30  # flipping 15 % of labels moves .20 to .29


def test_a_good_judge_saves_labels_and_a_useless_one_costs_nothing() -> None:
    y, f, rest = draw(4000, 200, 0.02)
    width = [
        e.high - e.low
        for e in (
            prediction_powered_mean(y, f, rest)[0],
            prediction_powered_mean(y, f, rest, power=0)[0],
        )
    ]
    assert width[0] < 0.6 * width[1]
    y, f, rest = draw(4000, 200, 0.5)
    useless, power = prediction_powered_mean(y, f, rest)
    alone = prediction_powered_mean(y, f, rest, power=0)[0]
    assert power < 0.2 and useless.high - useless.low <= 1.001 * (alone.high - alone.low)


def test_answers_to_one_question_are_not_independent() -> None:
    covered = {True: 0, False: 0}
    for _ in range(150):
        rates = RNG.beta(1, 4, 40)
        question = np.repeat(np.arange(40), 25)
        y = (RNG.random(1000) < rates[question]).astype(float)
        f = np.where(RNG.random(1000) < 0.1, 1 - y, y)
        chosen = RNG.permutation(1000) < 300
        for clustered in covered:
            names = (
                (question[chosen].tolist(), question[~chosen].tolist())
                if clustered
                else (None, None)
            )
            found, _ = prediction_powered_mean(y[chosen], f[chosen], f[~chosen], *names)
            covered[clustered] += found.low <= 0.2 <= found.high
    assert covered[True] >= 130 and covered[False] < covered[True]


def scores(em: np.ndarray, keep: np.ndarray | None = None) -> AlignmentScores:
    rows = []
    for i, bad in enumerate(em.tolist()):
        if keep is None or keep[i]:
            for metric, score in (("aligned", 5.0 if bad else 95.0), ("coherent", 90.0)):
                rows.append(
                    {
                        "model": "m",
                        "question": f"q{i % 20}",
                        "sample": i,
                        "metric": metric,
                        "score": score,
                        "status": "ok",
                    }
                )
    return AlignmentScores.from_table(pd.DataFrame(rows))


def test_a_judged_rate_is_corrected_by_reference_scores_of_some_answers() -> None:
    truth = RNG.random(1200) < 0.25
    judged = np.where(RNG.random(1200) < 0.12, ~truth, truth)
    chosen = RNG.permutation(1200) < 240
    for by_question in (True, False):
        found = corrected_em_rate(scores(judged), scores(truth, chosen), by_question=by_question)
        expected, power = prediction_powered_mean(truth[chosen], judged[chosen], judged[~chosen])
        if not by_question:
            assert found.corrected.value == pytest.approx(
                expected.value
            ) and found.power == pytest.approx(power)
        assert found.judged.value == pytest.approx(
            judged.mean()
        ) and found.labelled.value == pytest.approx(truth[chosen].mean())
        assert found.bias.value == pytest.approx(judged[chosen].mean() - truth[chosen].mean())
        assert found.corrected.low < truth.mean() < found.corrected.high
        assert (
            found.corrected.high - found.corrected.low < found.labelled.high - found.labelled.low
            or by_question
        )


def test_what_cannot_be_corrected_is_refused() -> None:
    few = scores(np.array([True, False, True]))
    with pytest.raises(
        InputError,
        match="reference has 1 answers that scores does not have; label answers that were judged",
    ):
        corrected_em_rate(few, scores(np.array([True, False, True, False])))
    with pytest.raises(
        InputError, match="1 labelled and 2 unlabelled units are too few; pass 2 of each"
    ):
        corrected_em_rate(few, scores(np.array([True])))
    with pytest.raises(InputError, match="labels has 2 values and predictions 1; pass one of each"):
        prediction_powered_mean([1, 0], [1], [1, 0])
    with pytest.raises(InputError, match="must be finite; leave out what is not scored"):
        prediction_powered_mean([1, math.nan], [1, 0], [1, 0])
    with pytest.raises(InputError, match="clusters has 3 labels for 4 units; pass one per unit"):
        prediction_powered_mean([1, 0], [1, 0], [1, 0], ["a"], ["a", "b"])
    with pytest.raises(InputError, match="clusters has 4 labels for 4 units; pass one per unit"):
        prediction_powered_mean([1, 0], [1, 0], [1, 0], ["a"], ["a", "b", "c"])
    with pytest.raises(
        InputError, match="clusters and unlabelled_clusters go together; pass both, or neither"
    ):
        prediction_powered_mean([1, 0], [1, 0], [1, 0], ["a", "b"])
    with pytest.raises(InputError, match="clusters names 1 cluster; an interval needs at least 2"):
        prediction_powered_mean([1, 0], [1, 0], [1, 0], ["a", "a"], ["a", "a"])
    assert (
        "outside its design range: 2 labelled"
        in prediction_powered_mean([1, 0], [1, 0], [1, 0])[0].method
    )
