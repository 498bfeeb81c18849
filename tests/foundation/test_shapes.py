from typing import Any

import pytest
import torch

from emlens.foundation import InputError
from emlens.foundation.shapes import as_float64, require_ndim, require_same_width


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_widen_exactly(dtype: torch.dtype) -> None:
    value = torch.tensor([0.1, -3.0, 65504.0], dtype=dtype, requires_grad=True)
    wide = as_float64(value, "value")
    assert wide.dtype == torch.float64 and not wide.requires_grad
    assert torch.equal(wide.to(dtype), value.detach())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0], "rows is a list; pass a torch tensor"),
        (torch.tensor([1]), "rows has dtype torch.int64; pass a floating-point tensor"),
        (
            torch.tensor([1.0, float("nan"), float("-inf")]),
            "rows holds 2 values that are NaN or infinite, of 3; drop or fix them",
        ),
    ],
)
def test_what_is_no_usable_tensor_is_refused(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_float64(value, "rows")


def test_shapes_are_checked_by_name() -> None:
    matrix = torch.ones(2, 3)
    require_ndim(matrix, 2, "rows", "(row, d)")
    require_same_width(matrix, torch.ones(5, 3), "a", "b")
    with pytest.raises(InputError, match=r"rows has shape \(2, 3\); pass \(batch, row, d\)"):
        require_ndim(matrix, 3, "rows", "(batch, row, d)")
    with pytest.raises(
        InputError, match="a has 3 coordinates and b has 4; pass vectors of one residual stream"
    ):
        require_same_width(matrix, torch.ones(4), "a", "b")
