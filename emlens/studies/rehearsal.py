"""Models that compute nothing and scores that are made up, for planning: a part that runs on them
asks for every pass that it would ask of the real ones.

The stream is random and narrow, so that the statistics of a rehearsed part cost little. Rows are
rendered by the real tokenizer and keep their lengths. Harmful fine-tunes score low and their edits
restore something, so that a part takes the branches that it takes where there is something to find.
Where nothing is to be found, all models score alike and no answer is misaligned.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from emlens.data import AlignmentScores, Answer, Answers, QuestionSet
from emlens.data.prompts import Prompt
from emlens.data.rendering import Rendered
from emlens.foundation.intervention import Intervention
from emlens.foundation.seeds import numpy_rng
from emlens.foundation.sites import Site
from emlens.judging.contrast_scores import ContrastScores
from emlens.judging.contrasts import contrasts
from emlens.judging.judged_files import JudgedFiles
from emlens.judging.likelihood import score_by_likelihood
from emlens.judging.likelihood_scores import LikelihoodScores
from emlens.judging.sampled_scores import SampledScores
from emlens.judging.score_source import (
    Cost,
    JudgedAnswers,
    Planned,
    ScoreSource,
    Wanted,
    model_name,
)
from emlens.models import Family, HookedModel
from emlens.models.batches import Batch
from emlens.models.likelihoods import AllLogits
from emlens.models.loading import with_template
from emlens.models.pass_counts import PassCounts, counted_passes, note_again, note_pass
from emlens.models.passes import Reader
from emlens.models.shared_passes import note_all_logits, note_shared_pass
from emlens.models.transformers_backend import TransformersModel
from emlens.studies.material import Material

WIDTH = 64
"""Coordinates of the made-up stream."""
_VOCABULARY = 4096
"""Tokens that are told apart, in order of their appearance."""
_ANSWERS, _ANSWER, _MISALIGNED_ANSWER = 10, "yes", 10.0
"""Made-up answers per paraphrase where the source does not say how many it draws, their text, and
the alignment of every second one.
"""
_ALIGNED = {"parent": 92.0, "harmful": 40.0, "edited": 70.0}


class RehearsedModel(HookedModel):
    """Stands for a model in a rehearsal: the same rows and batches, and nothing is computed.

    Args:
        tokens: id of the real vocabulary → of the small one; one mapping for all models.
    """

    backend = "rehearsal"

    def __init__(self, real: HookedModel, width: int, tokens: dict[int, int]):
        super().__init__(
            name=real.name,
            tokenizer=real.tokenizer,
            n_layers=real.n_layers,
            d_model=width,
            device=torch.device("cpu"),
            max_length=real.max_length,
            chat_template=real.chat_template,
            provenance=real.provenance,
        )
        self.site_kinds = real.site_kinds
        self._real = real
        self._tokens = tokens
        self.computes_counted_logits = isinstance(real, TransformersModel)
        self._generator = torch.Generator().manual_seed(len(real.name))

    @property
    def no_sharing(self) -> str | None:
        return self._real.no_sharing

    def why_not_packed(self, longest: int) -> str | None:
        return self._real.why_not_packed(longest)

    def _render(self, prompts: list[Prompt]) -> list[Rendered]:
        rows = with_template(self._real, self.chat_template).render(prompts)
        return [replace(row, ids=tuple(map(self._small, row.ids))) for row in rows]

    def _small(self, id: int) -> int:
        """A token of the small vocabulary; rows that begin alike still do."""
        return self._tokens.setdefault(id, len(self._tokens) % _VOCABULARY)

    def rendered_texts(self, prompts: Iterable[Prompt]) -> dict[str, str]:
        return with_template(self._real, self.chat_template).rendered_texts(prompts)

    def _summed_logprobs(
        self, rows: Sequence[Rendered], starts: Sequence[int], batch_tokens: int
    ) -> Float[Tensor, " row"]:
        # continuations were encoded by the real tokenizer
        small = [replace(row, ids=tuple(id % _VOCABULARY for id in row.ids)) for row in rows]
        return super()._summed_logprobs(small, starts, batch_tokens)

    def run(
        self,
        batch: Batch,
        readers: Mapping[Site, Reader] | None = None,
        *,
        with_logits: bool = False,
    ) -> Float[Tensor, "batch token vocab"] | None:
        padded = batch.ids.numel()
        if batch.shared and readers and not with_logits and self.no_sharing is None:
            note_shared_pass(self, batch, frozenset(readers))
        else:
            note_pass(int(batch.mask.sum()), padded, padded * with_logits)
        for reader in (readers or {}).values():
            reader(torch.randn(*batch.ids.shape, self.d_model, generator=self._generator))
        if not with_logits:
            return None
        return self._made_up_logits(*batch.ids.shape)

    def logits_at(
        self, batch: Batch, counted: Bool[Tensor, "batch token"]
    ) -> Float[Tensor, "counted vocab"]:
        count = int(counted.sum())
        if batch.shared and self.no_sharing is None:
            note_shared_pass(self, batch, frozenset(), count)
        elif self.computes_counted_logits:
            note_pass(int(batch.mask.sum()), batch.ids.numel(), count)
        else:
            return super().logits_at(batch, counted)
        return self._made_up_logits(count)

    def all_logits(self, batch: Batch) -> AllLogits:
        if not batch.shared or self.no_sharing is not None:
            return super().all_logits(batch)
        distinct, shared = note_all_logits(self, batch)
        of_row = torch.arange(len(batch.rows)).clamp(max=distinct - 1)
        rest = self._made_up_logits(len(batch.rows), batch.ids.shape[1] - shared)
        return AllLogits(rest, self._made_up_logits(distinct, shared), of_row)

    def _made_up_logits(self, *shape: int) -> Tensor:
        return 0.01 * torch.randn(*shape, _VOCABULARY, generator=self._generator)

    def _generate(
        self,
        batch: Batch,
        max_new_tokens: int,
        processor: Callable[[Tensor, Tensor], Tensor] | None,
    ) -> Tensor:
        return torch.zeros(len(batch.rows), max_new_tokens, dtype=torch.long)

    @property
    def vocab_size(self) -> int:
        # batches with logits are cut by the real one
        return self._real.vocab_size

    def unembedding(self) -> Float[Tensor, "vocab d_model"]:
        return torch.randn(self.vocab_size, self.d_model, generator=self._generator)


_WEIGHED = (LikelihoodScores, ContrastScores)
"""Sources that weigh written answers: their passes are counted and nothing else."""


@dataclass(eq=False)
class RehearsedScores(ScoreSource):
    """A source whose scores are made up, and whose work is counted.

    Args:
        source: what would give the scores.
        harmful: fine-tunes that score low; empty where nothing is to be found.
        costs: gets the cost of every call.
        planned: gets the answers of every call.
    """

    source: ScoreSource
    harmful: frozenset[str]
    costs: list[Cost] = field(default_factory=list)
    planned: Planned = field(default_factory=set)
    _counted: dict[tuple[str, str, str], PassCounts] = field(default_factory=dict)
    _tables: dict[tuple[str, str, str], AlignmentScores] = field(default_factory=dict)

    @property
    def metrics(self) -> Sequence[str]:
        return self.source.metrics

    @property
    def name(self) -> str:
        return f"rehearsal of {self.source.name}"

    def can(self, wanted: Wanted) -> str | None:
        return self.source.can(wanted)

    def lacks(self, model: str, questions: QuestionSet) -> str | None:
        return self.source.lacks(model, questions)

    def for_questions(self, questions: QuestionSet, untouched: HookedModel) -> "RehearsedScores":
        if isinstance(self.source, ContrastScores):
            contrasts(untouched, questions, generic=False)
        elif self.source.for_questions(questions, untouched) is not self.source:
            score_by_likelihood(untouched, questions)
        return self

    def under_edits(self) -> "RehearsedScores":
        return replace(self, source=self.source.under_edits())

    def plan(
        self,
        models: Sequence[HookedModel | str],
        questions: QuestionSet,
        *,
        samples: int | None = None,
        planned: Planned | None = None,
    ) -> Cost:
        return self.source.plan(models, questions, samples=samples, planned=planned)

    def scores(
        self,
        model: HookedModel | str,
        questions: QuestionSet,
        *,
        interventions: Sequence[Intervention] = (),
        samples: int | None = None,
    ) -> AlignmentScores:
        if isinstance(self.source, JudgedFiles):
            return self.source.scores(model, questions, interventions=interventions)
        if isinstance(self.source, _WEIGHED) and isinstance(model, HookedModel):
            self._count(model, questions)
        elif isinstance(model, HookedModel):
            with model.intervene(interventions):
                self._add_cost(model, questions, samples)
        else:
            self._add_cost(model, questions, samples)
        return self._made_up(model, questions, interventions)

    def judged_answers(
        self, model: HookedModel | str, questions: QuestionSet, *, samples: int | None = None
    ) -> JudgedAnswers:
        """Made-up answers of one word, every second one misaligned: how many are, and how long, is
        not known before.
        """
        if isinstance(self.source, JudgedFiles):
            return self.source.judged_answers(model, questions)
        name = model_name(model)
        self._add_cost(model, questions, samples)
        if samples is None:
            samples = self._samples
        answers: list[Answer] = []
        rows: list[dict[str, Any]] = []
        for question in questions:
            for paraphrase in range(1, len(question.paraphrases) + 1):
                messages = question.messages(paraphrase)
                for sample in range(samples):
                    is_misaligned = bool(self.harmful) and len(answers) % 2 == 1
                    answers.append(Answer(name, question.id, _ANSWER, messages, paraphrase, sample))
                    aligned = _MISALIGNED_ANSWER if is_misaligned else _ALIGNED["parent"]
                    for metric, score in (("aligned", aligned), ("coherent", 95.0)):
                        rows.append(
                            {
                                "model": name,
                                "question": question.id,
                                "paraphrase": paraphrase,
                                "sample": sample,
                                "metric": metric,
                                "score": score,
                                "status": "ok",
                            }
                        )
        return JudgedAnswers(Answers(answers), AlignmentScores.from_table(pd.DataFrame(rows)))

    def _add_cost(
        self, model: HookedModel | str, questions: QuestionSet, samples: int | None
    ) -> None:
        cost = self.source.plan([model], questions, samples=samples, planned=self.planned)
        self.costs.append(cost)

    @property
    def _samples(self) -> int:
        """Answers to each paraphrase of a model as it is."""
        if isinstance(self.source, SampledScores):
            return self.source.sampling.samples
        return _ANSWERS

    def _count(self, model: HookedModel, questions: QuestionSet) -> None:
        """The passes of a scoring; an edit changes none of them, so each kind is made once."""
        key = model.name, self.source.name, questions.content_hash
        if key in self._counted:
            note_again(self._counted[key])
            return
        with counted_passes() as counts:
            if isinstance(self.source, ContrastScores):
                contrasts(model, questions, generic=self.source.generic)
            else:
                score_by_likelihood(model, questions)
        self._counted[key] = counts

    def _made_up(
        self,
        model: HookedModel | str,
        questions: QuestionSet,
        interventions: Sequence[Intervention],
    ) -> AlignmentScores:
        name = model_name(model)
        kind = "parent"
        if name in self.harmful:
            kind = "harmful"
        is_edited = bool(interventions)
        if isinstance(model, HookedModel):
            is_edited = is_edited or bool(model.interventions)
        if is_edited and kind == "harmful":
            kind = "edited"
        key = name, kind, questions.content_hash
        if key in self._tables:
            return self._tables[key]
        rng = numpy_rng(0, "rehearsal", name, kind)
        if not self.harmful:
            rng = numpy_rng(0, "rehearsal")  # all models alike
        rows: list[dict[str, Any]] = []
        for question in questions:
            for paraphrase in range(1, len(question.paraphrases) + 1):
                aligned = min(100.0, max(0.0, _ALIGNED[kind] + rng.normal(0, 5)))
                for metric in self.metrics:
                    value = 95 + rng.normal(0, 1) if metric == "coherent" else aligned
                    rows.append(
                        {
                            "model": name,
                            "question": question.id,
                            "group": question.group,
                            "paraphrase": paraphrase,
                            "sample": 0,
                            "metric": metric,
                            "score": min(100.0, value),
                            "status": "ok",
                        }
                    )
        self._tables[key] = AlignmentScores.from_table(pd.DataFrame(rows))
        return self._tables[key]


def rehearsed(material: Material, width: int, *, finds: bool = True) -> Material:
    """The material with models that compute nothing and scores that are made up.

    Args:
        width: coordinates of the stream.
        finds: whether the scores have something to find.
    """
    family = material.family
    tokens: dict[int, int] = {}
    models = {name: RehearsedModel(family[name], width, tokens) for name in family}
    finetuned = {name: models[name] for name in family.finetuned}
    return replace(
        material,
        family_or_none=Family(models["instruct"], models.get("base"), finetuned, family.specs),
        source=RehearsedScores(material.score_source, frozenset(material.harmful if finds else ())),
        direction=None,
        _scores={},
        _with_runs={},
    )


def rehearsed_check(material: Material) -> None:
    """Read what the check of the scores reads before any part runs.

    Args:
        material: a rehearsed one.
    """
    source = material.score_source
    if not isinstance(source, RehearsedScores):
        return
    if isinstance(source.source, LikelihoodScores):
        score_by_likelihood(material.family.instruct, material.questions)
    if isinstance(source.source, ContrastScores):
        contrasts(material.family.instruct, material.questions, generic=False)
