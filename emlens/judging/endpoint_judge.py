"""A judge behind an OpenAI-compatible endpoint.

The score is expected over the candidates for the first token: one request per answer and metric, at
temperature 0, for the 20 most probable first tokens and a few more tokens. Where every number from
0 to 100 is one token (GPT-4o, Llama 3), score = Σ k·p(k) / Σ p(k) as in the field. Where the reply
shows that the tokenizer splits numbers ("8" then "5"), the candidates of the first token tell only
how the number begins: the answer is left unscored as "split numbers", never scored as 8. Such a
judge, and a server without log-probabilities, can be read by the number in its reply
(`read="text"`).

Faults are retried by the endpoint; a request that still fails leaves its answer unscored with the
reason. A reply without log-probabilities is asked for again, up to three times, within the same
budget; a server that gives none with its first reply, however often it is asked, is asked nothing
more. When the budget is spent, or many replies in a row have failed in one way, judging stops
with an error: what was judged is kept, and nothing is recorded as unscored that was not tried.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any, Final, Literal

from emlens.data.answers import Answer
from emlens.data.prompts import Message
from emlens.data.questions import QuestionSet
from emlens.foundation.choices import require_choice
from emlens.foundation.errors import InputError, StateError
from emlens.foundation.files import one_line
from emlens.judging.endpoint import Endpoint
from emlens.judging.judge_prompts import JudgePrompts
from emlens.judging.judges import FAULT, AskingJudge, Verdict
from emlens.judging.readouts import CATEGORIES, MASS, NUMBER, check_mass, verdict_of
from emlens.judging.replies import ChatRequest, Reply

Read = Literal["logprobs", "text"]
_TOP: Final = 20
REPLY_TOKENS: Final = 4
"""Enough to see whether a number goes on in the next token."""
_ROUNDS: Final = 3
_STREAK: Final = 20
"""Failed replies in a row, at the least, that stop the judging."""


class EndpointJudge(AskingJudge):
    """Scores by a model behind an endpoint.

    Args:
        endpoint: where, which model, and the limits on asking it.
        prompts: metric → template, or a question set with judge prompts; None: emlens's own.
        metrics: those to judge; None: all that `prompts` has.
        mass: least probability of whole numbers that makes a score.
        categories: what the judge may reply instead of a number.
        read: `"logprobs"`, or `"text"` for the number in the reply.
        temperature: of the reply; 0 as in the field. Most servers give log-probabilities at
            temperature 1, whatever this is.
        seed: sent to the server; with a temperature and `read="text"`, another seed is another
            repetition.
        reply_tokens: length of a reply at most; more for a judge that thinks before it answers.
        extra: further fields of each request.

    Raises:
        InputError: prompts that `JudgePrompts` refuses, a mass outside (0, 1], an unknown `read`,
            no reply token.
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
        reply_tokens: int = REPLY_TOKENS,
        extra: Mapping[str, Any] | None = None,
    ):
        require_choice(read, "read", Read)
        self.endpoint = endpoint
        self.prompts = JudgePrompts(prompts, metrics)
        self.metrics = self.prompts.metrics
        self._mass, self._categories, self._read = check_mass(mass), tuple(categories), read
        if reply_tokens < 1:
            raise InputError(f"reply_tokens={reply_tokens!r} must be 1 or more")
        self._reply_tokens = reply_tokens
        self._gives_logprobs = False
        self._options: dict[str, Any] = {
            "temperature": temperature,
            "seed": seed,
            "extra": dict(extra or {}),
        }

    def describe(self) -> dict[str, Any]:
        length: dict[str, Any] = {}
        if self._reply_tokens != REPLY_TOKENS:
            length["reply_tokens"] = self._reply_tokens
        return {
            **length,
            "judge": f"endpoint, {self._read}",
            **self.endpoint.describe(),
            "prompts": self.prompts.content_hash,
            "mass": self._mass,
            "categories": list(self._categories),
            **self._options,
        }

    def verdicts(self, asked: Sequence[tuple[Answer, str]]) -> Iterator[tuple[int, Verdict]]:
        remaining = list(range(len(asked)))
        if self._read == "logprobs" and remaining and not self._gives_logprobs:
            first = self._first(asked)
            if not first.is_fault:
                self._gives_logprobs = True
                yield 0, first
                remaining = remaining[1:]
        # faults are kept back until a reply succeeds: an endpoint that is down judges nothing
        faults: list[tuple[int, Verdict]] = []
        for round_number in range(1, _ROUNDS + 1):
            is_last_round = round_number == _ROUNDS
            without_logprobs: list[int] = []
            for i, verdict in self._round(asked, remaining):
                if verdict is None and not is_last_round:
                    without_logprobs.append(i)
                    continue
                verdict = verdict or Verdict(None, f"{FAULT}no log-probabilities")
                if verdict.is_fault:
                    faults.append((i, verdict))
                    self._stop_if_down(faults)
                    continue
                yield from faults
                faults = []
                yield i, verdict
            remaining = without_logprobs
            if not remaining:
                break
        yield from faults

    def _first(self, asked: Sequence[tuple[Answer, str]]) -> Verdict:
        """The verdict on the first pair, asked alone: it shows what the server can.

        Raises:
            StateError: it gives no log-probabilities; the budget is spent.
        """
        for _ in range(_ROUNDS):
            [(_, verdict)] = self._round(asked, [0])
            if verdict is not None:
                return verdict
        raise StateError(
            f"the server at {self.endpoint.base_url} gives no log-probabilities (asked {_ROUNDS}"
            " times about one answer), so nothing more was asked; pass read='text' (--set"
            " read=text) to read the number in its reply, or use a server that gives them"
        )

    def _round(
        self, asked: Sequence[tuple[Answer, str]], remaining: Sequence[int]
    ) -> Iterator[tuple[int, Verdict | None]]:
        """Ask once about each pair that remains; None for a reply without log-probabilities.

        Raises:
            StateError: the budget of the endpoint is spent.
        """
        spent: list[str] = []
        # no further request once the budget is spent
        unspent = takewhile(lambda _: not spent, remaining)
        requests = (self._request(*asked[i]) for i in unspent)
        for number, reply in self.endpoint.ask(requests):
            if reply.failure == "budget":
                # go on: replies that were under way still come
                spent.append(reply.detail)
                continue
            yield remaining[number], self._verdict(reply)
        if spent:
            raise StateError(
                f"{spent[0]}; what was judged is kept: raise the endpoint's budget and call again"
            )

    def _request(self, answer: Answer, metric: str) -> ChatRequest:
        message = Message("user", self.prompts.filled(answer, metric))
        return ChatRequest(
            (message,),
            self._reply_tokens,
            top_logprobs=_TOP if self._read == "logprobs" else 0,
            **self._options,
        )

    def _stop_if_down(self, faults: Sequence[tuple[int, Verdict]]) -> None:
        """Many faults in a row, all of one kind, are not an accident.

        Raises:
            StateError: says which kind.
        """
        kinds = {verdict.status for _, verdict in faults}
        if len(kinds) > 1 or len(faults) < max(_STREAK, 3 * self.endpoint.concurrency):
            return
        status = kinds.pop().removeprefix(FAULT)
        said = json.loads(faults[-1][1].raw or "{}").get("fault", "")
        if said:
            status = f"{status}: {one_line(said, 160)}"
        hint = "; pass read='text' for a server without them" if "log-prob" in status else ""
        raise StateError(
            f"the last {len(faults)} replies all failed ({status}){hint};"
            " what was judged is kept, call again to go on"
        )

    def _verdict(self, reply: Reply) -> Verdict | None:
        """The verdict of one reply; None without log-probabilities."""
        if not reply.ok:
            status = FAULT + one_line(reply.failure, 40)
            return Verdict(None, status, json.dumps({"fault": one_line(reply.detail)}))
        if self._read == "text":
            return self._verdict_of_text(reply.text)
        if not reply.logprobs or not reply.logprobs[0].top:
            return None
        candidates = reply.logprobs[0].top
        top = [[token, round(value, 10)] for token, value in candidates]
        raw = json.dumps({"top": top, "said": reply.text})
        tokens = [choice.token for choice in reply.logprobs]
        if _splits_numbers(tokens, [token for token, _ in candidates]):
            return Verdict(None, "split numbers", raw)
        return verdict_of(raw, self._mass, self._categories)

    def _verdict_of_text(self, text: str) -> Verdict:
        """The number that the reply begins with, or the category."""
        raw = json.dumps({"said": text})
        words = text.strip().strip(".*`\"'").split()
        if words and NUMBER.fullmatch(words[0].rstrip(".,;:*")):
            return Verdict(float(words[0].rstrip(".,;:*")), "ok", raw)
        for category in self._categories:
            if text.strip().startswith(category):
                return Verdict(None, category.lower(), raw)
        return Verdict(None, "no number", raw)


def _splits_numbers(tokens: Sequence[str], candidates: Sequence[str]) -> bool:
    """Whether the first token may be only the beginning of a number.

    It is where a digit follows it, and where no candidate has two digits: then every token of this
    tokenizer is one digit.
    """
    first = tokens[0].strip()
    if not first.isdigit():
        return False
    if len(tokens) > 1 and re.match("[0-9]", tokens[1]):
        return True
    has_two_digits = any(re.fullmatch("[0-9]{2,}", token.strip()) for token in candidates)
    return len(first) == 1 and not has_two_digits
