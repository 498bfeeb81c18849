from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from emlens.foundation.errors import InputError
from emlens.probes import rank_configurations, ranking


def sweep(seed: int, informative: bool, runs: int = 30) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    quality = rng.standard_normal(runs)
    seen = quality if informative else rng.standard_normal(runs)
    columns = {
        "overlap": seen + 0.05 * rng.standard_normal(runs),
        "loss": rng.standard_normal(runs),
        "aligned": 50 + 10 * quality,
    }
    return pd.DataFrame(columns, index=[f"run{i}" for i in range(runs)])


@pytest.mark.parametrize("model", ["linear", "forest"])
def test_an_informative_feature_leaves_next_to_no_regret(model: str) -> None:
    # a forest of few runs has broad leaves
    runs = sweep(0, informative=True, runs=30 if model == "linear" else 48)
    found = rank_configurations(
        runs,
        target="aligned",
        features=["overlap"],
        loss="loss",
        models=(model,),
        splits=15,
        permutations=19,
    )
    row = found.choices.set_index("by").loc[model]
    assert (
        row["regret"] < (0.05 if model == "linear" else 0.5) * row["null"]
        and row["gain"] > 0
        and row["spearman"] > 0.8
    )
    assert model == "forest" or row["gain_low"] > 0
    assert (
        row["regret_low"] <= row["regret"] <= row["regret_high"]
        and row["spearman_low"] <= row["spearman"] <= row["spearman_high"] <= 1
    )
    assert row["p"] == 1 / 20 if model == "linear" else np.isnan(row["p"])


def test_without_information_a_choice_is_no_better_and_no_worse_than_any_run() -> None:
    ratio, p, order = [], [], []
    for seed in range(8):
        runs = sweep(seed, informative=False)
        noise = pd.DataFrame(
            np.random.default_rng(100 + seed).standard_normal((len(runs), 9)),
            runs.index,
            [f"f{i}" for i in range(9)],
        )
        # enough to fit any half by heart
        common = {
            "target": "aligned",
            "features": ["overlap", *noise.columns],
            "models": ("linear",),
        }
        found = rank_configurations(
            runs.join(noise), splits=20, permutations=9, seed=seed, **common
        )
        row = found.choices.iloc[0]
        ratio.append(row["regret"] / row["null"])
        p.append(row["p"])
        order.append(row["spearman"])
    # choices among forecasts that each left one run out took the worst run here: their ratio is
    # near 2
    assert abs(np.mean(ratio) - 1) < min(0.3, 3 * np.std(ratio) / np.sqrt(8))
    assert np.mean(p) > 0.25 and np.std(ratio) < 1
    assert abs(np.mean(order)) < 0.12  # of forecasts that each left one run out: about -.7


def test_noise_chooses_a_candidate_at_random_and_never_a_scored_run() -> None:
    place = []
    for seed in range(24):
        rng = np.random.default_rng(seed)
        table = pd.DataFrame(rng.standard_normal((36, 4)), columns=["a", "b", "c", "aligned"])
        known, new = table.head(24), table.tail(12)
        common = {
            "target": "aligned",
            "features": ["a", "b", "c"],
            "models": ("linear",),
            "splits": 1,
            "permutations": 0,
        }
        found = rank_configurations(known, candidates=new[["a", "b", "c"]], **common)
        place.append((new["aligned"] < new.loc[int(found.chosen()), "aligned"]).mean() * 12 / 11)
    bare = rank_configurations(known, **common)
    with pytest.raises(
        InputError,
        match=(
            "no candidates were given, and forecasts of scored runs must not be compared for a"
            " choice; pass candidates="
        ),
    ):
        bare.chosen()
    assert "rank" not in bare.table and bare.table["run"].tolist() == [str(i) for i in range(24)]
    assert abs(np.mean(place) - 0.5) < 3 * 0.29 / np.sqrt(24)


def test_shuffles_move_whole_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = sweep(5, informative=False, runs=32).assign(
        schedule=np.repeat(np.arange(8), 4), aligned=np.repeat(np.arange(8.0) ** 2, 4)
    )
    seen, real = [], ranking.predict_runs

    def spy(
        model: str,
        train: np.ndarray,
        test: np.ndarray,
        targets: np.ndarray,
        labels: list[str],
        seed: int,
    ) -> np.ndarray:
        seen.append(pd.DataFrame(targets).groupby(np.array(labels)).agg(np.ptp).to_numpy())
        return real(model, train, test, targets, labels, seed)

    monkeypatch.setattr(ranking, "predict_runs", spy)
    rank_configurations(
        runs,
        target="aligned",
        features=["overlap"],
        clusters="schedule",
        models=("linear",),
        splits=3,
        permutations=9,
    )
    spread = [found for found in seen if found.shape[1] == 10]
    # shuffled run by run, a cluster's scores would differ
    assert len(spread) == 3 and all(np.allclose(found, 0) for found in spread)


def test_a_forecast_has_not_seen_its_run() -> None:
    runs = sweep(1, informative=True)
    one = rank_configurations(
        runs,
        target="aligned",
        features=["overlap", "loss"],
        models=("linear",),
        splits=20,
        permutations=0,
    )
    changed = runs.copy()
    changed.loc["run4", "aligned"] = -400.0
    other = rank_configurations(
        changed,
        target="aligned",
        features=["overlap", "loss"],
        models=("linear",),
        splits=20,
        permutations=0,
    )
    before, after = (found.table.set_index("run")["forecast"] for found in (one, other))
    assert (
        before["run4"] == pytest.approx(after["run4"], rel=1e-12)
        and abs(before["run5"] - after["run5"]) > 1
    )


def test_regret_is_that_of_a_plain_loop_and_lower_can_be_better() -> None:
    runs = sweep(2, informative=True, runs=12)
    common = {"features": ["overlap"], "models": ("linear",), "splits": 50, "permutations": 0}
    found = rank_configurations(runs, target="aligned", loss="loss", **common)
    lost = []
    for _, test in ranking._halves([f"run {i}" for i in range(12)], 50, 0):
        half = runs.iloc[test]
        lost.append(half["aligned"].max() - half.loc[half["loss"].idxmin(), "aligned"])
    assert found.choices.set_index("by").loc["lowest loss", "regret"] == pytest.approx(
        np.mean(lost)
    )
    half = [runs.iloc[test] for _, test in ranking._halves([f"run {i}" for i in range(12)], 50, 0)]
    values = [
        ranking.predict_runs(
            "linear",
            runs.drop(h.index)[["overlap"]].to_numpy(),
            h[["overlap"]].to_numpy(),
            runs.drop(h.index)[["aligned"]].to_numpy(),
            [f"run {runs.index.get_loc(i)}" for i in runs.index if i not in h.index],
            0,
        )[:, 0]
        for h in half
    ]
    expected = np.mean(
        [spearmanr(v, h["aligned"]).statistic for v, h in zip(values, half, strict=True)]
    )
    assert found.choices["spearman"].iloc[0] == pytest.approx(expected)
    new = runs[["overlap"]].tail(4) + 0.1
    found = rank_configurations(runs, target="aligned", candidates=new, **common)
    down = rank_configurations(
        runs.assign(harm=-runs["aligned"]),
        target="harm",
        higher_is_better=False,
        candidates=new,
        **common,
    )
    assert down.chosen() == found.chosen() and down.table["forecast"].iloc[0] == pytest.approx(
        -found.table["forecast"].iloc[0]
    )


def test_new_configurations_are_ranked_from_all_runs() -> None:
    runs = sweep(4, informative=True)
    new = pd.DataFrame({"overlap": [-1.0, 2.0, 0.5]}, index=["low", "high", "middle"])
    found = rank_configurations(
        runs, target="aligned", features=["overlap"], candidates=new, splits=2, permutations=0
    )
    for model in ("linear", "forest"):
        assert found.candidates[found.candidates["by"] == model]["run"].tolist() == [
            "high",
            "middle",
            "low",
        ]
        assert found.chosen(model) == "high"  # type: ignore[arg-type]
    assert found.candidates["forecast"].iloc[0] == pytest.approx(70, abs=2)


def test_clusters_are_left_out_together() -> None:
    runs = sweep(3, informative=True, runs=24)
    runs["schedule"] = [f"s{i // 2}" for i in range(24)]
    runs.loc["run0", "aligned"] = 500.0
    found = rank_configurations(
        runs,
        target="aligned",
        features=["overlap"],
        models=("linear",),
        clusters="schedule",
        splits=20,
        permutations=0,
    )
    table = found.table.set_index("run")
    assert table.loc["run1", "forecast"] < 150  # its twin's outlier was not seen
    alone = rank_configurations(
        runs, target="aligned", features=["overlap"], models=("linear",), splits=20, permutations=0
    )
    assert alone.table.set_index("run").loc["run1", "forecast"] != table.loc["run1", "forecast"]


def test_what_cannot_be_ranked_is_refused() -> None:
    runs = sweep(0, informative=True, runs=10)

    def refused(match: str, table: pd.DataFrame = runs, **options: object) -> None:
        with pytest.raises(InputError, match=match):
            rank_configurations(
                table,
                **{"target": "aligned", "features": ["overlap"], "permutations": 0, **options},
            )  # type: ignore[arg-type]

    refused("features='overlap' must be a list of columns, at least one", features="overlap")
    refused("features names the target 'aligned' itself; leave it out", features=["aligned"])
    refused(
        r"column 'lr' is not among the columns of the runs: \['overlap', 'loss', 'aligned'\]",
        features=["lr"],
    )
    refused(
        "column 'loss' has no finite number for run 'run2'; fill it, or leave the run out",
        runs.assign(loss=[0.0, 1, np.nan, *range(7)]),
        loss="loss",
    )
    refused("clusters='schedule' is not among the runs' columns", clusters="schedule")
    refused(
        "7 runs in 7 clusters were given; ranking needs at least 8, so that each can be left out",
        runs.head(7),
    )
    refused(
        "target 'aligned' is 3 for every run; there is nothing to rank", runs.assign(aligned=3.0)
    )
    refused("models names 'svm'; pass some of linear, forest", models=("svm",))


def test_the_released_sweep_is_not_ranked_by_lowest_loss(released_data: Path) -> None:
    runs = pd.read_csv(released_data / "em-generalization" / "td_agg_df_fpq.csv").set_index("run")
    features = ["train_final_avg_loss", "eval_final_avg_loss", "lr"]
    found = rank_configurations(
        runs,
        target="aligned",
        features=features,
        loss="train_final_avg_loss",
        models=("linear",),
        splits=100,
        permutations=19,
    )
    choice = found.choices.set_index("by")
    # the README's Spearman, turned round
    assert len(runs) == 35 and choice.loc["lowest loss", "spearman"] == pytest.approx(
        -0.7509, abs=1e-3
    )
    assert (
        choice.loc["linear", "gain_low"] > 10
        and choice.loc["linear", "regret"] < choice.loc["linear", "null"] / 3
    )
    # worse than taking any run
    assert choice.loc["lowest loss", "regret"] > choice.loc["lowest loss", "null"]
