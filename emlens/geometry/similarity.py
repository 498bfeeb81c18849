"""How alike two sets of shifts are, as sets: their means, their pairs, and their shape.

| measure | question | range | identical | unrelated | not changed by |
|---|---|---|---|---|---|
| `cosine_of_means` | one common direction? | [−1, 1] | 1 | 0 ± 1/√d isotropic | rotation, scaling
of a set, order of rows | | `mean_pairwise_cosine` | do single prompts agree? | [−1, 1] | ‖mean unit
row‖² | 0 | rotation, length of any row, order of rows | | `linear_cka` | do prompts that are close
in one lie close in the other? | [−1, 1] | 1 | 0 (debiased) | rotation of a set, scaling,
translation | | `procrustes_distance` | the same shape up to rotation? | [0, √2] | 0 | below √2 |
rotation of a set, scaling (translation if centred) |

The first two are about direction and need no pairing; the last two compare the *same* prompts row
by row, and are blind to a rotation between the sets: for shifts in one stream, read them beside a
subspace overlap. The first two see the common shift, CKA does not. All are symmetric. Values of a
pair of sets; intervals and nulls come from resampling prompts (`emlens.stats`). float64 inside;
batch axes everywhere.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.shapes import require_same_width
from emlens.geometry.linear import EPS64, result_dtype, row_lengths, rows_of


def mean_shift_cosine(
    a: Float[Tensor, "*#batch row d"], b: Float[Tensor, "*#batch other d"]
) -> Float[Tensor, "..."]:
    """Cosine between the mean of one set of shifts and that of another.

    Raises:
        InputError: other widths, values that are not finite, no row, or a mean that is zero.
    """
    first, second = rows_of(a, "a"), rows_of(b, "b", a, "a")
    means = []
    for name, rows in (("a", first), ("b", second)):
        mean = rows.mean(dim=-2)
        rounding = EPS64 * torch.linalg.vector_norm(rows, dim=-1).amax(dim=-1)
        if bool((torch.linalg.vector_norm(mean, dim=-1) <= rounding).any()):
            raise InputError(
                f"{name} has a mean of zero, which has no direction; shifts that cancel share none"
            )
        means.append(mean / torch.linalg.vector_norm(mean, dim=-1, keepdim=True))
    return (means[0] * means[1]).sum(dim=-1).clamp(-1.0, 1.0).to(result_dtype(a, b))


def mean_pairwise_cosine(
    a: Float[Tensor, "*#batch row d"], b: Float[Tensor, "*#batch other d"] | None = None
) -> Float[Tensor, "..."]:
    """Mean cosine over all pairs of a row of `a` and a row of `b`; of `a` alone, over all pairs of
    different rows.

    Every row counts alike, however long. Of one set it lies in [−1/(n − 1), 1]. Cost: O(row · d),
    since the mean over pairs is the inner product of mean unit rows.

    Raises:
        InputError: other widths, values that are not finite, a zero row; one set of a single row.
    """
    first = rows_of(a, "a")
    units = first / row_lengths(first, "a", "is zero")[..., None]
    if b is None:
        n = units.shape[-2]
        if n < 2:
            raise InputError(f"a has {n} row and so no pair; pass at least 2, or a second set")
        found = (units.sum(dim=-2).square().sum(dim=-1) - n) / (n * (n - 1))
        return found.clamp(-1.0, 1.0).to(result_dtype(a))
    second = rows_of(b, "b", a, "a")
    others = second / row_lengths(second, "b", "is zero")[..., None]
    return (
        (units.mean(dim=-2) * others.mean(dim=-2))
        .sum(dim=-1)
        .clamp(-1.0, 1.0)
        .to(result_dtype(a, b))
    )


def linear_cka(
    a: Float[Tensor, "*#batch row d"], b: Float[Tensor, "*#batch row e"], *, debiased: bool = True
) -> Float[Tensor, "..."]:
    """Centred kernel alignment of two descriptions of the same prompts, row i of `a` and of `b`
    being one prompt.

    Kornblith et al. (2019), with linear kernels. Debiased: the unbiased HSIC of Song et al. (2012),
    which is the inner product of U-centred Gram matrices (Székely & Rizzo 2014), so the ratio stays
    in [−1, 1] and is 0 on average for unrelated sets; the plain form lies in [0, 1] and goes to 1
    for *any* two sets as d/n grows (Murphy et al. 2024). Widths may differ. Cost: two Gram
    matrices, O(row² · d).

    Raises:
        InputError: unequal numbers of rows, fewer than 4 of them, values that are not finite, or a
            set whose rows are all alike (or, debiased, all equally far apart).
    """
    first, second = rows_of(a, "a"), rows_of(b, "b")
    n = first.shape[-2]
    if second.shape[-2] != n:
        raise InputError(
            f"a has {n} rows and b {second.shape[-2]}; pass the same prompts in the same order"
        )
    if n < 4:
        raise InputError(f"{n} rows are too few for an alignment; pass at least 4 prompts")
    grams = []
    for name, rows in (("a", first), ("b", second)):
        moved = rows - rows.mean(dim=-2, keepdim=True)
        gram = moved @ moved.mT
        size = torch.linalg.matrix_norm(gram)
        if debiased:
            gram = _u_centred(gram)
        rounding = (
            n * EPS64 * torch.maximum(size, torch.linalg.vector_norm(rows, dim=(-2, -1)) ** 2)
        )
        length = torch.linalg.matrix_norm(gram)
        if bool((length <= rounding).any()):
            raise InputError(
                f"{name} has rows that are all alike or all equally far apart,"
                " so there is nothing to align"
            )
        grams.append(gram / length[..., None, None])
    return (grams[0] * grams[1]).sum(dim=(-2, -1)).clamp(-1.0, 1.0).to(result_dtype(a, b))


def _u_centred(gram: Tensor) -> Tensor:
    """Rows and columns of the off-diagonal part that sum to 0 (Székely & Rizzo 2014)."""
    n = gram.shape[-1]
    away = gram * (1 - torch.eye(n, dtype=gram.dtype, device=gram.device))
    rows = away.sum(dim=-1, keepdim=True)
    total = rows.sum(dim=-2, keepdim=True)
    centred = away - (rows + rows.mT) / (n - 2) + total / ((n - 1) * (n - 2))
    return centred * (1 - torch.eye(n, dtype=gram.dtype, device=gram.device))


def procrustes_distance(
    a: Float[Tensor, "*#batch row d"], b: Float[Tensor, "*#batch row d"], *, center: bool
) -> Float[Tensor, "..."]:
    """Distance between two descriptions of the same prompts after the best rotation or reflection
    of one onto the other.

    min over orthogonal Q of ‖AQ − B‖_F, both scaled to Frobenius norm 1 (Schönemann 1966; Williams
    et al. 2021, whose metric it is: it obeys the triangle inequality). 1 − distance²/2 = ‖AᵀB‖_* is
    the similarity. Small distances are resolved to 1e-15, since the residual itself is measured.
    Random sets are far below √2 where rows are few for d: compare with permuted rows.

    Args:
        center: take each set's mean out first, which makes the distance blind to translation.

    Cost: two QR and one SVD in min(row, d) dimensions.

    Raises:
        InputError: unequal shapes, values that are not finite, or a set without length.
    """
    first, second = rows_of(a, "a"), rows_of(b, "b")
    require_same_width(first, second, "a", "b")
    if first.shape[-2] != second.shape[-2]:
        raise InputError(
            f"a has {first.shape[-2]} rows and b {second.shape[-2]};"
            " pass the same prompts in the same order"
        )
    triangles = []
    for name, rows in (("a", first), ("b", second)):
        moved = rows - rows.mean(dim=-2, keepdim=True) if center else rows
        size = torch.linalg.matrix_norm(moved)
        if bool((size <= EPS64 * torch.linalg.matrix_norm(rows)).any()):
            raise InputError(
                f"{name} has rows without any length{' about their mean' if center else ''};"
                " there is no shape to compare"
            )
        scaled = moved / size[..., None, None]
        # the rows in an orthonormal basis of what holds them
        triangles.append(torch.linalg.qr(scaled.mT).R.mT)
    x, y = triangles
    left, _, right = torch.linalg.svd(x.mT @ y)
    return torch.linalg.matrix_norm(x @ (left @ right) - y).to(result_dtype(a, b))
