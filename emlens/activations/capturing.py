"""Prompts → residual streams: only the decoder runs, up to the deepest site, and only the asked
positions are kept.

Rows are sorted by length and batched under a token budget; the layout depends on the rows alone, so
that several models given the same prompts run the identical padded batches (`capture_pair`,
`capture_many`). A batch that does not fit into memory is cut, for every model, and the cut is
recorded. With `store=` every finished shard is on disk, and an interrupted capture goes on from
there. A capture too large to start by accident asks for an explicit yes.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from emlens.activations.capture_job import CaptureJob
from emlens.activations.reading import BATCH_TOKENS, LARGE_BYTES, Reading, plan_reading
from emlens.activations.record import Activations
from emlens.data.answers import Answers
from emlens.data.prompts import Prompt, PromptSet
from emlens.data.questions import QuestionSet
from emlens.foundation.errors import InputError
from emlens.foundation.positions import PositionLike
from emlens.foundation.sites import Site
from emlens.models.hooked import HookedModel
from emlens.runs.progress import progress_bar

PromptsLike = PromptSet | QuestionSet | Answers


def capture(
    model: HookedModel,
    prompts: PromptsLike,
    sites: str | Site | Iterable[str | Site] = "resid_post",
    layers: Sequence[int] | None = None,
    positions: PositionLike | Sequence[PositionLike] = "last_prompt",
    store: str | Path | None = None,
    progress: bool = True,
    *,
    skip_first: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    dtype: torch.dtype | None = None,
    large: bool = False,
) -> Activations:
    """Residual streams of one model on prompts.

    Args:
        sites: names or kinds; a bare kind such as `"resid_post"` means every layer, or those in
            `layers`.
        layers: 0-based block indices; negative counts from the end.
        positions: one or several of the positions of `emlens.foundation.positions`.
        store: a directory; finished shards are kept there, an interrupted capture resumes, the
            result reads from disk.
        skip_first: tokens that means leave out at the start of a row.
        batch_tokens: padded tokens a batch holds at most.
        dtype: what is kept; default: the model's own.
        large: needed where more than 8 GiB would be kept; `estimate_capture` says how much, and how
            long it takes.

    Returns:
        `Activations`, rows in the order of `prompts`; values after any active intervention.

    Raises:
        InputError: a site, layer or position that does not exist; a prompt that cannot be rendered;
            more than 8 GiB without `large`; a prompt that does not fit into memory alone.
        IntegrityError: `store` holds something else, or a store of another plan.
        StateError: another process captures into `store`.
    """
    stores = None if store is None else {model.name: store}
    found = capture_many(
        {model.name: model},
        prompts,
        sites=sites,
        layers=layers,
        positions=positions,
        stores=stores,
        progress=progress,
        skip_first=skip_first,
        batch_tokens=batch_tokens,
        dtype=dtype,
        large=large,
    )
    return found[model.name]


def capture_pair(
    model_a: HookedModel, model_b: HookedModel, prompts: PromptsLike, **options: Any
) -> tuple[Activations, Activations]:
    """`capture` for two models on identical padded batches: (before, after)."""
    found = capture_many({"a": model_a, "b": model_b}, prompts, **options)
    return found["a"], found["b"]


def capture_many(
    models: Mapping[str, HookedModel],
    prompts: PromptsLike,
    *,
    sites: str | Site | Iterable[str | Site] = "resid_post",
    layers: Sequence[int] | None = None,
    positions: PositionLike | Sequence[PositionLike] = "last_prompt",
    stores: Mapping[str, str | Path] | None = None,
    progress: bool = True,
    skip_first: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    dtype: torch.dtype | None = None,
    large: bool = False,
) -> dict[str, Activations]:
    """`capture` for several models on identical padded batches.

    Raises:
        InputError: also where two models' tokenizers give a prompt different ids.
    """
    job = plan_capture(
        models,
        prompts,
        stores=stores,
        sites=sites,
        layers=layers,
        positions=positions,
        skip_first=skip_first,
        batch_tokens=batch_tokens,
        dtype=dtype,
        large=large,
    )
    title = f"capture {len(job.reading.rows)} prompts × {len(models)} models"
    with (
        job.alone(),
        progress_bar(title, sum(job.passes(unit) for unit in job.units), progress) as advance,
    ):
        todo = job.units
        while todo:  # again where a batch was cut after another model ran it whole
            for unit in todo:
                job.run(unit, models[unit.model], advance)
            todo = job.missing()
        return job.finish()


def plan_capture(
    models: Mapping[str, HookedModel],
    prompts: PromptsLike,
    *,
    stores: Mapping[str, str | Path] | None = None,
    sites: str | Site | Iterable[str | Site] = "resid_post",
    layers: Sequence[int] | None = None,
    positions: PositionLike | Sequence[PositionLike] = "last_prompt",
    skip_first: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    dtype: torch.dtype | None = None,
    large: bool = False,
) -> CaptureJob:
    """What `capture_many` does before the first pass: a job whose units can then run in any
    process.

    Raises:
        InputError, IntegrityError: as `capture_many`.
    """
    asked = as_prompts(prompts)
    reading = plan_reading(
        models,
        list(asked),
        sites=sites,
        layers=layers,
        positions=positions,
        skip_first=skip_first,
        batch_tokens=batch_tokens,
        dtype=dtype,
    )
    if not large:
        _check_size(reading, len(models))
    return CaptureJob.plan(models, reading, stores=stores or {}, prompts_sha256=asked.content_hash)


def _check_size(reading: Reading, models: int) -> None:
    size = models * sum(reading.sizes.values())
    if size > LARGE_BYTES:
        each = ", ".join(
            f"{name} {models * count / 1e9:.1f} GB" for name, count in reading.sizes.items()
        )
        raise InputError(
            f"this capture keeps {size / 1e9:.1f} GB ({each} over {len(reading.sites)} sites and"
            f" {models} models), more than {LARGE_BYTES / 1e9:.1f} GB;"
            " pass large=True to run it, or fewer layers, pooled positions, a smaller dtype;"
            " stream_moments keeps sums instead of tokens"
        )


def as_prompts(prompts: PromptsLike) -> PromptSet:
    """The prompts behind a `PromptSet`, a `QuestionSet` or `Answers` (whose texts are kept as
    responses).
    """
    if isinstance(prompts, PromptSet):
        return prompts
    if isinstance(prompts, QuestionSet | Answers):
        return prompts.prompts()
    if isinstance(prompts, Sequence) and prompts and all(isinstance(p, Prompt) for p in prompts):
        return PromptSet(prompts)
    raise InputError(
        f"prompts is a {type(prompts).__name__}; pass a PromptSet (PromptSet.from_questions,"
        " .from_texts, …), a QuestionSet or Answers"
    )
