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

STUDY = "priors"
QUOTED = (UNRELATED, TEXT, OWN_SCORE)
"""Baselines whose gains every sentence gives, where they are there."""


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
    if not all(gain.low > 0 for gain in gains.values()) and closest not in QUOTED:
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
    outcome = (
        "that activations beat every baseline, a model of another family, the question text and the"
        f" parent's own score among them, is shown in {shown} of {len(rows)} forecasts"
    )
    if (part.tables["forecast_baselines"]["predictor"] != UNRELATED).all():
        outcome = (
            "whether this comes from the parent's prior cannot be shown in any of"
            f" {len(rows)} forecasts, since no model of another family is among the baselines"
        )
    sentence = (
        "From activations before fine-tuning, per-question alignment after it was forecast with R²"
        f" {r2.min():.2f} to {r2.max():.2f} and Spearman"
        f" {spearman.min():.2f} to {spearman.max():.2f} ({how});"
        f" {outcome}."
    )
    part.findings.insert(0, Finding(STUDY, sentence, "summary"))
