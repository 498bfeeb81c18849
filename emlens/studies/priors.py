"""Could per-question alignment have been foreseen from activations before fine-tuning, and better
than from the text?

Score statistics before and after; then forecasts from the instruct and from the base model, with
questions held out and with whole domains held out, beside everything that could have known:
TF-IDF of the rendered prompt, length, form, domain, mean embedding, the parent's own score and
P(harmful), a model of another family, random features and shuffled labels; the other parent, and
the noise ceiling where a recipe was run with several seeds. Without a model of another family, or
another baseline, no forecast is shown to come from the parents' prior.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from emlens.activations import Activations
from emlens.data import QuestionSet
from emlens.data.system_messages import questions_with_system
from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.probes import Forecast
from emlens.probes.record import corrected_forecasts
from emlens.probes.shuffles import draws_for
from emlens.results.study_result import Part, columns_of
from emlens.studies import prior_scores
from emlens.studies.config import Options as PartOptions
from emlens.studies.forecast_section import SECTION
from emlens.studies.null_columns import null_spread
from emlens.studies.parent_views import (
    ParentView,
    Regression,
    design_of,
    forecast_from,
    parent_views,
    parents_of,
    view_readings,
)
from emlens.studies.prior_findings import add_summary, forecast_finding, listed
from emlens.studies.streams import Reading, not_captured
from emlens.studies.study import Study, StudyContext
from emlens.studies.unrelated_model import read_unrelated, why_unreadable

HELD_OUT = {"question": None, "domain": "group"}
"""What is held out → the groups of the design."""


class Options(PartOptions):
    """What only this part reads."""

    estimator: str = "ridge"
    """`ridge`, `ridge1`, `lasso`, `elastic_net`, `pcr`, `ols`, `forest` or `tree`; only ridge is
    permuted.
    """
    target: Literal["score", "logit"] = "score"
    """Forecast scores, or their logits."""
    clamp: float = Field(1.0, gt=0, lt=50)
    """How near to 0 and 100 a score may come before its logit is taken."""
    plain: bool = False
    """Forecast from both parents on the plain rendering too, which neither was trained on."""


@dataclass
class _Rows:
    """Rows of the part's tables, gathered over fine-tunes and parents."""

    statistics: list[dict[str, Any]] = field(default_factory=list)
    changes: list[dict[str, Any]] = field(default_factory=list)
    relations: list[dict[str, Any]] = field(default_factory=list)
    forecasts: list[dict[str, Any]] = field(default_factory=list)
    baselines: list[pd.DataFrame] = field(default_factory=list)
    sites: list[pd.DataFrame] = field(default_factory=list)
    predictions: list[pd.DataFrame] = field(default_factory=list)
    ceilings: list[dict[str, Any]] = field(default_factory=list)

    def tables(self) -> dict[str, pd.DataFrame]:
        """By name; those of forecasts only where there is one."""
        tables = {
            "score_statistics": pd.DataFrame(self.statistics),
            "score_changes": prior_scores.corrected(self.changes),
            "score_relation": pd.DataFrame(self.relations),
        }
        if self.forecasts:
            tables |= {
                "forecast": pd.DataFrame(self.forecasts),
                "forecast_baselines": pd.concat(self.baselines, ignore_index=True),
                "forecast_sites": pd.concat(self.sites, ignore_index=True),
                "forecast_predictions": pd.concat(self.predictions, ignore_index=True),
                "forecast_ceilings": pd.DataFrame(self.ceilings),
            }
        return tables


class Priors(Study):
    """Could it have been foreseen?"""

    name = "priors"
    title = "Could it have been foreseen?"
    options = Options
    section = SECTION
    needs_outside = True
    wants = ("plain",)
    runs_on_captures = True
    needs_streams = False
    cost = 8

    def check(self, context: StudyContext) -> None:
        material = context.material
        if material.unrelated is None:
            return
        for name in material.focus(context.config):
            questions = questions_with_system(material.questions, material.system(name))
            reason = why_unreadable(material.unrelated, questions.prompts())
            if reason is not None:
                raise InputError(f"{context.config.place('unrelated')}unrelated: {reason}")

    def readings(self, context: StudyContext) -> Iterator[Reading]:
        material = context.material
        asked = {material.system(name): name for name in material.focus(context.config)}
        for name in asked.values():
            yield from view_readings(material, name)
            if context.options.plain:  # the same prompts, rendered plainly
                for reading in view_readings(material, name):
                    yield replace(reading, captured=False)

    def scored(self, context: StudyContext) -> Iterator[tuple[str, str]]:
        material = context.material
        for name in material.focus(context.config):
            for model in (*parents_of(material), name):
                yield model, name
            for run in prior_scores.one_run_per_seed(material, name):
                yield run, ""

    def run(self, context: StudyContext) -> Part:
        measurer = _PriorMeasurer(context)
        missing = self._missing_streams(context)
        for name in context.material.focus(context.config):
            measurer.compare_scores(name)
            if missing is None:
                measurer.forecast(name)
        measurer.add_forecasts()
        part = measurer.part
        if missing is not None:
            part.warnings.append(f"no forecast, scores are compared only: {missing}")
        part.tables |= measurer.rows.tables()
        part.warnings.append(
            "tests of scores before and after take base questions as units;"
            " questions of a domain are alike, so read the intervals over domains"
        )
        if "forecast" in part.tables:
            add_summary(part, part.tables["forecast"])
            part.warnings += measurer.cautions()
            part.warnings += _forecast_warnings(part.tables["forecast"], context.family.has_base)
        return part

    def _missing_streams(self, context: StudyContext) -> str | None:
        """What captures lack for the forecasts; None where nothing is missing."""
        if not context.material.captured:
            return None
        family = {model: context.family[model] for model in context.family}
        return not_captured(self.readings(context), family, context.config)


class _PriorMeasurer:
    """One run of the part over fine-tunes; the parents are captured once for each system message
    with which fine-tunes are asked.
    """

    def __init__(self, context: StudyContext) -> None:
        self.material, self.config = context.material, context.config
        self.progress = context.progress
        options: Options = context.options
        self.regression = Regression(options.estimator, options.target, options.clamp)
        self.plain = options.plain and not self.material.captured
        self.parents = parents_of(self.material)
        self._views: dict[str, dict[str, ParentView]] = {}
        self._unrelated: dict[str, Activations] = {}
        self._forecasts: dict[str, Forecast] = {}
        self._places: dict[str, tuple[str, str, str]] = {}
        self.part, self.rows = Part(), _Rows()
        if options.plain and not self.plain:
            self.part.warnings.append(
                "the plain rendering needs the parents, which captures do not hold: it is missing"
            )

    def compare_scores(self, name: str) -> None:
        """Statistics of a fine-tune's and its parents' scores, and tests between them."""
        material, seed = self.material, self.config.seed
        ids = self._scored(name).ids
        groups = [material.groups[q] for q in ids]
        for model in (*self.parents, name):
            role = "after" if model == name else "before"
            scores = material.per_question(model, asked_as=name)[ids]
            self.rows.statistics.append(
                prior_scores.statistics(model, role, scores, groups, seed, name)
            )
        self.rows.changes += prior_scores.changes(material, name, self.parents, ids, seed)
        self.rows.relations += prior_scores.relations(material, name, self.parents, ids)

    def forecast(self, name: str) -> None:
        """Forecasts of one fine-tune from every view, by both ways of holding out."""
        material = self.material
        outside = self._scored(name)
        if np.ptp(material.per_question(name)[outside.ids]) == 0:
            self.part.warnings.append(
                f"{name}: every question outside its domain has the same score,"
                " so there is nothing to forecast"
            )
            return
        ceiling = self._ceiling(name, outside.ids)
        prompts = outside.prompts().ids
        several_domains = len(set(outside.groups)) > 2
        views = self._views_as(name)
        share = 1 / self._planned
        for view, (held_out, groups) in product(views.values(), HELD_OUT.items()):
            self.progress(share)
            if held_out == "domain" and not several_domains:
                continue
            forecast = forecast_from(
                view,
                views.get(view.other_name),
                self._unrelated_as(name),
                material,
                name,
                prompts,
                self.regression,
                design_of(self.config, self.regression, groups, self._planned),
            )
            key = f"{name}, {view.name}, {held_out}"
            self._forecasts[key] = forecast.with_ceiling(ceiling)
            self._places[key] = (name, view.name, held_out)

    def add_forecasts(self) -> None:
        """Rows and findings of all forecasts, their p-values corrected together."""
        for key, forecast in corrected_forecasts(self._forecasts).items():
            self._add(forecast, *self._places[key])

    def cautions(self) -> list[str]:
        """What keeps a forecast from being shown whatever it reaches."""
        warnings = []
        missing = next(iter(self._forecasts.values())).missing
        if missing:
            warnings.append(
                f"no forecast was compared with {listed(missing)}: without these baselines none can"
                " be shown to come from the parents' prior (for a model of another family, name one"
                " under unrelated)"
            )
        forecasts = corrected_forecasts(self._forecasts).values()
        tests = max(forecast.tests for forecast in forecasts)
        if any(forecast.null and not forecast.can_be_shown for forecast in forecasts):
            warnings.append(
                f"permutations: {self.config.permutations} are too few for {tests} forecasts: no p"
                f" corrected over them can lie at .05; {draws_for(tests)} or more can"
            )
        if self.material.captured:
            warnings.append(
                "captures hold no rendered prompt: TF-IDF and length read system message and"
                " question without the template"
            )
        return warnings

    @property
    def _planned(self) -> int:
        """Forecasts to be made, at most."""
        views = len(self.parents) * (2 if self.plain else 1)
        return len(self.material.focus(self.config)) * views * len(HELD_OUT)

    def _unrelated_as(self, name: str) -> Activations | None:
        """What the unrelated model holds of the questions as fine-tune `name` is asked them."""
        model = self.material.unrelated
        if model is None:
            return None
        system = self.material.system(name)
        if system not in self._unrelated:
            questions = questions_with_system(self.material.questions, system)
            prompts = questions.prompts()
            self._unrelated[system] = read_unrelated(model, prompts, self.config.positions)
        return self._unrelated[system]

    def _views_as(self, name: str) -> dict[str, ParentView]:
        """The parents on the questions as fine-tune `name` is asked them."""
        system = self.material.system(name)
        if system not in self._views:
            self._views[system] = parent_views(self.material, self.config, self.plain, name)
        return self._views[system]

    def _scored(self, name: str) -> QuestionSet:
        """Questions outside a fine-tune's domain that it and its parents have a score of."""
        outside = self.material.outside(name)
        scored = self.material.scored(outside, name, *self.parents)
        if len(scored) < len(outside):
            warning = (
                f"{name}: {len(outside) - len(scored)} of {len(outside)} questions have no score of"
                " it or of a parent and are left out"
            )
            if warning not in self.part.warnings:
                self.part.warnings.append(warning)
        return scored

    def _ceiling(self, name: str, ids: list[str]) -> Estimate:
        ceiling, runs = prior_scores.ceiling(self.material, name, ids, self.config.seed)
        self.rows.ceilings.append(
            {
                "model": name,
                **columns_of("ceiling", ceiling),
                "seeds": len(runs),
                "n": len(ids),
                "method": ceiling.method,
            }
        )
        return ceiling

    def _add(self, forecast: Forecast, name: str, view: str, held_out: str) -> None:
        """Rows and finding of one forecast."""
        head = {"model": name, "parent": view, "held_out": held_out}
        predictions = forecast.predictions[["id", "group", "target", "predicted"]]
        texts = [self.material.texts[q] for q in predictions["id"]]
        self.rows.forecasts.append({**head, **_forecast_columns(forecast)})
        self.rows.baselines.append(forecast.table().assign(**head))
        self.rows.sites.append(forecast.by_site.assign(**head))
        self.rows.predictions.append(predictions.assign(**head, text=texts))
        self.part.findings.append(forecast_finding(forecast, name, view, held_out))


def _forecast_columns(forecast: Forecast) -> dict[str, Any]:
    """The row of the table `forecast`."""
    ceiling = forecast.ceiling or Estimate.undefined("none was given")
    return {
        **columns_of("r2", forecast.r2),
        **columns_of("r2_fold_mean", forecast.r2_fold_mean),
        **columns_of("spearman", forecast.spearman),
        "rmse": forecast.rmse,
        **columns_of("slope", forecast.calibration.slope),
        **columns_of("ceiling", ceiling),
        **null_spread(forecast.null),
        "p": forecast.p_value,
        "p_holm": forecast.p_holm,
        "n": len(forecast.predictions),
        "chosen_place": Counter(forecast.chosen).most_common(1)[0][0],
        "estimator": forecast.estimator,
        "target_is": forecast.target,
        "shuffled": forecast.shuffle,
    }


def _forecast_warnings(forecasts: pd.DataFrame, has_base: bool) -> list[str]:
    """What is missing beside the forecasts, and how to read them."""
    warnings = []
    if not has_base:
        warnings.append("no base model: forecasts from the pre-trained parent are missing")
    if forecasts["ceiling"].isna().all():
        warnings.append(
            "no recipe was run with two seeds, so there is no noise ceiling to hold the forecasts"
            " against"
        )
    warnings.append(
        "with domains held out, TF-IDF and domain dummies are near the mean by construction;"
        " the gain over text is larger for that reason"
    )
    warnings.append(
        "the table by site and position is exploratory; the headline forecast chooses them on inner"
        " folds"
    )
    return warnings
