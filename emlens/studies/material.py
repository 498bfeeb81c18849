"""What a study works on: a family, questions, training prompts, and which questions serve which
purpose.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from emlens.data import AlignmentScores, PromptSet, Question, QuestionSet
from emlens.data.base_questions import base_question
from emlens.data.system_messages import prompts_with_system, questions_with_system
from emlens.evaluation.trials import NamedScore
from emlens.foundation.errors import InputError, UnknownNameError
from emlens.foundation.files import one_line
from emlens.foundation.provenance import hash_json, hash_tensors, library_versions
from emlens.foundation.seeds import numpy_rng
from emlens.judging.judged_files import JudgedFiles
from emlens.judging.likelihood_scores import LikelihoodScores
from emlens.judging.score_source import ScoreSource
from emlens.models import Family, FineTune, HookedModel, load_model
from emlens.models.adapter_files import is_adapter
from emlens.models.attaching import attach
from emlens.studies.captured_models import AbsentModel
from emlens.studies.config import StudyConfig


@dataclass
class Material:
    """Everything the parts of a study share; scores are computed once per model and kept.

    Args:
        family_or_none, questions_or_none: None where only released files were given; parts read
            `family` and `questions`, which then raise.
        training: fine-tune → its training prompts, where they are known.
        trained: fine-tune → ids of the questions on whose topics it was trained.
        neutral: prompts on unrelated subjects.
        direction, coupling: what was planted, and how much of it each question carries; of an
            organism only.
        note: what the family is not evidence for.
        left_out: what is missing and what follows from it, in sentences.
        parents: base and instruct → where they were loaded from.
        studied: fine-tunes that an earlier part of the study trained; `focus` gives them, whatever
            the configuration names.
        controls: fine-tune → its benign control, where one was trained for it.
        released: folder of result files that others published. released_hash: of its content.
        source: where scores come from; None: the likelihood of reference answers.
        unrelated: a model of another family that reads the questions, for forecasts.
    """

    family_or_none: Family | None
    questions_or_none: QuestionSet | None
    training: Mapping[str, PromptSet]
    trained: Mapping[str, frozenset[str]]
    neutral: PromptSet | None
    direction: Float[Tensor, " d_model"] | None = None
    coupling: Mapping[str, float] | None = None
    note: str = ""
    left_out: list[str] = field(default_factory=list)
    parents: Mapping[str, str] = field(default_factory=dict)
    studied: tuple[str, ...] = ()
    controls: Mapping[str, str] = field(default_factory=dict)
    released: Path | None = None
    released_hash: str = ""
    source: ScoreSource | None = None
    unrelated: HookedModel | None = None
    _scores: dict[str, AlignmentScores] = field(default_factory=dict)
    _with_runs: dict[str, "Material"] = field(default_factory=dict)

    @property
    def has_models(self) -> bool:
        """Whether a family was given; else there are released files alone."""
        return self.family_or_none is not None

    @property
    def captured(self) -> bool:
        """Whether only captures of the models were given."""
        return self.has_models and isinstance(self.family.instruct, AbsentModel)

    @property
    def family(self) -> Family:
        """The models.

        Raises:
            InputError: only released files were given.
        """
        if self.family_or_none is None:
            raise InputError("no family was given, only released files; this part needs models")
        return self.family_or_none

    @property
    def questions(self) -> QuestionSet:
        """The questions that are asked.

        Raises:
            InputError: only released files were given.
        """
        if self.questions_or_none is None:
            raise InputError("no family was given, only released files; this part needs questions")
        return self.questions_or_none

    @cached_property
    def score_source(self) -> ScoreSource:
        """Where scores come from."""
        if self.source is not None:
            return self.source
        return LikelihoodScores(self.questions, self.family.instruct)

    def scores(self, name: str, asked_as: str = "") -> AlignmentScores:
        """Scores of one model on all questions, unedited.

        Args:
            asked_as: the fine-tune whose system message is used; "": the model's own. A parent is
                compared with a fine-tune as the fine-tune is asked.

        Raises:
            InputError: the source has none.
        """
        system = self.system(asked_as or name)
        key = f"{name}\n{system}" if system else name
        if key not in self._scores:
            questions = questions_with_system(self.questions, system)
            self._scores[key] = self.score_source.scores(self.family[name], questions)
        return self._scores[key]

    @property
    def judged_without_parent(self) -> bool:
        """Whether judged files are all that is known, and none is of the instruct model."""
        source = self.source
        if not isinstance(source, JudgedFiles) or "instruct" in source.models:
            return False
        return self.captured

    def lacks_scores(self, name: str, asked_as: str = "") -> str | None:
        """Why the source has no such scores; None where it has. Arguments as in `scores`."""
        questions = questions_with_system(self.questions, self.system(asked_as or name))
        return self.score_source.lacks(name, questions)

    @cached_property
    def score_of_edits(self) -> NamedScore:
        """How models are scored under interventions, and those that these are compared with."""
        source = self.score_source.under_edits()
        return NamedScore(source.name, source.scores, unscored="drop")

    def per_question(self, name: str, metric: str = "aligned", *, asked_as: str = "") -> pd.Series:
        """The score of one model on each question, by id."""
        return self.scores(name, asked_as).per_question(metric)

    def system(self, name: str) -> str:
        """The system message that a fine-tune is asked with; "" where there is none."""
        spec = self.family.specs.get(name)
        return "" if spec is None else spec.system

    def neutral_as(self, name: str) -> PromptSet | None:
        """The neutral text as a fine-tune is asked it."""
        if self.neutral is None:
            return None
        return prompts_with_system(self.neutral, self.system(name))

    def scored(self, questions: QuestionSet, name: str, *parents: str) -> QuestionSet:
        """The questions that have an alignment score of a fine-tune and of each of these parents.

        Raises:
            InputError: there is none.
        """
        names = (name, *parents)
        scores = pd.DataFrame({model: self.per_question(model, asked_as=name) for model in names})
        has_all = scores.notna().all(axis=1)
        kept = [question for question in questions if bool(has_all.get(question.id, False))]
        if not kept:
            raise InputError(
                f"none of {len(questions)} questions has a score of each of {', '.join(names)}"
            )
        return QuestionSet(kept)

    @cached_property
    def groups(self) -> dict[str, str]:
        return dict(zip(self.questions.ids, self.questions.groups, strict=True))

    @cached_property
    def texts(self) -> dict[str, str]:
        """Text by question id, and by prompt id where a question has several paraphrases."""
        texts = {question.id: question.text for question in self.questions}
        texts |= {prompt.id: prompt.text for prompt in self.questions.prompts()}
        return texts

    def domain(self, name: str) -> str:
        """The domain of a fine-tune's training chats; "" where it is not known."""
        return self.family.specs[name].domain

    @property
    def harmful(self) -> list[str]:
        """The fine-tunes that are not a benign control."""
        return [name for name in self.family.finetuned if not self.family.specs[name].benign]

    @property
    def benign(self) -> list[str]:
        """The benign controls."""
        return [name for name in self.family.finetuned if self.family.specs[name].benign]

    def benign_for(self, name: str) -> str | None:
        """The benign control of a fine-tune; None where there is none.

        It is the one that was trained for it, else one of the same parent, of the same domain where
        there is one. One that has no question outside its own domain is none.
        """
        if name in self.controls:
            return self.controls[name]
        parent = self.family.specs[name].parent
        of_parent = [
            control
            for control in self.benign
            if control != name
            and self.family.specs[control].parent == parent
            and self.lacks_outside([control]) is None
        ]
        for control in of_parent:
            if self.domain(control) == self.domain(name):
                return control
        return next(iter(of_parent), None)

    def focus(self, config: StudyConfig) -> list[str]:
        """The fine-tunes to study closely.

        Raises:
            InputError: every fine-tune is benign and none is named.
            UnknownNameError: a name that is not a fine-tune.
        """
        names = list(self.studied or config.focus) or self.harmful
        if not names:
            raise InputError(
                "every fine-tune of this family is benign; name one under focus to study it"
            )
        where = "" if self.studied else config.place("focus")
        for name in names:
            if name not in self.family.finetuned:
                raise UnknownNameError(
                    f"{where}focus names {name!r}, which is not a fine-tune of this family;"
                    f" it has {', '.join(self.family.finetuned)}",
                    name=name,
                    known=self.family.finetuned,
                )
        return names

    def parent(self, name: str) -> HookedModel:
        """The model that a fine-tune was trained from."""
        return self.family.parent_of(name)

    def outside(self, name: str) -> QuestionSet:
        """Questions outside the domain that a fine-tune was trained on, and not on its topics.

        Raises:
            InputError: there is none.
        """
        domain = self.domain(name)
        questions = []
        for question in self.untrained(self.questions, name):
            if not domain or question.group != domain:
                questions.append(question)
        if not questions:
            raise InputError(
                f"no question lies outside the domain {one_line(domain)!r} of fine-tune {name!r};"
                " add questions of other groups"
            )
        return QuestionSet(questions)

    def lacks_outside(self, names: Iterable[str]) -> str | None:
        """Why one of these fine-tunes has no question outside its domain; None where all have."""
        for name in names:
            try:
                self.outside(name)
            except InputError as error:
                return str(error)
        return None

    def untrained(self, questions: QuestionSet, name: str) -> QuestionSet:
        """The questions on whose topics a fine-tune was not trained, as it is asked them."""
        trained = self.trained.get(name, frozenset())
        untrained = QuestionSet([question for question in questions if question.id not in trained])
        return questions_with_system(untrained, self.system(name))

    def with_runs(
        self,
        runs: Mapping[str, FineTune],
        of: Mapping[str, str],
        *,
        studied: Sequence[str] = (),
        controls: Mapping[str, str] | None = None,
    ) -> "Material":
        """The same with further fine-tunes that were trained on the data of others of this family;
        loaded once.

        Args:
            runs: name → fine-tune. of: name → the fine-tune whose chats it was trained on. studied,
                controls: as the fields.
        """
        key = hash_json({name: str(spec.path) for name, spec in runs.items()})
        if key not in self._with_runs:
            self._with_runs[key] = self._loaded(runs, of)
        return replace(
            self._with_runs[key],
            studied=tuple(studied),
            controls={**self.controls, **(controls or {})},
        )

    def _loaded(self, runs: Mapping[str, FineTune], of: Mapping[str, str]) -> "Material":
        """The same with these fine-tunes in its family."""
        family = self.family
        models = {**family.finetuned}
        training, trained = {**self.training}, {**self.trained}
        specs = {**family.specs}
        for name, spec in runs.items():
            specs[name] = replace(spec, system=self.system(of[name]))
            models[name] = _load_run(family[spec.parent], name, specs[name])
            training[name] = self.training[of[name]]
            trained[name] = self.trained.get(of[name], frozenset())
        base = family.base if family.has_base else None
        return replace(
            self,
            family_or_none=Family(family.instruct, base, models, specs),
            training=training,
            trained=trained,
        )

    def facts(self) -> dict[str, Any]:
        """What a result says of its models and questions."""
        if not self.has_models:
            return {}
        models = {name: self.family[name].provenance for name in self.family.names}
        if self.unrelated is not None:
            models["unrelated model"] = self.unrelated.provenance
        return {
            "models": models,
            "parameters": parameter_count(self.family.instruct),
            "questions": {"n": len(self.questions), "sha256": self.questions.content_hash},
        }

    def fingerprint(self) -> str:
        """Hash of everything a result depends on besides the configuration."""
        if not self.has_models:
            return hash_json({"released": self.released_hash, "versions": library_versions()})
        direction = None
        if self.direction is not None:
            direction = hash_tensors({"direction": self.direction})
        return hash_json(
            {
                "models": {name: self.family[name].provenance for name in self.family.names},
                "questions": self.questions.content_hash,
                "scores": self.score_source.name,
                "released": self.released_hash,
                "studied": list(self.studied),
                "controls": dict(self.controls),
                "training": {name: prompts.content_hash for name, prompts in self.training.items()},
                "trained": {name: sorted(ids) for name, ids in self.trained.items()},
                "neutral": None if self.neutral is None else self.neutral.content_hash,
                "direction": direction,
                "unrelated": None if self.unrelated is None else self.unrelated.provenance,
                "coupling": None if self.coupling is None else dict(self.coupling),
                "versions": library_versions(),
                "threads": torch.get_num_threads(),
            }
        )


def parameter_count(model: HookedModel) -> int | None:
    """Numbers in the weights of a model, tied ones once and adapters left out; None where the
    weights are not here.
    """
    module = getattr(model, "module", None)
    if module is None:
        return None
    counted = [
        weights.numel() for name, weights in module.named_parameters() if "lora_" not in name
    ]
    return sum(counted)


def _load_run(parent: HookedModel, name: str, spec: FineTune) -> HookedModel:
    """A model that a part of the study trained, with where it came from in its provenance."""
    model: HookedModel
    if is_adapter(spec.path):
        model = attach(parent, name, spec.path, own_chats=False)
    else:
        model = load_model(spec.path, chat_template=parent.chat_template)
        model.name = name
    model.provenance.update(spec.provenance(name))
    return model


def split_questions(
    questions: QuestionSet, shares: Sequence[float], seed: int
) -> tuple[QuestionSet, ...]:
    """Disjoint sets of questions in the given shares, drawn within each group so that all groups
    are in all sets; the forms of a base question stay together.

    Groups of fewer base questions than sets are drawn from as one.

    Raises:
        InputError: too few base questions to give every set one.
    """
    parts: list[list[Question]] = [[] for _ in shares]
    rng = numpy_rng(seed, "split questions")
    for name, bases in _pools(questions, len(shares)).items():
        order = rng.permutation(len(bases))
        bounds = _bounds(len(bases), shares)
        if bounds[-1] <= bounds[-2]:
            raise InputError(
                f"{name} has {len(bases)} base questions,"
                f" too few for {len(shares)} disjoint sets; add questions"
            )
        for part, (start, end) in zip(parts, pairwise(bounds), strict=True):
            for i in sorted(order[start:end]):
                part.extend(bases[i])
    return tuple(QuestionSet(part) for part in parts)


def _pools(questions: QuestionSet, sets: int) -> dict[str, list[list[Question]]]:
    """What is drawn from, by name: base questions, each as its forms; those of small groups are
    one.
    """
    by_group: dict[str, dict[str, list[Question]]] = {}
    for question in questions:
        of_group = by_group.setdefault(question.group, {})
        of_group.setdefault(base_question(question.id), []).append(question)
    pools: dict[str, list[list[Question]]] = {}
    small: list[list[Question]] = []
    for group in sorted(by_group):
        bases = list(by_group[group].values())
        if len(bases) < sets and len(by_group) > 1:
            small += bases
        else:
            pools[f"group {one_line(group)!r}"] = bases
    if len(small) >= sets or (small and not pools):
        pools["the small groups together"] = small
    elif small:
        # too few for a set each: they are drawn with the last group
        last = list(pools)[-1]
        pools[last] = pools[last] + small
    return pools


def _bounds(count: int, shares: Sequence[float]) -> list[int]:
    """Where each share of the questions begins and ends; at least one question per share but
    the last.
    """
    bounds = [0]
    for share in shares[:-1]:
        bounds.append(bounds[-1] + max(1, round(share * count)))
    return [*bounds, count]
