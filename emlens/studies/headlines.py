"""The few numbers of each part that seeds and families are laid side by side by, fixed here before
any result is looked at.

Seeds share prompts and questions, so the spread between them alone would call a null that lies
where the values do beaten in a third of cases. What they share is added
(`emlens.stats.shared_noise`): the spread of the null's draws, or, where a number has no such null,
that of its own interval over questions.

One row per fine-tune and number, with its interval or its null. Overlaps are means over layers at
the first position, so that no layer is picked; restoration is that of the direction chosen on other
questions; forecasts hold whole domains out where they can. Fixed as well is the side of its null on
which each number speaks for what the part asks: alignment below, the others above.
"""

from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emlens.probes.baselines import OTHER_PARENT, UNRELATED
from emlens.results.columns import Measure
from emlens.results.study_result import Finding, columns_of
from emlens.results.tables import Item
from emlens.results.vocabulary import measures, word
from emlens.results.wording import counted, noun_for
from emlens.stats import t_interval
from emlens.stats.shared_noise import mean_with_shared_noise, spread_of_one_draw
from emlens.studies.verdicts import verdict

COLUMNS = ("number", "model", "value", "low", "high", "null", "null_is", "shared_noise", "side")
HEADLINE: Final[tuple[Item, ...]] = (
    "number model",
    Measure(word("value"), "low", "high", "null"),
    "null null_is shared_noise side",
)
"""Columns of `headlines`, as a table declares them."""
SIDE_BY_SIDE: Final[tuple[Item, ...]] = (
    "number",
    Measure(word("mean"), null="null"),
    "sd lowest highest null null_is shared_noise",
    *measures("beyond"),
    "side n",
)
"""Columns of `side_by_side`, as a table declares them."""
OUTSIDE: Final = "alignment outside the domain"
ON_ALL: Final = "alignment on all questions"
"""Of fine-tunes whose training domain is not named."""
_OVERLAPS: Final = {
    "variance_weighted": "variance-weighted overlap of shifts",
    "mean_cosine": "cosine of mean shifts",
}
NORMAL_QUANTILE: Final = 1.96
"""Half the length of a 95 % interval, in standard deviations."""


def headlines(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Numbers of a result's tables: number, model, value, low, high, null, what the null is, and on
    which side of it to lie.
    """
    rows = [*_alignment(tables), *_overlaps(tables), *_restoration(tables), *_forecasts(tables)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def averaged(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """One row per unit: values and nulls averaged within it, so that a number stays beside its own
    null.

    Rows without a value count in neither; the null of a unit is missing where one of its rows has
    none.

    Args:
        rows: `headlines` with the columns `by`, which together with the number name a unit.
    """
    numbers = {"value": float, "null": float, "shared_noise": float}
    rows = rows[rows["value"].notna()].astype(numbers)
    rows = rows.assign(null_missing=rows["null"].isna())
    how = {
        "value": "mean",
        "null": "mean",
        "shared_noise": "mean",
        "null_missing": "any",
        "null_is": "first",
        "side": "first",
    }
    units = rows.groupby(["number", *by], sort=False, as_index=False).agg(how)
    units["null"] = units["null"].mask(units["null_missing"].astype(bool))
    return units.drop(columns="null_missing")


def side_by_side(rows: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Mean over seeds or families of each number, with a t interval, the standard deviation between
    them and their range.

    `beyond` is the mean of value − null within each unit that has both. Its interval has the
    variance between units and, undivided, that of what the units share; it is missing where the
    latter is not known. `null` and `shared_noise` are means over the same units.

    Args:
        rows: one row per unit (`averaged`). by: further columns within which units are averaged.
    """
    names = ["number", *by]
    summaries = []
    for key, units in rows.groupby(names, sort=False):  # a list of names: keys are tuples
        units = units[units["value"].notna()]
        if len(units):
            summaries.append({**dict(zip(names, key, strict=True)), **_over_units(units)})
    columns = [*names, "mean", "mean_low", "mean_high", "sd", "lowest", "highest"]
    columns += ["null", "null_is", "shared_noise", "beyond", "beyond_low", "beyond_high"]
    columns += ["side", "n"]
    return pd.DataFrame(summaries, columns=columns)


def _over_units(units: pd.DataFrame) -> dict[str, Any]:
    """One number over units that all have a value."""
    values = units["value"].to_numpy(dtype=float)
    paired = units[units["null"].notna()]
    beyond = (paired["value"] - paired["null"]).to_numpy(dtype=float)
    noise = float(paired["shared_noise"].mean())  # NaN where no unit has a null, or knows its own
    return {
        **_mean(values, "mean"),
        "sd": float(values.std(ddof=1)) if len(values) > 1 else np.nan,
        "lowest": float(values.min()),
        "highest": float(values.max()),
        "null": float(paired["null"].mean()),  # NaN where no unit has a null
        "null_is": units["null_is"].iloc[0],
        "shared_noise": noise,
        **_beyond(beyond, noise),
        "side": units["side"].iloc[0],
        "n": len(values),
    }


def standing(row: Mapping[Any, Any]) -> str:
    """The status of a row of `side_by_side`: shown where the whole interval lies beyond the null on
    the number's side, not shown where it lies on the other side.
    """
    low, high = row["beyond_low"], row["beyond_high"]
    if row["side"] == "less":
        low, high = -high, -low
    return verdict(shown=low > 0, not_shown=high < 0)


def findings_of(table: pd.DataFrame, part: str, units: str, labels: Sequence[str]) -> list[Finding]:
    """A summary and a sentence for each row of `side_by_side`.

    Args:
        units: what was averaged over ("seeds"). labels: the row's name in its sentence, one each.
    """
    findings = []
    for label, row in zip(labels, table.to_dict(orient="records"), strict=True):
        beside = "it has no null of its own"
        if not isnan(row["null"]):
            beside = (
                f"beside it {row['null_is']}, {row['null']:.2f};"
                f" {row['beyond']:+z.2f}{_interval(row)} from it"
            )
        sentence = (
            f"{label}: {row['mean']:.2f} [{row['mean_low']:.2f},"
            f" {row['mean_high']:.2f}] over {row['n']} {units},"
            f" from {row['lowest']:.2f} to {row['highest']:.2f}; {beside}."
        )
        findings.append(Finding(part, sentence, standing(row)))
    statuses = [finding.status for finding in findings]
    shown, turned = statuses.count("shown"), statuses.count("not shown")
    summary = (
        f"Of {counted(len(table), 'number')} laid side by side over {units},"
        f" {shown} {noun_for(shown, 'lies', 'lie')} beyond the null with the whole interval"
        f" (alignment below it, the others above), {turned} on the wrong side of it."
    )
    return [Finding(part, summary, "summary"), *findings]


def _beyond(values: NDArray[np.float64], noise: float) -> dict[str, float]:
    """Mean of value − null, with an interval where there are several units and the noise that they
    share is known.
    """
    if len(values) > 1 and not isnan(noise):
        return columns_of("beyond", mean_with_shared_noise(values, noise))
    value = float(values.mean()) if len(values) else np.nan
    return {"beyond": value, "beyond_low": np.nan, "beyond_high": np.nan}


def _interval(row: Mapping[Any, Any]) -> str:
    """The interval of `beyond`, or that there is none."""
    if isnan(row["beyond_low"]):
        return " (what the runs share is not known, so without an interval)"
    return f" [{row['beyond_low']:+z.2f}, {row['beyond_high']:+z.2f}]"


def _mean(values: NDArray[np.float64], name: str) -> dict[str, float]:
    """Mean with a t interval; without one of a single value."""
    if len(values) > 1:
        return columns_of(name, t_interval(values))
    value = float(values[0]) if len(values) else np.nan
    return {name: value, f"{name}_low": np.nan, f"{name}_high": np.nan}


def _row(
    number: str,
    model: object,
    value: tuple[float, float, float],
    null: float,
    null_is: str,
    shared_noise: float | None = None,
) -> dict[str, object]:
    """A headline.

    Args:
        value: the number with the ends of its interval.
        shared_noise: standard deviation of what seeds share; None: that of the interval.
    """
    if shared_noise is None:
        shared_noise = (value[2] - value[1]) / (2 * NORMAL_QUANTILE)
    return {
        "number": number,
        "model": str(model),
        **dict(zip(("value", "low", "high"), value, strict=True)),
        "null": null,
        "null_is": null_is,
        "shared_noise": shared_noise,
        "side": "less" if number in (OUTSIDE, ON_ALL) else "greater",
    }


def _with_ends(row: Mapping[Any, Any], name: str) -> tuple[float, float, float]:
    """A measured number of a row with the ends of its interval."""
    return row[name], row[f"{name}_low"], row[f"{name}_high"]


def _alignment(tables: Mapping[str, pd.DataFrame]) -> list[dict[str, object]]:
    rows = []
    if "models" in tables:
        models = tables["models"]
        parent = models.set_index("model")["aligned_others"].get("instruct", np.nan)
        for row in models[models["kind"].isin(["harmful", "benign"])].to_dict(orient="records"):
            value = _with_ends(row, "aligned_others")
            number = OUTSIDE if _named(row["domain"]) else ON_ALL
            rows.append(_row(number, row["model"], value, parent, "the instruct model"))
    if "trained_runs" in tables:
        for row in tables["trained_runs"].to_dict(orient="records"):
            value = _with_ends(row, "others")
            rows.append(_row(OUTSIDE, row["run"], value, row["parent_score"], "the parent"))
    return rows


def _named(domain: object) -> bool:
    """Whether a cell of a table names a training domain; an empty one is read back as NaN."""
    return isinstance(domain, str) and domain != ""


def _overlaps(tables: Mapping[str, pd.DataFrame]) -> list[dict[str, object]]:
    if "overlap_test" not in tables or not len(tables["overlap_test"]):
        return []
    table = tables["overlap_test"]
    table = table[table["position"] == table["position"].iloc[0]]
    rows = []
    for row in table.to_dict(orient="records"):
        if row["measure"] in _OVERLAPS and row["answered"] != "identity":
            number = f"{_OVERLAPS[row['measure']]}, mean over layers"
            value = (row["value"], np.nan, np.nan)
            null_is = "adapters on permuted careful answers"
            noise = _spread_of_adapters(row)
            rows.append(_row(number, row["model"], value, row["null_mean"], null_is, noise))
    return rows


def _spread_of_adapters(row: Mapping[Any, Any]) -> float:
    """How far a further adapter on permuted answers may lie from their mean, from the upper
    quantile that the table holds; NaN where there is no null.
    """
    upper = float(row["null_q95"] - row["null_mean"])
    if isnan(upper):
        return upper
    return spread_of_one_draw(0.0, upper, 0.95, int(row["adapters"]))


def _restoration(tables: Mapping[str, pd.DataFrame]) -> list[dict[str, object]]:
    if "arms" not in tables or not len(tables["arms"]):
        return []
    arms = tables["arms"]
    arms = arms[arms["role"] == arms["role"].iloc[0]]
    rows = []
    for model, of_model in arms.groupby("model", sort=False):
        is_control = of_model["control"].astype(bool) & (of_model["on"] == "finetuned")
        controls = of_model[is_control & (of_model["arm"] != "no ablation")]
        strongest = controls["restoration"].max()
        for row in of_model[of_model["arm"] == "direction"].to_dict(orient="records"):
            value = _with_ends(row, "restoration")
            number = "restoration by the chosen direction"
            rows.append(_row(number, model, value, strongest, "the strongest control"))
    return rows


def _forecasts(tables: Mapping[str, pd.DataFrame]) -> list[dict[str, object]]:
    if "forecast" not in tables or not len(tables["forecast"]):
        return []
    table = tables["forecast"]
    held_out = "domain" if (table["held_out"] == "domain").any() else "question"
    baselines = tables.get("forecast_baselines", pd.DataFrame())
    rows = []
    for row in table[table["held_out"] == held_out].to_dict(orient="records"):
        number = f"forecast R² from {row['parent']}, {held_out}s held out"
        strongest, what = _strongest_baseline(baselines, row)
        rows.append(_row(number, row["model"], _with_ends(row, "r2"), strongest, what))
    return rows


def _strongest_baseline(baselines: pd.DataFrame, forecast: Mapping[Any, Any]) -> tuple[float, str]:
    """R² of the strongest of shuffled scores (their 95th percentile) and the baselines of one
    forecast, and what it is of; without an unrelated model there is none to hold a forecast
    against.
    """
    if len(baselines):
        for name in ("model", "parent", "held_out"):
            baselines = baselines[baselines[name] == forecast[name]]
        r2 = baselines.set_index("predictor")["r2"]
        if UNRELATED in r2.index:
            rivals = r2.drop(index=["activations", OTHER_PARENT], errors="ignore")
            rivals["shuffled scores"] = forecast["null_q95"]
            return float(rivals.max()), "the strongest baseline"
    return np.nan, "the strongest baseline, which needs an unrelated model"
