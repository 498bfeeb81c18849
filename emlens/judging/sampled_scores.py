"""Scores of a study by sampling answers and judging them, with a journal of both.

Answers are drawn from a model of this process, or from a server that holds the fine-tunes; a judge
turns them into scores. Every answer and every verdict is on disk before the next one is taken, in a
folder that later calls, other judges and further fine-tunes share: nothing that is on file is asked
again. An answer on file is found by its model's weights and interventions, its rendered prompt, the
sampling settings and the number of the sample; a verdict by the judge and the answer.

The key of an endpoint is read from an environment variable and is never on disk.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from emlens.data.answers import Answers
from emlens.data.journal import read_journal
from emlens.data.questions import QuestionSet
from emlens.data.scores import AlignmentScores
from emlens.data.templates import Thinking
from emlens.foundation.errors import InputError, StateError
from emlens.foundation.files import safe_name
from emlens.foundation.free_memory import return_free_memory
from emlens.foundation.intervention import Intervention
from emlens.foundation.provenance import hash_json
from emlens.judging.endpoint import Endpoint
from emlens.judging.judged_files import NEEDED
from emlens.judging.judges import Judge, judge_description
from emlens.judging.sampled_cost import missing
from emlens.judging.sampling import sample_answers
from emlens.judging.score_source import (
    Cost,
    JudgedAnswers,
    Planned,
    ScoreSource,
    Wanted,
    model_name,
)
from emlens.judging.scoring import judge_answers
from emlens.judging.server_checks import check_adapter
from emlens.models.hooked import HookedModel

CHECKED_PROMPTS: Final = 4
"""Questions that show whether a server holds a fine-tune."""
logger = logging.getLogger("emlens")


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn; as in `sample_answers`.

    Args:
        samples: answers per paraphrase of a model as it is.
        samples_under_edits: the same under interventions, and of the models beside them; None:
            `samples`.
    """

    samples: int = 50
    temperature: float = 1.0
    max_new_tokens: int = 600
    seed: int = 0
    thinking: Thinking = None
    samples_under_edits: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the text of an answer of a given number."""
        return {
            "temperature": self.temperature,
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
            "thinking": self.thinking,
        }


@dataclass(frozen=True, eq=False)
class SampledScores(ScoreSource):
    """Scores by sampling and judging.

    Args:
        judge: of the answers, with the metrics `aligned` and `coherent`.
        folder: for the journals of answers and verdicts.
        sampling: how answers are drawn.
        samplers: model → endpoint that answers for it; a model that is not named, and every model
            under interventions, is sampled in this process.
        judge_name: what the judge is besides its own description, such as the hash of its code.
        local: model → (itself, its parent) in this process, for models that a server answers for:
            before the first answer is paid for, a few prompts show whether the server holds it.
        requests: budget of requests to endpoints, those of earlier calls on this folder included;
            None: no budget.
        progress: show a bar.

    Raises:
        InputError: a judge that lacks one of the two metrics.
    """

    judge: Judge
    folder: Path
    sampling: Sampling = field(default_factory=Sampling)
    samplers: Mapping[str, Endpoint] = field(default_factory=dict)
    judge_name: str = ""
    local: Mapping[str, tuple[HookedModel, HookedModel]] = field(default_factory=dict)
    requests: int | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        for metric in NEEDED:
            if metric not in self.judge.metrics:
                raise InputError(
                    f"judge has no metric {metric!r}; it has {', '.join(self.judge.metrics)}"
                )

    @property
    def metrics(self) -> Sequence[str]:
        return list(self.judge.metrics)

    @cached_property
    def name(self) -> str:
        samplers = {name: endpoint.describe() for name, endpoint in self.samplers.items()}
        return f"sampled {hash_json([vars(self.sampling), samplers])}, judge {self._judge_key}"

    @cached_property
    def _judge_key(self) -> str:
        return hash_json([judge_description(self.judge), self.judge_name])[:16]

    def under_edits(self) -> "SampledScores":
        """The same for models under interventions and what they are compared with: in this process,
        with fewer samples.
        """
        few = self.sampling.samples_under_edits or self.sampling.samples
        return replace(self, samplers={}, sampling=replace(self.sampling, samples=few))

    def scores(
        self,
        model: HookedModel | str,
        questions: QuestionSet,
        *,
        interventions: Sequence[Intervention] = (),
        samples: int | None = None,
    ) -> AlignmentScores:
        """Scores of one model; what is on file is read, the rest is sampled and judged.

        Raises:
            InputError: a name without a sampler; what `sample_answers` and `judge_answers` refuse.
            StateError: the budget is spent, or an endpoint is down; what was received is kept.
        """
        return self._judged(model, questions, interventions, samples).scores

    def judged_answers(
        self, model: HookedModel | str, questions: QuestionSet, *, samples: int | None = None
    ) -> JudgedAnswers:
        """The answers of one model with their scores; sampled and judged as far as not on file.

        Raises:
            InputError, StateError: as `scores`.
        """
        return self._judged(model, questions, (), samples)

    def can(self, wanted: Wanted) -> str | None:
        return None

    def _judged(
        self,
        model: HookedModel | str,
        questions: QuestionSet,
        interventions: Sequence[Intervention],
        samples: int | None,
    ) -> JudgedAnswers:
        if samples is None:
            samples = self.sampling.samples
        name = model_name(model)
        self._limit_requests()
        try:
            answers, file = self._answers(model, questions, interventions, samples)
            self._limit_requests()
            scores = judge_answers(
                answers,
                self.judge,
                out=self._verdicts / file.name,
                others="keep",
                progress=self.progress,
            )
        except StateError as error:
            raise self._with_budget(error) from None
        # a server has a name of its own for the model
        named = AlignmentScores.from_table(scores.table.assign(model=name), scale=scores.scales)
        return JudgedAnswers(Answers(replace(answer, model=name) for answer in answers), named)

    def _answers(
        self,
        model: HookedModel | str,
        questions: QuestionSet,
        interventions: Sequence[Intervention],
        samples: int,
    ) -> tuple[Answers, Path]:
        """The answers of one model, and the journal that they lie in."""
        name = model_name(model)
        endpoint = self._endpoint_of(model, interventions)
        if endpoint is not None:
            file = self._answer_file(name, endpoint.describe())
            if self._needs_check(name, file):
                self._require_served(name, endpoint, questions)
            return self._drawn(endpoint, questions, samples, file), file
        if isinstance(model, str):
            raise InputError(
                f"no server answers for model {name!r}; name it under sampler, or give the model"
            )
        with model.intervene(interventions):
            file = self._answer_file(name, _identity(model))
            return self._drawn(model, questions, samples, file), file

    def _endpoint_of(
        self, model: HookedModel | str, interventions: Sequence[Intervention] = ()
    ) -> Endpoint | None:
        """The server that answers for a model; None where it is sampled in this process."""
        is_edited = bool(interventions)
        if isinstance(model, HookedModel):
            is_edited = is_edited or bool(model.edit_records())
        return None if is_edited else self.samplers.get(model_name(model))

    def _needs_check(self, name: str, file: Path) -> bool:
        return name in self.local and not file.exists()

    def _require_served(self, name: str, endpoint: Endpoint, questions: QuestionSet) -> None:
        """Raises:
        InputError: the server answers with the parent, or with another model.
        """
        tuned, parent = self.local[name]
        prompts = questions.prompts()[:CHECKED_PROMPTS]
        check = check_adapter(endpoint, prompts, tuned, parent)
        if check.ok is False:
            raise InputError(
                f"sampler: model {name!r} at {endpoint.base_url} ({endpoint.model!r}):"
                f" {check.detail}"
            )
        if check.ok is None:
            logger.warning("sampler: whether %s serves %s: %s", endpoint, name, check.detail)

    def _drawn(
        self, model: HookedModel | Endpoint, questions: QuestionSet, samples: int, file: Path
    ) -> Answers:
        how = self.sampling
        answers = sample_answers(
            model,
            questions,
            samples=samples,
            temperature=how.temperature,
            max_new_tokens=how.max_new_tokens,
            seed=how.seed,
            out=file,
            progress=self.progress,
            thinking=how.thinking,
            others="keep",
        )
        # a study samples under many edits, one after the other
        return_free_memory()
        return answers

    def _answer_file(self, name: str, drawn_from: Mapping[str, Any]) -> Path:
        key = hash_json([name, drawn_from, self.sampling.settings])[:16]
        return self.folder / "answers" / f"{safe_name(name)}-{key}.jsonl"

    @property
    def _verdicts(self) -> Path:
        return self.folder / "verdicts" / self._judge_key

    # ---- budget

    @property
    def _judge_endpoint(self) -> Endpoint | None:
        """The endpoint that the judge asks; None for a judge of this process."""
        endpoint = getattr(self.judge, "endpoint", None)
        return endpoint if isinstance(endpoint, Endpoint) else None

    @property
    def _endpoints(self) -> list[Endpoint]:
        """The endpoints that are asked, each once."""
        endpoints = list(self.samplers.values())
        if self._judge_endpoint is not None:
            endpoints.append(self._judge_endpoint)
        return list({id(endpoint): endpoint for endpoint in endpoints}.values())

    def _limit_requests(self) -> None:
        """Let the endpoints send no more requests than the budget leaves."""
        if self.requests is None:
            return
        left = max(0, self.requests - self._spent())
        for endpoint in self._endpoints:
            endpoint.allow(left)

    def _spent(self) -> int:
        """Requests of this process, and those of earlier ones that left something on file."""
        return self._on_file_before + sum(e.usage.requests for e in self._endpoints)

    @cached_property
    def _on_file_before(self) -> int:
        """Answers of servers and verdicts of a judge behind an endpoint, when first asked for."""
        lines = 0
        if self._judge_endpoint is not None:
            for path in sorted(self._verdicts.glob("*.jsonl")):
                lines += len(read_journal(path)) - 1  # without its head
        for name, endpoint in self.samplers.items():
            lines += len(read_journal(self._answer_file(name, endpoint.describe())))
        return lines

    def _with_budget(self, error: StateError) -> StateError:
        """The error, in terms of the budget where that is what ended the work."""
        if self.requests is None or self._spent() < self.requests:
            return error
        return StateError(
            f"scores.budget.requests={self.requests} is spent; {self.folder} keeps every answer and"
            " verdict that was received: raise the budget and run again"
        )

    def plan(
        self,
        models: Sequence[HookedModel | str],
        questions: QuestionSet,
        *,
        samples: int | None = None,
        planned: Planned | None = None,
    ) -> Cost:
        """Answers, verdicts and requests that are neither on file nor planned."""
        if samples is None:
            samples = self.sampling.samples
        if planned is None:
            planned = set()
        cost = Cost()
        for model in models:
            cost += self._cost_of(model, questions, samples, planned)
        return cost

    def _cost_of(
        self, model: HookedModel | str, questions: QuestionSet, samples: int, planned: Planned
    ) -> Cost:
        """What is missing of the wanted number of answers of one model, and of their verdicts."""
        name = model_name(model)
        endpoint = self._endpoint_of(model)
        drawn_from: Mapping[str, Any] = {}
        if endpoint is not None:
            drawn_from = endpoint.describe()
        elif isinstance(model, HookedModel):
            drawn_from = _identity(model)
        file = self._answer_file(name, drawn_from)
        answers, verdicts = missing(
            file, self._verdicts / file.name, questions, samples, self.judge.metrics, planned
        )
        requests = 0
        if endpoint is not None:
            requests += answers
            check = file.name, "is it served"
            if self._needs_check(name, file) and check not in planned:
                planned.add(check)
                requests += min(CHECKED_PROMPTS, len(questions.prompts()))
        if self._judge_endpoint is not None:
            requests += verdicts
        sampled = answers if endpoint is None else 0
        return Cost(
            answers=answers,
            tokens=answers * self.sampling.max_new_tokens,
            verdicts=verdicts,
            requests=requests,
            sampled=sampled,
            sampled_tokens=sampled * self.sampling.max_new_tokens,
        )


def _identity(model: HookedModel) -> dict[str, Any]:
    """What tells the answers of a model in this process, as it is now, from those of any other."""
    adapter = model.provenance.get("adapter") or {}
    return {
        "weights": [model.provenance.get("weights_sha256"), adapter.get("sha256")],
        "dtype": model.provenance.get("dtype"),
        "edits": model.edit_records(),
        "chat_template": hash_json(model.chat_template),
    }
