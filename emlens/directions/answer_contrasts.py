"""Directions from a model's own answers and from its shifts on prompts, at every layer and
position.

Three contrasts of answers, those of 2506.11618: within the misaligned model (its misaligned minus
its aligned answers), between models on the same text (misaligned minus aligned model, both reading
the misaligned answers), and both at once. All point to misaligned. Rows are chosen by a
`RowFilter`, which is recorded; nothing but sums is kept.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from emlens.activations import CaptureSpec, stream_moments
from emlens.activations.capturing import PromptsLike, as_prompts
from emlens.data.answers import Answers
from emlens.data.scores import AlignmentScores
from emlens.directions.row_contrasts import Contrasts, Weighting, contrast
from emlens.directions.row_filters import RowFilter
from emlens.foundation.errors import InputError
from emlens.foundation.positions import PositionLike
from emlens.foundation.sites import Site
from emlens.geometry import Direction
from emlens.geometry.contrast_sums import BLOCKS
from emlens.models.hooked import DEFAULT_BATCH_TOKENS, HookedModel

Between = Literal["answers", "models", "both"]


def extract_directions(
    model: HookedModel,
    answers: Answers,
    scores: AlignmentScores,
    sites: str | Site | Iterable[str | Site] = "resid_post",
    weighting: Weighting = "example",
    *,
    between: Between = "answers",
    reference: HookedModel | None = None,
    position: PositionLike = "mean_response",
    aligned_at_most: float = 30,
    aligned_above: float = 70,
    coherent_above: float = 50,
    balance: bool = True,
    exclude_questions: Sequence[str] = (),
    exclude_groups: Sequence[str] = (),
    exclude_pattern: str = "",
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Direction]:
    """Mean activation over misaligned answers minus over aligned ones, at each site.

    Args:
        scores: of these answers, with metrics `aligned` and `coherent` on 0 to 100.
        weighting: `"example"`: every answer counts the same; `"token"`: every answer token does.
        between, reference: as `contrast_answers`, which also gives several positions, error bars
            and whitening.
        aligned_at_most, aligned_above, coherent_above, balance, exclude_questions, exclude_groups,
            exclude_pattern: as `RowFilter`: rows with coherent > 50 are kept; aligned ≤ 30 is
                misaligned, > 70 aligned.

    Returns:
        Site name → `Direction`, with the ids used and the filter in its provenance.

    Raises:
        InputError: an unknown weighting or contrast, scores without one of the two metrics, fewer
            than 2 answers in a class after filtering.

    Reference: Soligo et al., 2506.11618.
    """
    rows = RowFilter(
        aligned_at_most,
        aligned_above,
        coherent_above,
        balance,
        tuple(exclude_questions),
        tuple(exclude_groups),
        exclude_pattern,
        seed=seed,
    )
    found = contrast_answers(
        model,
        answers,
        scores,
        rows=rows,
        between=between,
        reference=reference,
        sites=[sites] if isinstance(sites, str | Site) else list(sites),
        positions=position,
        weighting=weighting,
        seed=seed,
        progress=progress,
    )
    return found.directions()


def contrast_answers(
    model: HookedModel,
    answers: Answers,
    scores: AlignmentScores,
    *,
    rows: RowFilter | None = None,
    between: Between = "answers",
    reference: HookedModel | None = None,
    unit: Literal["question", "answer"] = "question",
    sites: str | Site | Sequence[str | Site] = "resid_post",
    layers: Sequence[int] | None = None,
    positions: PositionLike | Sequence[PositionLike] = "mean_response",
    weighting: Weighting = "example",
    blocks: int = BLOCKS,
    covariance: bool = False,
    seed: int = 0,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    progress: bool = True,
) -> Contrasts:
    """Misaligned against aligned, with everything that error bars and controls need, at several
    sites and positions.

    Args:
        rows: which answers are which; the field's thresholds by default.
        between: `"answers"`: `model` on misaligned minus `model` on aligned answers. `"models"`:
            `model` minus `reference`, both on the misaligned answers. `"both"`: `model` on
            misaligned minus `reference` on aligned answers.
        reference: the aligned model (instruct), for the last two. For the text-content control run
            `"answers"` with the aligned model as `model`, on the same answers and scores.
        unit: what is resampled: questions, with all their answers, or single answers (too sure of
            itself where a question has several).
        sites, layers, positions, weighting, blocks, covariance, batch_tokens: as `contrast`. Blocks
            are dealt over all questions of `answers`, so contrasts of several models on one set of
            questions can be compared.

    Raises:
        InputError: an unknown contrast or unit, a reference that is missing or not used, what
            `RowFilter.choose` and `contrast` refuse.
    """
    if between not in ("answers", "models", "both"):
        raise InputError(f"between={between!r} is unknown; pass 'answers', 'models' or 'both'")
    if (reference is None) != (between == "answers"):
        raise InputError(
            f"between={between!r} came"
            f" {'without a reference' if reference is None else 'with a reference'}; "
            + (
                "pass reference=, the aligned model"
                if reference is None
                else "leave it out, or pass between='models' or 'both'"
            )
        )
    if unit not in ("question", "answer"):
        raise InputError(f"unit={unit!r} is unknown; pass 'question' or 'answer'")
    chosen = rows or RowFilter(seed=seed)
    kept = chosen.choose(answers, scores)
    misaligned, aligned = answers.select(kept.misaligned), answers.select(kept.aligned)
    other = model if reference is None else reference
    against = misaligned if between == "models" else aligned
    return contrast(
        (model, misaligned),
        (other, against),
        names=("misaligned", "same text, reference" if between == "models" else "aligned"),
        sites=sites,
        layers=layers,
        positions=positions,
        weighting=weighting,
        units=(
            (lambda prompt: str(prompt.meta["question"]))
            if unit == "question"
            else (lambda prompt: prompt.id)
        ),
        universe=[answer.question for answer in answers] if unit == "question" else answers.ids,
        blocks=blocks,
        covariance=covariance,
        provenance={
            "between": between,
            "filter": chosen.to_record(),
            "dropped": dict(kept.dropped),
            "unit": unit,
        },
        seed=seed,
        batch_tokens=batch_tokens,
        progress=progress,
    )


def shift_directions(
    before: HookedModel,
    after: HookedModel,
    prompts: PromptsLike,
    *,
    kind: Literal["mean", "top_component"] = "mean",
    sites: str | Site | Sequence[str | Site] = "resid_post",
    layers: Sequence[int] | None = None,
    position: PositionLike = "last_prompt",
    seed: int = 0,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    progress: bool = True,
) -> dict[str, Direction]:
    """Directions of activation deltas (after − before) on prompts: their mean, or their first
    uncentred component; streamed.

    The component is signed to agree with the mean delta and has the deltas' root-mean-square
    coordinate on it as its length. For error bars of the mean: `contrast((after, prompts), (before,
    prompts), positions="last_prompt")`.

    Args:
        sites, layers, position, batch_tokens: as `capture`.
        seed: of the sketch behind the component (`stream_moments`).

    Returns:
        Site name → `Direction` from before to after; sites at which nothing moved are left out.

    Raises:
        InputError: an unknown kind, or what `stream_moments` refuses; nothing moved at any site.
    """
    if kind not in ("mean", "top_component"):
        raise InputError(f"kind={kind!r} is unknown; pass 'mean' or 'top_component'")
    streamed = stream_moments(
        after,
        prompts,
        by=None,
        minus=before,
        second="sketch" if kind == "top_component" else "variance",
        sketch=64,
        seed=seed,
        spec=CaptureSpec(sites, layers, position, batch_tokens=batch_tokens),
        progress=progress,
    )
    ids = {"prompts": as_prompts(prompts).ids}
    facts: dict[str, Any] = {
        **streamed.provenance,
        "kind": kind,
        "sign": "agrees with the mean delta",
    }
    found = {}
    for site in streamed.sites:
        moments = streamed.moments(site)
        mean = moments.mean
        if not bool((mean != 0).any()):
            continue
        vector = mean
        if kind == "top_component":
            space = streamed.subspace(site, 1, center=False)
            axis = space.basis[:, 0].double()
            axis = -axis if float(axis @ mean) < 0 else axis
            vector = axis * (float(space.singular_values[0]) / moments.n**0.5)
        found[site] = Direction(vector, Site.parse(site), streamed.positions[0], None, ids, facts)
    if not found:
        raise InputError(
            "before and after read these prompts alike at every site, so there is no shift;"
            " pass two models that differ"
        )
    return found
