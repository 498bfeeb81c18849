import numpy as np
import pandas as pd
import pytest

from emlens.data import AlignmentScores
from emlens.foundation.errors import InputError
from emlens.probes.ceilings import ceiling_from_answers, ceiling_from_seeds
from emlens.probes.targets import sampling_weights


def sampled(truth: np.ndarray, noise: float, answers: int, seed: int) -> AlignmentScores:
    rng = np.random.default_rng(seed)
    rows = [
        {
            "model": "m",
            "question": f"q{i}",
            "sample": s,
            "metric": "aligned",
            "score": t + noise * rng.standard_normal(),
            "status": "ok",
        }
        for i, t in enumerate(truth)
        for s in range(answers)
    ]
    for row in rows:
        row["score"] = float(np.clip(row["score"], 0, 100))
    return AlignmentScores.from_table(pd.DataFrame(rows))


def test_the_ceiling_is_what_a_forecast_of_the_truth_reaches() -> None:
    rng = np.random.default_rng(0)
    truth = 50 + 6 * rng.standard_normal(400)
    scores = sampled(truth, 12, 4, 1)  # sampling variance 144/4 = 36, as large as the truth's
    measured = scores.per_question("aligned").to_numpy()
    reached = 1 - ((measured - truth) ** 2).sum() / ((measured - measured.mean()) ** 2).sum()
    found = ceiling_from_answers(scores)
    assert found.value == pytest.approx(reached, abs=0.06) and reached == pytest.approx(
        0.5, abs=0.1
    )
    assert found.low < reached < found.high and found.n == 400
    assert ceiling_from_answers(sampled(truth, 1, 4, 1)).value > 0.98
    grouped = ceiling_from_answers(scores, clusters={f"q{i}": f"g{i % 20}" for i in range(400)})
    assert grouped.n == 20 and grouped.value == found.value


def test_the_ceiling_of_seeds_is_what_they_have_in_common() -> None:
    rng = np.random.default_rng(0)
    shared = rng.standard_normal(500)
    table = pd.DataFrame({s: 50 + 3 * shared + 4 * rng.standard_normal(500) for s in range(5)})
    found = ceiling_from_seeds(table)
    assert found.value == pytest.approx(9 / 25, abs=0.07) and found.low < 9 / 25 < found.high
    pairs = [np.corrcoef(table[a], table[b])[0, 1] for a in range(5) for b in range(a)]
    assert found.value == pytest.approx(np.mean(pairs), abs=0.01)
    assert ceiling_from_seeds(table, clusters=[f"g{i % 10}" for i in range(500)]).n == 10
    # nothing in common
    assert abs(ceiling_from_seeds(pd.DataFrame(rng.standard_normal((400, 3)))).value) < 0.1


def test_weights_follow_sampling_error_and_never_let_one_question_rule() -> None:
    rng = np.random.default_rng(0)
    scores = sampled(50 + 10 * rng.standard_normal(60), 10, 5, 2)
    weights = sampling_weights(scores)
    assert weights.mean() == pytest.approx(1) and weights.index[0] == "q0"
    spread = scores.rows("aligned").groupby("question", sort=False)["score"].var()
    assert weights.corr(spread, method="spearman") == pytest.approx(-1)
    assert sampling_weights(sampled(np.linspace(20, 80, 30), 1e-9, 3, 0)).max() < 1.01


def test_scores_without_noise_or_spread_have_no_ceiling() -> None:
    one = sampled(np.array([10.0, 20, 30]), 1, 1, 0)
    for ask in (ceiling_from_answers, sampling_weights):
        with pytest.raises(
            InputError,
            match=(
                "question 'q0' has fewer than two scored answers, so its sampling error is unknown"
            ),
        ):
            ask(one)
    with pytest.raises(
        InputError,
        match="the aligned score is 100 for every question; a ceiling needs scores that differ",
    ):
        ceiling_from_answers(sampled(np.full(4, 500.0), 1, 2, 0))
    with pytest.raises(
        InputError,
        match="table has 1 seeds; a ceiling from seeds needs at least 2 runs of one recipe",
    ):
        ceiling_from_seeds(pd.DataFrame({"a": [1.0, 2.0]}))
    with pytest.raises(InputError, match="table holds scores that are NaN or infinite"):
        ceiling_from_seeds(pd.DataFrame({"a": [1.0, np.nan], "b": [1.0, 2.0]}))
    with pytest.raises(InputError, match="the seed's score is 1 for every question"):
        ceiling_from_seeds(pd.DataFrame({"a": [1.0, 1.0], "b": [1.0, 2.0]}))
