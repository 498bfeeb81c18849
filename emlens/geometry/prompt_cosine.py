"""How alike two models shift the same prompts, prompt by prompt.

Two fine-tunes are compared on one set of prompts. The mean shift, which every training has, is
taken out of each; what is left says how they treat one prompt other than the next.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.geometry.linear import rows_of


def centred_prompt_cosine(a: Float[Tensor, "row d"], b: Float[Tensor, "row d"]) -> float:
    """Mean over prompts of the cosine of both models' centred shifts.

    Row i of both is the shift on prompt i. Range [-1, 1]; about 0 for unrelated shifts of any
    spectrum, since the signs of unrelated rows are independent; 1 where the centred shifts are
    proportional. Symmetric; invariant to a common rotation and to scaling either set. float64.

    Args:
        a, b: shifts (row, d) of two models on the same prompts, in one order.

    Raises:
        InputError: other shapes, values that are not finite, or a shift that equals the mean.
    """
    first, second = rows_of(a, "a"), rows_of(b, "b", a, "a")
    if first.shape != second.shape:
        raise InputError(
            f"a has shape {tuple(first.shape)} and b {tuple(second.shape)};"
            " pass the shifts of two models on the same prompts"
        )
    first = first - first.mean(dim=-2, keepdim=True)
    second = second - second.mean(dim=-2, keepdim=True)
    lengths = first.norm(dim=-1) * second.norm(dim=-1)
    if bool((lengths == 0).any()):
        raise InputError(
            "a or b has a row that equals its mean, so it has no direction;"
            " leave out sites where nothing moved"
        )
    cosines: Tensor = (first * second).sum(dim=-1) / lengths
    return float(torch.clamp(cosines, -1.0, 1.0).mean())
