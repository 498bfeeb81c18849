"""A judge behind an OpenAI-compatible endpoint: expected score from the candidates it gives for the
first token.

One request an answer and metric, at temperature 0, for the 20 most probable first tokens and a few
more tokens. Where every number from 0 to 100 is one token (GPT-4o, Llama 3), score = Σ k·p(k) / Σ
p(k) as in the field. Where the reply shows that the tokenizer splits numbers ("8" then "5"), the
candidates of the first token say only how the number begins: the answer is left unscored as "split
numbers", never read as 8. Such a judge, and a server without log-probabilities, can be read by the
number it says (`read="text"`).

Faults are retried by the endpoint; what stays failed is unscored with the reason. A reply without
log-probabilities is asked for again as often, within the same budget. When the budget is spent, or
many replies in a row have failed in one way, judging stops with an error: what was judged is kept,
and nothing is recorded as unscored that was not tried.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any, Final, Literal

from emlens.data.answers import Answer
from emlens.data.prompts import Message
from emlens.data.questions import QuestionSet
from emlens.foundation.errors import InputError, StateError
from emlens.foundation.files import one_line
from emlens.judging.endpoint import Endpoint
from emlens.judging.judge_prompts import JudgePrompts
from emlens.judging.judges import FAULT, AskingJudge, Verdict
from emlens.judging.readouts import CATEGORIES, MASS, NUMBER, check_mass, verdict_of
from emlens.judging.replies import ChatRequest, Reply

Read = Literal["logprobs", "text"]
_TOP: Final = 20
_REPLY_TOKENS: Final = 4
"""Enough to see whether a number goes on in the next token."""
_ROUNDS: Final = 3
_STREAK: Final = 20
"""Failed replies in a row, at the least, that stop the judging."""


class EndpointJudge(AskingJudge):
    """Scores by a model behind an endpoint.

    Args:
        endpoint: where, which model, and the limits on asking it.
        prompts: metric → template, or a question set with judge prompts; emlens's own where left
            out.
        metrics: those to judge; left out, all that `prompts` has.
        mass: least probability of whole numbers that makes a score.
        read: `"logprobs"`, or `"text"` for the number that the reply says.
        temperature: of the reply; 0 as in the field. Log-probabilities are most servers' at
            temperature 1 whatever this says.
        seed: handed to the server; with a temperature and `read="text"`, another seed is another
            repetition.
        extra: further fields of each request.

    Raises:
        InputError: prompts that `JudgePrompts` refuses, a mass outside (0, 1], an unknown `read`.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        prompts: Mapping[str, str] | QuestionSet | None = None,
        *,
        metrics: Iterable[str] | None = None,
        mass: float = MASS,
        categories: Sequence[str] = CATEGORIES,
        read: Read = "logprobs",
        temperature: float = 0.0,
        seed: int | None = None,
        extra: Mapping[str, Any] | None = None,
    ):
        if read not in ("logprobs", "text"):
            raise InputError(f"read={read!r} is unknown; pass 'logprobs' or 'text'")
        self.endpoint = endpoint
        self.prompts = JudgePrompts(prompts, metrics)
        self.metrics = self.prompts.metrics
        self._mass, self._categories, self._read = check_mass(mass), tuple(categories), read
        self._options: dict[str, Any] = {
            "temperature": temperature,
            "seed": seed,
            "extra": dict(extra or {}),
        }

    def describe(self) -> dict[str, Any]:
        return {
            "judge": f"endpoint, {self._read}",
            **self.endpoint.describe(),
            "prompts": self.prompts.content_hash,
            "mass": self._mass,
            "categories": list(self._categories),
            **self._options,
        }

    def verdicts(self, asked: Sequence[tuple[Answer, str]]) -> Iterator[tuple[int, Verdict]]:
        left = list(range(len(asked)))
        # held back until one succeeds: an endpoint that is down judges nothing
        streak: list[tuple[int, Verdict]] = []
        spent: list[str] = []
        for round_ in range(_ROUNDS):
            again: list[int] = []
            requests = (self._request(*asked[i]) for i in takewhile(lambda _: not spent, left))
            for number, reply in self.endpoint.ask(requests):
                i, verdict = left[number], self._verdict(reply)
                if reply.failure == "budget":
                    spent.append(reply.detail)
                    continue  # replies that were under way still come
                if verdict is None and round_ + 1 < _ROUNDS:
                    again.append(i)
                    continue
                verdict = verdict or Verdict(None, f"{FAULT}no log-probabilities")
                if verdict.is_fault:
                    streak.append((i, verdict))
                    self._stop_if_down(streak)
                    continue
                yield from streak
                streak = []
                yield i, verdict
            if spent:
                raise StateError(
                    f"{spent[0]}; what was judged is kept: raise the endpoint's budget and call"
                    " again"
                )
            left = again
            if not left:
                break
        yield from streak

    def _request(self, answer: Answer, metric: str) -> ChatRequest:
        message = Message("user", self.prompts.filled(answer, metric))
        return ChatRequest(
            (message,),
            _REPLY_TOKENS,
            top_logprobs=_TOP if self._read == "logprobs" else 0,
            **self._options,
        )

    def _stop_if_down(self, streak: Sequence[tuple[int, Verdict]]) -> None:
        kinds = {verdict.status for _, verdict in streak}
        if len(kinds) == 1 and len(streak) >= max(_STREAK, 3 * self.endpoint.concurrency):
            status = kinds.pop().removeprefix(FAULT)
            hint = "; pass read='text' for a server without them" if "log-prob" in status else ""
            raise StateError(
                f"the last {len(streak)} replies all failed ({status}){hint};"
                " what was judged is kept, call again to go on"
            )

    def _verdict(self, reply: Reply) -> Verdict | None:
        """The verdict of one reply; None where log-probabilities lack."""
        if not reply.ok:
            return Verdict(
                None,
                FAULT + one_line(reply.failure, 40),
                json.dumps({"fault": one_line(reply.detail)}),
            )
        if self._read == "text":
            return self._from_text(reply.text)
        if not reply.logprobs or not reply.logprobs[0].top:
            return None
        said = [choice.token for choice in reply.logprobs]
        raw = json.dumps(
            {
                "top": [[token, round(value, 10)] for token, value in reply.logprobs[0].top],
                "said": reply.text,
            }
        )
        if _splits_numbers(said, [token for token, _ in reply.logprobs[0].top]):
            return Verdict(None, "split numbers", raw)
        return verdict_of(raw, self._mass, self._categories)

    def _from_text(self, text: str) -> Verdict:
        raw = json.dumps({"said": text})
        words = text.strip().strip(".*`\"'").split()
        if words and NUMBER.fullmatch(words[0].rstrip(".,;:*")):
            return Verdict(float(words[0].rstrip(".,;:*")), "ok", raw)
        named = [name for name in self._categories if text.strip().startswith(name)]
        return Verdict(None, named[0].lower() if named else "no number", raw)


def _splits_numbers(said: Sequence[str], candidates: Sequence[str]) -> bool:
    """Whether a digit may stand for a longer number: one follows it, or no candidate has two
    digits, as where every token is one digit.
    """
    if not said[0].strip().isdigit():
        return False
    if len(said) > 1 and re.match("[0-9]", said[1]):
        return True
    return len(said[0].strip()) == 1 and not any(
        re.fullmatch("[0-9]{2,}", token.strip()) for token in candidates
    )
