"""Draws of noise as dependent as the residuals of a fitted series.

Residuals are smaller and less correlated than the noise they come from, because the fit follows
part of it. Both numbers are corrected by indirect inference (Gouriéroux, Monfort & Renault 1993):
noise of known correlation is added to the fit, fitted again, and what comes back is inverted.
"""

import math
from typing import Final, Literal

import numpy as np

from emlens.stats.break_search import BreakSearch

Noise = Literal["autoregressive", "stationary"]

FLAT = 1e-10  # relative: a standard deviation below it is rounding
_CORRELATIONS: Final = np.array([0.0, 0.3, 0.55, 0.75, 0.88, 0.96])
_TRIED = 24  # series per correlation, from which the bias of its estimate is learnt
_LEAST_POWER = 0.05  # share of the noise that a fit leaves at least: bounds the correction


def noise_draws(
    series: np.ndarray,
    fitted: np.ndarray,
    search: BreakSearch,
    kind: Noise,
    draws: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, float]:
    """Draws of noise like the residuals, (draws, n), and their lag-1 autocorrelation."""
    n = len(series)
    residual = series - fitted
    power, correlation = _power_and_correlation(residual[None])
    rho = float(correlation[0])
    sd = math.sqrt(float(power[0]))
    if kind == "stationary":
        # the fit took `parameters` + 2 (size and place of the break) degrees of freedom
        inflation = math.sqrt(n / max(1, n - search.parameters - 2))
        rows = _stationary_rows(n, draws, rng)
        return inflation * (residual - residual.mean())[rows], rho
    if sd <= FLAT * series.std():
        return np.zeros((draws, n)), 0.0
    true_rho, remaining = _corrected(rho, sd, fitted, search, rng)
    scale = sd / math.sqrt(max(remaining, _LEAST_POWER))
    return scale * _autoregressive(draws, n, true_rho, rng), true_rho


def _stationary_rows(n: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of the stationary bootstrap (Politis & Romano 1994): blocks of mean length 2·n^⅓."""
    rows = np.empty((draws, n), dtype=int)
    rows[:, 0] = rng.integers(n, size=draws)
    for t in range(1, n):
        # a new block begins with probability 1 / mean length, otherwise the next row follows
        begins = rng.random(draws) < 0.5 * n ** (-1 / 3)
        rows[:, t] = np.where(begins, rng.integers(n, size=draws), (rows[:, t - 1] + 1) % n)
    return rows


def _corrected(
    rho: float, sd: float, fitted: np.ndarray, search: BreakSearch, rng: np.random.Generator
) -> tuple[float, float]:
    """The correlation whose residuals would show `rho`, and the share of power a fit leaves."""
    powers = np.empty(len(_CORRELATIONS))
    rhos = np.empty(len(_CORRELATIONS))
    for i, correlation in enumerate(_CORRELATIONS):
        tried = fitted + sd * _autoregressive(_TRIED, len(fitted), float(correlation), rng)
        power, residual_rho = _power_and_correlation(tried - search.refitted(tried))
        powers[i] = power.mean() / sd**2
        rhos[i] = residual_rho.mean()
    # np.interp needs ascending values; simulation error can make two of them swap
    ascending = np.maximum.accumulate(rhos)
    true_rho = float(np.interp(rho, ascending, _CORRELATIONS))
    return true_rho, float(np.interp(true_rho, _CORRELATIONS, powers))


def _power_and_correlation(residuals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean square and lag-1 autocorrelation of each row."""
    power = (residuals**2).mean(axis=1)
    products = (residuals[:, :-1] * residuals[:, 1:]).sum(axis=1)
    return power, products / np.maximum(residuals.shape[1] * power, 1e-300)


def _autoregressive(draws: int, n: int, correlation: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian series with lag-1 autocorrelation and variance 1 at every time."""
    series = rng.standard_normal((draws, n))
    for t in range(1, n):
        # ρ² + (1 − ρ²) = 1 keeps the variance
        innovation = math.sqrt(1 - correlation**2) * series[:, t]
        series[:, t] = correlation * series[:, t - 1] + innovation
    return series
