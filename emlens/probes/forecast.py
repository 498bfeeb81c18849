"""Forecast per-question alignment from activations taken before fine-tuning, beside every cheap way
to do as well.

Site, position and penalty are chosen on inner folds, so the quoted figure pays for the choice. R²
is pooled out of fold against the training-fold mean; the mean over folds, as the paper reports it,
is shown beside it with a Nadeau–Bengio interval. The permutation null repeats the whole nested
procedure on shuffled scores. For ridge, all fine-tunes and all shuffles share each factorisation
(`probes.validation` has the cost).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emlens.activations import Activations
from emlens.data.base_questions import question_variant
from emlens.data.scores import AlignmentScores
from emlens.foundation.errors import InputError
from emlens.probes.baselines import OTHER_PARENT, Baselines, baseline_features
from emlens.probes.design import Design
from emlens.probes.estimators import Estimator, resolve_estimator
from emlens.probes.features import Features, activation_cells, assert_different
from emlens.probes.final_fit import FinalFit
from emlens.probes.record import (
    Forecast,
    OutOfFold,
    Setup,
    corrected_forecasts,
    make_forecast,
    pooled_r2,
    site_table,
)
from emlens.probes.ridge import Array
from emlens.probes.shuffles import Shuffle, draws_for, shuffled_targets
from emlens.probes.targets import (
    Scale,
    Scores,
    bases_of,
    joined_duplicates,
    labels_by_id,
    labels_of,
    on_scale,
    questions_of,
    scores_of,
    texts_of,
    weights_of,
)
from emlens.probes.validation import (
    NestedFolds,
    NestedPredictions,
    generic_nested,
    nested_ridge,
    outer_folds,
    training_means,
)
from emlens.stats import NullDistribution


def cross_validate_forecast(
    acts: Activations,
    scores: Scores,
    metric: str = "aligned",
    features: str | Sequence[str] | Sequence[Features] | None = None,
    estimator: Any = "ridge",
    *,
    target: Scale = "score",
    design: Design | None = None,
    baselines: Baselines | None = None,
) -> Forecast:
    """How well activations taken before fine-tuning predict each question's score after it.

    Args:
        acts: rows are questions (ids `"qid"`, or `"qid/p2"` for a paraphrase); any sites and pooled
            positions.
        scores: after fine-tuning, on 0 to 100: `AlignmentScores` of one model, id → score as a
            mapping or a series, or one score per row as a list or an array.
        features: what may be looked at; inner folds choose among them. None: every captured site
            and position; names of sites; or feature sets, such as projections and distances
            (`probes.projections`).
        estimator: `"ridge"` (exact, fast), `"ridge1"` (α = 1), `"lasso"`, `"elastic_net"`, `"pcr"`,
            `"ols"`, `"forest"`, `"tree"`, or a regressor of scikit-learn; settings are chosen on
            inner folds too.
        target: `"score"`, or `"logit"` of the score's place on its scale; errors, and the parent's
            own score, are then in logits.
        design: how it is fitted and validated; None: `Design()`.
        baselines: what the forecast has to beat; None: those that need no input.

    Raises:
        InputError: a row without a score, too few rows or groups, labels that separate paraphrases,
            two rows of one text, an unknown option, a score that is constant.

    Reference: the claim is "What Shapes Emergent Misalignment?" (2606.20814); Nadeau & Bengio 2003.
    """
    forecasts = cross_validate_forecasts(
        acts,
        {"": scores},
        metric,
        features,
        estimator,
        target=target,
        design=design,
        baselines=baselines,
    )
    return forecasts[""]


def cross_validate_forecasts(
    acts: Activations,
    scores: Mapping[str, Scores] | AlignmentScores,
    metric: str = "aligned",
    features: str | Sequence[str] | Sequence[Features] | None = None,
    estimator: Any = "ridge",
    *,
    target: Scale = "score",
    design: Design | None = None,
    baselines: Baselines | None = None,
) -> dict[str, Forecast]:
    """`cross_validate_forecast` of several fine-tunes on the same questions and folds, each with
    its own choices. Their p-values are corrected together (`p_holm`).

    Args:
        scores: fine-tune → its scores; or `AlignmentScores` of several models.
        estimator: `estimator`, `target` and `baselines` as in `cross_validate_forecast`.

    Raises:
        InputError: as `cross_validate_forecast`; no fine-tune.
    """
    design, baselines = design or Design(), baselines or Baselines()
    scores_by_tune = _by_fine_tune(scores)
    model = resolve_estimator(estimator, design.settings)
    is_ridge = isinstance(estimator, str) and estimator in ("ridge", "ridge1")
    scale = _ScoreScale(metric, target, design.clamp)
    questions = questions_of(acts)
    measured = np.column_stack(
        [scale.targets(values, acts.ids, questions) for values in scores_by_tune.values()]
    )
    rows = _forecast_rows(acts, questions, design, baselines.texts)
    candidates = _candidates(acts, features)
    folds = _nested_folds(rows.labels, design)
    shuffle = design.shuffle or ("question" if rows.held_out == "question" else "group")
    shuffles = _number_of_shuffles(design, is_ridge, len(scores_by_tune))
    targets = _with_shuffles(measured, rows, shuffle, shuffles, folds)

    selection = _Selection(folds, model, is_ridge, rows.weights, keep=targets.n_measured)
    predictions = selection.predict(candidates, targets.values)
    means = training_means(targets.values, folds.outer, rows.weights)
    r2 = pooled_r2(predictions.nested, means, targets.values)
    rivals = _baseline_predictions(selection, measured, rows, baselines, scale)
    rivals["mean"] = means[..., : targets.n_measured]

    setup = Setup(
        ids=acts.ids,
        groups=acts.groups,
        units=rows.labels,
        folds=folds.outer,
        held_out=rows.held_out,
        estimator=model.name,
        target=scale.description,
        shuffle=shuffle,
        seed=design.seed,
        missing=baselines.missing,
    )
    forecasts = {}
    for number, name in enumerate(scores_by_tune):
        columns = targets.columns(number)
        by_site = site_table(
            predictions.candidates,
            predictions.squared[:, columns],
            means[..., columns],
            targets.values[:, columns],
        )
        result = OutOfFold(
            target=measured[:, number],
            predicted=predictions.nested[..., number],
            mean=means[..., number],
            baselines={rival: values[..., number] for rival, values in rivals.items()},
            chosen=predictions.names(number),
        )
        null = _null(r2[columns], model.name, design.seed)
        fit = FinalFit(
            acts=acts,
            candidates=tuple(candidates),
            target=measured[:, number],
            labels=tuple(rows.labels),
            weights=rows.weights,
            alphas=tuple(setting["alpha"] for setting in model.settings) if is_ridge else (),
            estimator=model.name,
            inner_folds=design.inner_folds,
            seed=design.seed,
        )
        forecasts[name] = make_forecast(replace(setup, fit=fit), result, null, by_site)
    return corrected_forecasts(forecasts)


def _by_fine_tune(scores: Mapping[str, Scores] | AlignmentScores) -> dict[str, Scores]:
    if isinstance(scores, AlignmentScores):
        return {name: scores.select(models=[name]) for name in scores.models}
    if not scores:
        raise InputError("scores is empty; pass the scores of at least one fine-tune")
    return dict(scores)


@dataclass(frozen=True)
class _ScoreScale:
    """On which scale scores are forecast: as they are, or as logits."""

    metric: str
    scale: Scale
    clamp: float

    @property
    def description(self) -> str:
        if self.scale == "score":
            return "score"
        return f"logit, clamped {self.clamp:g} from the ends"

    def values(self, scores: Scores, ids: Sequence[str], questions: Sequence[str]) -> Array:
        """One value per row, on the scale that is forecast."""
        return self._on_scale(scores, scores_of(scores, ids, questions, self.metric, None))

    def targets(self, scores: Scores, ids: Sequence[str], questions: Sequence[str]) -> Array:
        """The same, of scores that are to be forecast, which may not be constant."""
        raw = scores_of(scores, ids, questions, self.metric, None)
        if np.ptp(raw) == 0:
            raise InputError(
                f"the {self.metric} score is {raw[0]:g} for every row; there is nothing to predict"
            )
        values = self._on_scale(scores, raw)
        if np.ptp(values) == 0:
            raise InputError(
                f"clamp={self.clamp:g} makes the {self.metric} score the same for every row;"
                " pass a smaller one"
            )
        return values

    def _on_scale(self, scores: Scores, raw: Array) -> Array:
        limits = (0.0, 100.0)
        if isinstance(scores, AlignmentScores):
            limits = scores.scales[self.metric]
        return on_scale(raw, self.scale, limits, self.clamp)


@dataclass(frozen=True)
class _Rows:
    """The rows that are forecast, and which of them are held out together."""

    acts: Activations
    questions: list[str]
    texts: list[str] | None
    labels: list[str]
    held_out: str
    weights: Array | None


def _forecast_rows(
    acts: Activations, questions: list[str], design: Design, texts: Mapping[str, str] | None
) -> _Rows:
    """Rows with their texts, weights and labels; rows that are the same share a label."""
    labels, held_out = labels_of(acts, design.groups)
    row_texts = texts_of(texts, acts.ids, questions)
    cells = [(site, position) for site in acts.sites for position in acts.pooled_positions]
    labels = joined_duplicates(acts, labels, row_texts, design.duplicates, cells)
    weights = weights_of(design.weights, acts.ids, questions)
    return _Rows(acts, questions, row_texts, labels, held_out, weights)


def _candidates(
    acts: Activations, features: str | Sequence[str] | Sequence[Features] | None
) -> list[Features]:
    """The feature sets to choose among."""
    if features is None:
        return [*activation_cells(acts)]
    if isinstance(features, str):
        features = [features]
    sites: list[str] = []
    sets: list[Features] = []
    for feature in features:
        if isinstance(feature, str):
            sites.append(feature)
        else:
            sets.append(feature)
    if not sites and not sets:
        raise InputError("features is empty; pass names of sites, or feature sets")
    if sites and sets:
        raise InputError(
            f"features has the site {sites[0]!r} beside the set {sets[0].name!r};"
            " pass names of sites, or feature sets"
        )
    if sites:
        sets = [*activation_cells(acts, sites)]
    return sets


def _nested_folds(labels: Sequence[str], design: Design) -> NestedFolds:
    distinct = len(set(labels))
    if distinct < 3:
        raise InputError(
            f"groups has {distinct} labels; nested selection needs at least 3,"
            " so that inner folds can hold one out too; pass finer groups"
        )
    count = design.folds
    if count != "all":
        count = min(count, distinct)
    outer = outer_folds(labels, count, design.repeats, design.seed)
    return NestedFolds(labels, outer, design.inner_folds, design.seed)


@dataclass(frozen=True)
class _Selection:
    """Nested selection on fixed folds, the same for the forecast and for every baseline.

    Args:
        keep: targets whose predictions are kept by candidate.
    """

    folds: NestedFolds
    estimator: Estimator
    is_ridge: bool
    weights: Array | None
    keep: int

    def predict(self, candidates: Sequence[Features], targets: Array) -> NestedPredictions:
        if not self.is_ridge:
            return generic_nested(
                candidates,
                targets,
                self.folds,
                estimator=self.estimator,
                weights=self.weights,
                keep=self.keep,
            )
        alphas = [setting["alpha"] for setting in self.estimator.settings]
        return nested_ridge(
            candidates, targets, self.folds, alphas=alphas, weights=self.weights, keep=self.keep
        )

    def predict_baseline(self, candidates: Sequence[Features], targets: Array) -> Array:
        """(repeat, row, target) by ridge with its own penalties, whatever the estimator is."""
        predictions = nested_ridge(
            candidates, targets, self.folds, weights=self.weights, keep=self.keep
        )
        return predictions.nested


@dataclass(frozen=True)
class _Targets:
    """(row, column) scores: the measured ones of every fine-tune, then the shuffles of each."""

    values: Array
    n_measured: int
    n_shuffles: int

    def columns(self, number: int) -> NDArray[np.int64]:
        """The column of one fine-tune, then those of its shuffles."""
        shuffles = self.n_measured + number * self.n_shuffles + np.arange(self.n_shuffles)
        return np.r_[number, shuffles].astype(np.int64)


def _number_of_shuffles(design: Design, is_ridge: bool, forecasts: int) -> int:
    """Those of the design; else enough for this many p-values, for ridge alone: each shuffle costs
    another estimator a whole fit.
    """
    if design.permutations is not None:
        return design.permutations
    return draws_for(forecasts) if is_ridge else 0


def _with_shuffles(
    measured: Array, rows: _Rows, shuffle: Shuffle, count: int, folds: NestedFolds
) -> _Targets:
    """Measured scores, and `count` shuffles of each column.

    Groups that a shuffle keeps apart are what is held out, or the rows' own groups where questions
    are.
    """
    groups = rows.acts.groups if rows.held_out == "question" else rows.labels
    bases = bases_of(rows.acts)
    shuffles = []
    for column in measured.T:
        shuffles += shuffled_targets(column, bases, groups, shuffle, count, folds.seed)
    return _Targets(np.column_stack([measured, *shuffles]), measured.shape[1], count)


def _null(r2: Array, estimator: str, seed: int) -> NullDistribution | None:
    """R² of the shuffles beside the measured one, which comes first; None without shuffles."""
    if len(r2) == 1:
        return None
    method = f"nested {estimator} on shuffled scores"
    return NullDistribution(r2[1:], method, seed, observed=float(r2[0]))


def _require_other_weights(acts: Activations, other: Activations, argument: str) -> None:
    """Refuse a baseline that was captured of the very model that is held against it.

    Raises:
        InputError: both captures name the same weights.
    """
    hashes = [rows.provenance.get("model", {}).get("weights_sha256") for rows in (acts, other)]
    if hashes[0] is not None and hashes[0] == hashes[1]:
        raise InputError(
            f"{argument} was captured of the same weights as acts ({str(hashes[0])[:12]}…);"
            " pass a capture of another model"
        )


def _baseline_predictions(
    selection: _Selection, measured: Array, rows: _Rows, baselines: Baselines, scale: _ScoreScale
) -> dict[str, Array]:
    """Baseline → (repeat, row, fine-tune) predictions on the same folds."""
    acts, questions = rows.acts, rows.questions
    parent = None
    if baselines.parent_scores is not None:
        parent = scale.values(baselines.parent_scores, acts.ids, questions)
    numbers = {}
    for name, values in baselines.numbers.items():
        numbers[name] = scores_of(values, acts.ids, questions, name, None)
    seed = selection.folds.seed
    predictions = {}
    forms: list[str] = [question_variant(question) for question in questions]
    if baselines.forms is not None:
        forms = labels_by_id(baselines.forms, acts.ids, questions, "forms")
    for feature in baseline_features(
        acts, rows.texts, parent, baselines.embedding, seed=seed, forms=forms, numbers=numbers
    ):
        predictions[feature.name] = selection.predict_baseline([feature], measured)
    others = []
    if baselines.other_parent is not None:
        others.append((OTHER_PARENT, "other_parent", baselines.other_parent))
    others += [(name, "unrelated", other) for name, other in baselines.strangers.items()]
    for name, argument, other in others:
        _require_other_weights(acts, other, argument)
        rivals = activation_cells(other.select(acts.ids))
        assert_different(activation_cells(acts), rivals, "acts", argument)
        predictions[name] = selection.predict_baseline(rivals, measured)
    return predictions
