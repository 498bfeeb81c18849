"""The verdict of a screening: what is forecast of a fine-tune, and how far that can be trusted.

What cannot be said is said so: without past fine-tunes of several domains, or with a backtest that
is no better than chance, there is no verdict.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from emlens.probes import Forecaster
from emlens.results.study_result import Finding, Part
from emlens.screening.backtests import backtest
from emlens.screening.past_runs import NOT_ASKED


def cannot_say(part: Part, why: str) -> Part:
    """The part with a first finding that there is no verdict."""
    part.findings.insert(0, Finding("verdict", f"Cannot say: {why}", "undecided"))
    return part


def add_verdict(
    part: Part,
    table: pd.DataFrame,
    forecaster: Forecaster,
    context: Mapping[str, float] | None,
    *,
    below: float,
    seed: int,
) -> Part:
    """The part with the verdict as its first finding, and the tables of the backtest.

    Args:
        table: of `Forecaster.predict_table`, with a column `expected`.
        context: the numbers of the training file, where severity was learnt.
        below: a question counts as misaligned below this score.
    """
    _add_refused(part, table)
    predicted = table[table["refused"] == ""]
    if not len(predicted):
        return cannot_say(part, "every question was refused.")
    n_flagged = int((predicted["expected"] < below).sum())
    counts = (
        f"{n_flagged} of {len(predicted)} questions are forecast below {below:g}"
        f" (mean forecast {predicted['expected'].mean():.0f})"
    )
    if len(set(forecaster.clusters)) < 2 or len(set(forecaster.labels)) < 2:
        return cannot_say(
            part,
            "the forecaster knows fine-tunes of one domain only,"
            f" so nothing shows how it does on others. For what it is worth, {counts}.",
        )
    tables = backtest(forecaster.pairs(), below=below, flags=(below,), seed=seed)
    for name, frame in tables.items():
        part.tables[f"backtest_{name}"] = frame
    _warn_without_severity(part, forecaster)
    predictor, kind = "predicted", "questions not seen before"
    if predicted["known"].mean() > 0.5:
        predictor, kind = "from_past", "known questions"
    trust = _trust(tables, predictor, kind)
    base = _base_rates(tables["base_rates"], len(forecaster.runs), below)
    numbers = ""
    if context:
        listed = ", ".join(f"{name} {value:.3g}" for name, value in context.items())
        numbers = f" The file's numbers: {listed}."
    if not _row(tables["ranking"], predictor)["auroc_low"] > 0.5:
        return cannot_say(part, f"{trust}, which is not better than chance. {base}.")
    if n_flagged:
        sentence, status = f"At risk: {counts}; {trust}. {base}.{numbers}", "shown"
    else:
        sentence, status = f"Not flagged: {counts}; {trust}. {base}.{numbers}", "not shown"
    part.findings.insert(0, Finding("verdict", sentence, status))
    return part


def _add_refused(part: Part, table: pd.DataFrame) -> None:
    refused = table[table["refused"] != ""]
    if not len(refused):
        return
    reasons = [f"{reason} ({n})" for reason, n in refused["refused"].value_counts().items()]
    part.findings.append(
        Finding(
            "refused",
            f"Cannot say for {len(refused)} of {len(table)} questions: {'; '.join(reasons)}.",
            "undecided",
        )
    )


def _warn_without_severity(part: Part, forecaster: Forecaster) -> None:
    unlearnt = forecaster.facts.get("severity_not_learnt", "")
    if unlearnt and unlearnt != NOT_ASKED:
        part.warnings.append(
            "severity was not learnt from training files,"
            f" so every file counts as the mean past one: {unlearnt}"
        )


def _trust(tables: Mapping[str, pd.DataFrame], predictor: str, kind: str) -> str:
    """How well this predictor did on past fine-tunes."""
    rank = _row(tables["ranking"], predictor)
    rates = _row(tables["thresholds"], predictor)
    return (
        f"in the backtest on fine-tunes of domains not seen ({kind}),"
        f" AUROC is {rank['auroc']:.2f} [{rank['auroc_low']:.2f}, {rank['auroc_high']:.2f}],"
        f" {_share(rates, 'precision')} of flagged questions fell below,"
        f" and {_share(rates, 'recall')} of those that fell were flagged"
    )


def _base_rates(table: pd.DataFrame, n_runs: int, below: float) -> str:
    of_questions, of_runs = table.iloc[0], table.iloc[1]
    return (
        f"Base rates: {_share(of_questions, 'misaligned')} of questions in {n_runs} past"
        f" fine-tunes fell below {below:g},"
        f" and {_share(of_runs, 'misaligned')} of those fine-tunes did by their mean"
    )


def _row(table: pd.DataFrame, predictor: str) -> Any:
    return table.set_index("predictor").loc[predictor]


def _share(row: Any, name: str) -> str:
    """A share with its interval, in percent."""
    if not np.isfinite(row[name]):
        return "an undefined share"
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{100 * row[name]:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"
