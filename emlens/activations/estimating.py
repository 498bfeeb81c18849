"""What a capture will cost, before it runs: exact bytes, and time from a sample of its batches."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from emlens.activations.batch_reading import read_cutting, read_rows
from emlens.activations.capture_plan import CapturePlan
from emlens.activations.capture_spec import CaptureSpec
from emlens.data.prompt_inputs import PromptsLike, as_prompts
from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.models.hooked import HookedModel


@dataclass(frozen=True)
class CaptureEstimate:
    """The cost of one capture of one model.

    Args:
        bytes: what is kept, exactly; a store adds row ids and checksums.
        by_position: the same for each position, over all sites.
        rows: prompts.
        tokens: tokens that run, without padding.
        padded_tokens: the same with padding.
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
    spec: CaptureSpec | None = None,
    *,
    sample: int = 3,
) -> CaptureEstimate:
    """Bytes and time of `capture` with the same spec, from `sample` of its batches.

    Each sampled batch runs twice and is timed once. The sampled batches are spread evenly from the
    longest rows to the shortest; between them the time per padded token is interpolated.

    Raises:
        InputError: what `capture` refuses; `sample` below 1; a prompt that does not fit into memory
            alone.
    """
    if isinstance(sample, bool) or not isinstance(sample, int) or sample < 1:
        raise InputError(f"sample={sample!r} must be a count of 1 or more batches")
    plan = CapturePlan.make({model.name: model}, list(as_prompts(prompts)), spec or CaptureSpec())
    padded = _padded_tokens(plan)
    count = len(padded)
    sampled = sorted({round(batch) for batch in np.linspace(0, count - 1, min(sample, count))})
    with model.computing_in(plan.compute_dtype):
        rates = _seconds_per_token(model, plan, padded, sampled)
    seconds = float((np.interp(np.arange(count), sampled, rates) * padded).sum())
    tokens = float(padded.sum())
    return CaptureEstimate(
        bytes=sum(plan.bytes_by_position.values()),
        by_position=plan.bytes_by_position,
        rows=len(plan.rows),
        tokens=sum(plan.rows.lengths),
        padded_tokens=int(tokens),
        batches=count,
        seconds=Estimate(
            seconds,
            tokens * min(rates),
            tokens * max(rates),
            len(sampled),
            f"{len(sampled)} of {count} batches timed, interpolated between them; interval:"
            " the fastest and the slowest rate",
        ),
    )


def _padded_tokens(plan: CapturePlan) -> Float[np.ndarray, " batch"]:
    """Tokens that each batch runs, with padding: rows × the longest row, the tokens that its rows
    share only once.
    """
    sizes = []
    for batch in range(len(plan.layout.sizes)):
        rows = plan.layout.pieces(batch)[0]
        shared = plan.layout.shared_by(rows[0])
        longest = max(plan.rows.lengths[row] for row in rows)
        sizes.append(shared + len(rows) * (longest - shared))
    return np.array(sizes, dtype=float)


def _seconds_per_token(
    model: HookedModel,
    plan: CapturePlan,
    padded: Float[np.ndarray, " batch"],
    sampled: Sequence[int],
) -> list[float]:
    """Time per padded token of each sampled batch."""

    def read(rows: Sequence[int]) -> int:
        read_rows(model, plan, rows)
        return len(rows)

    rates = []
    layout = plan.layout
    for batch in sampled:
        _, layout = read_cutting(plan, layout, batch, read)  # warms up, and cuts what does not fit
        started = time.perf_counter()
        read_cutting(plan, layout, batch, read)
        rates.append((time.perf_counter() - started) / padded[batch])
    return rates
