"""What the tables of `priors` say, in sentences: a forecast counts as shown only where activations
beat every cheaper baseline.
"""

import numpy as np
import pandas as pd

from emlens.probes import Forecast
from emlens.results.study_result import Finding, Part, p_text
from emlens.studies.verdicts import verdict

STUDY = "priors"
OWN_SCORE = "parent's own score"
RIVALS = (
    "mean",
    "text",
    "length",
    "domain",
    "mean embedding",
    OWN_SCORE,
    "parent's P(harmful)",
    "random features",
)
"""What activations must beat to be worth their cost; the other parent is shown, and is no cheaper.
"""


def forecast_finding(forecast: Forecast, name: str, view: str, held_out: str) -> Finding:
    """One forecast: its R² beside the ceiling, and what activations gain over the baselines.

    Args:
        name: the fine-tune. view: of the parent. held_out: `question` or `domain`.
    """
    gains = {rival: gain for rival, gain in forecast.gain_over.items() if rival in RIVALS}
    closest = min(gains, key=lambda rival: gains[rival].value)
    beats_all = all(gain.low > 0 for gain in gains.values())
    p, ceiling = forecast.p_value, forecast.ceiling
    possible, smallest = "", ""
    if ceiling is not None and ceiling.defined:
        possible = f", of {ceiling:.2f} that the seed's noise leaves possible"
    if not beats_all:
        rival = "the mean" if closest == "mean" else closest
        smallest = f"; the smallest gain is {gains[closest]:.2f}, over {rival}"
    permuted = "not permuted" if np.isnan(p) else f"permutation p {p_text(p)}"
    sentence = (
        f"{name} from {view}, {held_out}s held out: R² {forecast.r2:.2f}{possible},"
        f" Spearman {forecast.spearman:.2f} ({permuted}); gain over text {gains['text']:.2f},"
        f" over the parent's own score {gains[OWN_SCORE]:.2f}{smallest}."
    )
    status = verdict(shown=beats_all and p < 0.05, not_shown=p >= 0.05 or gains[closest].high < 0)
    return Finding(STUDY, sentence, status)


def add_summary(part: Part, forecasts: pd.DataFrame) -> None:
    """All forecasts with domains held out; with questions held out where there are no others."""
    rows, how = forecasts, "questions held out"
    by_domain = forecasts[forecasts["held_out"] == "domain"]
    if len(by_domain):
        rows, how = by_domain, "domains held out"
    shown = sum(finding.status == "shown" and how in finding.sentence for finding in part.findings)
    r2, spearman = rows["r2"], rows["spearman"]
    sentence = (
        "From activations before fine-tuning, per-question alignment after it was forecast with R²"
        f" {r2.min():.2f} to {r2.max():.2f} and Spearman"
        f" {spearman.min():.2f} to {spearman.max():.2f} ({how});"
        " activations clearly beat every cheaper baseline,"
        " question text and the parent's own score among them,"
        f" in {shown} of {len(rows)} forecasts."
    )
    part.findings.insert(0, Finding(STUDY, sentence, "summary"))
