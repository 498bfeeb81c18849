"""Could per-question alignment have been foreseen from activations before fine-tuning, and better
than from the text?

Score statistics before and after; then forecasts from the instruct and from the base model, with
questions held out and with whole domains held out, beside TF-IDF, length, domain, mean embedding,
the parent's own score and P(harmful), the other parent, random features and shuffled labels; and
the noise ceiling where a recipe was run with several seeds.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from emlens.activations import Activations, capture
from emlens.data import QuestionSet
from emlens.foundation.estimate import Estimate
from emlens.models import HookedModel
from emlens.models.loading import with_template
from emlens.probes import (
    Baselines,
    Design,
    Forecast,
    activation_cells,
    assert_different,
    cross_validate_forecast,
)
from emlens.results.study_result import Advance, Finding, Part, columns_of, p_text
from emlens.studies import prior_scores
from emlens.studies.config import Options as _Options, StudyConfig
from emlens.studies.forecast_section import SECTION
from emlens.studies.material import Material
from emlens.studies.study import Study, StudyContext

HELD_OUT = {"question": None, "domain": "group"}
RIVALS = (
    "mean",
    "text",
    "length",
    "domain",
    "mean embedding",
    "parent's own score",
    "parent's P(harmful)",
    "random features",
)
"""What activations must beat to be worth their cost; the other parent is shown, and is no cheaper.
"""


class Options(_Options):
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
    """Forecast from both parents on the plain rendering too, which neither was tuned on."""


@dataclass
class _Tables:
    """Rows gathered over fine-tunes and parents."""

    summary: list[dict[str, Any]] = field(default_factory=list)
    baselines: list[pd.DataFrame] = field(default_factory=list)
    sites: list[pd.DataFrame] = field(default_factory=list)
    predictions: list[pd.DataFrame] = field(default_factory=list)
    statistics: list[dict[str, Any]] = field(default_factory=list)
    changes: list[dict[str, Any]] = field(default_factory=list)
    relations: list[dict[str, Any]] = field(default_factory=list)
    ceilings: list[dict[str, Any]] = field(default_factory=list)


def run(material: Material, config: StudyConfig, advance: Advance) -> Part:
    settings = config.options_of("priors", Options)
    part, tables = Part(), _Tables()
    parents = ["instruct", *(["base"] if material.family.has_base else [])]
    captured, embedded = _captured(material, parents, settings, config)
    focus = material.focus(config)
    for name in focus:
        ids = material.outside(name).ids
        groups = [material.groups[q] for q in ids]
        _score_rows(material, name, parents, ids, groups, tables, config.seed)
        if np.ptp(material.per_question(name)[ids]) == 0:
            part.warnings.append(
                f"{name}: every question outside its domain has the same score,"
                " so there is nothing to forecast"
            )
            continue
        ceiling, runs = prior_scores.ceiling(material, name, ids, config.seed)
        tables.ceilings.append(
            {
                "model": name,
                **columns_of("ceiling", ceiling),
                "seeds": len(runs),
                "n": len(ids),
                "how": ceiling.method,
            }
        )
        rows = QuestionSet([q for q in material.questions if q.id in set(ids)]).prompts().ids
        for view in captured:
            for label, held in HELD_OUT.items():
                advance(1 / (len(focus) * len(captured) * len(HELD_OUT)))
                if label == "domain" and len(set(groups)) < 3:
                    continue
                forecast = _forecast(
                    material, name, view, held, rows, captured, embedded, settings, config, ceiling
                )
                _gather(
                    material,
                    tables,
                    part,
                    forecast,
                    {"model": name, "parent": view, "held_out": label},
                )
    _finish(part, tables, parents)
    return part


def _captured(
    material: Material, parents: list[str], settings: Options, config: StudyConfig
) -> tuple[dict[str, Activations], dict[str, Activations]]:
    """Activations and mean embeddings by view: a parent as it is, and on the plain rendering where
    asked.
    """
    views: dict[str, HookedModel] = {parent: material.family[parent] for parent in parents}
    if settings.plain:
        views |= {
            f"{parent}, plain": with_template(material.family[parent], "plain")
            for parent in parents
        }
    prompts = material.questions.prompts()
    captured = {
        name: capture(model, prompts, positions=config.positions, progress=False)
        for name, model in views.items()
    }
    embedded = {
        name: capture(model, prompts, sites="resid_pre.0", positions="mean_prompt", progress=False)
        for name, model in views.items()
    }
    names = list(views)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            assert_different(
                activation_cells(captured[one]), activation_cells(captured[other]), one, other
            )
    return captured, embedded


def _score_rows(
    material: Material,
    name: str,
    parents: list[str],
    ids: list[str],
    groups: list[str],
    tables: _Tables,
    seed: int,
) -> None:
    for model in (*parents, name):
        role = "after" if model == name else "before"
        tables.statistics.append(
            prior_scores.statistics(
                model, role, material.per_question(model)[ids], groups, seed, name
            )
        )
    tables.changes += prior_scores.changes(material, name, parents, ids, seed)
    tables.relations += prior_scores.relations(material, name, parents, ids)


def _forecast(
    material: Material,
    name: str,
    view: str,
    held: str | None,
    rows: list[str],
    captured: Mapping[str, Activations],
    embedded: Mapping[str, Activations],
    settings: Options,
    config: StudyConfig,
    ceiling: Estimate,
) -> Forecast:
    parent, _, how = view.partition(", ")
    other = {"instruct": "base", "base": "instruct"}[parent] + (f", {how}" if how else "")
    harmful = material.per_question(parent, "harmful")
    baselines = Baselines(
        texts=material.texts,
        parent_scores=material.scores(parent),
        embedding=embedded[view].select(rows),
        other_parent=captured[other].select(rows) if other in captured else None,
        numbers={"parent's P(harmful)": {str(q): float(p) for q, p in harmful.items()}},
    )
    design = Design(
        groups=held,
        folds=config.folds,
        inner_folds=config.folds,
        repeats=config.repeats,
        clamp=settings.clamp,
        permutations=config.permutations if settings.estimator in ("ridge", "ridge1") else 0,
        duplicates="group",
        seed=config.seed,
    )
    forecast = cross_validate_forecast(
        captured[view].select(rows),
        material.scores(name),
        estimator=settings.estimator,
        target=settings.target,
        design=design,
        baselines=baselines,
    )
    return forecast.with_ceiling(ceiling)


def _gather(
    material: Material, tables: _Tables, part: Part, forecast: Forecast, head: dict[str, str]
) -> None:
    null, ceiling = forecast.null, forecast.ceiling or Estimate.undefined("none was given")
    tables.summary.append(
        {
            **head,
            **columns_of("r2", forecast.r2),
            **columns_of("r2_fold_mean", forecast.r2_fold_mean),
            **columns_of("spearman", forecast.spearman),
            "rmse": forecast.rmse,
            **columns_of("slope", forecast.calibration.slope),
            **columns_of("ceiling", ceiling),
            "null_mean": np.nan if null is None else null.mean,
            "null_q95": np.nan if null is None else null.quantile(0.95),
            "p": forecast.p_value,
            "n": len(forecast.predictions),
            "chosen": Counter(forecast.chosen).most_common(1)[0][0],
            "estimator": forecast.estimator,
            "target": forecast.target,
            "shuffled": forecast.shuffle,
        }
    )
    tables.baselines.append(forecast.table().assign(**head))
    tables.sites.append(forecast.by_site.assign(**head))
    shown = forecast.predictions[["id", "group", "target", "predicted"]].assign(**head)
    tables.predictions.append(shown.assign(text=[material.texts[q] for q in shown["id"]]))
    part.findings.append(_finding(forecast, head["model"], head["parent"], head["held_out"]))


def _finish(part: Part, tables: _Tables, parents: list[str]) -> None:
    part.tables |= {
        "score_statistics": pd.DataFrame(tables.statistics),
        "score_changes": prior_scores.corrected(tables.changes),
        "score_relation": pd.DataFrame(tables.relations),
    }
    part.warnings.append(
        "tests of scores before and after take questions as units;"
        " questions of a domain are alike, so read the intervals over domains"
    )
    if not tables.summary:
        return
    summary = pd.DataFrame(tables.summary)
    part.tables |= {
        "forecast": summary,
        "forecast_baselines": pd.concat(tables.baselines, ignore_index=True),
        "forecast_sites": pd.concat(tables.sites, ignore_index=True),
        "forecast_predictions": pd.concat(tables.predictions, ignore_index=True),
        "forecast_ceilings": pd.DataFrame(tables.ceilings),
    }
    _summary(part, summary)
    if len(parents) == 1:
        part.warnings.append("no base model: forecasts from the pre-trained parent are missing")
    if summary["ceiling"].isna().all():
        part.warnings.append(
            "no recipe was run with two seeds, so there is no noise ceiling to hold the forecasts"
            " against"
        )
    part.warnings.append(
        "with domains held out, TF-IDF and domain dummies are near the mean by construction;"
        " the gain over text is larger for that reason"
    )
    part.warnings.append(
        "the table by site and position is exploratory; the headline forecast chooses them on inner"
        " folds"
    )


def _summary(part: Part, table: pd.DataFrame) -> None:
    strict = table[table["held_out"] == "domain"]
    rows, how = (strict, "domains held out") if len(strict) else (table, "questions held out")
    clear = sum(f.status == "shown" and how in f.sentence for f in part.findings)
    sentence = (
        "From activations before fine-tuning, per-question alignment after it was forecast with R²"
        f" {rows['r2'].min():.2f} to {rows['r2'].max():.2f} and Spearman"
        f" {rows['spearman'].min():.2f} to {rows['spearman'].max():.2f} ({how});"
        " activations clearly beat every cheaper baseline,"
        " question text and the parent's own score among them,"
        f" in {clear} of {len(rows)} forecasts."
    )
    part.findings.insert(0, Finding("priors", sentence, "summary"))


def _finding(forecast: Forecast, name: str, parent: str, label: str) -> Finding:
    gains = {rival: gain for rival, gain in forecast.gain_over.items() if rival in RIVALS}
    text, own = gains["text"], gains["parent's own score"]
    rival = min(gains, key=lambda name: gains[name].value)
    better = all(gain.low > 0 for gain in gains.values())
    unclear = (
        ""
        if better
        else (
            f"; the smallest gain is {gains[rival]:.2f},"
            f" over {'the mean' if rival == 'mean' else rival}"
        )
    )
    p, ceiling = forecast.p_value, forecast.ceiling
    tested = "not permuted" if np.isnan(p) else f"permutation p {p_text(p)}"
    possible = (
        f", of {ceiling:.2f} that the seed's noise leaves possible"
        if ceiling is not None and ceiling.defined
        else ""
    )
    weak = p >= 0.05 or gains[rival].high < 0
    return Finding(
        "priors",
        f"{name} from {parent}, {label}s held out: R² {forecast.r2:.2f}{possible},"
        f" Spearman {forecast.spearman:.2f} ({tested});"
        f" gain over text {text:.2f}, over the parent's own score {own:.2f}{unclear}.",
        "shown" if better and p < 0.05 else "not shown" if weak else "undecided",
    )


class Priors(Study):
    """Could it have been foreseen?"""

    name = "priors"
    title = "Could it have been foreseen?"
    options = Options
    section = SECTION
    cost = 8

    def run(self, context: StudyContext) -> Part:
        return run(context.material, context.config, context.progress)
