"""The few numbers of each part that seeds and families are laid side by side by, fixed here before any result is looked at.

One row a fine-tune and number, with its interval or its null. Overlaps are means over layers at the first position, so that no layer
is picked; restoration is that of the direction chosen on other questions; forecasts hold whole domains out where they can.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from emlens.stats import t_interval

COLUMNS = ("number", "model", "value", "low", "high", "null", "null_is")
OUTSIDE = "alignment outside the domain"


def headlines(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Numbers of a result's tables: number, model, value, low, high, null, and what the null is."""
    rows = [*_alignment(tables), *_overlaps(tables), *_restoration(tables), *_forecasts(tables)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def side_by_side(rows: pd.DataFrame, by: str) -> pd.DataFrame:
    """Mean over seeds or families of each number, with a t interval, the standard deviation between them and their range.

    Args:
        rows: `headlines` with a column that names the unit. by: further column within which units are averaged ("" for none).
    """
    found = []
    names = ["number", *([by] if by else [])]
    for key, part in rows.groupby(names, sort=False):  # a list of names: keys are tuples
        values = part["value"].dropna().to_numpy(dtype=float)
        if not len(values):
            continue
        mean = t_interval(values) if len(values) > 1 else None
        found.append(
            {
                **dict(zip(names, key, strict=True)),
                "mean": float(values.mean()),
                "mean_low": np.nan if mean is None else mean.low,
                "mean_high": np.nan if mean is None else mean.high,
                "sd": float(values.std(ddof=1)) if len(values) > 1 else np.nan,
                "lowest": float(values.min()),
                "highest": float(values.max()),
                "null": float(part["null"].mean()) if part["null"].notna().any() else np.nan,
                "null_is": part["null_is"].iloc[0],
                "n": len(values),
            }
        )
    columns = [*names, "mean", "mean_low", "mean_high", "sd", "lowest", "highest", "null", "null_is", "n"]
    return pd.DataFrame(found, columns=columns)


def _row(number: str, model: object, value: float, low: float, high: float, null: float, null_is: str) -> dict[str, object]:
    return {"number": number, "model": str(model), "value": value, "low": low, "high": high, "null": null, "null_is": null_is}


def _alignment(tables: Mapping[str, pd.DataFrame]) -> list[dict[str, object]]:
    rows = []
    if "models" in tables:
        parent = tables["models"].set_index("model")["aligned_others"].get("instruct", np.nan)
        for row in tables["models"].to_dict(orient="records"):
            if row["kind"] in ("harmful", "benign"):
                low, high = row["aligned_others_low"], row["aligned_others_high"]
                rows.append(_row(OUTSIDE, row["model"], row["aligned_others"], low, high, parent, "the instruct model"))
    if "trained_runs" in tables:
        for row in tables["trained_runs"].to_dict(orient="records"):
            rows.append(_row(OUTSIDE, row["run"], row["others"], row["others_low"], row["others_high"], row["parent"], "the parent"))
    return rows


def _overlaps(tables: Mapping[str, pd.DataFrame]) -> list[dict[str, object]]:
    if "overlap" not in tables or not len(tables["overlap"]):
        return []
    table = tables["overlap"]
    table = table[table["position"] == table["position"].iloc[0]]
    rows = []
    for model, mine in table.groupby("model", sort=False):
        tested = mine[(mine["comparison"] == "train–evaluation") & (mine["center"] == "true") & (mine["null"] != "isotropic")]
        tested = tested[tested["null"] == tested["null"].iloc[0]] if len(tested) else tested
        means = mine[(mine["comparison"] == "train–evaluation") & (mine["center"] == "means")]
        if len(tested):
            null = tested["null_mean"].mean()
            rows.append(_row("centred overlap of shifts, mean over layers", model, tested["value"].mean(), np.nan, np.nan, null, str(tested["null"].iloc[0])))
        if len(means):
            rows.append(_row("cosine of mean shifts, mean over layers", model, means["value"].mean(), means["low"].mean(), means["high"].mean(), 0.0, "none"))
    return rows


def _restoration(tables: Mapping[str, pd.DataFrame]) -> list[dict[str, object]]:
    if "arms" not in tables or not len(tables["arms"]):
        return []
    arms = tables["arms"]
    arms = arms[arms["role"] == arms["role"].iloc[0]]
    rows = []
    for model, mine in arms.groupby("model", sort=False):
        controls = mine[mine["control"].astype(bool) & (mine["on"] == "finetuned") & (mine["arm"] != "no ablation")]
        for row in mine[mine["arm"] == "direction"].to_dict(orient="records"):
            strongest = controls["restoration"].max()
            found = row["restoration"], row["restoration_low"], row["restoration_high"]
            rows.append(_row("restoration by the chosen direction", model, *found, strongest, "the strongest control"))
    return rows


def _forecasts(tables: Mapping[str, pd.DataFrame]) -> list[dict[str, object]]:
    if "forecast" not in tables or not len(tables["forecast"]):
        return []
    table = tables["forecast"]
    held = "domain" if (table["held_out"] == "domain").any() else "question"
    return [
        _row(f"forecast R² from {row['parent']}, {held}s held out", row["model"], row["r2"], row["r2_low"], row["r2_high"], row["null_q95"], "shuffled scores")
        for row in table[table["held_out"] == held].to_dict(orient="records")
    ]
