"""Is a reference made of the vectors under test? Then what is tested would be its own null.

Seen are the vectors themselves, their negatives and 16-bit roundings, and covariances and second
moments of them. Not seen are vectors that were rotated, averaged or noised: keeping the reference
apart stays the caller's business.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.shapes import require_same_width
from emlens.geometry.batched_bases import one_set
from emlens.geometry.linear import input_eps

SAME_ROW = 2**-8
"""Relative distance within which two vectors are one, rounded differently: the step of bfloat16."""

SAME_COVARIANCE = 1e-9
"""1 − cosine of two matrices that differ by float32 rounding lies far below; of two samples far
above.
"""


def is_covariance(matrix: Tensor) -> bool:
    """Whether a matrix is read as a covariance: square, and symmetric up to rounding (as
    `gaussian_factor` reads it).
    """
    if matrix.ndim != 2 or len(matrix) != matrix.shape[1]:
        return False
    wide = matrix.detach().to(torch.float64)
    return bool((wide - wide.T).abs().max() <= 4 * input_eps(matrix.dtype) * wide.abs().max())


def refuse_tested(reference: Tensor, tested: Sequence[Tensor], name: str) -> None:
    """Refuse a covariance, or vectors, made of the vectors under test.

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
    advice = "take the covariance of before activations, re-batched or benign deltas"
    if is_covariance(reference):
        size = torch.linalg.matrix_norm(wide)
        centred = [rows - rows.mean(dim=0) for rows in sets]
        pooled = torch.cat(sets)
        for part in (*sets, *centred, pooled, pooled - pooled.mean(dim=0), torch.cat(centred)):
            inner, norm = ((part @ wide) * part).sum(), torch.linalg.matrix_norm(part @ part.T)
            if float(size * norm) > 0 and float(size * norm - inner) <= SAME_COVARIANCE * float(
                size * norm
            ):
                raise InputError(
                    f"{name} is the covariance of tested vectors,"
                    f" so that what is tested would be its own null; {advice}"
                )
        return
    pool = torch.cat(sets)
    apart = wide.square().sum(1)[:, None] + pool.square().sum(1) - 2 * (wide @ pool.T).abs()
    held = int((apart < SAME_ROW**2 * pool.square().sum(1)).any(dim=1).sum())
    if held >= max(2, min(len(wide), len(pool)) // 20):
        raise InputError(
            f"{name} holds {held} of the tested vectors among its {len(wide)} rows,"
            f" so that what is tested would be its own null; {advice}"
        )
