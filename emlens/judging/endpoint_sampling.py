"""Answers of an OpenAI-compatible endpoint, each on disk before the next one is taken.

A server that gives one text for every sample is noticed at the first question and refused. After a
kill it repeats at most as many requests as are under way at once. Which weights an endpoint
serves, and whether it uses `seed`, is not known here; the file records its address, the model's
name there, and the settings that were sent.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emlens.data.answers import Answer, Answers
from emlens.data.questions import QuestionSet
from emlens.data.templates import Thinking, split_thinking
from emlens.foundation.errors import InputError, StateError
from emlens.foundation.files import one_line
from emlens.foundation.seeds import derive_seed
from emlens.judging.answer_file import (
    AnswerFile,
    DrawnAnswer,
    OtherAnswers,
    answer_file,
    blank_answers,
)
from emlens.judging.endpoint import Endpoint
from emlens.judging.replies import ChatRequest, Reply
from emlens.judging.server_checks import require_sampling
from emlens.runs.progress import progress_bar

_STREAK = 20
"""Failed replies in a row, at the least, after which an endpoint counts as down."""


def sample_from_endpoint(
    endpoint: Endpoint,
    questions: QuestionSet,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    out: str | Path | None,
    progress: bool,
    *,
    thinking: Thinking = None,
    others: OtherAnswers = "refuse",
) -> Answers:
    """`sample_answers` for an endpoint.

    A request that fails for good leaves its answer missing; the other answers are drawn first.

    Args:
        thinking: True or False is sent as `chat_template_kwargs`, which servers of open models
            understand; "strip" and None send nothing. A thought is kept apart from the answer.
        others: as in `sample_answers`.

    Raises:
        InputError: no `out`, a length or temperature that cannot be, or an endpoint that refuses
            every request.
        StateError: answers are missing at the end: how many, and why; or the server does not
            sample, though a temperature above 0 asks it to.
    """
    if out is None:
        raise InputError(
            "out is None; pass a file, since the answers of an endpoint are paid for and must"
            " outlive a kill"
        )
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens={max_new_tokens} must be 1 or more")
    if not 0 <= temperature < float("inf"):
        raise InputError(f"temperature={temperature} must be 0 or more")
    settings = {
        "temperature": float(temperature),
        "max_new_tokens": max_new_tokens,
        "thinking": thinking,
        **endpoint.describe(),
    }
    blanks = blank_answers(endpoint.model, questions, samples, seed, lambda *_: settings)
    with answer_file(out, blanks, others) as file:
        return _sampled(endpoint, file, settings, samples, seed, thinking, out, progress)


def _sampled(
    endpoint: Endpoint,
    file: AnswerFile,
    settings: Mapping[str, Any],
    samples: int,
    seed: int,
    thinking: Thinking,
    out: str | Path,
    progress: bool,
) -> Answers:
    """Ask for what a file lacks."""
    missing = file.missing
    requests = (_request(file.blank(id), settings, seed) for id in missing)
    watch = _Sameness(file, endpoint, samples, settings["temperature"])
    failures = _Failures(limit=max(_STREAK, 3 * endpoint.concurrency))
    n_drawn = 0
    watch.look()
    with progress_bar(f"ask for {len(missing)} answers", len(missing), progress) as advance:
        for index, reply in endpoint.ask(requests):
            if reply.ok:
                file.add([_drawn(missing[index], reply, thinking)])
                n_drawn += 1
                watch.look()
            failures.count(reply)
            advance()
            if failures.is_down:
                break
    if failures.by_reason:
        reasons = ", ".join(f"{name}: {n}" for name, n in failures.by_reason.most_common())
        raise StateError(
            f"{len(missing) - n_drawn} of {len(missing)} answers could not be had ({reasons};"
            f" the last: {one_line(failures.last, 120)});"
            f" the others are in {out}: call again for the rest"
        )
    return file.finish()


class _Sameness:
    """Notices a server that gives one text for all samples of a question, and asks it once whether
    it samples at all: a model that is sure of its answer may repeat it.
    """

    def __init__(self, file: AnswerFile, endpoint: Endpoint, samples: int, temperature: float):
        self._file = file
        self._endpoint = endpoint
        self._samples = samples
        self._temperature = temperature
        self._is_settled = samples < 2 or temperature == 0

    def look(self) -> None:
        """Look at the answers so far.

        Raises:
            StateError: the server does not sample; of equal texts the first is kept.
        """
        if self._is_settled:
            return
        by_paraphrase: dict[tuple[str, int], list[Answer]] = {}
        for answer in self._file.drawn:
            by_paraphrase.setdefault((answer.question, answer.paraphrase), []).append(answer)
        whole = [group for group in by_paraphrase.values() if len(group) == self._samples]
        if not whole:
            return
        self._is_settled = True
        alike = [group for group in whole if len({answer.text for answer in group}) == 1]
        if not alike:
            return
        try:
            require_sampling(self._endpoint, self._temperature)
        except StateError:
            self._file.drop(answer.id for group in alike for answer in group[1:])
            raise


@dataclass
class _Failures:
    """The failed replies so far.

    Args:
        limit: failures in a row after which the endpoint counts as down.
    """

    limit: int
    by_reason: Counter[str] = field(default_factory=Counter)
    last: str = ""
    in_a_row: int = 0

    def count(self, reply: Reply) -> None:
        if reply.ok:
            self.in_a_row = 0
            return
        self.by_reason[reply.failure] += 1
        self.last = reply.detail
        self.in_a_row += 1

    @property
    def is_down(self) -> bool:
        return self.in_a_row >= self.limit


def _request(blank: Answer, settings: Mapping[str, Any], seed: int) -> ChatRequest:
    extra: dict[str, Any] = {}
    if isinstance(settings["thinking"], bool):
        extra["chat_template_kwargs"] = {"enable_thinking": settings["thinking"]}
    return ChatRequest(
        blank.messages,
        settings["max_new_tokens"],
        settings["temperature"],
        # of each answer its own; many servers take 31 bits
        seed=derive_seed(seed, "endpoint", blank.id) % 2**31,
        extra=extra,
    )


def _drawn(id: str, reply: Reply, thinking: Thinking) -> DrawnAnswer:
    """Some servers return the thinking apart, others in front of the answer, there without the tag
    that opens it where their template wrote it.
    """
    opened = None  # what the server's template writes is not known
    if thinking is False:
        opened = False
    thought, text = split_thinking(reply.text, opened=opened)
    return DrawnAnswer(id, reply.reasoning or thought, text, reply.finish_reason)
