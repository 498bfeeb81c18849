"""Mean and covariance of rows that do not fit in memory, in float64, mergeable across processes.

Chan, Golub & LeVeque's pairwise update, with the mean kept in two parts, so that nothing cancels
however far it is from 0 and however many merges there were. Memory: 2·d numbers, and d² with the
covariance (d without). It refuses rows that are not finite, since one NaN would poison everything
after it.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.shapes import as_float64


class StreamingMoments:
    """Running count, mean and (if asked) covariance of rows of width d.

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
        self._mean_rest = torch.zeros(d, dtype=torch.float64)
        self._scatter = torch.zeros((d, d) if covariance else (d,), dtype=torch.float64)

    def update(self, rows: Float[Tensor, "row d"]) -> "StreamingMoments":
        """Take in rows, in any chunks; the result does not depend on how they are cut (to
        rounding).

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
        left = centred.mean(dim=0)  # what rounding of the mean left: corrected two-pass algorithm
        centred = centred - left
        scatter = centred.T @ centred if self.has_covariance else (centred**2).sum(dim=0)
        self._add(len(wide), mean.cpu(), left.cpu(), scatter.cpu())
        return self

    def merge(self, other: "StreamingMoments") -> "StreamingMoments":
        """Take in what another has seen; it stays as it is.

        Raises:
            InputError: another width, or only one of the two keeps the covariance.
        """
        if (self.d, self.has_covariance) != (other.d, other.has_covariance):
            raise InputError(
                f"cannot merge moments of d={other.d}, covariance={other.has_covariance} "
                f"into d={self.d}, covariance={self.has_covariance}; make both alike"
            )
        if other.n:
            self._add(other.n, other._mean, other._mean_rest, other._scatter)
        return self

    def _add(self, n: int, mean: Tensor, rest: Tensor, scatter: Tensor) -> None:
        if self.n == 0:
            self.n, self._mean, self._mean_rest, self._scatter = (
                n,
                mean.clone(),
                rest.clone(),
                scatter.clone(),
            )
            return
        total = self.n + n
        gap = (mean - self._mean) + (rest - self._mean_rest)
        outer = torch.outer(gap, gap) if self.has_covariance else gap**2
        self._scatter = self._scatter + scatter + outer * (self.n * n / total)
        step = self._mean_rest + gap * (n / total)
        moved = self._mean + step
        back = moved - self._mean
        # what the sum rounded off (Knuth's two-sum)
        self._mean_rest = (self._mean - (moved - back)) + (step - back)
        self._mean = moved
        self.n = total

    @property
    def mean(self) -> Float[Tensor, " d"]:
        """Raises:
        InputError: no row was seen.
        """
        if self.n == 0:
            raise InputError("no row was seen, so there is no mean; call update first")
        return self._mean.clone()

    @property
    def variance(self) -> Float[Tensor, " d"]:
        """Variance of each coordinate (n − 1).

        Raises:
            InputError: fewer than 2 rows were seen.
        """
        self._require_two("variance")
        diagonal = self._scatter.diagonal() if self.has_covariance else self._scatter
        return diagonal / (self.n - 1)

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """Sample covariance (n − 1), symmetric.

        Raises:
            InputError: fewer than 2 rows were seen, or made with covariance=False.
        """
        if not self.has_covariance:
            raise InputError(
                "these moments were made with covariance=False; make them with covariance=True"
            )
        self._require_two("covariance")
        return (self._scatter + self._scatter.T) / (2 * (self.n - 1))

    def _require_two(self, what: str) -> None:
        if self.n < 2:
            raise InputError(
                f"{self.n} rows were seen, too few for a {what}; update with at least 2"
            )
