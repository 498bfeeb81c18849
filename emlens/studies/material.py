"""What a study works on: a family, questions, training prompts, and which questions serve which
purpose.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from emlens.data import AlignmentScores, PromptSet, QuestionSet
from emlens.foundation.errors import InputError, UnknownNameError
from emlens.foundation.files import one_line, sha256_file
from emlens.foundation.provenance import hash_json, hash_tensors, library_versions
from emlens.foundation.seeds import numpy_rng
from emlens.judging import score_by_likelihood
from emlens.models import Family, FineTune, HookedModel, load_family, load_model
from emlens.models.adapters import is_adapter
from emlens.models.families import attach
from emlens.studies.config import FamilyConfig, StudyConfig


@dataclass
class Material:
    """Everything the parts of a study share; scores are computed once a model and kept.

    parents: base and instruct → where they were loaded from.
    studied: what `focus` gives, whatever the configuration names: fine-tunes that an earlier part
    of the study trained. controls: fine-tune → its benign control, where one was trained for it.
    has_models: False where only released files were given; then there is no family and there are no
    questions. released: folder of result files that others published; released_hash: of its
    content.
    """

    family: Family
    questions: QuestionSet
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
    has_models: bool = True
    released: Path | None = None
    released_hash: str = ""
    _scores: dict[str, AlignmentScores] = field(default_factory=dict)
    _grown: dict[str, "Material"] = field(default_factory=dict)

    def scores(self, name: str) -> AlignmentScores:
        """Likelihood scores of one model on all questions, unedited."""
        if name not in self._scores:
            self._scores[name] = score_by_likelihood(self.family[name], self.questions)
        return self._scores[name]

    def per_question(self, name: str, metric: str = "aligned") -> pd.Series:
        return self.scores(name).per_question(metric)

    @cached_property
    def groups(self) -> dict[str, str]:
        return dict(zip(self.questions.ids, self.questions.groups, strict=True))

    @cached_property
    def texts(self) -> dict[str, str]:
        """Text by question id, and by prompt id where a question has several phrasings."""
        return {q.id: q.text for q in self.questions} | {
            prompt.id: prompt.text for prompt in self.questions.prompts()
        }

    def domain(self, name: str) -> str:
        return self.family.specs[name].domain

    @property
    def harmful(self) -> list[str]:
        return [name for name in self.family.finetuned if not self.family.specs[name].benign]

    @property
    def benign(self) -> list[str]:
        return [name for name in self.family.finetuned if self.family.specs[name].benign]

    def benign_for(self, name: str) -> str | None:
        """The benign control of the same domain, or any of the same parent."""
        if name in self.controls:
            return self.controls[name]
        spec = self.family.specs[name]
        same = [b for b in self.benign if b != name and self.family.specs[b].parent == spec.parent]
        return next(
            (b for b in same if self.domain(b) == self.domain(name)), same[0] if same else None
        )

    def focus(self, config: StudyConfig) -> list[str]:
        chosen = list(self.studied or config.focus) or self.harmful
        if not chosen:
            raise InputError(
                "every fine-tune of this family is benign; name one under focus to study it"
            )
        for name in chosen:
            if name not in self.family.finetuned:
                raise UnknownNameError(
                    f"focus names {name!r}, which is no fine-tune of this family;"
                    f" it has {', '.join(self.family.finetuned)}"
                )
        return chosen

    def parent(self, name: str) -> HookedModel:
        return self.family.parent_of(name)

    def outside(self, name: str) -> QuestionSet:
        """Questions outside the domain that a fine-tune was trained on."""
        kept = [
            q
            for q in self.untrained(self.questions, name)
            if not self.domain(name) or q.group != self.domain(name)
        ]
        if not kept:
            raise InputError(
                f"no question lies outside the domain {one_line(self.domain(name))!r} of fine-tune"
                f" {name!r}; add questions of other groups"
            )
        return QuestionSet(kept)

    def untrained(self, questions: QuestionSet, *names: str) -> QuestionSet:
        """The questions on whose topics none of these fine-tunes was trained."""
        trained = frozenset[str]().union(*(self.trained.get(name, frozenset()) for name in names))
        return QuestionSet([q for q in questions if q.id not in trained])

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
        if key not in self._grown:
            models = dict(self.family.finetuned)
            for name, spec in runs.items():
                parent = self.family[spec.parent]
                loaded = (
                    attach(parent, name, spec)
                    if is_adapter(spec.path)
                    else load_model(spec.path, name=name, chat_template=parent.chat_template)
                )
                loaded.provenance.update(
                    {
                        "finetune": name,
                        "parent": spec.parent,
                        "group": spec.group,
                        "seed": spec.seed,
                        "benign": spec.benign,
                    }
                )
                models[name] = loaded
            base = self.family.base if self.family.has_base else None
            self._grown[key] = replace(
                self,
                family=Family(self.family.instruct, base, models, {**self.family.specs, **runs}),
                training={**self.training, **{name: self.training[of[name]] for name in runs}},
                trained={
                    **self.trained,
                    **{name: self.trained.get(of[name], frozenset()) for name in runs},
                },
            )
        return replace(
            self._grown[key], studied=tuple(studied), controls={**self.controls, **(controls or {})}
        )

    def facts(self) -> dict[str, Any]:
        """What a result says of its models and questions."""
        if not self.has_models:
            return {}
        return {
            "models": {name: self.family[name].provenance for name in self.family.names},
            "questions": {"n": len(self.questions), "sha256": self.questions.content_hash},
        }

    def fingerprint(self) -> str:
        """Hash of everything a result depends on besides the configuration."""
        if not self.has_models:
            return hash_json({"released": self.released_hash, "versions": library_versions()})
        facts = {
            "models": {name: self.family[name].provenance for name in self.family.names},
            "questions": self.questions.content_hash,
            "released": self.released_hash,
            "studied": list(self.studied),
            "controls": dict(self.controls),
            "training": {name: prompts.content_hash for name, prompts in self.training.items()},
            "trained": {name: sorted(ids) for name, ids in self.trained.items()},
            "neutral": None if self.neutral is None else self.neutral.content_hash,
            "direction": (
                None if self.direction is None else hash_tensors({"direction": self.direction})
            ),
            "coupling": None if self.coupling is None else dict(self.coupling),
            "versions": library_versions(),
            "threads": torch.get_num_threads(),
        }
        return hash_json(facts)


def split_questions(
    questions: QuestionSet, shares: Sequence[float], seed: int
) -> tuple[QuestionSet, ...]:
    """Disjoint sets of questions in the given shares, drawn within each group so that all groups
    are in all sets.

    Raises:
        InputError: a group too small to give every set a question.
    """
    parts: list[list[Any]] = [[] for _ in shares]
    rng = numpy_rng(seed, "split questions")
    for group in sorted(set(questions.groups)):
        members = [q for q in questions if q.group == group]
        order = rng.permutation(len(members))
        bounds = [0]
        for share in shares[:-1]:
            bounds.append(bounds[-1] + max(1, round(share * len(members))))
        bounds.append(len(members))
        if bounds[-1] <= bounds[-2]:
            raise InputError(
                f"group {one_line(group)!r} has {len(members)} questions,"
                f" too few for {len(shares)} disjoint sets; add questions"
            )
        for part, (a, b) in zip(parts, pairwise(bounds), strict=True):
            part.extend(members[i] for i in sorted(order[a:b]))
    return tuple(QuestionSet(part) for part in parts)


def load_material(config: StudyConfig) -> Material:
    """Load family, questions and prompts.

    Raises:
        InputError, LoadError: something named in the configuration is missing or does not fit.
    """
    released = None if config.released is None else Path(config.path(config.released))
    if released is not None and not released.is_dir():
        raise InputError(
            f"released={str(released)!r}: no such directory;"
            " pass the one that holds the released files"
        )
    given: dict[str, Any] = (
        {} if released is None else {"released": released, "released_hash": _hash_of_all(released)}
    )
    if config.family is None:
        nothing: Any = _Absent()
        return Material(nothing, nothing, {}, {}, None, has_models=False, **given)
    material = (
        _from_organism(config, config.family)
        if config.family.organism is not None
        else _from_paths(config, config.family)
    )
    return replace(material, **given)


def _hash_of_all(folder: Path) -> str:
    return hash_json(
        {
            str(path.relative_to(folder)): sha256_file(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
    )


class _Absent:
    """What stands for models and questions where only released files were given."""

    def __getattr__(self, name: str) -> Any:
        raise InputError("no family was given, only released files; this part needs models")


def _from_organism(config: StudyConfig, wanted: FamilyConfig) -> Material:
    from emlens.organisms import load

    name = config.path(str(wanted.organism))
    if wanted.finetuned or config.questions or config.neutral:
        raise InputError(
            "an organism brings its own fine-tunes, questions and neutral text;"
            " leave finetuned, questions and neutral out"
        )
    organism = load(directory=name) if Path(name).is_dir() else load(name)
    return Material(
        family=organism.family,
        questions=organism.questions,
        training=organism.training_prompts,
        trained={key: frozenset(ids) for key, ids in organism.training_topics.items()},
        neutral=organism.neutral_prompts,
        direction=organism.truth.direction,
        coupling=organism.truth.coupling,
        note=organism.note,
        parents={name: str(organism.paths[name]) for name in ("instruct", "base")},
    )


def _from_paths(config: StudyConfig, wanted: FamilyConfig) -> Material:
    if config.questions is None:
        raise InputError(
            "questions is missing; pass a YAML, JSONL or CSV file with reference answers 'careful'"
            " and 'harmful'"
        )
    questions = QuestionSet.from_file(config.path(config.questions))
    lacking = [
        q.id for q in questions if not (q.answers.get("careful") and q.answers.get("harmful"))
    ]
    if lacking:
        raise InputError(
            f"{config.questions}: question {one_line(lacking[0])!r} has no reference answers"
            " 'careful' and 'harmful', which likelihood scores need"
        )
    for name, item in wanted.finetuned.items():
        unknown = [q for q in item.trained_questions if q not in set(questions.ids)]
        if unknown:
            raise InputError(
                f"fine-tune {name!r}: trained_questions names {one_line(unknown[0])!r},"
                f" which is not in {config.questions}"
            )
    training = {
        name: PromptSet.from_jsonl(config.path(item.training), upto="all")
        for name, item in wanted.finetuned.items()
        if item.training
    }
    neutral = None if config.neutral is None else PromptSet.from_jsonl(config.path(config.neutral))
    family = load_family(
        config.path(str(wanted.instruct)),
        base=None if wanted.base is None else config.path(wanted.base),
        finetuned={
            name: FineTune(
                config.path(item.path), item.parent, item.group, item.seed, item.benign, item.domain
            )
            for name, item in wanted.finetuned.items()
        },
        dtype=wanted.dtype,
        device=wanted.device,
    )
    left_out = [
        f"fine-tune {name!r} has no training prompts: no delta overlap for it"
        for name in wanted.finetuned
        if name not in training
    ]
    for name, item in wanted.finetuned.items():
        if not item.domain:
            left_out.append(
                f"fine-tune {name!r} has no domain: all questions count as outside its training"
                " domain"
            )
        elif item.domain not in questions.groups:
            left_out.append(
                f"fine-tune {name!r} has the domain {one_line(item.domain)!r},"
                " which is no group of the questions: none is left out as its own"
            )
    if wanted.base is None:
        left_out.append("no base model was given: forecasts from the instruct model only")
    if not any(item.benign for item in wanted.finetuned.values()):
        left_out.append("no benign fine-tune was given: the benign control is missing")
    if neutral is None:
        left_out.append(
            "no neutral text was given: damage and the neutral-text control are missing"
        )
    return Material(
        family=family,
        questions=questions,
        training=training,
        trained={
            name: frozenset(item.trained_questions) for name, item in wanted.finetuned.items()
        },
        neutral=neutral,
        left_out=left_out,
        parents={
            name: config.path(path)
            for name, path in (("instruct", wanted.instruct), ("base", wanted.base))
            if path is not None
        },
    )
