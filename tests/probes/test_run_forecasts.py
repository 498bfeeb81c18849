"""Forecasts over runs: what helps is found, what cannot help is not, and seeds of one recipe never
inform each other.
"""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from emlens.foundation.errors import InputError
from emlens.probes import run_forecasts
from emlens.probes.run_forecasts import (
    CHOSEN,
    ESTIMATORS,
    TOGETHER,
    RunForecasts,
    _Procedure,
    forecast_runs,
)

SETS = {"loss": ["loss"], "overlap": ["overlap"]}


def runs(seed: int, *, informs: bool = True, recipes: int = 10, seeds: int = 2) -> pd.DataFrame:
    """Recipes whose overlap tells their alignment, or tells nothing; the loss never does."""
    rng = np.random.default_rng(seed)
    rows = []
    for recipe in range(recipes):
        quality = rng.standard_normal()
        for run in range(seeds):
            seen = quality if informs else rng.standard_normal()
            rows.append(
                {
                    "run": f"{recipe}@{run}",
                    "recipe": f"recipe {recipe}",
                    "loss": rng.standard_normal(),
                    "overlap": seen + 0.1 * rng.standard_normal(),
                    "aligned": 50 + 10 * quality + rng.standard_normal(),
                }
            )
    return pd.DataFrame(rows).set_index("run")


@pytest.fixture
def ridge_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forest takes a second for each set and some tens of shuffles."""
    monkeypatch.setattr(run_forecasts, "ESTIMATORS", ("linear",))


def forecasts(table: pd.DataFrame, **changes: Any) -> RunForecasts:
    arguments = {"target": "aligned", "sets": SETS, "units": "recipe", "loss": "loss"}
    return forecast_runs(table, **{**arguments, "permutations": 19, **changes})


def test_what_tells_alignment_is_chosen_and_beats_the_mean_and_the_loss(ridge_alone: None) -> None:
    found = forecasts(runs(0))
    table = found.table.set_index("predictor")
    chosen = table.loc[CHOSEN]
    assert found.best in {("overlap", "linear"), (TOGETHER, "linear")}
    assert chosen["r2"] > 0.8 and chosen["r2_low"] > 0 and chosen["p"] == 1 / 20
    assert chosen["over_loss"] > 0.8 and chosen["over_loss_low"] > 0
    assert chosen["null_q95"] < chosen["r2"]
    # the loss by itself tells nothing, and has nothing to be compared with
    assert table.loc["loss", "r2"] < 0.3 and np.isnan(table.loc["loss", "over_loss"])
    assert sum(found.picks.values()) == run_forecasts.FOLDS
    assert (table["n"] == 20).all() and (table["units"] == 10).all()


def test_where_nothing_tells_alignment_no_predictor_is_named(ridge_alone: None) -> None:
    named = [forecasts(runs(seed, informs=False), seed=seed).best for seed in range(12)]
    assert named.count(None) >= 11


def test_seeds_of_one_recipe_never_inform_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number that only names the recipe forecasts its other seeds perfectly, and no recipe."""
    monkeypatch.setattr(run_forecasts, "TREES", 6)
    table = runs(3, informs=False, recipes=12, seeds=3)
    rng = np.random.default_rng(0)
    named = pd.Series(rng.standard_normal(12), index=sorted(set(table["recipe"])))
    table = table.assign(name=table["recipe"].map(named), run_itself=table.index)
    changes: dict[str, Any] = {"sets": {"name": ["name"]}, "loss": None, "permutations": 2}
    by_run = forecasts(table, units="run_itself", **changes).table.set_index("estimator")
    by_recipe = forecasts(table, **changes)
    assert by_run.loc["forest", "r2"] > 0.3  # positive control: the leak
    assert by_recipe.best is None
    assert by_recipe.table.set_index("estimator").loc["forest", "r2"] < 0
    assert set(by_recipe.table["estimator"]) == {*ESTIMATORS, run_forecasts.EITHER}


def test_the_mean_and_r2_are_those_of_a_plain_loop(ridge_alone: None) -> None:
    table = runs(1)
    y = table["aligned"].to_numpy()
    labels = list(table["recipe"])
    procedure = _Procedure({"loss": table[["loss"]].to_numpy()}, labels, 0)
    (errors,) = procedure.errors(y[:, None])
    held_out: list[int] = []
    squares = np.empty(len(y))
    for fit, test in procedure._folds(np.arange(len(y)), run_forecasts.FOLDS, "outer"):
        assert not {labels[i] for i in fit} & {labels[i] for i in test}
        held_out += test.tolist()
        # as many seeds of each recipe, so that units and runs weigh alike
        squares[test] = (y[test] - y[fit].mean()) ** 2
    assert sorted(held_out) == list(range(len(y)))
    means = pd.Series(squares).groupby(labels).mean()
    assert errors.of[run_forecasts.MEAN, ""] == pytest.approx(means.to_numpy())
    own = 1 - errors.of["loss", "linear"].sum() / means.sum()
    assert errors.r2(("loss", "linear")) == pytest.approx(own)


@pytest.mark.parametrize(
    ("table", "changes", "message"),
    [
        (runs(0, recipes=7), {}, "14 runs are 7 units by 'recipe'; a forecast over runs needs 8"),
        (runs(0), {"loss": "steps"}, "loss='steps' is none of sets, loss, overlap"),
        (runs(0), {"sets": {}, "loss": None}, "none of sets, which is empty"),
        (runs(0), {"sets": {"x": ["aligned"]}, "loss": None}, "names the target 'aligned' itself"),
        (runs(0).assign(aligned=1.0), {}, "target 'aligned' is 1 for every run"),
        (runs(0).assign(loss=np.nan), {}, "column 'loss' has no finite number for run '0@0'"),
    ],
)
def test_what_cannot_be_judged_is_refused(
    table: pd.DataFrame, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        forecasts(table, **changes)
