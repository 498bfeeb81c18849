from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from emlens.activations import Activations
from emlens.foundation.errors import InputError
from emlens.probes import Design, Forecaster, fit_forecaster
from emlens.screening.backtests import auroc, auroc_estimate, backtest, pair_weights, with_rivals


def pairs_of(
    seed: int = 0, signal: float = 1.0, labels: int = 8, clusters: int = 6, each: int = 5
) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for label in range(labels):
        for q in range(each):
            for cluster in range(clusters):
                risk = rng.standard_normal()
                observed = 100 / (1 + np.exp(1.5 * risk))
                predicted = 50 - 12 * (signal * risk + (1 - signal) * rng.standard_normal())
                head = {
                    "id": f"{label}/{q}",
                    "label": f"l{label}",
                    "run": f"r{cluster}",
                    "cluster": f"c{cluster}",
                }
                rows.append({**head, "observed": observed, "predicted": predicted})
    return pd.DataFrame(rows)


def test_auroc_is_scikit_learns_with_weights_and_ties() -> None:
    rng = np.random.default_rng(0)
    score, positive = rng.integers(0, 6, 200).astype(float), rng.random(200) < 0.4
    weights = np.stack([np.ones(200), rng.integers(0, 3, 200)]).astype(float)
    expected = [roc_auc_score(positive, score, sample_weight=w) for w in weights]
    np.testing.assert_allclose(auroc(score, positive)(weights), expected, rtol=1e-12)


def test_draws_resample_questions_and_fine_tunes_as_wholes() -> None:
    pairs = pairs_of()
    weights = pair_weights(pairs, 20, 0)
    assert (weights[0] == 1).all() and weights.shape == (21, len(pairs))
    for row in weights[1:]:
        grid = pd.DataFrame({"l": pairs["label"], "c": pairs["cluster"], "w": row}).groupby(
            ["l", "c"]
        )["w"]
        assert (grid.nunique() == 1).all()
        table = grid.first().unstack().to_numpy()
        # counts of one times counts of the other
        assert np.linalg.matrix_rank(table) <= 1 and table.sum() == 8 * 6
        assert len(set(table.sum(0))) > 1 and len(set(table.sum(1))) > 1  # both were drawn


def test_rates_are_those_of_a_plain_loop() -> None:
    pairs = pairs_of()
    found = backtest(pairs, ("predicted",), below=40.0, flags=(45.0,), resamples=50)
    bad, flagged = pairs["observed"] < 40, pairs["predicted"] < 45
    row = found["thresholds"].iloc[0]
    assert row["precision"] == pytest.approx((bad & flagged).sum() / flagged.sum())
    assert row["recall"] == pytest.approx((bad & flagged).sum() / bad.sum())
    assert row["false_alarm"] == pytest.approx((~bad & flagged).sum() / (~bad).sum()) and row[
        "null"
    ] == pytest.approx(bad.mean())
    assert row["precision_low"] <= row["precision"] <= row["precision_high"]
    assert found["ranking"]["auroc"][0] == pytest.approx(roc_auc_score(bad, -pairs["predicted"]))
    rates = found["base_rates"]
    assert rates["misaligned"][0] == pytest.approx(bad.mean())
    assert rates["misaligned"][1] == pytest.approx(
        (pairs.groupby("run")["observed"].mean() < 40).mean()
    )
    assert rates.set_index("model").loc["r3", "misaligned"] == pytest.approx(
        bad[pairs["run"] == "r3"].mean()
    )
    cost = found["cost"]
    some = cost[(cost["miss_costs"] == 3) & (cost["flag_below"] > cost["flag_below"].min())].iloc[3]
    caught = pairs["predicted"] < some["flag_below"]
    assert some["cost"] == pytest.approx(3 * (bad & ~caught).mean() + (~bad & caught).mean())
    assert some["null"] == pytest.approx(min(3 * bad.mean(), (~bad).mean()))
    none = cost[(cost["miss_costs"] == 3)].iloc[0]  # nothing is flagged
    assert none["cost"] == pytest.approx(3 * bad.mean())


def test_calibration_holds_the_mean_observed_score_of_each_tenth() -> None:
    pairs = pairs_of().assign(
        predicted=lambda t: t["observed"] + np.random.default_rng(1).standard_normal(len(t))
    )
    table = backtest(pairs, ("predicted",), resamples=20)["calibration"]
    assert table["pairs"].sum() == len(pairs) and len(table) == 10
    np.testing.assert_allclose(table["predicted"], table["observed"], atol=1.0)
    skewed = backtest(pairs.assign(predicted=pairs["predicted"] / 2), ("predicted",), resamples=20)[
        "calibration"
    ]
    assert np.abs(skewed["predicted"] - skewed["observed"]).max() > 20  # positive control


def test_intervals_hold_chance_where_there_is_nothing_and_leave_it_where_there_is() -> None:
    held = 0
    for seed in range(10):
        pairs = pairs_of(seed, signal=0.0)
        found = auroc_estimate(
            -pairs["predicted"].to_numpy(),
            (pairs["observed"] < 40).to_numpy(),
            pair_weights(pairs, 200, seed),
            pairs,
        )
        held += bool(found.low <= 0.5 <= found.high)
    assert held >= 8
    told = backtest(pairs_of(0, signal=0.7), ("predicted",), below=40, resamples=200)[
        "ranking"
    ].iloc[0]
    assert told["auroc_low"] > 0.8


def test_what_is_not_defined_says_so_and_what_cannot_be_tested_is_refused() -> None:
    pairs = pairs_of()
    found = backtest(pairs, ("predicted",), below=0.0, flags=(-1.0,), resamples=20)
    assert np.isnan(found["ranking"]["auroc"][0]) and np.isnan(found["thresholds"]["precision"][0])
    with pytest.raises(
        InputError,
        match=(
            r"pairs hold none of \['text'\] with a value for every pair;"
            r" pass predictors that have one"
        ),
    ):
        backtest(pairs, ("text",))
    with pytest.raises(
        InputError,
        match="pairs have 1 value of 'cluster'; an interval over clusters needs at least 2",
    ):
        backtest(pairs.assign(cluster="one"), ("predicted",))


@pytest.fixture(scope="module")
def forecaster() -> tuple[Forecaster, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((48, 4))
    acts = Activations(
        {("resid_post.0", "last_prompt"): torch.tensor(x)},
        ids=[f"q{i}" for i in range(48)],
        groups=[f"d{i // 6}" for i in range(48)],
        sites=["resid_post.0"],
        positions=["last_prompt"],
        provenance={},
    )
    hazard = 45 + 12 * x[:, 0]
    table = pd.DataFrame(
        {f"r{j}": np.clip(100 - (0.6 + 0.1 * j) * hazard, 0, 100) for j in range(5)}, index=acts.ids
    )
    return fit_forecaster(acts, table, design=Design(groups="group", inner_folds=3)), x


def test_rivals_run_through_the_same_folds(forecaster: Any) -> None:
    fitted, x = forecaster
    words = {name: "same words" for name in fitted.ids}
    pairs = with_rivals(fitted, words, dict(zip(fitted.ids, x[:, 0].tolist(), strict=True)))
    ranking = backtest(pairs, below=55.0, resamples=50)["ranking"].set_index("predictor")["auroc"]
    # the planted coordinate is what the parent's score was made of
    assert min(ranking["predicted"], ranking["parent"]) > ranking["severity"] + 0.2
    assert "mean embedding" not in pairs
    # rows come in another order
    cells = {("resid_pre.0", "mean_prompt"): torch.tensor(x[::-1, :1].copy())}
    named = {"sites": ["resid_pre.0"], "positions": ["mean_prompt"], "groups": ["d"] * 48}
    embedded = Activations(cells, ids=list(fitted.ids)[::-1], provenance={}, **named)  # type: ignore[arg-type]
    np.testing.assert_allclose(
        with_rivals(fitted, embedding=embedded)["mean embedding"], pairs["parent"], atol=1e-6
    )
    with pytest.raises(InputError, match="embedding has no entry for question 'q0'"):
        with_rivals(fitted, embedding=embedded.select(list(fitted.ids)[1:]))
    # texts without content know what knowing nothing does
    np.testing.assert_allclose(pairs["text"], pairs["severity"], atol=1e-6)
    with pytest.raises(
        InputError,
        match="text has no entry for question 'q0'; pass one for each the forecaster was fitted on",
    ):
        with_rivals(fitted, {})
    with pytest.raises(InputError, match="parent has no entry for question 'q0'"):
        with_rivals(fitted, None, {})
