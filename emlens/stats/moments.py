"""Mean and covariance of rows that do not fit in memory, in float64, mergeable across processes.

Chan, Golub & LeVeque's pairwise update (1983), with the mean kept in two parts, so that nothing
cancels however far it is from 0 and however many merges there were. Memory: 2·d numbers, and d²
with the covariance (d without). It refuses rows that are not finite, since one NaN would poison
everything after it.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.shapes import as_float64


class StreamingMoments:
    """Running count, mean and, on request, covariance of rows of width d.

    Args:
        d: width of a row.
        covariance: keep the full (d, d) covariance, or only the variance of each coordinate.
    """

    def __init__(self, d: int, *, covariance: bool = True) -> None:
        if isinstance(d, bool) or not isinstance(d, int) or d < 1:
            raise InputError(f"d={d!r} must be an integer of 1 or more")
        self.d = d
        self.has_covariance = covariance
        self.n = 0
        self._mean = torch.zeros(d, dtype=torch.float64)
        # the mean is _mean + _mean_low: what rounding takes from the first is in the second
        self._mean_low = torch.zeros(d, dtype=torch.float64)
        # sum of outer squares about the mean, (d, d); its diagonal alone, (d,), without covariance
        self._scatter = torch.zeros(d, dtype=torch.float64)
        if covariance:
            self._scatter = torch.zeros(d, d, dtype=torch.float64)

    def update(self, rows: Float[Tensor, "row d"]) -> "StreamingMoments":
        """Take in rows, (row, d), of any floating dtype; returns itself.

        The result does not depend on how rows are cut into chunks, up to rounding.

        Raises:
            InputError: rows of another width, or not finite.
        """
        wide = as_float64(rows, "rows")
        if wide.ndim != 2 or wide.shape[1] != self.d:
            raise InputError(f"rows has shape {tuple(wide.shape)}; pass (row, {self.d})")
        if len(wide) == 0:
            return self
        mean = wide.mean(dim=0)
        centred = wide - mean
        # corrected two-pass algorithm: the mean of the centred rows is what rounding left
        mean_low = centred.mean(dim=0)
        centred = centred - mean_low
        if self.has_covariance:
            scatter = centred.T @ centred
        else:
            scatter = (centred**2).sum(dim=0)
        self._add(len(wide), mean.cpu(), mean_low.cpu(), scatter.cpu())
        return self

    def merge(self, other: "StreamingMoments") -> "StreamingMoments":
        """Take in the rows of another, which is not changed; returns itself.

        Raises:
            InputError: another width, or only one of the two has the covariance.
        """
        if (self.d, self.has_covariance) != (other.d, other.has_covariance):
            raise InputError(
                f"cannot merge moments of d={other.d}, covariance={other.has_covariance} "
                f"into d={self.d}, covariance={self.has_covariance}; make both alike"
            )
        if other.n:
            self._add(other.n, other._mean, other._mean_low, other._scatter)
        return self

    def _add(self, n: int, mean: Tensor, mean_low: Tensor, scatter: Tensor) -> None:
        if self.n == 0:
            self.n = n
            self._mean = mean.clone()
            self._mean_low = mean_low.clone()
            self._scatter = scatter.clone()
            return
        total = self.n + n
        gap = (mean - self._mean) + (mean_low - self._mean_low)
        outer = torch.outer(gap, gap) if self.has_covariance else gap**2
        # S = S_1 + S_2 + (n_1·n_2/n)·gap gapᵀ: only differences of means enter, nothing cancels
        self._scatter = self._scatter + scatter + outer * (self.n * n / total)
        step = self._mean_low + gap * (n / total)
        new_mean = self._mean + step
        # Knuth's two-sum: exactly what rounding took from `self._mean + step`
        back = new_mean - self._mean
        self._mean_low = (self._mean - (new_mean - back)) + (step - back)
        self._mean = new_mean
        self.n = total

    @property
    def mean(self) -> Float[Tensor, " d"]:
        """Mean of the rows, (d,), float64.

        Raises:
            InputError: there was no row.
        """
        if self.n == 0:
            raise InputError("there was no row, so there is no mean; call update first")
        return self._mean.clone()

    @property
    def variance(self) -> Float[Tensor, " d"]:
        """Variance of each coordinate (n − 1), (d,), float64.

        Raises:
            InputError: fewer than 2 rows.
        """
        self._require_two("variance")
        diagonal = self._scatter.diagonal() if self.has_covariance else self._scatter
        return diagonal / (self.n - 1)

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """Sample covariance (n − 1), (d, d), float64, exactly symmetric.

        Raises:
            InputError: fewer than 2 rows, or made with covariance=False.
        """
        if not self.has_covariance:
            raise InputError(
                "these moments were made with covariance=False; make them with covariance=True"
            )
        self._require_two("covariance")
        # blocked matrix products of the two triangles can differ in the last digit
        return (self._scatter + self._scatter.T) / (2 * (self.n - 1))

    def _require_two(self, what: str) -> None:
        if self.n < 2:
            raise InputError(
                f"{self.n} rows were seen, too few for a {what}; update with at least 2"
            )
