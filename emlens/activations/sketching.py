"""The strongest directions of rows that are read once: a randomised sketch of their second moment.

Y = Σ x xᵀ Ω, of shape (d, sketch), for a fixed random orthonormal Ω. Sketches add up, so chunks and
processes may come in any order. From Y the second moment is recovered by a fixed-rank Nyström
approximation (Tropp, Yurtsever, Udell & Cevher 2017, algorithm 3). It is exact to rounding where
the (centred) rows span no more directions than the sketch has columns, and close where the spectrum
falls off beyond them; its singular values never exceed the true ones. Memory: d·sketch numbers,
against d² of a covariance. Because it holds squares, singular values below 1e-8 of the largest are
not resolved.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.seeds import torch_rng
from emlens.foundation.shapes import as_float64

_EPS = torch.finfo(torch.float64).eps


class MomentSketch:
    """Running Σ x xᵀ Ω, Σ x and Σ |x|² of rows of width d.

    Args:
        d: width of a row.
        size: columns of the sketch, at most d; take several times the number of directions that are
            wanted.
        seed: sketches are added only to sketches of the same seed.
    """

    def __init__(self, d: int, size: int, *, seed: int = 0) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= d:
            raise InputError(f"sketch={size!r} must be an integer of 1 to the width of a row, {d}")
        self.d, self.size, self.seed = d, size, seed
        self.n = 0
        generator = torch_rng(seed, "moment sketch", d, size)
        draws = torch.randn(d, size, dtype=torch.float64, generator=generator)
        self._test = torch.linalg.qr(draws).Q
        self._sketch = torch.zeros(d, size, dtype=torch.float64)
        self._sum = torch.zeros(d, dtype=torch.float64)
        self._squares = 0.0

    def update(self, rows: Float[Tensor, "row d"]) -> "MomentSketch":
        """Add rows, in any chunks.

        Raises:
            InputError: rows of another width, or not finite.
        """
        wide = as_float64(rows, "rows")
        if wide.ndim != 2 or wide.shape[1] != self.d:
            raise InputError(f"rows has shape {tuple(wide.shape)}; pass (row, {self.d})")
        self._sketch += (wide.T @ (wide @ self._test.to(wide.device))).cpu()
        self._sum += wide.sum(0).cpu()
        self._squares += float((wide**2).sum())
        self.n += len(wide)
        return self

    def merge(self, other: "MomentSketch") -> "MomentSketch":
        """Add the rows of another sketch of the same width, size and seed, which is not changed.

        Raises:
            InputError: another width, size or seed.
        """
        if (self.d, self.size, self.seed) != (other.d, other.size, other.seed):
            raise InputError(
                f"cannot merge a sketch of d={other.d}, size={other.size},"
                f" seed={other.seed} into one of d={self.d}, size={self.size}, seed={self.seed};"
                " make both alike"
            )
        self._sketch += other._sketch
        self._sum += other._sum
        self._squares += other._squares
        self.n += other.n
        return self

    @property
    def mean(self) -> Float[Tensor, " d"]:
        return self._sum / max(self.n, 1)

    def total(self, *, centred: bool) -> float:
        """Σ |x|², or Σ |x − mean|²: exact, not sketched."""
        if not centred:
            return self._squares
        return self._squares - self.n * float(self.mean @ self.mean)

    def axes(self, *, centred: bool) -> tuple[Float[Tensor, "d s"], Float[Tensor, " s"]]:
        """Orthonormal directions, strongest first, and the singular values of the (centred) rows
        along them.
        """
        sketch = self._sketch
        if centred:
            # Σ (x − mean)(x − mean)ᵀ Ω = Σ x xᵀ Ω − n · mean meanᵀ Ω
            sketch = sketch - self.n * torch.outer(self.mean, self.mean @ self._test)
        # Nyström of the moment plus shift·I, so that the core Ωᵀ Y is safely positive; the shift is
        # taken off again from the squared singular values below.
        shift = _EPS * float(torch.linalg.matrix_norm(sketch)) * self.d**0.5
        sketch = sketch + shift * self._test
        core = self._test.T @ sketch
        weights, vectors = torch.linalg.eigh((core + core.T) / 2)
        resolved = weights > max(shift, _EPS * self.size * float(weights.abs().max()))
        # Y core⁺ Yᵀ = F Fᵀ with F = Y · core^(−1/2), whose singular vectors are the directions
        factor = sketch @ (vectors[:, resolved] / weights[resolved].sqrt())
        axes, singular, _ = torch.linalg.svd(factor, full_matrices=False)
        return axes, (singular**2 - shift).clamp(min=0).sqrt()
