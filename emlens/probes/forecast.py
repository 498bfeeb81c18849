"""Forecast per-question alignment from activations taken before fine-tuning, beside every cheap way
to do as well.

Site, position and penalty are chosen on inner folds (`sites="nested"`), so the quoted figure pays
for the choice. R² is pooled out of fold against the training-fold mean; the mean over folds, as the
paper reports it, stands beside it with a Nadeau–Bengio interval. The permutation null repeats the
whole nested procedure on shuffled scores. Of ridge, all fine-tunes and all shuffles share each
factorisation (`probes.validation` has the cost).
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack

import numpy as np

from emlens.activations import Activations
from emlens.data.scores import AlignmentScores
from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.probes.estimators import Setting, resolve_estimator
from emlens.probes.features import Features, activation_cells, assert_different, baselines
from emlens.probes.record import Forecast, Setup, assemble, pooled_r2, site_table
from emlens.probes.ridge import Array
from emlens.probes.shuffles import Unit, shuffled_targets
from emlens.probes.targets import (
    Duplicates,
    Scale,
    Scores,
    joined_duplicates,
    labels_of,
    on_scale,
    questions_of,
    scores_of,
    text_of,
    weights_of,
)
from emlens.probes.validation import (
    Count,
    NestedPredictions,
    generic_nested,
    nested_ridge,
    outer_folds,
    training_means,
)
from emlens.stats import NullDistribution

__all__ = [
    "Forecast",
    "Scores",
    "cross_validate_forecast",
    "cross_validate_forecasts",
    "labels_of",
    "questions_of",
]


class ForecastOptions(TypedDict, total=False):
    """Keywords of `cross_validate_forecasts` that `cross_validate_forecast` takes too."""

    features: Sequence[Features] | None
    texts: Mapping[str, str] | None
    parent_scores: Scores | None
    embedding: Activations | None
    other_parent: Activations | None
    numbers: Mapping[str, Mapping[str, float]] | None
    target: Scale
    clamp: float
    weights: Mapping[str, float] | None
    settings: Sequence[Setting] | None
    shuffle: Unit | None
    duplicates: Duplicates
    folds: Count
    inner_folds: int
    repeats: int
    permutations: int | None
    seed: int


DRAWS = 200
"""Shuffles of ridge where none are asked for; other estimators make none by themselves, since each
costs a whole fit.
"""


def cross_validate_forecast(
    acts: Activations,
    scores: Scores,
    metric: str = "aligned",
    sites: str | Sequence[str] = "nested",
    estimator: Any = "ridge",
    groups: str | Sequence[str] | None = None,
    *,
    model: str | None = None,
    ceiling: Estimate | None = None,
    **options: Unpack[ForecastOptions],
) -> Forecast:
    """How well activations taken before fine-tuning predict each question's score after it.

    Args:
        acts: rows are questions (ids `"qid"`, or `"qid/p2"` for a phrasing); any sites and pooled
            positions.
        scores: after fine-tuning, on 0 to 100: `AlignmentScores`, or id → score.
        sites: `"nested"`: chosen on inner folds among all captured; or the names to choose among.
        estimator: `"ridge"` (exact, fast), `"ridge1"` (α = 1), `"lasso"`, `"elastic_net"`, `"pcr"`,
            `"ols"`, `"forest"`, `"tree"`, or a regressor of scikit-learn; settings are chosen on
            inner folds too.
        groups: what is held out together: None: each question; `"group"`: the rows' groups (leave
            domains out); or labels.
        model: whose scores to take, where `scores` holds several models.
        ceiling: the noise ceiling of these scores (`probes.ceilings`), kept in the record.
        options: as `cross_validate_forecasts`.

    Raises:
        InputError: a row without a score, too few rows or groups, labels that part phrasings, two
            rows of one text, an unknown option, a score that is constant.

    Reference: the claim is "What Shapes Emergent Misalignment?" (2606.20814); Nadeau & Bengio 2003.
    """
    mine = (
        scores.select(models=[model])
        if isinstance(scores, AlignmentScores) and model is not None
        else scores
    )
    ceilings = {} if ceiling is None else {"": ceiling}
    return cross_validate_forecasts(
        acts, {"": mine}, metric, sites, estimator, groups, ceilings=ceilings, **options
    )[""]


def cross_validate_forecasts(
    acts: Activations,
    scores: Mapping[str, Scores] | AlignmentScores,
    metric: str = "aligned",
    sites: str | Sequence[str] = "nested",
    estimator: Any = "ridge",
    groups: str | Sequence[str] | None = None,
    *,
    features: Sequence[Features] | None = None,
    texts: Mapping[str, str] | None = None,
    parent_scores: Scores | None = None,
    embedding: Activations | None = None,
    other_parent: Activations | None = None,
    numbers: Mapping[str, Mapping[str, float]] | None = None,
    target: Scale = "score",
    clamp: float = 1.0,
    weights: Mapping[str, float] | None = None,
    settings: Sequence[Setting] | None = None,
    ceilings: Mapping[str, Estimate] | None = None,
    shuffle: Unit | None = None,
    duplicates: Duplicates = "refuse",
    folds: Count = 5,
    inner_folds: int = 5,
    repeats: int = 5,
    permutations: int | None = None,
    seed: int = 0,
) -> dict[str, Forecast]:
    """`cross_validate_forecast` of several fine-tunes on the same questions and folds, each with
    its own choices.

    Args:
        scores: fine-tune → its scores; or `AlignmentScores` of several models.
        features: candidates to choose among instead of the captured cells: projections, distances,
            joined sets (`probes.projections`).
        texts: id → question text, for the TF-IDF and length baselines, and to find questions that
            stand there twice.
        parent_scores: the parent's own scores, for that baseline.
        embedding: a capture of `resid_pre.0` at `mean_prompt`, for the mean-embedding baseline.
        other_parent: activations of the other parent on the same rows: a baseline, which must
            differ.
        numbers: further baselines of one number a row, name → id → number, such as the parent's
            P(harmful).
        target: `"score"`, or `"logit"` of the score's place on its scale; errors, and the parent's
            own score, are then in logits.
        clamp: for logits, how near to an end of the scale a score may come, in score units.
        weights: id → weight, for fitting and choosing (`sampling_weights`); R² stays unweighted.
        settings: parameters of the estimator to choose among; for ridge `[{"alpha": 1.0}, ...]`.
        shuffle: what the null deals out anew (`probes.shuffles`); None: groups where groups are
            held out, else questions.
        duplicates: rows of one text, or of identical activations, that folds would part:
            `"refuse"`, `"group"` or `"allow"`.
        folds: how many; `"all"` holds out each unit alone, once.
        permutations: shuffles for the null and the maximum statistic; None: 200 for ridge, none for
            the others, which fit each anew.

    Raises:
        InputError: as `cross_validate_forecast`; no fine-tune.
    """
    named = (
        {name: scores.select(models=[name]) for name in scores.models}
        if isinstance(scores, AlignmentScores)
        else dict(scores)
    )
    chosen = resolve_estimator(estimator, settings)
    exact = isinstance(estimator, str) and estimator in ("ridge", "ridge1")
    questions = questions_of(acts)
    if not named:
        raise InputError("scores is empty; pass the scores of at least one fine-tune")
    columns = np.column_stack(
        [_target(given, acts.ids, questions, metric, target, clamp) for given in named.values()]
    )
    labels, held_out = labels_of(acts, groups)
    words = (
        None
        if texts is None
        else [
            text_of(texts, name, question)
            for name, question in zip(acts.ids, questions, strict=True)
        ]
    )
    cells = [(site, position) for site in acts.sites for position in acts.pooled_positions]
    labels = joined_duplicates(acts, labels, words, duplicates, cells)
    row_weights = weights_of(weights, acts.ids, questions)
    candidates: list[Features] = (
        list(features)
        if features is not None
        else [*activation_cells(acts, None if sites == "nested" else _named(sites))]
    )
    if features is not None and sites != "nested":
        raise InputError(f"sites={sites!r} came with features; pass one of them")
    distinct = len(set(labels))
    if distinct < 3:
        raise InputError(
            f"groups has {distinct} labels; nested selection needs at least 3,"
            " so that inner folds can hold one out too; pass finer groups"
        )
    outer = outer_folds(labels, folds if folds == "all" else min(folds, distinct), repeats, seed)
    unit: Unit = shuffle or ("question" if held_out == "question" else "group")
    count = permutations if permutations is not None else DRAWS if exact else 0
    draws = [
        draw
        for column in columns.T
        for draw in shuffled_targets(
            column, questions, _shuffling(acts, labels, held_out), unit, count, seed
        )
    ]
    everything = np.column_stack([columns, *draws])
    common: dict[str, Any] = {
        "inner_folds": inner_folds,
        "seed": seed,
        "weights": row_weights,
        "kept": columns.shape[1],
    }

    def nested(candidates: Sequence[Features], targets: Array) -> NestedPredictions:
        if exact:
            return nested_ridge(
                candidates,
                targets,
                labels,
                outer,
                alphas=[setting["alpha"] for setting in chosen.settings],
                **common,
            )
        return generic_nested(candidates, targets, labels, outer, estimator=chosen, **common)

    found = nested(candidates, everything)
    means = training_means(everything, outer, row_weights)
    r2 = pooled_r2(found.nested, means, everything)
    parent = None
    if parent_scores is not None:
        parent = on_scale(
            scores_of(parent_scores, acts.ids, questions, metric, None),
            target,
            _limits(parent_scores, metric),
            clamp,
        )
    further = {
        name: scores_of(values, acts.ids, questions, name, None)
        for name, values in (numbers or {}).items()
    }
    others: dict[str, Array] = {}
    for baseline in baselines(acts, words, parent, embedding, seed=seed, further=further):
        others[baseline.name] = nested_ridge([baseline], columns, labels, outer, **common).nested
    if other_parent is not None:
        rival = activation_cells(other_parent.select(acts.ids))
        assert_different(activation_cells(acts), rival, "acts", "other_parent")
        others["other parent"] = nested_ridge(rival, columns, labels, outer, **common).nested
    others["mean"] = means[..., : columns.shape[1]]
    on = "score" if target == "score" else f"logit, clamped {clamp:g} from the ends"
    setup = Setup(acts.ids, acts.groups, labels, outer, held_out, chosen.name, on, unit, seed)
    forecasts = {}
    for number, name in enumerate(named):
        own = np.r_[number, columns.shape[1] + number * count + np.arange(count)].astype(np.int64)
        null = (
            NullDistribution(
                r2[own[1:]],
                f"nested {chosen.name} on shuffled scores",
                seed,
                observed=float(r2[number]),
            )
            if count
            else None
        )
        table = site_table(
            [c.name for c in candidates], found.squared[:, own], means[..., own], everything[:, own]
        )
        forecasts[name] = assemble(
            setup,
            columns[:, number],
            found.nested[..., number],
            means[..., number],
            {other: values[..., number] for other, values in others.items()},
            found.names(number),
            null,
            table,
            (ceilings or {}).get(name),
        )
    return forecasts


def _target(
    scores: Scores,
    ids: Sequence[str],
    questions: Sequence[str],
    metric: str,
    scale: Scale,
    clamp: float,
) -> Array:
    values = scores_of(scores, ids, questions, metric, None)
    if np.ptp(values) == 0:
        raise InputError(
            f"the {metric} score is {values[0]:g} for every row; there is nothing to predict"
        )
    found = on_scale(values, scale, _limits(scores, metric), clamp)
    if np.ptp(found) == 0:
        raise InputError(
            f"clamp={clamp:g} makes the {metric} score the same for every row; pass a smaller one"
        )
    return found


def _limits(scores: Scores, metric: str) -> tuple[float, float]:
    return scores.scales[metric] if isinstance(scores, AlignmentScores) else (0.0, 100.0)


def _shuffling(acts: Activations, labels: Sequence[str], held_out: str) -> Sequence[str]:
    """The groups that shuffles keep apart: what is held out, or the rows' own groups where
    questions are.
    """
    return acts.groups if held_out == "question" else labels


def _named(sites: str | Sequence[str]) -> list[str]:
    return [sites] if isinstance(sites, str) else list(sites)
