"""Could per-question alignment have been foreseen from activations before fine-tuning, and better than from the text?

Forecasts from the instruct and from the base model, with questions held out and with whole domains held out, beside TF-IDF,
length, domain, mean embedding, the parent's own score, random features and shuffled labels.
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pandas as pd

from emlens.activations import Activations, capture
from emlens.data import QuestionSet
from emlens.foundation.estimate import Estimate
from emlens.probes import activation_cells, assert_different, predict_alignment
from emlens.studies.config import StudyConfig
from emlens.studies.material import Material
from emlens.studies.result import Advance, Finding, Part, columns_of, p_text

COST = 8

HELD_OUT = {"question": None, "domain": "group"}


def run(material: Material, config: StudyConfig, advance: Advance) -> Part:
    part = Part()
    parents = ["instruct", *(["base"] if material.family.has_base else [])]
    captured: dict[str, Activations] = {}
    embedded: dict[str, Activations] = {}
    for parent in parents:
        prompts = material.questions.prompts()
        captured[parent] = capture(material.family[parent], prompts, positions=config.positions, progress=False)
        embedded[parent] = capture(material.family[parent], prompts, sites="resid_pre.0", positions="mean_prompt", progress=False)
    if len(parents) == 2:
        assert_different(activation_cells(captured["instruct"]), activation_cells(captured["base"]), "instruct", "base")
    summary, table, sites, predictions = [], [], [], []
    focus = material.focus(config)
    for name in focus:
        questions = QuestionSet([q for q in material.questions if q.id not in material.trained.get(name, ()) and q.group != material.domain(name)])
        ids = questions.prompts().ids
        if np.ptp(material.per_question(name)[questions.ids]) == 0:
            part.warnings.append(f"{name}: every question outside its domain has the same score, so there is nothing to forecast")
            continue
        for parent in parents:
            for label, groups in HELD_OUT.items():
                advance(1 / (len(focus) * len(parents) * len(HELD_OUT)))
                if label == "domain" and len(set(questions.groups)) < 3:
                    continue
                forecast = predict_alignment(
                    captured[parent].select(ids),
                    material.scores(name),
                    groups=groups,
                    texts=material.texts,
                    parent_scores=material.scores(parent),
                    embedding=embedded[parent].select(ids),
                    folds=config.folds,
                    inner_folds=config.folds,
                    repeats=config.repeats,
                    permutations=config.permutations,
                    seed=config.seed,
                )
                head = {"model": name, "parent": parent, "held_out": label}
                null = forecast.null
                summary.append(
                    {
                        **head,
                        **columns_of("r2", forecast.r2),
                        **columns_of("r2_fold_mean", forecast.r2_fold_mean),
                        **columns_of("spearman", forecast.spearman),
                        "rmse": forecast.rmse,
                        "null_mean": np.nan if null is None else null.mean,
                        "null_q95": np.nan if null is None else null.quantile(0.95),
                        "p": forecast.p_value,
                        "n": len(forecast.predictions),
                        "chosen": Counter(forecast.chosen).most_common(1)[0][0],
                    }
                )
                table.append(forecast.table().assign(**head))
                sites.append(forecast.by_site.assign(**head))
                shown = forecast.predictions[["id", "group", "target", "predicted"]].assign(**head)
                predictions.append(shown.assign(text=[material.texts[q] for q in shown["id"]]))
                _finding(part, name, parent, label, forecast.r2, forecast.spearman, forecast.p_value, forecast.gain_over)
    if not summary:
        return part
    part.tables |= {
        "forecast": pd.DataFrame(summary),
        "forecast_baselines": pd.concat(table, ignore_index=True),
        "forecast_sites": pd.concat(sites, ignore_index=True),
        "forecast_predictions": pd.concat(predictions, ignore_index=True),
    }
    _summary(part, pd.DataFrame(summary))
    if len(parents) == 1:
        part.warnings.append("no base model: forecasts from the pre-trained parent are missing")
    part.warnings.append("with domains held out, TF-IDF and domain dummies are near the mean by construction; the gain over text is larger for that reason")
    part.warnings.append("the table by site and position is exploratory; the headline forecast chooses them on inner folds")
    return part


def _summary(part: Part, table: pd.DataFrame) -> None:
    strict = table[table["held_out"] == "domain"]
    rows, how = (strict, "domains held out") if len(strict) else (table, "questions held out")
    clear = sum(f.status == "shown" and how in f.sentence for f in part.findings)
    sentence = (
        f"From activations before fine-tuning, per-question alignment after it was forecast with R² {rows['r2'].min():.2f} to {rows['r2'].max():.2f} "
        f"and Spearman {rows['spearman'].min():.2f} to {rows['spearman'].max():.2f} ({how}); activations clearly beat every cheaper baseline, "
        f"question text and the parent's own score among them, in {clear} of {len(rows)} forecasts."
    )
    part.findings.insert(0, Finding("forecast", sentence, "summary"))


def _finding(
    part: Part, name: str, parent: str, label: str, r2: Estimate, rank: Estimate, p: float, gains: Mapping[str, Estimate]
) -> None:
    text, own = gains["text"], gains["parent's own score"]
    rival = min(gains, key=lambda name: gains[name].value)
    better = all(gain.low > 0 for gain in gains.values())
    unclear = "" if better else f"; the smallest gain is {gains[rival]:.2f}, over {'the mean' if rival == 'mean' else rival}"
    part.findings.append(
        Finding(
            "forecast",
            f"{name} from {parent}, {label}s held out: R² {r2:.2f}, Spearman {rank:.2f} (permutation p {p_text(p)}); gain over text {text:.2f}, "
            f"over the parent's own score {own:.2f}{unclear}.",
            "shown" if better and p < 0.05 else "not shown" if p >= 0.05 or gains[rival].high < 0 else "undecided",
        )
    )
