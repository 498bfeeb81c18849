"""`CaptureSpec`: what a capture reads and how, as one checked record.

`capture`, `capture_pair` and `capture_many` also take `sites=`, `layers=` and `positions=` as a
short way to write a spec; every other function takes only the spec.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from emlens.foundation.errors import InputError
from emlens.foundation.positions import Position, PositionLike, parse_position
from emlens.foundation.sites import Site

BATCH_TOKENS = 2048
"""Padded tokens per batch at most: enough to use an accelerator, few enough for the caches of a
processor.
"""
SitesLike = str | Site | Iterable[str | Site]
PositionsLike = PositionLike | Sequence[PositionLike]


@dataclass(frozen=True)
class CaptureSpec:
    """What a capture reads and how.

    What is None is the default of the function that takes the spec: `resid_post` of every layer at
    `last_prompt` in batches of 2048 tokens for captures, `mean_response` in batches of 8192 for
    contrasts of answers.

    Args:
        sites: names or kinds; a bare kind such as `"resid_post"` means every layer, or those in
            `layers`.
        layers: 0-based block indices, or one of them; negative ones count from the end. None: every
            layer.
        positions: one or several of the positions of `emlens.foundation.positions`.
        skip_first: tokens at the start of a row that means leave out.
        batch_tokens: padded tokens per batch at most.
        dtype: of the values that are kept; None: the one that passes run in.
        compute_dtype: that passes run in, a dtype of torch or its name; None: the model's own.
            `"float32"` widens 16-bit weights, without changing their values, while the model is
            read, so that small deltas are not lost in rounding. It takes the memory of float32
            weights, and other threads wait for the model meanwhile.
        shared_prefixes: run first tokens that rows share (the system turn of a chat template) once
            for each batch, where every model of the capture can. Values differ by rounding.
        shared_trunk: run blocks below the first adapted one once for a fine-tune and its parent
            (the first model of the capture). Values are the same.
        large: allow a capture that keeps more than 8 GiB; `estimate_capture` says how much it keeps
            and how long it takes.

    Raises:
        InputError: no position, or one named twice; an unknown position; `skip_first` below 0;
            `batch_tokens` below 1; a `compute_dtype` that is none. Sites and layers are checked
            when a model is there.
    """

    sites: SitesLike | None = None
    layers: int | Sequence[int] | None = None
    positions: PositionsLike | None = None
    skip_first: int = 0
    batch_tokens: int | None = None
    dtype: torch.dtype | None = None
    compute_dtype: torch.dtype | str | None = None
    shared_prefixes: bool = True
    shared_trunk: bool = True
    large: bool = False

    def __post_init__(self) -> None:
        # copies: a list that its owner changes later must not change the spec, and a generator can
        # be read only once
        for name in ("sites", "layers", "positions"):
            object.__setattr__(self, name, _frozen(getattr(self, name)))
        object.__setattr__(self, "compute_dtype", _float_dtype(self.compute_dtype))
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise InputError(f"batch_tokens={self.batch_tokens} must be 1 or more")
        names = [position.name for position in self.parsed_positions]
        if not names:
            raise InputError("positions is empty; pass at least one such as 'last_prompt'")
        if len(set(names)) != len(names):
            raise InputError(f"positions holds a name twice: {names}")

    @property
    def parsed_positions(self) -> tuple[Position, ...]:
        """The positions as objects, in the order given."""
        positions: Any = self.positions
        if positions is None:
            positions = "last_prompt"
        if not isinstance(positions, tuple):
            positions = (positions,)
        return tuple(parse_position(position, self.skip_first) for position in positions)

    def filled(self, defaults: "CaptureSpec | None" = None) -> "CaptureSpec":
        """The spec with the defaults of a function where it says nothing.

        Args:
            defaults: of that function; None: those of captures.
        """
        missing = {}
        for name in ("sites", "positions", "batch_tokens"):
            if getattr(self, name) is None:
                missing[name] = getattr(defaults or _CAPTURES, name)
        filled = replace(self, **missing)
        return filled if defaults is None else filled.filled()


def _float_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if dtype is None:
        return None
    parsed: Any = dtype
    if isinstance(dtype, str):
        parsed = getattr(torch, dtype, None)
    if parsed not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise InputError(
            f"compute_dtype={dtype!r} is no dtype that passes can run in; pass 'float32'"
        )
    return cast(torch.dtype, parsed)


def _frozen(value: Any) -> Any:
    """A tuple of a list or another iterable; a single name, site or position as it is."""
    is_single = isinstance(value, str | Site | Position) or callable(value)
    if is_single or not isinstance(value, Iterable):
        return value
    return tuple(value)


_CAPTURES = CaptureSpec("resid_post", positions="last_prompt", batch_tokens=BATCH_TOKENS)
"""What a capture reads where a spec says nothing."""


def spec_of(
    spec: CaptureSpec | None,
    *,
    sites: SitesLike | CaptureSpec | None = None,
    layers: int | Sequence[int] | None = None,
    positions: PositionsLike | None = None,
) -> CaptureSpec:
    """The spec that was passed, or the one that the short keywords describe.

    Raises:
        InputError: a spec and a keyword that belongs into it.
    """
    if isinstance(sites, CaptureSpec) and spec is None:
        spec, sites = sites, None  # it was passed by place
    keywords: dict[str, Any] = {"sites": sites, "layers": layers, "positions": positions}
    passed = {name: value for name, value in keywords.items() if value is not None}
    if spec is None:
        return CaptureSpec(**passed)
    if passed:
        raise InputError(
            f"spec was given together with {', '.join(passed)};"
            f" write CaptureSpec({', '.join(f'{name}=...' for name in passed)}) and pass only spec"
        )
    return spec
