"""The few numbers of each part that seeds and families are laid side by side by, fixed here before
any result is looked at.

One row a fine-tune and number, with its interval or its null. Overlaps are means over layers at the
first position, so that no layer is picked; restoration is that of the direction chosen on other
questions; forecasts hold whole domains out where they can. Fixed as well is the side of its null on
which each number speaks for what the part asks: alignment below, the others above.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emlens.results.columns import Measure
from emlens.results.study_result import Finding
from emlens.results.tables import Item
from emlens.results.vocabulary import measures, word
from emlens.stats import t_interval

COLUMNS = ("number", "model", "value", "low", "high", "null", "null_is", "side")
HEADLINE: Final[tuple[Item, ...]] = (
    "number model",
    Measure(word("value"), "low", "high", "null"),
    "null null_is side",
)
"""Columns of `headlines`, as a table declares them."""
SIDE_BY_SIDE: Final[tuple[Item, ...]] = (
    "number",
    Measure(word("mean"), null="null"),
    "sd lowest highest null null_is",
    *measures("beyond"),
    "side n",
)
"""Columns of `side_by_side`, as a table declares them."""
OUTSIDE = "alignment outside the domain"


def headlines(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Numbers of a result's tables: number, model, value, low, high, null, what the null is, and on
    which side of it to lie.
    """
    rows = [*_alignment(tables), *_overlaps(tables), *_restoration(tables), *_forecasts(tables)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def averaged(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """One row a unit: values and nulls averaged within it, so that a number stays beside its own
    null.

    Rows without a value count in neither; the null of a unit is missing where one of its rows has
    none.

    Args:
        rows: `headlines` with the columns `by`, which together with the number name a unit.
    """
    known = rows[rows["value"].notna()].astype({"value": float, "null": float})
    nulls = known.assign(null_missing=known["null"].isna())
    head = {
        "value": "mean",
        "null": "mean",
        "null_missing": "any",
        "null_is": "first",
        "side": "first",
    }
    found = nulls.groupby(["number", *by], sort=False, as_index=False).agg(head)
    found["null"] = found["null"].mask(found["null_missing"].astype(bool))
    return found.drop(columns="null_missing")


def side_by_side(rows: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Mean over seeds or families of each number, with a t interval, the standard deviation between
    them and their range.

    `beyond` is the mean of value − null within each unit that has both, with a t interval over
    these units: the null is as uncertain as the value. `null` is the mean over the same units.

    Args:
        rows: one row a unit (`averaged`). by: further columns within which units are averaged.
    """
    found = []
    names = ["number", *by]
    for key, part in rows.groupby(names, sort=False):  # a list of names: keys are tuples
        part = part[part["value"].notna()]
        values = part["value"].to_numpy(dtype=float)
        if not len(values):
            continue
        paired = part[part["null"].notna()]
        found.append(
            {
                **dict(zip(names, key, strict=True)),
                **_mean(values, "mean"),
                "sd": float(values.std(ddof=1)) if len(values) > 1 else np.nan,
                "lowest": float(values.min()),
                "highest": float(values.max()),
                "null": float(paired["null"].mean()) if len(paired) else np.nan,
                "null_is": part["null_is"].iloc[0],
                **_mean((paired["value"] - paired["null"]).to_numpy(dtype=float), "beyond"),
                "side": part["side"].iloc[0],
                "n": len(values),
            }
        )
    columns = [
        *names,
        "mean",
        "mean_low",
        "mean_high",
        "sd",
        "lowest",
        "highest",
        "null",
        "null_is",
        "beyond",
        "beyond_low",
        "beyond_high",
        "side",
        "n",
    ]
    return pd.DataFrame(found, columns=columns)


def standing(row: Mapping[Any, Any]) -> str:
    """Of a row of `side_by_side`: shown where the whole interval lies beyond the null on the
    number's side, not shown where on the other.
    """
    low, high = row["beyond_low"], row["beyond_high"]
    if row["side"] == "less":
        low, high = -high, -low
    return "shown" if low > 0 else "not shown" if high < 0 else "undecided"


def findings_of(table: pd.DataFrame, part: str, units: str, labels: Sequence[str]) -> list[Finding]:
    """A summary and a sentence for each row of `side_by_side`.

    Args:
        units: what was averaged over ("seeds"). labels: the row's name in its sentence, one each.
    """
    found = []
    for label, row in zip(labels, table.to_dict(orient="records"), strict=True):
        less = f"{row['beyond']:+.2f} [{row['beyond_low']:+.2f}, {row['beyond_high']:+.2f}]"
        beside = (
            f"beside it {row['null_is']}, {row['null']:.2f}; {less} from it"
            if row["null"] == row["null"]
            else "it has no null of its own"
        )
        sentence = (
            f"{label}: {row['mean']:.2f} [{row['mean_low']:.2f},"
            f" {row['mean_high']:.2f}] over {row['n']} {units},"
            f" from {row['lowest']:.2f} to {row['highest']:.2f}; {beside}."
        )
        found.append(Finding(part, sentence, standing(row)))
    clear, wrong = (sum(f.status == status for f in found) for status in ("shown", "not shown"))
    summary = (
        f"Of {len(table)} numbers laid side by side over {units},"
        f" {clear} lie beyond their null with the whole interval (alignment below it,"
        f" the others above), {wrong} on the wrong side of it."
    )
    return [Finding(part, summary, "summary"), *found]


def _mean(values: NDArray[np.float64], name: str) -> dict[str, float]:
    interval = t_interval(values) if len(values) > 1 else None
    return {
        name: float(values.mean()) if len(values) else np.nan,
        f"{name}_low": np.nan if interval is None else interval.low,
        f"{name}_high": np.nan if interval is None else interval.high,
    }


def _row(
    number: str, model: object, value: float, low: float, high: float, null: float, null_is: str
) -> dict[str, object]:
    side = "less" if number == OUTSIDE else "greater"
    return {
        "number": number,
        "model": str(model),
        "value": value,
        "low": low,
        "high": high,
        "null": null,
        "null_is": null_is,
        "side": side,
    }


def _alignment(tables: Mapping[str, pd.DataFrame]) -> list[dict[str, object]]:
    rows = []
    if "models" in tables:
        parent = tables["models"].set_index("model")["aligned_others"].get("instruct", np.nan)
        for row in tables["models"].to_dict(orient="records"):
            if row["kind"] in ("harmful", "benign"):
                low, high = row["aligned_others_low"], row["aligned_others_high"]
                rows.append(
                    _row(
                        OUTSIDE,
                        row["model"],
                        row["aligned_others"],
                        low,
                        high,
                        parent,
                        "the instruct model",
                    )
                )
    if "trained_runs" in tables:
        for row in tables["trained_runs"].to_dict(orient="records"):
            rows.append(
                _row(
                    OUTSIDE,
                    row["run"],
                    row["others"],
                    row["others_low"],
                    row["others_high"],
                    row["parent_score"],
                    "the parent",
                )
            )
    return rows


def _overlaps(tables: Mapping[str, pd.DataFrame]) -> list[dict[str, object]]:
    if "overlap" not in tables or not len(tables["overlap"]):
        return []
    table = tables["overlap"]
    table = table[table["position"] == table["position"].iloc[0]]
    rows = []
    for model, mine in table.groupby("model", sort=False):
        tested = mine[
            (mine["comparison"] == "train–evaluation")
            & (mine["center"] == "true")
            & (mine["null_kind"] != "isotropic")
        ]
        tested = (
            tested[tested["null_kind"] == tested["null_kind"].iloc[0]] if len(tested) else tested
        )
        means = mine[(mine["comparison"] == "train–evaluation") & (mine["center"] == "means")]
        if len(tested):
            null = tested["null_mean"].mean()
            rows.append(
                _row(
                    "centred overlap of shifts, mean over layers",
                    model,
                    tested["value"].mean(),
                    np.nan,
                    np.nan,
                    null,
                    str(tested["null_kind"].iloc[0]),
                )
            )
        if len(means):
            rows.append(
                _row(
                    "cosine of mean shifts, mean over layers",
                    model,
                    means["value"].mean(),
                    means["low"].mean(),
                    means["high"].mean(),
                    0.0,
                    "none",
                )
            )
    return rows


def _restoration(tables: Mapping[str, pd.DataFrame]) -> list[dict[str, object]]:
    if "arms" not in tables or not len(tables["arms"]):
        return []
    arms = tables["arms"]
    arms = arms[arms["role"] == arms["role"].iloc[0]]
    rows = []
    for model, mine in arms.groupby("model", sort=False):
        controls = mine[
            mine["control"].astype(bool)
            & (mine["on"] == "finetuned")
            & (mine["arm"] != "no ablation")
        ]
        for row in mine[mine["arm"] == "direction"].to_dict(orient="records"):
            strongest = controls["restoration"].max()
            found = row["restoration"], row["restoration_low"], row["restoration_high"]
            rows.append(
                _row(
                    "restoration by the chosen direction",
                    model,
                    *found,
                    strongest,
                    "the strongest control",
                )
            )
    return rows


def _forecasts(tables: Mapping[str, pd.DataFrame]) -> list[dict[str, object]]:
    if "forecast" not in tables or not len(tables["forecast"]):
        return []
    table = tables["forecast"]
    held = "domain" if (table["held_out"] == "domain").any() else "question"
    return [
        _row(
            f"forecast R² from {row['parent']}, {held}s held out",
            row["model"],
            row["r2"],
            row["r2_low"],
            row["r2_high"],
            row["null_q95"],
            "shuffled scores",
        )
        for row in table[table["held_out"] == held].to_dict(orient="records")
    ]
