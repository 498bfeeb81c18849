"""The path that a vector takes through training, from its Gram matrix alone.

Lengths, speed, closeness to its end, principal components; turns are in `geometry.turns`.
Row t of a path is the vector at checkpoint t, and everything here needs inner products of rows
only. So the path of an update BA costs (steps · r)² numbers, whatever its width: `update_gram`
takes them from the factors and never forms BA.

Gauge: cB and A/c are one update, and B M, M⁻¹ A are. The norms of A and B, and the path of B that
the literature plots, change with that choice, which initialisation and optimiser make; the norm,
the path and the singular values of BA do not. Within one run, a rotation M that stays the same
changes none of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.notebooks import Picture, in_a_line
from emlens.foundation.shapes import as_float64, require_ndim


def path_gram(path: Float[Tensor, "step d"]) -> Float[Tensor, "step step"]:
    """Inner products of the rows of a path, (step, step), in float64.

    Invariant to a rotation of the path.

    Args:
        path: one vector per checkpoint (step, d).

    Raises:
        InputError: not a matrix, or values that are not finite.
    """
    require_ndim(path, 2, "path", "one vector per checkpoint (step, d)")
    rows = as_float64(path.reshape(len(path), -1), "path")
    return rows @ rows.T


def update_gram(
    a: Float[Tensor, "step r d_in"], b: Float[Tensor, "step d_out r"], scale: float = 1.0
) -> Float[Tensor, "step step"]:
    """Inner products ⟨ΔW_s, ΔW_t⟩ of the updates ΔW = scale · B A of one module.

    (step, step), in float64, without forming BA. Invariant to the gauge of the factors, also where
    it differs between steps. Grams of several modules add up to that of the whole adapter. Memory:
    (steps · r)² numbers.

    Args:
        a, b: factors A (step, r, d_in) and B (step, d_out, r) of one module.
        scale: α/r, or α/√r with rank-stabilised LoRA.

    Raises:
        InputError: factors that do not fit each other, or values that are not finite.
    """
    require_ndim(a, 3, "a", "the factors A (step, r, d_in)")
    require_ndim(b, 3, "b", "the factors B (step, d_out, r)")
    if a.shape[0] != b.shape[0] or a.shape[1] != b.shape[2]:
        raise InputError(
            f"a has shape {tuple(a.shape)} and b {tuple(b.shape)};"
            " pass A (step, r, d_in) and B (step, d_out, r) of one module"
        )
    steps, r = a.shape[:2]
    read = as_float64(a, "a").reshape(steps * r, -1)
    write = as_float64(b, "b").mT.reshape(steps * r, -1)
    # tr(ΔW_sᵀ ΔW_t) = scale² Σ_ij (B_sᵀB_t)_ij (A_s A_tᵀ)_ij
    products = (read @ read.T) * (write @ write.T)
    return scale**2 * products.reshape(steps, r, steps, r).sum(dim=(1, 3))


def path_norms(gram: Float[Tensor, "step step"]) -> Float[Tensor, " step"]:
    """Length of each row of the path, (step,).

    Raises:
        InputError: not a square matrix of finite values.
    """
    return square_gram(gram).diagonal().clamp(min=0.0).sqrt()


def path_speed(gram: Float[Tensor, "step step"]) -> Float[Tensor, " step-1"]:
    """Distance from each checkpoint to the next, (step − 1,).

    Raises:
        InputError: as `path_norms`.
    """
    return squared_chords(square_gram(gram), 1).sqrt()


def cosine_to_final(gram: Float[Tensor, "step step"]) -> Float[Tensor, " step"]:
    """Cosine of each row with the last; range [−1, 1], `nan` for a row of length 0.

    It ends at 1 by construction, and rises towards 1 on any path whose steps are small beside the
    whole: a rise is not a finding.

    Raises:
        InputError: as `path_norms`, or a path that ends at 0.
    """
    wide = square_gram(gram)
    if not float(wide[-1, -1]) > 0:
        raise InputError(
            "the path ends at the zero vector, to which nothing has an angle;"
            " leave the checkpoints after training out"
        )
    lengths = wide.diagonal().clamp(min=0.0).sqrt()
    cosines = wide[:, -1] / (lengths * lengths[-1])
    return torch.where(lengths > 0, cosines, torch.nan).clamp(-1.0, 1.0)


@dataclass(frozen=True, eq=False)
class PathComponents:
    """A path in its principal components.

    Args:
        coordinates: of each row about the mean of the path, in its units; a component's last row is
            positive.
        explained_variance_ratio: of each component, 0 to 1.
    """

    coordinates: Float[Tensor, "step k"]
    explained_variance_ratio: Float[Tensor, " k"]

    def plot(self) -> Picture:
        """The path in its first two components, from its first row on."""
        from emlens.geometry.pictures import picture_of_path

        return picture_of_path(self.coordinates, self.explained_variance_ratio)

    def __repr__(self) -> str:
        shares = ", ".join(f"{share:.3g}" for share in self.explained_variance_ratio.tolist())
        return in_a_line("PathComponents", {"steps": len(self.coordinates), "explained": shares})


def path_components(gram: Float[Tensor, "step step"], k: int = 2) -> PathComponents:
    """The first k principal components of a path, centred on its mean.

    Of a random walk the first components are half cosines of rising frequency that hold 61 %, 15 %,
    7 % of the variance (Antognini & Sohl-Dickstein 2018, arXiv 1806.08805), so a bend in the plane
    of the first two is not a transition by itself.

    Raises:
        InputError: k outside 1 to one less than the number of rows; as `path_norms`.
    """
    wide = square_gram(gram)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k < len(wide):
        raise InputError(
            f"k={k!r} must be an integer from 1 to {len(wide) - 1},"
            " one less than the rows of the path"
        )
    # the Gram matrix of the centred rows, from that of the rows (double centring)
    centred = wide - wide.mean(0, keepdim=True) - wide.mean(1, keepdim=True) + wide.mean()
    # With rows X = U S Vᵀ the Gram is U S² Uᵀ, and the coordinates are U S. eigh sorts ascending;
    # rounding can leave eigenvalues just below 0.
    values, vectors = torch.linalg.eigh((centred + centred.T) / 2)
    values, vectors = values.flip(0).clamp(min=0.0), vectors.flip(1)
    coordinates = vectors[:, :k] * values[:k].sqrt()
    # an eigenvector has no sign of its own: the end of the path decides it
    signs = torch.where(coordinates[-1] < 0, -1.0, 1.0)
    total = values.sum()
    if float(total) > 0:
        shares = values[:k] / total
    else:
        shares = torch.zeros(k, dtype=torch.float64)
    return PathComponents(coordinates * signs, shares)


def spectrum_flatness(
    singular_values: Float[Tensor, "*batch r"],
    *,
    measure: Literal["entropy", "participation"] = "entropy",
) -> Float[Tensor, "*batch"]:
    """How evenly an update spreads over its r singular directions: effective rank over r.

    Range [1/r, 1], `nan` for a zero update. `"entropy"`: exp of the entropy of σ²/Σσ² (after Roy &
    Vetterli 2007). `"participation"`: (Σσ²)²/Σσ⁴. Invariant to scale. Of a rank-1 adapter it is 1
    and says nothing. That flat spectra go with less misalignment: arXiv 2606.31591.

    Raises:
        InputError: an unknown measure, negative values, or values that are not finite.
    """
    wide = as_float64(singular_values, "singular_values")
    if bool((wide < 0).any()):
        raise InputError(
            f"singular_values holds {float(wide.min()):.3g}; singular values are 0 or more"
        )
    r = wide.shape[-1]
    # over the largest, so that fourth powers neither overflow nor vanish
    squares = (wide / wide.amax(-1, keepdim=True)) ** 2
    if measure == "entropy":
        return torch.special.entr(squares / squares.sum(-1, keepdim=True)).sum(-1).exp() / r
    if measure == "participation":
        return squares.sum(-1) ** 2 / (squares**2).sum(-1) / r
    raise InputError(
        f"measure={measure!r} is unknown; pass 'entropy' or 'participation'",
        name=measure,
        known=("entropy", "participation"),
    )


def summed(grams: Sequence[Float[Tensor, "step step"]]) -> Float[Tensor, "step step"]:
    """The Gram of a path that is several paths stacked, such as the modules of an adapter.

    Raises:
        InputError: no Gram, or other numbers of steps.
    """
    shapes = {tuple(gram.shape) for gram in grams}
    if len(shapes) != 1:
        raise InputError(
            f"grams have shapes {sorted(shapes)}; pass at least one, all of the same checkpoints"
        )
    return torch.stack(list(grams)).sum(0)


def squared_chords(wide: Tensor, k: int) -> Tensor:
    """Squared distance from each row to the row k later, (step − k,)."""
    squares = wide.diagonal()
    return (squares[:-k] + squares[k:] - 2 * wide.diagonal(k)).clamp(min=0.0)


def square_gram(gram: Tensor) -> Tensor:
    """The Gram matrix of a path in float64.

    Raises:
        InputError: not a square matrix of 2 rows or more, or values that are not finite.
    """
    wide = as_float64(gram, "gram")
    if wide.ndim != 2 or wide.shape[0] != wide.shape[1] or len(wide) < 2:
        raise InputError(
            f"gram has shape {tuple(wide.shape)}; pass the square matrix of path_gram or"
            " update_gram, of 2 checkpoints or more"
        )
    return wide
