"""A request to a chat endpoint, and its reply: text, log-probabilities, tokens used.

A server is not trusted: a field that is missing, of another type, or no text makes the reply a
fault (to be tried again) instead of an error somewhere later. Missing log-probabilities are None;
the caller decides what that means.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from emlens.data.prompts import Message


class Fault(Exception):
    """Why one attempt gave no reply.

    Args:
        passing: worth another attempt, after at least `retry_after` seconds.
    """

    def __init__(self, kind: str, detail: str, *, passing: bool = False, retry_after: float = 0.0):
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail, self.passing, self.retry_after = kind, detail, passing, retry_after


@dataclass(frozen=True)
class ChatRequest:
    """One request.

    Args:
        messages: the chat.
        max_tokens: length of the answer at most.
        top_logprobs: candidates per token whose log-probabilities are returned (0: none; most
            servers allow 20).
        seed: sent to the server, which may ignore it.
        extra: further fields of the body, such as `{"chat_template_kwargs": {"enable_thinking":
            False}}`.
    """

    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float = 1.0
    top_p: float | None = None
    top_logprobs: int = 0
    seed: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def body(self, model: str, length: str = "max_tokens") -> dict[str, Any]:
        """The JSON body for `model`.

        Args:
            length: what the server calls the greatest length of the answer.
        """
        body: dict[str, Any] = {
            "model": model,
            "messages": [message.to_record() for message in self.messages],
            length: self.max_tokens,
            "temperature": self.temperature,
        }
        if self.top_p is not None:
            body["top_p"] = self.top_p
        if self.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        if self.seed is not None:
            body["seed"] = self.seed
        return {**body, **self.extra}


@dataclass(frozen=True)
class TokenChoice:
    """One token of an answer.

    Args:
        logprob: in nats.
        top: the candidates (text, log-probability), in the server's order.
    """

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Reply:
    """What came back for one request.

    Args:
        text: the answer; empty where `failure` is set.
        finish_reason: `"stop"`, `"length"`, `"content_filter"`, ...
        logprobs: one entry per token, or None where the server gave none.
        reasoning: the thinking that some servers return apart from the answer.
        failure: empty, or why there is no answer: `rate limited`, `server error`, `timeout`,
            `connection`, `not JSON`, `encoding`, `malformed reply`, `refused`, `too long`,
            `budget`.
        detail: one line on the last fault.
        attempts: requests sent for it.
        model: the model's name as the server reports it.
    """

    text: str = ""
    finish_reason: str = ""
    logprobs: tuple[TokenChoice, ...] | None = None
    reasoning: str = ""
    failure: str = ""
    detail: str = ""
    attempts: int = 1
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model: str = ""

    @property
    def ok(self) -> bool:
        return not self.failure


def read_reply(content: Any) -> Reply:
    """The reply in a chat completion's JSON.

    Raises:
        Fault: `malformed reply`, worth another attempt: not a chat completion, or text that is not
            text.
    """
    choice, message = _choice_and_message(content)
    text = message.get("content")
    if text is None:
        # a refusal, or thinking that used up the length
        text = message.get("refusal") or ""
    return Reply(
        _text(text, "content"),
        _text(choice.get("finish_reason") or "", "finish_reason"),
        _logprobs(choice.get("logprobs")),
        _text(message.get("reasoning_content") or message.get("reasoning") or "", "reasoning"),
        prompt_tokens=_token_count(content, "prompt_tokens"),
        completion_tokens=_token_count(content, "completion_tokens"),
        model=_text(content.get("model") or "", "model"),
    )


def _choice_and_message(content: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """`choices[0]` and its message."""
    choices = content.get("choices") if isinstance(content, Mapping) else None
    if isinstance(choices, list) and choices and isinstance(choices[0], Mapping):
        message = choices[0].get("message")
        if isinstance(message, Mapping):
            return choices[0], message
    raise Fault("malformed reply", "no choices[0].message", passing=True)


def _token_count(content: Mapping[str, Any], name: str) -> int:
    """Tokens used as the server reports them; 0 where it reports no sensible number."""
    usage = content.get("usage")
    count = usage.get(name) if isinstance(usage, Mapping) else 0
    if isinstance(count, int) and 0 <= count < 2**40:
        return count
    return 0


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise Fault("malformed reply", f"{name} is a {type(value).__name__}", passing=True)
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise Fault("malformed reply", f"{name} holds half a surrogate pair", passing=True)
    return value


def _logprobs(value: Any) -> tuple[TokenChoice, ...] | None:
    tokens = value.get("content") if isinstance(value, Mapping) else None
    if not isinstance(tokens, list) or not tokens:
        return None
    choices = []
    for item in tokens:
        token, logprob = _token_and_logprob(item)
        top = item.get("top_logprobs") or []
        if not isinstance(top, list):
            raise Fault("malformed reply", f"top_logprobs is a {type(top).__name__}", passing=True)
        choices.append(TokenChoice(token, logprob, tuple(map(_token_and_logprob, top))))
    return tuple(choices)


def _is_logprob(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    # a little above 0 by the server's rounding; NaN fails
    return value == -math.inf or -1e300 < value <= 1e-3


def _token_and_logprob(item: Any) -> tuple[str, float]:
    value: Any = item.get("logprob") if isinstance(item, Mapping) else None
    if not _is_logprob(value):
        raise Fault(
            "malformed reply",
            "a log-probability is missing or is not a number of 0 or less",
            passing=True,
        )
    token = item.get("token")
    if not isinstance(token, str):
        raise Fault("malformed reply", f"a token is a {type(token).__name__}", passing=True)
    return token, float(value)
