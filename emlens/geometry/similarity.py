"""How alike two sets of shifts are, as sets: their means, their pairs, and their shape.

| measure | question | range | identical | unrelated |
|---|---|---|---|---|
| `mean_shift_cosine` | one common direction? | [−1, 1] | 1 | 0 ± 1/√d if isotropic |
| `mean_pairwise_cosine` | do single prompts agree? | [−1, 1] | ‖mean unit row‖² | 0 |
| `linear_cka` | are prompts close in both? | [−1, 1] | 1 | 0 (debiased) |
| `procrustes_distance` | the same shape up to rotation? | [0, √2] | 0 | below √2 |

| measure | not changed by |
|---|---|
| `mean_shift_cosine` | rotation, scaling of a set, order of rows |
| `mean_pairwise_cosine` | rotation, length of any row, order of rows |
| `linear_cka` | rotation of a set, scaling, translation |
| `procrustes_distance` | rotation of a set, scaling (translation if centred) |

The first two are about direction and need no pairing; the last two compare the *same* prompts row
by row, and do not notice a rotation between the sets: for shifts in one stream, read them beside a
subspace overlap. The first two measure the common shift, CKA does not. All are symmetric. They are
values of a pair of sets; intervals and nulls come from resampling prompts (`emlens.stats`). float64
inside; batch axes everywhere.
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
    """Cosine between the mean of one set of shifts and that of another; range [−1, 1].

    Args:
        a, b: (..., row, d), one width; they need not have the same number of rows.

    Raises:
        InputError: other widths, values that are not finite, no row, or a mean that is zero.
    """
    first = _unit_mean(rows_of(a, "a"), "a")
    second = _unit_mean(rows_of(b, "b", a, "a"), "b")
    return (first * second).sum(dim=-1).clamp(-1.0, 1.0).to(result_dtype(a, b))


def _unit_mean(rows: Tensor, name: str) -> Tensor:
    """Mean of the rows over its length.

    Raises:
        InputError: a mean that is zero up to rounding of its rows.
    """
    mean = rows.mean(dim=-2)
    rounding = EPS64 * torch.linalg.vector_norm(rows, dim=-1).amax(dim=-1)
    if bool((torch.linalg.vector_norm(mean, dim=-1) <= rounding).any()):
        raise InputError(
            f"{name} has a mean of zero, which has no direction; shifts that cancel share none"
        )
    return mean / torch.linalg.vector_norm(mean, dim=-1, keepdim=True)


def mean_pairwise_cosine(
    a: Float[Tensor, "*#batch row d"], b: Float[Tensor, "*#batch other d"] | None = None
) -> Float[Tensor, "..."]:
    """Mean cosine over all pairs of a row of `a` and a row of `b`.

    Of `a` alone, over all pairs of different rows. Every row counts alike, however long. Range
    [−1, 1]; of one set [−1/(n − 1), 1]. Cost: O(row · d), since the mean over pairs is the inner
    product of mean unit rows.

    Args:
        a, b: (..., row, d), one width; they need not have the same number of rows.

    Raises:
        InputError: other widths, values that are not finite, a zero row; one set of a single row.
    """
    first = rows_of(a, "a")
    units = first / row_lengths(first, "a", "is zero")[..., None]
    if b is None:
        n = units.shape[-2]
        if n < 2:
            raise InputError(f"a has {n} row and so no pair; pass at least 2, or a second set")
        # ‖Σu‖² counts each pair twice and each row with itself once, which is n
        cosine = (units.sum(dim=-2).square().sum(dim=-1) - n) / (n * (n - 1))
        return cosine.clamp(-1.0, 1.0).to(result_dtype(a))
    second = rows_of(b, "b", a, "a")
    second_units = second / row_lengths(second, "b", "is zero")[..., None]
    cosine = (units.mean(dim=-2) * second_units.mean(dim=-2)).sum(dim=-1)
    return cosine.clamp(-1.0, 1.0).to(result_dtype(a, b))


def linear_cka(
    a: Float[Tensor, "*#batch row d"], b: Float[Tensor, "*#batch row e"], *, debiased: bool = True
) -> Float[Tensor, "..."]:
    """Centred kernel alignment (CKA) of two descriptions of the same prompts.

    Row i of `a` and of `b` belong to one prompt. Kornblith et al. (2019), with linear kernels.
    Debiased: the unbiased HSIC of Song et al. (2012), which is the inner product of U-centred Gram
    matrices (Székely & Rizzo 2014), so the ratio stays in [−1, 1] and is 0 on average for unrelated
    sets; the plain form lies in [0, 1] and goes to 1 for *any* two sets as d/n grows (Murphy et al.
    2024). Widths may differ. Cost: two Gram matrices, O(row² · d).

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
    gram_a = _unit_gram(first, debiased, "a")
    gram_b = _unit_gram(second, debiased, "b")
    # tr(S_a S_b) of symmetric matrices is the sum of their entrywise products
    return (gram_a * gram_b).sum(dim=(-2, -1)).clamp(-1.0, 1.0).to(result_dtype(a, b))


def _unit_gram(rows: Tensor, debiased: bool, name: str) -> Tensor:
    """Centred (or U-centred) Gram matrix (n, n) over its Frobenius norm.

    Raises:
        InputError: a Gram matrix that is rounding: rows all alike, or all equally far apart.
    """
    n = rows.shape[-2]
    centred = rows - rows.mean(dim=-2, keepdim=True)
    gram = centred @ centred.mT
    size = torch.linalg.matrix_norm(gram)
    if debiased:
        gram = _u_centred(gram)
    # rounding of the rows as given, which centring and U-centring can only enlarge
    squares = torch.linalg.vector_norm(rows, dim=(-2, -1)) ** 2
    rounding = n * EPS64 * torch.maximum(size, squares)
    length = torch.linalg.matrix_norm(gram)
    if bool((length <= rounding).any()):
        raise InputError(
            f"{name} has rows that are all alike or all equally far apart,"
            " so there is nothing to align"
        )
    return gram / length[..., None, None]


def _u_centred(gram: Tensor) -> Tensor:
    """U-centred Gram matrix: zero diagonal, rows and columns sum to 0 (Székely & Rizzo 2014).

    The diagonal holds each row's own length, which is what biases the plain form upwards.
    """
    n = gram.shape[-1]
    off_diagonal = 1 - torch.eye(n, dtype=gram.dtype, device=gram.device)
    away = gram * off_diagonal
    rows = away.sum(dim=-1, keepdim=True)
    total = rows.sum(dim=-2, keepdim=True)
    centred = away - (rows + rows.mT) / (n - 2) + total / ((n - 1) * (n - 2))
    return centred * off_diagonal


def procrustes_distance(
    a: Float[Tensor, "*#batch row d"], b: Float[Tensor, "*#batch row d"], *, center: bool
) -> Float[Tensor, "..."]:
    """Distance of two descriptions of the same prompts after the best rotation or reflection.

    min over orthogonal Q of ‖AQ − B‖_F, both scaled to Frobenius norm 1 (Schönemann 1966; Williams
    et al. 2021, whose metric it is: it obeys the triangle inequality). Range [0, √2]. 1 −
    distance²/2 = ‖AᵀB‖_* is the similarity. Small distances are resolved to 1e-15, since the
    residual itself is measured. Random sets are far below √2 where rows are few for d: compare with
    permuted rows.

    Args:
        a, b: (..., row, d), row i of both being one prompt.
        center: True or False, whether each set's mean is taken out first, so that a translation
            does not count.

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
    x = _unit_shape(first, center, "a")
    y = _unit_shape(second, center, "b")
    # orthogonal Procrustes: of xᵀy = U S Vᵀ the best Q is U Vᵀ
    left, _, right = torch.linalg.svd(x.mT @ y)
    return torch.linalg.matrix_norm(x @ (left @ right) - y).to(result_dtype(a, b))


def _unit_shape(rows: Tensor, center: bool, name: str) -> Tensor:
    """Rows of Frobenius norm 1 in coordinates of their own span, (row, min(row, d)).

    By QR of the transposed rows: only inner products matter up to a rotation, so d drops out.

    Raises:
        InputError: rows without any length.
    """
    centred = rows - rows.mean(dim=-2, keepdim=True) if center else rows
    size = torch.linalg.matrix_norm(centred)
    if bool((size <= EPS64 * torch.linalg.matrix_norm(rows)).any()):
        about = " about their mean" if center else ""
        raise InputError(f"{name} has rows without any length{about}; there is no shape to compare")
    scaled = centred / size[..., None, None]
    return torch.linalg.qr(scaled.mT).R.mT
