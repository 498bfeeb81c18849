"""How far rounding alone can move an activation delta.

A floating-point number h = m · 2^e, ½ ≤ |m| < 1, with p significant bits is known to a step of
ulp(h) = 2^(e − p). A rounding error is spread evenly over one step, so its variance is ulp²/12.
The residual stream of one token is rounded again after every addition: 2l + 2 times up to
`resid_post.l`. Taken as independent and of the size of the last one, these errors add up like a
random walk, and those of the two sides of a delta are independent too:

    floor² = mean over rows of Σ_j R · (ulp(before_j)² + ulp(after_j)²) / 12

R is 2l for `resid_pre.l` (at least 1), 2l + 1 for `resid_mid.l`, 2l + 2 for `resid_post.l`, and
2L + 1 for `final_norm` of L blocks. R is 1 for `attn_out` and `mlp_out`, whose own history is not
known here, and for means over tokens, which average most of the walk away. Values kept in a coarser
dtype than the model computes in have that one rounding more.

Left out: rounding inside a block, and what later blocks make of it. Measured against float32 on
SmolLM2 in bfloat16 (a random LoRA, every block, two sizes): the true error at the last token is
0.8 to 2.1 times the floor. At mean_prompt it is 0.5 to 7 times the floor, a lower bound there.

A delta of length s is s² = shift² + error², so its cosine with the true shift is about
√(1 − (floor/s)²): .94 at three times the floor.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.activations.capture_provenance import provenance_value
from emlens.activations.memory import Key
from emlens.foundation.sites import Site

logger = logging.getLogger("emlens")
LEAST_RATIO = 3.0
"""Shifts below this many floors are reported."""
_BITS = {
    torch.bfloat16: 8,
    torch.float16: 11,
    torch.float32: 24,
    torch.float64: 53,
}
"""Significant bits, with the one that is not stored."""
_SINGLE_TOKENS = ("last", "last_prompt", "end_of_turn", "all", "index[")
"""Beginnings of the names of positions that keep single tokens as they are."""


def rounding_floor(
    before: Float[Tensor, "row d"],
    after: Float[Tensor, "row d"],
    key: Key,
    provenance: Mapping[str, Any],
) -> float:
    """Root mean square over rows of the length that rounding alone gives δ = after − before.

    In the units of the stream; 0 or more; it scales with the activations.

    Args:
        key: site and position.
        provenance: of the capture before, for the dtype of the model and its number of blocks.
    """
    kept = before.dtype
    computed = getattr(torch, str(provenance_value(provenance, "model.dtype")), kept)
    if computed not in _BITS or kept not in _BITS or before.numel() == 0:
        return 0.0
    bits = _BITS[computed]
    # the last rounding of the stream is the one that is kept, unless the kept dtype is coarser
    roundings = float(_roundings(key, provenance))
    if _BITS[kept] < bits:
        # in steps of the kept dtype: 4^(bits of kept − bits computed) of its square each
        roundings = 1.0 + roundings * 4.0 ** (_BITS[kept] - bits)
        bits = _BITS[kept]
    squares = _squared_steps(before, bits) + _squared_steps(after, bits)
    return float((roundings * squares / 12).mean().sqrt())


def _roundings(key: Key, provenance: Mapping[str, Any]) -> int:
    """How often the stream was rounded up to a place."""
    site, position = Site.parse(key[0]), key[1]
    if not position.startswith(_SINGLE_TOKENS) or site.kind in ("attn_out", "mlp_out"):
        return 1
    if site.layer is None:
        return 2 * int(provenance_value(provenance, "n_layers") or 0) + 1
    within_block = {"resid_pre": 0, "resid_mid": 1, "resid_post": 2}[site.kind]
    return max(1, 2 * site.layer + within_block)


def _squared_steps(values: Float[Tensor, "row d"], bits: int) -> Float[Tensor, " row"]:
    """Σ_j ulp(h_j)² of each row, in float64."""
    wide = values.double()
    _, exponent = torch.frexp(wide)
    # a zero has no step: it comes from other zeros
    steps = torch.ldexp((wide != 0).double(), exponent - bits)
    return (steps**2).sum(-1)


def warn_of_rounding(
    shifts: Mapping[Key, float], floors: Mapping[Key, float], dtype: torch.dtype
) -> None:
    """Log one warning where shifts are below three times their floor.

    Exact zeros are passed over: where nothing differs, nothing was rounded differently.

    Args:
        shifts: root mean square length of δ at each site and position.
    """
    small = [key for key in shifts if 0 < shifts[key] < LEAST_RATIO * floors[key]]
    if not small:
        return
    worst = min(small, key=lambda key: shifts[key] / floors[key])
    logger.warning(
        "activation deltas at %d of %d places are below %g times what rounding to %s alone gives,"
        " least at %s, %s (%.3g against a floor of %.3g), so their directions are not those of the"
        " true shifts; capture both sides with CaptureSpec(compute_dtype='float32')",
        len(small),
        len(shifts),
        LEAST_RATIO,
        str(dtype).removeprefix("torch."),
        *worst,
        shifts[worst],
        floors[worst],
    )
