"""The subspace that a set of vectors spans most strongly, by exact or randomised SVD.

Whether the mean is taken out is always the caller's decision (`center` has no default): centring
removes the common shift that fine-tuning makes, and not centring lets it dominate; studies report
both. As an argument `center` is True, False or a vector; the `Subspace` records it as a word,
"mean", "none" or "given". Asking for more components than the vectors' numerical rank is an error,
never a basis padded with noise. Where the k-th and the next singular value tie, which direction is
the k-th is arbitrary, and the log says so. Computed in float64; results are float64 for float64
input and float32 otherwise. Cost: one SVD of (row, d), about 2·row·d·min(row, d) operations per
batch entry; the randomised method makes some ten passes over the matrix instead, and says how far
from exact it can be.
"""

import logging
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.notebooks import Picture, as_table, in_a_line
from emlens.foundation.shapes import as_float64, require_ndim, require_same_width
from emlens.geometry.components import ComponentCount, component_count
from emlens.geometry.linear import in_batch, rank_tolerance, result_dtype, rows_of, sign_fixed
from emlens.geometry.randomised import leading_directions

Center = bool | Literal["mean"] | Tensor
"""True or "mean": the vectors' own mean is taken out; False: nothing; a vector: that vector."""

Method = Literal["exact", "randomised"]

TIED = 100.0
"""A gap after the k-th singular value below this many roundings is a tie: the last direction is
then uncertain by more than 1/100 rad (Wedin 1972: the angle is at most rounding over gap).
"""

_log = logging.getLogger("emlens")


@dataclass(frozen=True, eq=False)
class Subspace:
    """A k-dimensional subspace fitted to vectors.

    Args:
        basis: orthonormal columns (..., d, k), strongest first, each with its largest entry
            positive.
        singular_values: of the (centred) vectors, descending: all of them (..., min(row, d)), or
            the first k (randomised).
        explained_variance_ratio: share of the total squared norm about `mean` along each basis
            vector (..., k).
        mean: the vector taken out before fitting (..., d); zeros where `center` is "none".
        n: vectors fitted, per batch entry.
        rank: numerical rank of the (centred) vectors; the smallest over a batch. Randomised: a
            lower limit of it.
        center: what was taken out: "mean" (the vectors' own), "none", or "given" (a vector that the
            caller passed).
        angle_bound: randomised only: the sine of the largest angle to the exact subspace is at most
            this (...), for the basis before it is rounded to float32.
    """

    basis: Float[Tensor, "*batch d k"]
    singular_values: Float[Tensor, "*batch s"]
    explained_variance_ratio: Float[Tensor, "*batch k"]
    mean: Float[Tensor, "*batch d"]
    n: int
    rank: int
    center: str
    angle_bound: Float[Tensor, "*batch"] | None = None

    def _facts(self) -> dict[str, object]:
        is_batch = self.basis.ndim > 2
        facts: dict[str, object] = {"k": self.k, "d_model": self.d_model}
        if is_batch:
            facts["batch"] = tuple(self.basis.shape[:-2])
        facts |= {"n": self.n, "rank": self.rank, "center": self.center}
        if not is_batch:
            shares = [f"{share:.3g}" for share in self.explained_variance_ratio[:8].tolist()]
            if self.k > 8:
                shares.append("…")
            facts["explained"] = ", ".join(shares)
        return facts

    def __repr__(self) -> str:
        return in_a_line("Subspace", self._facts())

    def _repr_html_(self) -> str:
        return as_table("Subspace", self._facts())

    def plot(self) -> Picture:
        """Share of the squared norm along each component; of a batch, a line each."""
        from emlens.geometry.pictures import picture_of_subspace

        title = f"{self.k} components of {self.n} vectors, taken out: {self.center}"
        return picture_of_subspace(self.explained_variance_ratio, title)

    @property
    def d_model(self) -> int:
        """Width of the stream."""
        return self.basis.shape[-2]

    @property
    def k(self) -> int:
        """Dimension of the subspace."""
        return self.basis.shape[-1]

    def coordinates(self, x: Float[Tensor, "*batch row d"]) -> Float[Tensor, "*batch row k"]:
        """Coordinates of x − mean in the basis.

        Raises:
            InputError: x has another width, or is not finite.
        """
        rows = rows_of(x, "x", self.mean, "the subspace")
        centred = rows - self.mean.to(torch.float64)[..., None, :]
        return (centred @ self.basis.to(torch.float64)).to(result_dtype(x, self.basis))

    def project(self, x: Float[Tensor, "*batch row d"]) -> Float[Tensor, "*batch row d"]:
        """The part of x − mean that lies in the subspace (the mean is not added back).

        Raises:
            InputError: x has another width, or is not finite.
        """
        inside = self.coordinates(x.to(torch.float64)) @ self.basis.to(torch.float64).mT
        return inside.to(result_dtype(x, self.basis))


def centred_rows(
    vectors: Float[Tensor, "*batch row d"], center: Center, name: str = "vectors"
) -> tuple[Float[Tensor, "*batch row d"], Float[Tensor, "*batch d"], str]:
    """float64 rows with a mean taken out, that mean, and which it was: "mean", "none" or "given".

    Raises:
        InputError: no row, values that are not finite, or an unusable `center`.
    """
    wide = rows_of(vectors, name)
    if isinstance(center, Tensor):
        require_ndim(center, 1, "center", "a vector of shape (d,)")
        require_same_width(vectors, center, name, "center")
        mean = as_float64(center, "center").expand(*wide.shape[:-2], wide.shape[-1])
        kind = "given"
    elif center is True or (isinstance(center, str) and center == "mean"):
        mean, kind = wide.mean(dim=-2), "mean"
    elif center is False:
        return wide, wide.new_zeros(*wide.shape[:-2], wide.shape[-1]), "none"
    else:
        raise InputError(
            f"center={center!r} is unknown; pass True or 'mean', False, or the vector to take out"
        )
    return wide - mean[..., None, :], mean, kind


def top_k_subspace(
    vectors: Float[Tensor, "*batch row d"],
    k: ComponentCount,
    *,
    center: Center,
    method: Method = "exact",
    tolerance: float = 1e-6,
    seed: int = 0,
) -> Subspace:
    """The k directions that hold most of the vectors' squared norm about `center`.

    Args:
        vectors: rows (..., row, d); leading axes are a batch, one subspace per entry.
        k: how many; or a share of variance in (0, 1): the fewest components that reach it; or
            "elbow": where the singular values reach their tail (`geometry.components`). The last
            two refuse a batch.
        center: True or "mean", False, or a vector to take out.
        method: "exact", LAPACK's SVD of the centred rows; or "randomised", for a count of a few
            directions of a large matrix (`geometry.randomised`), whose `angle_bound` says how far
            from exact they can be.
        tolerance: largest `angle_bound` that "randomised" may return with; 1e-6 leaves an overlap
            of 1 − 1e-12.
        seed: of the random start; one seed, one result.

    A tie at k (`TIED`) is logged as a warning: the directions then depend on the order of rows.

    Rank counts singular values above rounding: eps of the input's type times the Frobenius norm
    *before* centring. Invariant to the order of rows and to scaling; rotates with the rows.

    Raises:
        InputError: `k` above the numerical rank (the message says the rank), values that are not
            finite, an unusable `k`, `center`, `method` or `tolerance`; with "randomised", a
            spectrum without a gap at k.
    """
    if method not in get_args(Method):
        raise InputError(
            f"method={method!r} is unknown; pass 'exact' or 'randomised'",
            name=method,
            known=("exact", "randomised"),
        )
    rows, mean, kind = centred_rows(vectors, center)
    size = torch.linalg.vector_norm(rows, dim=(-2, -1))
    # Rounding of the input is relative to the vectors before centring: with a large common mean,
    # the centred rows hold more rounding than their own size suggests.
    before_centring = torch.linalg.vector_norm(vectors.detach().to(torch.float64), dim=(-2, -1))
    scale = torch.maximum(before_centring, size)
    floor = rank_tolerance(scale, rows.shape, vectors.dtype)
    if method == "exact":
        components = _exact(rows, k, floor, kind)
    else:
        components = _randomised(rows, k, floor, tolerance, seed, kind)
    out = result_dtype(vectors)
    # ‖X‖_F² = Σσ², also where only the first k singular values are known
    shares = (components.singular[..., : components.axes.shape[-1]] / size[..., None]).square()
    return Subspace(
        basis=sign_fixed(components.axes).to(out),
        singular_values=components.singular.to(out),
        explained_variance_ratio=shares.to(out),
        mean=mean.to(out),
        n=rows.shape[-2],
        rank=components.rank,
        center=kind,
        angle_bound=None if components.bound is None else components.bound.to(out),
    )


@dataclass(frozen=True, eq=False)
class _Components:
    """Axes (..., d, k), singular values (..., s), smallest rank, and the bound of the angle."""

    axes: Tensor
    singular: Tensor
    rank: int
    bound: Tensor | None = None


def _exact(rows: Tensor, k: int | float | str, floor: Tensor, kind: str) -> _Components:
    _, singular, axes = torch.linalg.svd(rows, full_matrices=False)
    rank = int((singular > floor[..., None]).sum(dim=-1).min())
    count = component_count(k, singular, rank, rows.shape[-2], kind)
    _warn_of_a_tie(singular, count, floor)
    return _Components(axes[..., :count, :].mT, singular, rank)


def _warn_of_a_tie(singular: Tensor, count: int, floor: Tensor) -> None:
    """Say so where the `count` strongest directions are not determined by the vectors."""
    if count >= singular.shape[-1]:
        return
    gap = singular[..., count - 1] - singular[..., count]
    is_tied = gap < TIED * floor
    if bool(is_tied.any()):
        _log.warning(
            "top_k_subspace: singular values %d and %d are equal to rounding%s, so which directions"
            " are the top %d is arbitrary; pass another k",
            count,
            count + 1,
            in_batch(is_tied),
            count,
        )


def _randomised(
    rows: Tensor, k: int | float | str, floor: Tensor, tolerance: float, seed: int, kind: str
) -> _Components:
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InputError(
            f"k={k!r} needs the whole spectrum; pass a count of 1 or more, or method='exact'"
        )
    if not 0 < tolerance < 1:
        raise InputError(
            f"tolerance={tolerance!r} must lie between 0 and 1: it bounds the sine of an angle"
        )
    batch = rows.shape[:-2]
    axes, singular, ranks, bounds = [], [], [], []
    matrices = rows.reshape(-1, *rows.shape[-2:])
    for matrix, least in zip(matrices, floor.reshape(-1).tolist(), strict=True):
        leading = leading_directions(
            matrix, k, tolerance=tolerance, floor=least, seed=seed, kind=kind
        )
        axes.append(leading.axes)
        singular.append(leading.singular_values)
        ranks.append(leading.rank)
        bounds.append(leading.bound)
    bound = torch.tensor(bounds, dtype=torch.float64, device=rows.device)
    return _Components(
        torch.stack(axes).reshape(*batch, -1, k),
        torch.stack(singular).reshape(*batch, k),
        min(ranks),
        bound.reshape(batch),
    )


def variance_captured(
    vectors: Float[Tensor, "*batch row d"],
    space: Subspace,
    *,
    against: Literal["total", "best"] = "total",
) -> Float[Tensor, "*batch"]:
    """Share of the vectors' squared norm about `space.mean` that lies in the subspace.

    Against the "total", range [0, 1]: for the vectors it was fitted to, the sum of
    `explained_variance_ratio`; for isotropic vectors k/d. Against the "best" that k directions
    about the same mean could capture of *these* vectors, range [0, 1], 1 exactly where the subspace
    is as good as their own top k: the alignment index of Elsayed et al. (2016). It distinguishes a
    subspace that misses from vectors that no k directions could hold. Invariant to scaling and
    rotation about the mean, and to the basis of the subspace; not symmetric in what was fitted and
    what is captured.

    Raises:
        InputError: another width, values that are not finite, vectors that all equal the mean, an
            unknown `against`.
    """
    if against not in ("total", "best"):
        raise InputError(
            f"against={against!r} is unknown; pass 'total' or 'best'",
            name=against,
            known=("total", "best"),
        )
    rows = rows_of(vectors, "vectors", space.mean, "the subspace")
    centred = rows - space.mean.to(torch.float64)[..., None, :]
    inside = (centred @ space.basis.to(torch.float64)).square().sum(dim=(-2, -1))
    whole = centred.square().sum(dim=(-2, -1))
    if bool((whole == 0).any()):
        raise InputError(
            "vectors all equal the mean of the subspace, so they have no variance to capture"
        )
    if against == "best":
        # Eckart–Young: no k directions hold more than the k largest squared singular values
        whole = torch.linalg.svdvals(centred)[..., : space.k].square().sum(dim=-1)
    return (inside / whole).clamp(max=1.0).to(result_dtype(vectors, space.basis))
