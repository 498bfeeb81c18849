"""Directions from a model's own answers and from its shifts on prompts.

They are given at every layer and position. Three contrasts of answers, those of 2506.11618: within
the misaligned model (its misaligned minus its aligned answers), between models on the same text
(misaligned minus aligned model, both reading the misaligned answers), and both at once. All point
to misaligned. Rows are chosen by a `RowFilter`, which is recorded; only sums are kept.
"""

from collections.abc import Callable
from typing import Any, Final, Literal

from torch import Tensor

from emlens.activations import CaptureSpec, stream_moments
from emlens.activations.streamed_moments import StreamedMoments
from emlens.data.answers import Answers
from emlens.data.base_questions import base_question, base_questions
from emlens.data.prompt_inputs import PromptsLike, as_prompts
from emlens.data.prompts import Prompt
from emlens.data.scores import AlignmentScores
from emlens.directions.row_contrasts import MEAN_RESPONSE, Contrasts, Weighting, contrast
from emlens.directions.row_filters import RowFilter
from emlens.foundation.choices import require_kind
from emlens.foundation.errors import InputError
from emlens.foundation.sites import Site
from emlens.geometry import Direction
from emlens.geometry.contrast_sums import BLOCKS
from emlens.models.hooked import DEFAULT_BATCH_TOKENS, HookedModel

Between = Literal["answers", "models", "both"]
Unit = Literal["question", "answer"]
LAST_PROMPT: Final = CaptureSpec(batch_tokens=DEFAULT_BATCH_TOKENS)
"""What shifts read unless a spec is passed: `resid_post` of every layer at `last_prompt`."""


def extract_directions(
    model: HookedModel,
    answers: Answers,
    scores: AlignmentScores,
    spec: CaptureSpec = MEAN_RESPONSE,
    *,
    rows: RowFilter | None = None,
    weighting: Weighting = "example",
    between: Between = "answers",
    reference: HookedModel | None = None,
    progress: bool = True,
) -> dict[str, Direction]:
    """Mean activation over misaligned answers minus over aligned ones, at each site.

    `contrast_answers` also gives several positions, error bars and whitening.

    Args:
        scores: of these answers, with metrics `aligned` and `coherent` on 0 to 100.
        spec: what is read, at one pooled position; `resid_post` of every layer at
            `mean_response` where it says nothing.
        rows: which answers are which; by default coherent > 50 and aligned ≤ 30 or > 70, balanced.
        weighting: `"example"`: every answer counts the same; `"token"`: every answer token does.
        between, reference: as `contrast_answers`.

    Returns:
        Site name → `Direction`, with the ids used and the filter in its provenance.

    Raises:
        InputError: an unknown weighting or contrast, scores without one of the two metrics, fewer
            than 2 answers in a class after filtering.

    Reference: Soligo et al., 2506.11618.
    """
    contrasts = contrast_answers(
        model,
        answers,
        scores,
        spec,
        rows=rows,
        between=between,
        reference=reference,
        weighting=weighting,
        progress=progress,
    )
    return contrasts.directions()


def contrast_answers(
    model: HookedModel,
    answers: Answers,
    scores: AlignmentScores,
    spec: CaptureSpec = MEAN_RESPONSE,
    *,
    rows: RowFilter | None = None,
    between: Between = "answers",
    reference: HookedModel | None = None,
    unit: Unit = "question",
    weighting: Weighting = "example",
    blocks: int = BLOCKS,
    covariance: bool = False,
    progress: bool = True,
) -> Contrasts:
    """Misaligned against aligned answers, with all that error bars and controls need.

    Args:
        spec: what is read; `resid_post` of every layer at `mean_response` where it says nothing.
        rows: which answers are which; the field's thresholds by default. Its seed is also that of
            the blocks.
        between: `"answers"`: `model` on misaligned minus `model` on aligned answers. `"models"`:
            `model` minus `reference`, both on the misaligned answers. `"both"`: `model` on
            misaligned minus `reference` on aligned answers.
        reference: the aligned model (instruct), for the last two. For the text-content control run
            `"answers"` with the aligned model as `model`, on the same answers and scores.
        unit: what is resampled: questions, with all their answers, or single answers (whose
            intervals are too short where a question has several).
        weighting, blocks, covariance: as `contrast`. Units are assigned to blocks over all
            questions of `answers`, so contrasts of several models on one set of questions can be
            compared.

    Raises:
        InputError: an unknown contrast or unit, a reference that is missing or not used, what
            `RowFilter.choose` and `contrast` refuse.
    """
    require_kind(answers, Answers, "answers", "Answers; of texts, see direction_from_texts")
    require_kind(scores, AlignmentScores, "scores", "AlignmentScores of these answers")
    _require_reference(between, reference)
    if unit not in ("question", "answer"):
        raise InputError(
            f"unit={unit!r} is unknown; pass 'question' or 'answer'",
            name=unit,
            known=("question", "answer"),
        )
    row_filter = rows or RowFilter()
    classes = row_filter.choose(answers, scores)
    misaligned, aligned = answers.select(classes.misaligned), answers.select(classes.aligned)
    unit_of, all_units = _units(unit, answers)
    # the negative class of each kind of contrast: its name and its rows
    negatives = {
        "answers": ("aligned", aligned),
        "models": ("same text, reference", misaligned),
        "both": ("aligned", aligned),
    }
    negative_name, negative_rows = negatives[between]
    # "answers" has no reference: one model reads both classes
    negative_model = model if reference is None else reference
    return contrast(
        (model, misaligned),
        (negative_model, negative_rows),
        spec,
        names=("misaligned", negative_name),
        weighting=weighting,
        units=unit_of,
        universe=all_units,  # also units that have no row in either class
        blocks=blocks,
        covariance=covariance,
        provenance={
            "between": between,
            "filter": row_filter.to_record(),
            "dropped": dict(classes.dropped),
            "unit": unit,
        },
        seed=row_filter.seed,
        progress=progress,
    )


def _require_reference(between: str, reference: HookedModel | None) -> None:
    if between not in ("answers", "models", "both"):
        raise InputError(
            f"between={between!r} is unknown; pass 'answers', 'models' or 'both'",
            name=between,
            known=("answers", "models", "both"),
        )
    if reference is None and between != "answers":
        raise InputError(
            f"between={between!r} was given without a reference; pass reference=, the aligned model"
        )
    if reference is not None and between == "answers":
        raise InputError(
            f"between={between!r} was given with a reference;"
            " leave it out, or pass between='models' or 'both'"
        )


def _units(unit: Unit, answers: Answers) -> tuple[Callable[[Prompt], str], list[str]]:
    """Row → its unit, and all units there are, with or without a row in a class."""
    if unit == "answer":
        return (lambda prompt: prompt.id), list(answers.ids)
    questions = base_questions(answer.question for answer in answers)
    return (lambda prompt: base_question(str(prompt.meta["question"]))), questions


def shift_directions(
    before: HookedModel,
    after: HookedModel,
    prompts: PromptsLike,
    spec: CaptureSpec = LAST_PROMPT,
    *,
    kind: Literal["mean", "top_component"] = "mean",
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Direction]:
    """Directions of activation deltas (after − before) on prompts; streamed.

    They are the mean delta, or the first uncentred component. The component is signed to agree with
    the mean delta, and its length is the root-mean-square coordinate of the deltas on it. For error
    bars of the mean: `contrast((after, prompts), (before, prompts), spec)`.

    Args:
        spec: what is read, at one position; by default `resid_post` of every layer at
            `last_prompt`.
        seed: of the sketch behind the component (`stream_moments`).

    Returns:
        Site name → `Direction` from before to after; sites at which nothing moved are left out.

    Raises:
        InputError: an unknown kind, or what `stream_moments` refuses; nothing moved at any site.
    """
    if kind not in ("mean", "top_component"):
        raise InputError(
            f"kind={kind!r} is unknown; pass 'mean' or 'top_component'",
            name=kind,
            known=("mean", "top_component"),
        )
    streamed = stream_moments(
        after,
        prompts,
        spec.filled(LAST_PROMPT),
        by=None,
        minus=before,
        second="sketch" if kind == "top_component" else "variance",
        sketch=64,
        seed=seed,
        progress=progress,
    )
    ids = {"prompts": as_prompts(prompts).ids}
    provenance: dict[str, Any] = {
        **streamed.provenance,
        "kind": kind,
        "sign": "agrees with the mean delta",
    }
    position = streamed.positions[0]
    directions = {}
    for site in streamed.sites:
        vector = streamed.moments(site).mean
        if not bool((vector != 0).any()):
            continue
        if kind == "top_component":
            vector = _top_component(streamed, site)
        directions[site] = Direction(vector, Site.parse(site), position, None, ids, provenance)
    if not directions:
        raise InputError(
            "before and after read these prompts alike at every site, so there is no shift;"
            " pass two models that differ"
        )
    return directions


def _top_component(streamed: StreamedMoments, site: str) -> Tensor:
    """The first uncentred component, along the mean, with the root-mean-square length."""
    moments = streamed.moments(site)
    space = streamed.subspace(site, 1, center=False)
    axis = space.basis[:, 0].double()
    if float(axis @ moments.mean) < 0:
        axis = -axis
    # σ₁² = Σ (row · axis)²
    return axis * (float(space.singular_values[0]) / moments.n**0.5)
