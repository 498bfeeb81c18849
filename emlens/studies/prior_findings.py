"""What the tables of `priors` say, in sentences: a forecast from a parent's prior counts as shown
only where activations beat every baseline, a model of another family among them.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from emlens.foundation.estimate import Estimate
from emlens.probes import Forecast
from emlens.probes.baselines import OWN_SCORE, TEXT, UNRELATED
from emlens.results.study_result import Finding, Part, p_text
from emlens.results.wording import counted

STUDY = "priors"
QUOTED = (UNRELATED, TEXT, OWN_SCORE)
"""Baselines whose gains every sentence gives, where they are there."""
WORDS = {
    UNRELATED: "a model of another family",
    TEXT: "the question text",
    OWN_SCORE: "the parent's own score",
}
"""What they are called in the summary."""


def forecast_finding(forecast: Forecast, name: str, view: str, held_out: str) -> Finding:
    """One forecast: its R² beside the ceiling, and what activations gain over the baselines.

    Args:
        name: the fine-tune. view: of the parent. held_out: `question` or `domain`.
    """
    gains = forecast.gain_over_rivals
    closest = min(gains, key=lambda rival: gains[rival].value)
    ceiling = forecast.ceiling
    possible, smallest, missing = "", "", ""
    if ceiling is not None and ceiling.defined:
        possible = f", of {ceiling.value:.2f} that the seed's noise leaves possible"
    quoted = [f"over {rival} {_signed(gains[rival])}" for rival in QUOTED if rival in gains]
    if forecast.not_beaten and closest not in QUOTED:
        rival = "the mean" if closest == "mean" else closest
        smallest = f"; the smallest gain is {_signed(gains[closest])}, over {rival}"
    if forecast.missing:
        missing = f"; not compared with {listed(forecast.missing)}"
    gained = f"; gain {', '.join(quoted)}" if quoted else ""
    sentence = (
        f"{name} from {view}, {held_out}s held out: R² {forecast.r2.value:.2f}{possible},"
        f" Spearman {forecast.spearman.value:.2f} ({_p_words(forecast)})"
        f"{gained}{smallest}{missing}."
    )
    return Finding(STUDY, sentence, forecast.verdict)


def _signed(gain: Estimate) -> str:
    return f"{gain.value:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"


def _p_words(forecast: Forecast) -> str:
    """p corrected over the forecasts of the page, or why there is none."""
    if np.isnan(forecast.p_value):
        return "not permuted"
    if not forecast.can_be_shown:
        return (
            f"permutation p {p_text(forecast.p_value)}, too few permutations for"
            f" {forecast.tests} forecasts"
        )
    return f"permutation p {p_text(forecast.p_holm)}, corrected over {forecast.tests} forecasts"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: "a, b and c"."""
    if len(names) == 1:
        return names[0]
    return f"{', '.join(names[:-1])} and {names[-1]}"


def add_summary(part: Part, forecasts: pd.DataFrame) -> None:
    """All forecasts with domains held out; with questions held out where there are no others."""
    rows, how = forecasts, "questions held out"
    by_domain = forecasts[forecasts["held_out"] == "domain"]
    if len(by_domain):
        rows, how = by_domain, "domains held out"
    shown = sum(finding.status == "shown" and how in finding.sentence for finding in part.findings)
    r2, spearman = rows["r2"], rows["spearman"]
    forecasted = counted(len(rows), "forecast")
    missing = _missing(part.tables["forecast_baselines"])
    outcome = (
        "that activations beat every baseline, a model of another family, the question text and the"
        f" parent's own score among them, is shown in {shown} of {forecasted}"
    )
    if missing:
        outcome = (
            "whether this comes from the parent's prior cannot be shown in any of"
            f" {forecasted}, since not among the baselines: {listed(missing)}"
        )
    sentence = (
        "From activations before fine-tuning, per-question alignment after it was forecast with"
        f" R² {_range(r2)} and Spearman {_range(spearman)} ({how}); {outcome}."
    )
    part.findings.insert(0, Finding(STUDY, sentence, "summary"))


def _missing(baselines: pd.DataFrame) -> list[str]:
    """Those of the baselines that the summary names that no forecast stands beside."""
    there = set(baselines["predictor"])
    return [WORDS[name] for name in QUOTED if name not in there]


def _range(values: "pd.Series[float]") -> str:
    """Lowest to highest; one number where they are one."""
    low, high = f"{values.min():.2f}", f"{values.max():.2f}"
    return low if low == high else f"{low} to {high}"
