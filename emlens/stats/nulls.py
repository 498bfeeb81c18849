"""What a statistic looks like when there is nothing to find.

A `NullDistribution` holds draws (sorted, float64), exact moments, or both. It compares numbers and does not know how
its draws were made: whether they are a null for the question asked is the maker's business, and `label` says which null
it is. Memory: 8 bytes a draw.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from emlens.foundation.errors import InputError
from emlens.stats.samples import as_sample

Side = Literal["greater", "less", "two-sided"]

EXPECTED_EXCEEDANCES = 10
"""Draws expected beyond the observed value where a p-value counts as resolved (relative Monte Carlo error 1/√10)."""

_EMPTY = np.empty(0)


@dataclass(frozen=True, eq=False)
class NullDistribution:
    """The distribution of a statistic under a stated null.

    Args:
        draws: simulated values in any order, kept sorted and read-only; empty where only moments are known.
        label: which null this is, in words.
        seed: the seed the draws came from.
        exact_mean, exact_sd: moments known in closed form; they win over those of the draws.

    Raises:
        InputError: NaN or infinity among the draws, or neither draws nor both moments.
    """

    draws: np.ndarray = field(default_factory=lambda: _EMPTY)
    label: str = ""
    seed: int | None = None
    exact_mean: float | None = None
    exact_sd: float | None = None

    def __post_init__(self) -> None:
        draws = np.sort(as_sample(self.draws, "draws", at_least=0))
        draws.setflags(write=False)
        if not len(draws) and (self.exact_mean is None or self.exact_sd is None):
            raise InputError("a null distribution came with no draws; pass draws, or both exact_mean and exact_sd")
        object.__setattr__(self, "draws", draws)

    @property
    def n_draws(self) -> int:
        return len(self.draws)

    @property
    def mean(self) -> float:
        return float(self.draws.mean()) if self.exact_mean is None else self.exact_mean

    @property
    def sd(self) -> float:
        """Standard deviation; of a single draw it is `nan`."""
        if self.exact_sd is not None:
            return self.exact_sd
        return float(self.draws.std(ddof=1)) if len(self.draws) > 1 else math.nan

    def quantile(self, q: float) -> float:
        """The value below which a share `q` of the draws lies (linear interpolation).

        Raises:
            InputError: `q` outside [0, 1], or the null has no draws.
        """
        if not 0 <= q <= 1:
            raise InputError(f"q={q!r} must lie in [0, 1]")
        return float(np.quantile(self._needed_draws("a quantile"), q))

    def p_value(self, x: float, side: Side = "greater") -> float:
        """Monte Carlo p-value of an observed `x`: (1 + draws at least as extreme) / (1 + draws), never 0.

        Range: [1/(n+1), 1]. `two-sided` is twice the smaller tail, at most 1. The added one counts the observation
        itself, which makes the test exact for exchangeable draws (Phipson & Smyth 2010).

        Raises:
            InputError: `x` is not finite, `side` is unknown, or the null has no draws.
        """
        if not math.isfinite(x):
            raise InputError(f"x={x!r} has no p-value; pass a finite number")
        draws = self._needed_draws("a p-value")
        n = len(draws)
        above = (1 + n - int(np.searchsorted(draws, x, side="left"))) / (1 + n)
        below = (1 + int(np.searchsorted(draws, x, side="right"))) / (1 + n)
        if side == "greater":
            return above
        if side == "less":
            return below
        if side == "two-sided":
            return min(1.0, 2 * min(above, below))
        raise InputError(f"side={side!r} is unknown; pass 'greater', 'less' or 'two-sided'")

    @staticmethod
    def draws_needed(p: float) -> int:
        """Draws that resolve a p-value of `p`: ten expected beyond it, so .001 needs 10,000.

        Raises:
            InputError: `p` outside (0, 1].
        """
        if not 0 < p <= 1:
            raise InputError(f"p={p!r} must lie in (0, 1]")
        return math.ceil(round(EXPECTED_EXCEEDANCES / p, 6))

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready summary without the draws."""
        quantiles = {name: self.quantile(q) for name, q in _QUANTILES.items()} if self.n_draws else {}
        return {
            "label": self.label,
            "mean": self.mean,
            "sd": self.sd,
            "n_draws": self.n_draws,
            "seed": self.seed,
        } | quantiles

    def _needed_draws(self, what: str) -> np.ndarray:
        if not len(self.draws):
            raise InputError(
                f"the null {self.label!r} has moments and no draws, which {what} needs; make it with draws"
            )
        return self.draws


_QUANTILES = {"q025": 0.025, "median": 0.5, "q95": 0.95, "q975": 0.975}
