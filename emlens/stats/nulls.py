"""What a statistic looks like when there is nothing to find.

A `NullDistribution` holds draws (sorted, float64), exact moments, or both. It compares numbers and
does not know how its draws were made: whether they are a null for the question at hand is decided
where they are made, and `label` says which null it is. It knows what its number of draws can show:
`draws_needed`, `smallest_p`, `require_resolution`. Memory: 8 bytes per draw.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.notebooks import as_table, in_a_line
from emlens.stats.intervals import clopper_pearson_interval
from emlens.stats.samples import as_sample, require_count, require_level

Side = Literal["greater", "less", "two-sided"]

EXPECTED_EXCEEDANCES = 10
"""Draws expected beyond the observed value where a p-value counts as resolved (relative Monte Carlo
error 1/√10).
"""

TIE = 1e-12
"""Relative gap within which a draw and an observation differ only by the order of summation."""

_EMPTY = np.empty(0)
_QUANTILES = {"q025": 0.025, "median": 0.5, "q95": 0.95, "q975": 0.975}


def require_side(side: str) -> None:
    """Raises:
    InputError: not one of the three sides.
    """
    if side not in ("greater", "less", "two-sided"):
        raise InputError(
            f"side={side!r} is unknown; pass 'greater', 'less' or 'two-sided'",
            name=side,
            known=("greater", "less", "two-sided"),
        )


@dataclass(frozen=True, eq=False)
class NullDistribution:
    """The distribution of a statistic under a stated null.

    Args:
        draws: simulated values in any order, stored sorted and read-only; empty where only moments
            are known.
        label: which null this is, in words.
        seed: the seed the draws came from.
        exact_mean, exact_sd: moments known in closed form; they win over those of the draws.
        distinct: number of equally likely outcomes, where the null has finitely many (sign
            patterns, relabellings), the observed one among them; None where it is continuous. No
            number of draws gives a p below 1/distinct.
        observed: the statistic of the unchanged data, where the null was made by re-arranging
            them.

    Raises:
        InputError: NaN or infinity among the draws, neither draws nor both moments, or fewer than 2
            outcomes.
    """

    draws: np.ndarray = field(default_factory=lambda: _EMPTY)
    label: str = ""
    seed: int | None = None
    exact_mean: float | None = None
    exact_sd: float | None = None
    distinct: int | None = None
    observed: float | None = None

    def __post_init__(self) -> None:
        draws = np.sort(as_sample(self.draws, "draws", at_least=0))
        draws.setflags(write=False)
        if not len(draws) and (self.exact_mean is None or self.exact_sd is None):
            raise InputError(
                "a null distribution was given no draws; pass draws,"
                " or both exact_mean and exact_sd"
            )
        if self.distinct is not None:
            require_count(self.distinct, "distinct", at_least=2)
        object.__setattr__(self, "draws", draws)

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = {
            "label": self.label,
            "mean": f"{self.mean:.4g}",
            "sd": f"{self.sd:.4g}",
        }
        if self.n_draws:
            facts["q95"] = f"{self.quantile(0.95):.4g}"
        facts["draws"] = self.n_draws
        facts["seed"] = self.seed
        return facts

    def __repr__(self) -> str:
        return in_a_line("NullDistribution", self._facts())

    def _repr_html_(self) -> str:
        return as_table("NullDistribution", self._facts())

    @property
    def n_draws(self) -> int:
        return len(self.draws)

    @property
    def mean(self) -> float:
        """Mean; the exact one where it is known."""
        if self.exact_mean is not None:
            return self.exact_mean
        return float(self.draws.mean())

    @property
    def sd(self) -> float:
        """Standard deviation, the exact one where it is known; of a single draw it is `nan`."""
        if self.exact_sd is not None:
            return self.exact_sd
        if len(self.draws) < 2:
            return math.nan
        return float(self.draws.std(ddof=1))

    @property
    def exhaustive(self) -> bool:
        """Whether the draws are all outcomes but the observed one, each once.

        Then p is exact, and more draws add nothing.
        """
        return self.distinct is not None and len(self.draws) == self.distinct - 1

    def quantile(self, q: float) -> float:
        """The value below which a share `q` of the draws lies (linear interpolation).

        Raises:
            InputError: `q` outside [0, 1], or the null has no draws.
        """
        if not 0 <= q <= 1:
            raise InputError(f"q={q!r} must lie in [0, 1]")
        return float(np.quantile(self._required_draws("a quantile"), q))

    def _extreme(self, x: np.ndarray, side: Side) -> np.ndarray:
        """How many draws are at least as extreme as each x; two-sided, the smaller tail's count."""
        require_side(side)
        bad = int((~np.isfinite(x)).sum())
        if bad and x.ndim == 0:
            raise InputError(f"x={float(x)!r} has no p-value; pass a finite number")
        if bad:
            raise InputError(
                f"x holds {bad} of {x.size} values that have no p-value; pass a finite number"
            )
        draws = self._required_draws("a p-value")
        # ties count against the observation, so both tails reach `slack` beyond x
        slack = TIE * np.maximum(np.abs(x), max(abs(draws[0]), abs(draws[-1])))
        above = len(draws) - np.searchsorted(draws, x - slack, side="left")
        below = np.searchsorted(draws, x + slack, side="right")
        if side == "greater":
            return np.asarray(above)
        if side == "less":
            return np.asarray(below)
        return np.asarray(np.minimum(above, below))

    def p_values(self, x: ArrayLike | float, side: Side = "greater") -> np.ndarray:
        """`p_value` of every number of an array, in its shape.

        For cells that share a null, which then need one set of draws. The p-values are not
        corrected for having looked at many cells.

        Raises:
            InputError: a value is not finite, `side` is unknown, or the null has no draws.
        """
        extreme = self._extreme(np.asarray(x, dtype=np.float64), side)
        return np.asarray(np.minimum(1.0, _factor(side) * (1 + extreme) / (1 + len(self.draws))))

    def p_value(self, x: float | None = None, side: Side = "greater") -> float:
        """Monte Carlo p-value of an observed `x`: (1 + draws at least as extreme) / (1 + draws).

        Without `x` it is that of `observed`. Range: [1/(n+1), 1], never 0. `two-sided` is twice the
        smaller tail, at most 1. The added one counts the observation itself, which makes the test
        exact for exchangeable draws (Phipson & Smyth 2010). A draw within a relative 1e-12 of `x`
        counts as a tie, against the observation.

        Raises:
            InputError: `x` is not finite, or missing where the null has no `observed`; `side` is
                unknown, or there are no draws.
        """
        return float(self.p_values(self._value(x), side))

    def _value(self, x: float | None) -> float:
        value = self.observed if x is None else x
        if value is None:
            raise InputError(
                f"the null {self.label!r} was not made from the observed data;"
                " pass x, the observed value"
            )
        return float(value)

    def p_estimate(
        self, x: float | None = None, side: Side = "greater", *, level: float = 0.95
    ) -> Estimate:
        """`p_value` with an interval for the p that infinitely many draws would give.

        The interval is Clopper & Pearson's (1934), of the number of extreme draws.

        Raises:
            InputError: as `p_value`; a level outside (0, 1).
        """
        require_level(level)
        p, n = self.p_value(x, side), len(self.draws)
        if self.exhaustive:
            return Estimate(p, p, p, n, f"exact over all {self.distinct} outcomes, {side}")
        extreme = int(self._extreme(np.asarray(self._value(x)), side))
        share = clopper_pearson_interval(extreme, n, level=level)
        factor = _factor(side)
        method = f"Monte Carlo p, {side}, +1 rule, {100 * level:g} % Clopper-Pearson of the draws"
        return Estimate(p, min(1.0, factor * share.low), min(1.0, factor * share.high), n, method)

    def smallest_p(self, side: Side = "greater") -> float:
        """The smallest p-value that these draws can give."""
        require_side(side)
        floor = 1 / (1 + len(self.draws))
        if self.distinct:
            floor = max(floor, 1 / self.distinct)
        return min(1.0, _factor(side) * floor)

    @staticmethod
    def draws_needed(p: float, *, side: Side = "greater", tests: int = 1) -> int:
        """Draws that resolve a p-value of `p`: ten expected beyond it, so .001 needs 10,000.

        Args:
            tests: how many tests a Bonferroni correction multiplies the p-value by; the draws grow
                with them.

        Raises:
            InputError: `p` outside (0, 1], an unknown side, tests below 1.
        """
        if not 0 < p <= 1:
            raise InputError(f"p={p!r} must lie in (0, 1]")
        require_side(side)
        needed = EXPECTED_EXCEEDANCES * _factor(side) * require_count(tests, "tests") / p
        # the quotient can lie a rounding error above an integer, which ceil makes one draw more
        return math.ceil(round(needed, 6))

    def require_resolution(self, p: float, *, side: Side = "greater", tests: int = 1) -> None:
        """Refuse to go on where the draws cannot resolve a p-value of `p`.

        Raises:
            InputError: too few draws for `p`, or too few outcomes for any number of draws; as
                `draws_needed`.
        """
        needed = self.draws_needed(p, side=side, tests=tests)
        words = f"p={p:g}"
        if tests > 1:
            words += f" after a correction for {tests} tests"
        if self.distinct is not None and _factor(side) * tests / self.distinct > p:
            raise InputError(
                f"{words} cannot be reached by any number of draws:"
                f" the null {self.label!r} has {self.distinct} equally likely outcomes,"
                f" so no p ({side}) lies below {_factor(side) / self.distinct:.3g};"
                " more units are needed"
            )
        if len(self.draws) < needed and not self.exhaustive:
            raise InputError(
                f"{words} needs {needed} draws; the null {self.label!r} has {len(self.draws)},"
                f" which give no p ({side}) below {self.smallest_p(side):.3g};"
                f" make it with draws={needed}"
            )

    def to_record(self) -> dict[str, Any]:
        """JSON-ready summary without the draws."""
        record: dict[str, Any] = {
            "label": self.label,
            "mean": self.mean,
            "sd": self.sd,
            "n_draws": self.n_draws,
            "seed": self.seed,
        }
        if self.n_draws:
            for name, q in _QUANTILES.items():
                record[name] = self.quantile(q)
        return record

    def _required_draws(self, what: str) -> np.ndarray:
        if not len(self.draws):
            raise InputError(
                f"the null {self.label!r} has moments and no draws, which {what} needs;"
                " make it with draws"
            )
        return self.draws


def _factor(side: str) -> int:
    """2 for a two-sided test, whose p is twice the smaller tail."""
    return 2 if side == "two-sided" else 1
