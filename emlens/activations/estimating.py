"""What a capture will cost, before it runs: bytes exactly, time from a timed sample of its own
batches.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from emlens.activations.capturing import PromptsLike, as_prompts
from emlens.activations.reading import BATCH_TOKENS, cutting, plan_reading, read_rows
from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.positions import PositionLike
from emlens.foundation.sites import Site
from emlens.models.hooked import HookedModel


@dataclass(frozen=True)
class CaptureEstimate:
    """The cost of one capture of one model.

    Args:
        bytes: what is kept, exactly; a store adds row ids and checksums.
        by_position: the same by position, over all sites.
        rows: prompts.
        tokens: tokens that run, without padding.
        padded_tokens: with padding.
        batches: forward passes.
        seconds: the whole capture on this machine; the interval is from the fastest and the slowest
            sampled rate.
    """

    bytes: int
    by_position: Mapping[str, int]
    rows: int
    tokens: int
    padded_tokens: int
    batches: int
    seconds: Estimate

    def __str__(self) -> str:
        return (
            f"{self.rows} prompts, {self.tokens} tokens in {self.batches} batches:"
            f" keeps {self.bytes / 1e9:.3g} GB, takes about {self.seconds:.3g} s"
        )


def estimate_capture(
    model: HookedModel,
    prompts: PromptsLike,
    sites: str | Site | Iterable[str | Site] = "resid_post",
    layers: Sequence[int] | None = None,
    positions: PositionLike | Sequence[PositionLike] = "last_prompt",
    *,
    skip_first: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    dtype: torch.dtype | None = None,
    sample: int = 3,
) -> CaptureEstimate:
    """Bytes and time of `capture` with the same arguments, from `sample` of its batches, each run
    twice and timed once.

    The sampled batches are spread evenly from the longest rows to the shortest; between them the
    time a padded token is interpolated.

    Raises:
        InputError: what `capture` refuses; `sample` below 1; a prompt that does not fit into memory
            alone.
    """
    if isinstance(sample, bool) or not isinstance(sample, int) or sample < 1:
        raise InputError(f"sample={sample!r} must be a count of 1 or more batches")
    reading = plan_reading(
        {model.name: model},
        list(as_prompts(prompts)),
        sites=sites,
        layers=layers,
        positions=positions,
        skip_first=skip_first,
        batch_tokens=batch_tokens,
        dtype=dtype,
    )
    layout, lengths = reading.layout, reading.rows.lengths
    count = len(layout.sizes)
    whole = [layout.pieces(batch)[0] for batch in range(count)]
    padded = np.array([len(rows) * max(lengths[i] for i in rows) for rows in whole], dtype=float)
    chosen = sorted({round(at) for at in np.linspace(0, count - 1, min(sample, count))})

    def read(rows: Sequence[int]) -> int:
        read_rows(model, reading, rows)
        return len(rows)

    rates = []
    for batch in chosen:
        _, layout = cutting(reading, layout, batch, read)  # warms up, and cuts what does not fit
        started = time.perf_counter()
        cutting(reading, layout, batch, read)
        rates.append((time.perf_counter() - started) / padded[batch])
    seconds = float((np.interp(np.arange(count), chosen, rates) * padded).sum())
    method = (
        f"{len(chosen)} of {count} batches timed, interpolated between them; interval:"
        " the fastest and the slowest rate"
    )
    return CaptureEstimate(
        bytes=sum(reading.sizes.values()),
        by_position=reading.sizes,
        rows=len(lengths),
        tokens=sum(lengths),
        padded_tokens=int(padded.sum()),
        batches=count,
        seconds=Estimate(
            seconds,
            float(padded.sum() * min(rates)),
            float(padded.sum() * max(rates)),
            len(chosen),
            method,
        ),
    )
