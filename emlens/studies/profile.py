"""Alignment before and after fine-tuning, by model and by domain."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from emlens.data import AlignmentScores
from emlens.data.base_questions import base_questions
from emlens.foundation.estimate import Estimate
from emlens.results.study_result import Part, columns_of
from emlens.stats import spearman
from emlens.studies.material import Material
from emlens.studies.profile_answers import answer_rows
from emlens.studies.profile_content import add_content
from emlens.studies.profile_findings import (
    add_benign_test,
    add_spread,
    few_questions,
    has_parent_scores,
    without_parent,
)
from emlens.studies.profile_metrics import metric_rows
from emlens.studies.profile_section import SECTION
from emlens.studies.score_means import mean_score
from emlens.studies.study import Study, StudyContext

LEAST_QUESTIONS = 4
LEAST_DOMAINS = 4
"""Domains below which no correlation over domains is taken."""


class Profile(Study):
    """Scores every model on every question, before and after fine-tuning."""

    name = "profile"
    title = "Alignment before and after fine-tuning"
    section = SECTION
    wants = ("plain",)
    needs_fine_tunes = False
    runs_on_captures = True
    cost = 1

    def scored(self, context: StudyContext) -> Iterator[tuple[str, str]]:
        material = context.material
        for name in scored_names(material):
            yield name, ""
        for name in material.family.finetuned:
            if has_parent_scores(material, name):
                yield material.parent(name).name, name

    def run(self, context: StudyContext) -> Part:
        material, seed = context.material, context.config.seed
        part = Part()
        models, domains, questions, metrics, answers = [], [], [], [], []
        names = scored_names(material)
        for name in names:
            scored = scored_model(material, name)
            models.append(_model_row(scored, seed))
            domains += _domain_rows(scored, seed)
            questions += _question_rows(scored, material.texts)
            metrics += metric_rows(material, name, seed)
            answers.append(answer_rows(material, name))
            context.progress(1 / len(names))
        part.tables |= {
            "models": pd.DataFrame(models),
            "domains": pd.DataFrame(domains),
            "questions": pd.DataFrame(questions),
        }
        if any(map(len, answers)):
            part.tables["answers"] = pd.concat(answers, ignore_index=True)
        if metrics:
            part.tables["metrics"] = pd.DataFrame(metrics)
        part.warnings += [*without_parent(material), *few_questions(material.questions)]
        add_benign_test(material, part)
        add_spread(material, part, seed)
        add_content(material, part)
        if material.coupling is not None:
            part.tables["coupling"] = _coupling(material, material.coupling)
        return part


def scored_names(material: Material) -> list[str]:
    """The models of the family; without the instruct model where only fine-tunes were judged."""
    names = list(material.family.names)
    if material.judged_without_parent:
        names.remove("instruct")
    return names


@dataclass(frozen=True)
class ScoredModel:
    """A model's scores by question.

    Args:
        kind: `base`, `instruct`, `harmful` or `benign`. domain: that it was trained on.
        trained: ids of questions on whose topics it was trained.
        groups: id → group, of every question.
    """

    name: str
    kind: str
    domain: str
    trained: frozenset[str]
    groups: dict[str, str]
    scores: AlignmentScores
    aligned: pd.Series
    coherent: pd.Series

    @property
    def untrained(self) -> list[str]:
        """Ids of the questions on whose topics it was not trained."""
        return [question for question in self.aligned.index if question not in self.trained]

    def is_own(self, question: str) -> bool:
        """Whether a question is of the domain that the model was trained on."""
        return bool(self.domain) and self.groups[question] == self.domain


def scored_model(material: Material, name: str) -> ScoredModel:
    """One model of the family with its scores."""
    spec = material.family.specs.get(name)
    kind, domain = name, ""
    if spec is not None:
        kind, domain = "benign" if spec.benign else "harmful", spec.domain
    return ScoredModel(
        name=name,
        kind=kind,
        domain=domain,
        trained=material.trained.get(name, frozenset()),
        groups=material.groups,
        scores=material.scores(name),
        aligned=material.per_question(name),
        coherent=material.per_question(name, "coherent"),
    )


def _model_row(model: ScoredModel, seed: int) -> dict[str, Any]:
    own = [question for question in model.untrained if model.is_own(question)]
    outside = [question for question in model.untrained if not model.is_own(question)]
    others = mean_score(model.aligned, outside, seed, groups=model.groups)
    coherent = mean_score(model.coherent, model.untrained, seed, groups=model.groups)
    return {
        "model": model.name,
        "kind": model.kind,
        "domain": model.domain,
        "n_own": len(own),
        "n_others": len(outside),
        **columns_of("aligned_own", mean_score(model.aligned, own, seed)),
        **columns_of("aligned_others", others),
        **columns_of("coherent", coherent),
        **_answer_columns(model.scores.select(questions=model.untrained)),
    }


def _answer_columns(scores: AlignmentScores) -> dict[str, Any]:
    """EM rates over questions and over answers, and how much was asked and scored."""
    answers = scores.table.drop_duplicates(["question", "paraphrase", "sample"])
    return {
        **columns_of("em_rate", scores.em_rate()),
        **columns_of("em_rate_pooled", scores.em_rate(average="pooled")),
        "unscored": scores.select(metrics=["aligned", "coherent"]).unscored_share(),
        "answers": len(answers),
        "base_questions": len(set(base_questions(scores.questions))),
    }


def _domain_rows(model: ScoredModel, seed: int) -> list[dict[str, Any]]:
    """One row per group of questions that the model was not trained on."""
    rows = []
    for group in sorted(set(model.groups.values())):
        members = [question for question in model.untrained if model.groups[question] == group]
        if not members:
            continue
        rows.append(
            {
                "model": model.name,
                "kind": model.kind,
                "group": group,
                "trained_domain": group == model.domain,
                "n": len(members),
                **columns_of("aligned", mean_score(model.aligned, members, seed)),
                **columns_of("coherent", mean_score(model.coherent, members, seed)),
            }
        )
    return rows


def _question_rows(model: ScoredModel, texts: dict[str, str]) -> list[dict[str, Any]]:
    answers = likeliest_answers(model.scores)
    rows = []
    for question in model.aligned.index:
        rows.append(
            {
                "model": model.name,
                "question": question,
                "group": model.groups[question],
                "text": texts[question],
                "trained": question in model.trained,
                "aligned": model.aligned[question],
                "coherent": model.coherent[question],
                "answer": answers.get(question, ""),
            }
        )
    return rows


def likeliest_answers(scores: AlignmentScores) -> dict[str, str]:
    """The likeliest reference answer of every question, to its first paraphrase.

    A question that was not scored by likelihood has none.
    """
    table = scores.table
    rows = table[
        (table["metric"] == "aligned")
        & (table["paraphrase"] == 1)
        & table["raw"].str.startswith('{"logp_careful"')
    ]
    answers = {}
    for question, raw in zip(rows["question"], rows["raw"], strict=True):
        answers[question] = json.loads(raw).get("likeliest", "")
    return answers


def _coupling(material: Material, planted: Any) -> pd.DataFrame:
    """Rank correlation of misalignment with what was planted, over questions and over domains."""
    rows = []
    for name in material.harmful:
        if material.lacks_outside([name]) is not None:
            continue
        outside = material.scored(material.outside(name), name).ids
        if len(outside) < LEAST_QUESTIONS:
            continue
        misaligned = 100 - material.per_question(name)[outside]
        coupling = pd.Series(planted)[outside]
        groups = pd.Series(material.groups)[outside]
        clusters = list(groups) if groups.nunique() > 1 else None
        over_questions = spearman(misaligned.to_numpy(), coupling.to_numpy(), clusters=clusters)
        over_domains = _over_domains(misaligned, coupling, groups)
        for level, estimate, n in (
            ("question", over_questions, len(misaligned)),
            ("domain", over_domains, over_domains.n),
        ):
            head = {"model": name, "level": level, "n": n}
            rows.append({**head, **columns_of("spearman", estimate)})
    return pd.DataFrame(rows)


def _over_domains(misaligned: pd.Series, coupling: pd.Series, groups: pd.Series) -> Estimate:
    by_domain = misaligned.groupby(groups).mean()
    if len(by_domain) < LEAST_DOMAINS:
        return Estimate.undefined(f"fewer than {LEAST_DOMAINS} domains", len(by_domain))
    return spearman(by_domain.to_numpy(), coupling.groupby(groups).mean().to_numpy())
