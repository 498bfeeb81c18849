"""Is a reference made of the vectors under test? Then what is tested would be its own null.

Recognised are the vectors themselves, their negatives and 16-bit roundings, and covariances and
second moments of them. Not recognised are vectors that were rotated, averaged or noised: keeping
the reference apart remains up to the caller.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.shapes import require_same_width
from emlens.geometry.batched_bases import one_set
from emlens.geometry.linear import input_eps

SAME_ROW = 2**-8
"""Relative distance within which two vectors are one vector, rounded differently (bfloat16)."""

SAME_COVARIANCE = 1e-9
"""1 − cosine of two matrices: float32 rounding lies far below it, two samples lie far above."""
_ADVICE = "take the covariance of before activations, re-batched or benign deltas"


def is_covariance(matrix: Tensor) -> bool:
    """Whether a matrix is read as a covariance: square, and symmetric up to rounding.

    The same rule as in `gaussian_factor`.
    """
    if matrix.ndim != 2 or len(matrix) != matrix.shape[1]:
        return False
    wide = matrix.detach().to(torch.float64)
    return bool((wide - wide.T).abs().max() <= 4 * input_eps(matrix.dtype) * wide.abs().max())


def refuse_tested(reference: Tensor, tested: Sequence[Tensor], name: str) -> None:
    """Refuse a covariance, or vectors, made of the vectors under test.

    Args:
        reference: a covariance (d, d), or vectors (row, d).
        tested: the sets under test, each (row, d).
        name: of the reference, for messages.

    Raises:
        InputError: tested vectors among the rows, a twentieth of the smaller number (at least two),
            or it is a covariance or second moment of one tested set or of all together; sets of
            another width.
    """
    if isinstance(tested, Tensor):
        raise InputError(
            f"tested is a tensor of shape {tuple(tested.shape)};"
            " pass a list or tuple of sets, each (row, d)"
        )
    if not tested:
        return
    for i, rows in enumerate(tested):
        require_same_width(reference, rows, name, f"tested[{i}]")
    wide = one_set(reference, name)
    sets = [one_set(rows, f"tested[{i}]") for i, rows in enumerate(tested)]
    if is_covariance(reference):
        _refuse_covariance(wide, sets, name)
    else:
        _refuse_vectors(wide, torch.cat(sets), name)


def _refuse_covariance(covariance: Tensor, sets: list[Tensor], name: str) -> None:
    """Raises:
    InputError: a covariance or second moment of one set, or of all sets together.
    """
    centred = [rows - rows.mean(dim=0) for rows in sets]
    pooled = torch.cat(sets)
    size = torch.linalg.matrix_norm(covariance)
    for rows in (*sets, *centred, pooled, pooled - pooled.mean(dim=0), torch.cat(centred)):
        # cosine of C and XᵀX without forming XᵀX: tr(C XᵀX) = Σ (XC) ∘ X, ‖XᵀX‖ = ‖XXᵀ‖
        inner = ((rows @ covariance) * rows).sum()
        scale = float(size * torch.linalg.matrix_norm(rows @ rows.T))
        if scale > 0 and scale - float(inner) <= SAME_COVARIANCE * scale:
            raise InputError(
                f"{name} is the covariance of tested vectors,"
                f" so that what is tested would be its own null; {_ADVICE}"
            )


def _refuse_vectors(rows: Tensor, tested: Tensor, name: str) -> None:
    """Raises:
    InputError: more than a few of the rows are tested vectors, or their negatives.
    """
    # ‖x ∓ y‖² = ‖x‖² + ‖y‖² − 2|x·y|, whichever sign is closer
    squares = tested.square().sum(1)
    apart = rows.square().sum(1)[:, None] + squares - 2 * (rows @ tested.T).abs()
    count = int((apart < SAME_ROW**2 * squares).any(dim=1).sum())
    if count >= max(2, min(len(rows), len(tested)) // 20):
        raise InputError(
            f"{name} holds {count} of the tested vectors among its {len(rows)} rows,"
            f" so that what is tested would be its own null; {_ADVICE}"
        )
