"""Loss against scores: partial correlations that settings explain, seeds averaged into noise,
strata, fronts.
"""

import numpy as np
import pandas as pd
import pytest

from emlens.data.sweeps import SweepTable
from emlens.foundation import InputError
from emlens.stats.matched import matched_loss_test
from emlens.studies.loss_relations import (
    MatchedOptions,
    Noise,
    correlations,
    covariates,
    factors,
    fronts,
    labels,
    matched,
    over_seeds,
)


def sweep(seed=0, *, effect=0.0, n=48, seeds=1, loss_noise=0.0, score_noise=0.0):
    """Runs whose rate decides both loss and score; schedule "b" lies `effect` above."""
    rng = np.random.default_rng(seed)
    rate = rng.choice([1e-5, 1e-4, 1e-3], size=n)
    loss = -np.log10(rate) + 0.3 * rng.normal(size=n)
    schedule = np.array(["a", "b", "c", "d"])[np.arange(n) % 4]
    score = 10 * loss + rng.normal(size=n) + effect * (schedule == "b")
    table = pd.DataFrame(
        {
            "run": [f"r{i}" for i in range(n)],
            "train_loss": loss,
            "schedule": schedule,
            "learning_rate": rate,
            "steps": 100.0,
        }
    )
    table["batch_size"] = np.arange(n) + 1.0
    table["aligned"] = score
    table["seed"] = 0.0
    parts = []
    for k in range(seeds):
        noisy = table.assign(run=table["run"] + f"/{k}", seed=float(k))
        noisy["train_loss"] += loss_noise * rng.normal(size=n)
        noisy["aligned"] += score_noise * rng.normal(size=n)
        parts.append(noisy)
    return SweepTable(
        pd.concat(parts, ignore_index=True),
        ("train_loss",),
        ("schedule", "learning_rate", "steps", "batch_size", "seed"),
        ("aligned",),
        "test",
    )


def test_what_the_learning_rate_explains_is_partialled_out():
    rng = np.random.default_rng(1)
    original = sweep()
    only_rate = original.table.assign(
        aligned=-np.log10(original.table["learning_rate"]) + 0.1 * rng.normal(size=48)
    )
    table = correlations(
        SweepTable(only_rate, original.losses, original.settings, original.metrics, "x"),
        ["aligned"],
        ["learning_rate", "steps"],
        draws=199,
    )
    by = table.set_index("measure")
    assert by.loc["Pearson", "value"] > 0.8 and by.loc["Pearson", "p"] <= 0.01
    assert (
        by.loc["partial Pearson", "value_low"] < 0 < by.loc["partial Pearson", "value_high"]
        and by.loc["partial Pearson", "p"] > 0.05
    )
    assert by.loc["partial Pearson", "given"] == "learning_rate"  # steps do not vary
    real = correlations(original, ["aligned"], ["learning_rate"], draws=199).set_index("measure")
    assert (
        real.loc["partial Pearson", "value_low"] > 0.5 and real.loc["partial Pearson", "p"] <= 0.01
    )
    assert real.loc["partial Pearson", "null_q95"] < 0.35


def test_settings_that_vary_and_can_be_grouped_are_taken():
    original = sweep()
    names, columns = covariates(original, ("learning_rate", "steps", "schedule", "nowhere"))
    assert names == ["learning_rate"] and np.allclose(
        np.exp(columns[:, 0]), original.table["learning_rate"]
    )
    # a value a run is no group
    assert factors(original, ("schedule", "steps", "batch_size", "nowhere")) == ["schedule"]
    assert factors(original, ("schedule", "schedule")) == ["schedule"]
    assert set(labels(original, "learning_rate")) == {"1e-05", "0.0001", "0.001"}


def test_a_better_schedule_is_found_and_a_null_sweep_is_not():
    table, tests = matched(
        sweep(effect=2.5),
        "train_loss",
        "aligned",
        ["schedule"],
        MatchedOptions(("linear", "isotonic"), strata="loss", draws=199),
    )
    for relation in ("linear", "isotonic"):
        rows = table[(table["by"] == "schedule") & (table["relation"] == relation)].set_index(
            "group"
        )
        assert (
            rows["statistic"].idxmax() == "b"
            and rows.loc["b", "p_all"] <= 0.05
            and rows.loc["b", "gap_low"] > 0
        )
        assert (
            rows.loc["b", "gap"] == pytest.approx(2.5, abs=0.8)
            and rows.loc["b", "null_q95"] < rows.loc["b", "gap"]
        )
    assert (
        set(table[table["by"] == "run"]["group"]) == {f"r{i}/0" for i in range(48)}
        and ("schedule", "linear") in tests
    )
    options = MatchedOptions(("linear",), strata="loss", draws=199)
    quiet, _ = matched(sweep(), "train_loss", "aligned", ["schedule"], options)
    assert quiet[quiet["by"] == "schedule"]["p"].min() > 0.05


def test_several_settings_are_corrected_together():
    original = sweep(effect=1.0)
    original.table["optimiser"] = np.where(np.arange(48) % 3, "x", "y")
    both = SweepTable(
        original.table,
        original.losses,
        (*original.settings, "optimiser"),
        original.metrics,
        "test",
    )
    settings, options = ["schedule", "optimiser"], MatchedOptions(("linear",), draws=199)
    table, _ = matched(both, "train_loss", "aligned", settings, options)
    schedules = table[(table["by"] == "schedule")]
    assert schedules["p_all"].min() == pytest.approx(min(1.0, 2 * schedules["p"].min()))


def test_seeds_are_averaged_and_become_the_noise():
    original = sweep(seeds=4, loss_noise=0.2, score_noise=2.0)
    runs, noise = over_seeds(original, "train_loss", "aligned")
    assert len(runs) == 48 and "seed" not in runs.settings
    assert noise.loss == pytest.approx(0.1, rel=0.15) and noise.score == pytest.approx(
        1.0, rel=0.15
    )
    same = [name for name in original.table["run"] if name.startswith("r7/")]
    kept = runs.table[runs.table["run"] == "r7/0"]
    assert kept["aligned"].iloc[0] == pytest.approx(
        original.table[original.table["run"].isin(same)]["aligned"].mean()
    )
    alone, none = over_seeds(sweep(), "train_loss", "aligned")
    assert len(alone) == 48 and none == Noise()


def test_recipes_that_differ_are_not_taken_for_seeds():
    original = sweep(seeds=2, score_noise=2.0)
    unlike_table = original.table.assign(
        adapter=np.where(original.table["seed"] == 0, "rslora", "dora")
    )
    unlike = SweepTable(
        unlike_table,
        original.losses,
        (*original.settings, "adapter"),
        original.metrics,
        "test",
    )
    assert over_seeds(unlike, "train_loss", "aligned") == (unlike, Noise())
    # of three cells two runs with one seed
    twice = original.table.assign(
        seed=original.table["seed"].where(original.table["batch_size"] > 3, 0.0)
    )
    twice.loc[twice["batch_size"] == 4, "seed"] = np.nan
    runs, noise = over_seeds(
        SweepTable(twice, original.losses, original.settings, original.metrics, "test"),
        "train_loss",
        "aligned",
    )
    assert (
        len(runs) == 48 + 4
        and {"r0/0", "r0/1", "r3/0", "r3/1", "r4/0"} <= set(runs.table["run"])
        and "r4/1" not in set(runs.table["run"])
    )
    merged = runs.table.set_index("run").loc["r4/0"]
    assert (
        merged["aligned"]
        == pytest.approx(original.table[original.table["batch_size"] == 5]["aligned"].mean())
        and merged["schedule"] == "a"
    )
    assert noise.score == pytest.approx(2.0 / np.sqrt(2), rel=0.25)


def test_the_front_knows_its_noise_and_its_null():
    original = sweep(effect=0.0)
    test = matched_loss_test(
        original.table["train_loss"], original.table["aligned"], relation="isotonic", draws=99
    )
    table = fronts(original, "train_loss", "aligned", test, Noise(), draws=199).set_index("run")
    best = table["score"].idxmax()
    assert (
        table.loc[best, "front"]
        and table["membership"].between(0, 1).all()
        and (table["membership_null"] > 0).any()
    )
    sure = fronts(original, "train_loss", "aligned", test, Noise(0.0, 1e-6), draws=99)
    assert (sure["membership"] == sure["front"]).all()
    assert (
        table["expected"].is_monotonic_increasing
        or (np.diff(table.sort_values("loss")["expected"]) >= 0).all()
    )


def test_a_sweep_that_no_test_can_read_is_refused():
    original = sweep(n=12)
    flat = SweepTable(
        original.table.assign(train_loss=1.0),
        original.losses,
        original.settings,
        original.metrics,
        "test",
    )
    with pytest.raises(
        InputError,
        match=r"no matched-loss test can be made of 12 runs: schedule, linear: every loss is equal",
    ):
        matched(flat, "train_loss", "aligned", ["schedule"], MatchedOptions(draws=99))
