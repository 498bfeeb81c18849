"""How often the 95 % interval of a misalignment rate holds the truth: 24 questions of 50 answers,
rates from 3 to 40 %.

Questions' true rates are beta distributed about the rate; `concentration` says how alike they are.
The released judged files have 2.0 (finance, 24 questions) and 4.2 (medical), so both ends are
simulated. For questions like these the truth is the mean of the distribution, for these questions
the mean of the drawn rates. Plain percentile intervals over questions stand beside.
"""

import math
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.records import record, show
from emlens.data.rates import rate
from emlens.foundation.seeds import numpy_rng

RATES = (0.03, 0.06, 0.10, 0.15, 0.20, 0.25, 0.30, 0.40)
CONCENTRATIONS = (2.0, 4.0)


def cell(
    true: float,
    concentration: float,
    estimand: str,
    *,
    draws: int,
    questions: int = 24,
    answers: int = 50,
    seed: int = 0,
) -> dict[str, Any]:
    """Coverage and mean width at one rate, with the standard error of the simulation."""
    rng = numpy_rng(seed, "em_rate_coverage", estimand, f"{true}/{concentration}")
    question = pd.Series(np.repeat(np.arange(questions), answers))
    scored = pd.Series(True, index=question.index)
    hits, plain, widths, misses_below, said = 0, 0, [], 0, 0
    for _ in range(draws):
        rates = rng.beta(true * concentration, (1 - true) * concentration, questions)
        met = rng.random(len(question)) < np.repeat(rates, answers)
        goal = true if estimand == "questions like these" else float(rates.mean())
        found = rate(question, pd.Series(met), scored, "question", "drop", estimand)  # type: ignore[arg-type]
        hits += found.low <= goal <= found.high
        misses_below += found.high < goal
        said += "outside its design range" in found.method
        widths.append(found.high - found.low)
        means = met.reshape(questions, answers).mean(axis=1)
        low, high = np.quantile(
            means[rng.integers(questions, size=(499, questions))].mean(axis=1), [0.025, 0.975]
        )
        plain += low <= goal <= high
    coverage = hits / draws
    return {
        "estimand": estimand,
        "rate": true,
        "concentration": concentration,
        "draws": draws,
        "coverage": coverage,
        "error": math.sqrt(coverage * (1 - coverage) / draws),
        "plain_percentile": plain / draws,
        "interval_below_truth": misses_below / draws,
        "width": float(np.mean(widths)),
        "warned": said / draws,
    }


def main(draws: int = 400, draws_within: int = 100) -> None:
    found: list[dict[str, Any]] = []
    for estimand, n in (("questions like these", draws), ("these questions", draws_within)):
        for concentration in (
            CONCENTRATIONS if estimand == "questions like these" else CONCENTRATIONS[:1]
        ):
            for true in RATES if estimand == "questions like these" else RATES[::2]:
                found.append(cell(true, concentration, estimand, draws=n))
                # kept if what follows is killed
                record("em_rate_coverage", [0], {"questions": 24, "answers": 50, "cells": found})
    show(
        "coverage of 95 % intervals of a misalignment rate, 24 questions of 50 answers",
        pd.DataFrame(found),
    )
