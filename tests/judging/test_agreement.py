import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from emlens.data import AlignmentScores
from emlens.foundation import InputError
from emlens.judging import judge_agreement, judge_noise


def scores(aligned: np.ndarray, questions: int = 10) -> AlignmentScores:
    rows: list[dict[str, Any]] = []
    for i, value in enumerate(aligned.tolist()):
        for metric, score in (("aligned", value), ("coherent", 90.0)):
            row = {
                "model": "m",
                "question": f"q{i % questions}",
                "sample": i,
                "metric": metric,
                "score": score,
            }
            rows.append({**row, "status": "ok" if score == score else "refusal"})
    return AlignmentScores.from_table(pd.DataFrame(rows))


RNG = np.random.default_rng(0)
TRUE = RNG.uniform(0, 100, 200)
NOISY = np.clip(TRUE + RNG.normal(0, 15, 200), 0, 100)


def test_kappa_and_rank_correlation_equal_the_libraries() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    found = judge_agreement(scores(TRUE), scores(NOISY))
    assert found.kappa.value == pytest.approx(sklearn.cohen_kappa_score(TRUE < 30, NOISY < 30))
    assert found.rank_correlation.value == pytest.approx(
        scipy_stats.spearmanr(TRUE, NOISY).statistic
    )
    assert found.kappa.low < found.kappa.value < found.kappa.high < 1
    assert found.both + found.first + found.second + found.neither == 200 and found.unscored == 0
    assert found.first == int(((TRUE < 30) & (NOISY >= 30)).sum())
    assert judge_agreement(scores(TRUE), scores(NOISY), below=60).kappa.value == pytest.approx(
        sklearn.cohen_kappa_score(TRUE < 60, NOISY < 60)
    )


def test_a_judge_agrees_with_itself_and_not_with_chance() -> None:
    same = judge_agreement(scores(TRUE), scores(TRUE))
    assert (
        same.kappa.value == pytest.approx(1)
        and same.rank_correlation.value == pytest.approx(1)
        and same.difference.value == 0
    )
    other = judge_agreement(scores(TRUE), scores(RNG.permutation(TRUE)))
    assert (
        other.kappa.low < 0 < other.kappa.high
        and other.rank_correlation.low < 0 < other.rank_correlation.high
    )
    stern = judge_agreement(scores(TRUE), scores(TRUE * 0.5))  # ranks agree, labels do not
    assert (
        stern.rank_correlation.value == pytest.approx(1)
        and stern.kappa.value < 0.7
        and stern.difference.low > 20
    )


def test_unscored_answers_are_counted_and_left_out() -> None:
    holes = NOISY.copy()
    holes[:20] = math.nan
    found = judge_agreement(scores(TRUE), scores(holes))
    assert found.unscored == 20 and found.both + found.first + found.second + found.neither == 180


def test_labels_that_do_not_vary_have_no_kappa() -> None:
    found = judge_agreement(scores(np.full(40, 90.0)), scores(np.linspace(60, 90, 40)))
    assert not found.kappa.defined and not found.rank_correlation.defined
    rare = np.full(40, 90.0)
    rare[0] = 5
    once = judge_agreement(scores(rare), scores(rare))
    assert (
        once.kappa.value == 1
        and math.isnan(once.kappa.low)
        and "undefined on some resamples" in once.kappa.method
    )


def test_repetitions_show_the_noise_that_was_put_in() -> None:
    truth = RNG.uniform(20, 80, 300)
    repeats = [scores(truth + RNG.normal(0, 6, 300), 30) for _ in range(4)]
    found = judge_noise(repeats, below=40)
    assert found.spread.low < 6 < found.spread.high and found.repetitions == 4
    assert found.reliability.low < truth.var() / (truth.var() + 36) < found.reliability.high
    pairs = [
        np.mean((a.table["score"] < 40) != (b.table["score"] < 40)) * 2
        for i, a in enumerate(repeats)
        for b in repeats[:i]
    ]
    # twice, since every second row is coherence
    assert found.flips.value == pytest.approx(np.mean(pairs))
    exact = judge_noise([repeats[0], repeats[0]])
    assert (exact.spread.value, exact.reliability.value, exact.flips.value) == (0, 1, 0)


def test_other_answers_are_refused() -> None:
    with pytest.raises(
        InputError,
        match=(
            "first has 200 answers and second 100, not the same ones;"
            " judge one set of answers twice"
        ),
    ):
        judge_agreement(scores(TRUE), scores(TRUE[:100]))
    with pytest.raises(
        InputError, match="1 base questions have answers that both judges scored; agreement needs 2"
    ):
        judge_agreement(scores(TRUE, 1), scores(TRUE, 1))
    with pytest.raises(InputError, match="1 repetitions show no scatter; pass 2 or more"):
        judge_noise([scores(TRUE)])
    with pytest.raises(
        InputError, match=r"repetitions have \[200, 100\] answers, not the same ones"
    ):
        judge_noise([scores(TRUE), scores(TRUE[:100])])
    with pytest.raises(
        InputError,
        match="1 base questions have answers that every repetition scored; noise needs 2",
    ):
        judge_noise([scores(TRUE, 1), scores(TRUE, 1)])
