"""What a server really does with a request, asked before answers are paid for.

Servers leave out what they do not know and say nothing: one ignores the temperature, another the
seed, `logprobs`, the system message or the adapter. Each is told here from a few short requests.

* `samples`: replies to one prompt under several seeds differ.
* `seed`: one seed gives one reply.
* `logprobs`: a reply has log-probabilities of the first token.
* `system`: a system message makes the prompt longer, by the server's own count of tokens.
* `adapter`: the first tokens are as probable as for the local model with its adapter, and not as
  for its parent or for another model.

A check that cannot tell says why. Cost: about eight requests of a few dozen tokens, and one per
prompt for `adapter`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch

from emlens.data.prompts import Message, Prompt, PromptSet
from emlens.foundation.errors import InputError, StateError
from emlens.foundation.files import one_line
from emlens.judging.endpoint import Endpoint
from emlens.judging.replies import ChatRequest, Reply
from emlens.models.hooked import HookedModel

CheckName = Literal["answers", "samples", "seed", "logprobs", "system", "adapter"]
_OPEN_PROMPT: Final = "Write a list of twenty different English words, in any order."
_PROBE_TOKENS: Final = 40
_SEEDS: Final = (101, 202, 303)
_LONG_SYSTEM: Final = "You are asked about words. " * 12
_TOP: Final = 20
_LEAST_GAP: Final = 0.02
"""Nats. An adapter that moves first tokens less cannot be told from its parent: quantised weights
and other kernels move them as much.
"""
_NOISE: Final = 0.2
"""Nats that weights of four bits move log-probabilities by, doubled (.11 on SmolLM2)."""
_CLOSE: Final = 1 / 8
"""Of the distance between adapter and parent. Another adapter that was trained on the same
questions lies at a quarter of it (`docs/evidence/served_adapters.json`).
"""
_COMPARED_TOKENS: Final = 24


@dataclass(frozen=True)
class ServerCheck:
    """One thing that a server was asked.

    Args:
        ok: None where it cannot be told.
        detail: what was seen, and what to do.
    """

    name: CheckName
    ok: bool | None
    detail: str


def check_server(endpoint: Endpoint, *, temperature: float = 1.0) -> list[ServerCheck]:
    """Whether a server answers, samples, follows the seed, gives log-probabilities and reads the
    system message.

    Args:
        temperature: at which answers will be drawn.

    Raises:
        InputError: the endpoint refuses the key, or knows neither path nor model; a temperature of
            0, at which nothing is sampled.
    """
    if not temperature > 0:
        raise InputError(
            f"temperature={temperature} must be above 0 to see whether a server samples"
        )
    by_seed = _asked(endpoint, [_probe(temperature, seed) for seed in (*_SEEDS, _SEEDS[0])])
    failed = next((reply for reply in by_seed if not reply.ok), None)
    if failed is not None:
        return [ServerCheck("answers", False, f"{failed.failure}: {failed.detail}")]
    texts = [reply.text for reply in by_seed]
    return [
        ServerCheck("answers", True, f"replies as model {one_line(by_seed[0].model, 60)!r}"),
        _samples(texts[:-1], temperature),
        _seed(texts),
        _logprobs(endpoint),
        _system(endpoint),
    ]


def require_sampling(endpoint: Endpoint, temperature: float) -> None:
    """Refuse a server that gives one reply whatever the seed.

    Raises:
        StateError: it does not sample.
    """
    replies = _asked(endpoint, [_probe(temperature, seed) for seed in _SEEDS])
    texts = [reply.text for reply in replies if reply.ok]
    if len(texts) < 2 or len(set(texts)) > 1:
        return
    raise StateError(
        f"the server at {endpoint.base_url} does not sample: at temperature {temperature:g} it"
        " gives the same text for every sample and every seed, so samples are no independent"
        " evidence; start it so that it samples (a generation config with do_sample: true), or"
        " draw one sample at temperature 0"
    )


def check_adapter(
    endpoint: Endpoint,
    prompts: PromptSet,
    tuned: HookedModel,
    parent: HookedModel,
) -> ServerCheck:
    """Whether a server's first tokens are those of `tuned`, of its `parent`, or of neither.

    Compared are the log-probabilities of the server's own candidates; where it gives none, its
    greedy texts.

    Args:
        prompts: a few chats, on which adapter and parent differ.
        tuned, parent: the local models.
    """
    requests = [_first_token(prompt) for prompt in prompts]
    replies = _asked(endpoint, requests)
    failed = next((reply for reply in replies if not reply.ok), None)
    if failed is not None:
        return ServerCheck("adapter", None, f"{failed.failure}: {failed.detail}")
    if all(reply.logprobs and reply.logprobs[0].top for reply in replies):
        return _by_logprobs(replies, prompts, tuned, parent)
    return _by_texts(endpoint, prompts, tuned, parent)


def _asked(endpoint: Endpoint, requests: Sequence[ChatRequest]) -> list[Reply]:
    """Replies in the order of the requests."""
    replies = dict(endpoint.ask(requests))
    return [replies[i] for i in range(len(requests))]


def _probe(temperature: float, seed: int) -> ChatRequest:
    return ChatRequest((Message("user", _OPEN_PROMPT),), _PROBE_TOKENS, temperature, seed=seed)


def _samples(texts: Sequence[str], temperature: float) -> ServerCheck:
    if len(set(texts)) > 1:
        return ServerCheck("samples", True, f"{len(set(texts))} texts under {len(texts)} seeds")
    return ServerCheck(
        "samples",
        False,
        f"one text under {len(texts)} seeds at temperature {temperature:g}: it does not sample, so"
        " draw one sample at temperature 0, or start it so that it samples",
    )


def _seed(texts: Sequence[str]) -> ServerCheck:
    first, again = texts[0], texts[-1]
    if len(set(texts)) == 1:
        return ServerCheck("seed", None, "cannot be told of a server that does not sample")
    if first == again:
        return ServerCheck("seed", True, "one seed gives one text")
    return ServerCheck(
        "seed", False, "one seed gave two texts: answers cannot be drawn again, so keep the file"
    )


def _logprobs(endpoint: Endpoint) -> ServerCheck:
    [reply] = _asked(endpoint, [_first_token(Prompt("", _OPEN_PROMPT))])
    if reply.ok and reply.logprobs and reply.logprobs[0].top:
        return ServerCheck("logprobs", True, f"{len(reply.logprobs[0].top)} candidates a token")
    why = reply.detail if not reply.ok else "the reply has none"
    return ServerCheck(
        "logprobs", False, f"{why}: as a judge it can be read by its text alone (--set read=text)"
    )


def _first_token(prompt: Prompt) -> ChatRequest:
    messages = prompt.messages or (Message("user", prompt.text),)
    return ChatRequest(messages, 1, 0.0, top_logprobs=_TOP)


def _system(endpoint: Endpoint) -> ServerCheck:
    user = Message("user", _OPEN_PROMPT)
    system = Message("system", _LONG_SYSTEM.strip())
    plain, told = _asked(
        endpoint, [ChatRequest((user,), 1, 0.0), ChatRequest((system, user), 1, 0.0)]
    )
    if not plain.ok or not told.ok:
        failed = told if plain.ok else plain
        return ServerCheck("system", None, f"{failed.failure}: {failed.detail}")
    if not plain.prompt_tokens or not told.prompt_tokens:
        return ServerCheck("system", None, "cannot be told: it does not count prompt tokens")
    longer = told.prompt_tokens - plain.prompt_tokens
    if longer > 0:
        return ServerCheck(
            "system", True, f"a system message makes the prompt {longer} tokens longer"
        )
    return ServerCheck(
        "system", False, "a system message does not make the prompt longer: it is ignored"
    )


def _by_logprobs(
    replies: Sequence[Reply], prompts: PromptSet, tuned: HookedModel, parent: HookedModel
) -> ServerCheck:
    of_tuned = tuned.logits(prompts).log_softmax(-1)
    of_parent = parent.logits(prompts).log_softmax(-1)
    served, in_process, before = [], [], []
    for row, reply in enumerate(replies):
        for text, logprob in reply.logprobs[0].top if reply.logprobs else ():
            token = _token_of(tuned, text)
            if token is not None:
                served.append(logprob)
                in_process.append(float(of_tuned[row, token]))
                before.append(float(of_parent[row, token]))
    if len(served) < len(replies):
        return ServerCheck(
            "adapter", False, "its tokens are not those of this model: another model is served"
        )
    gap = _mean_difference(in_process, before)
    to_tuned, to_parent = _mean_difference(served, in_process), _mean_difference(served, before)
    what_was_asked = (
        f"mean difference of log-probabilities over {len(served)} candidates: {to_tuned:.3f} from"
        f" the adapter, {to_parent:.3f} from the parent, which differ by {gap:.3f}"
    )
    close = max(_CLOSE * gap, min(_NOISE, gap / 2))
    return _nearest(to_tuned, to_parent, gap, _LEAST_GAP, close, what_was_asked)


def _nearest(
    to_tuned: float, to_parent: float, gap: float, least_gap: float, close: float, seen: str
) -> ServerCheck:
    """Which of two models a server is: the one that is nearer than `close`, if any."""
    if gap < least_gap:
        return ServerCheck("adapter", None, f"cannot be told on these prompts ({seen})")
    if to_tuned <= close:
        return ServerCheck("adapter", True, f"the adapter is applied ({seen})")
    if to_parent <= close:
        return ServerCheck(
            "adapter", False, f"the adapter is ignored: the parent is served ({seen})"
        )
    return ServerCheck("adapter", False, f"another model or adapter is served ({seen})")


def _token_of(model: HookedModel, text: str) -> int | None:
    """The token that reads as this text; None where there is none, or several."""
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    if len(ids) == 1 and model.tokenizer.decode(ids) == text:
        return int(ids[0])
    return None


def _mean_difference(a: Sequence[float], b: Sequence[float]) -> float:
    return float((torch.tensor(a) - torch.tensor(b)).abs().mean())


def _by_texts(
    endpoint: Endpoint, prompts: PromptSet, tuned: HookedModel, parent: HookedModel
) -> ServerCheck:
    """The same by greedy texts: how large a share of prompts has another text than each model."""
    requests = []
    for prompt in prompts:
        messages = prompt.messages or (Message("user", prompt.text),)
        requests.append(ChatRequest(messages, _COMPARED_TOKENS, 0.0))
    served = [reply.text.strip() for reply in _asked(endpoint, requests)]
    by_adapter, before = _greedy(tuned, prompts), _greedy(parent, prompts)
    gap = _share_different(by_adapter, before)
    to_tuned, to_parent = _share_different(served, by_adapter), _share_different(served, before)
    what_was_asked = (
        f"no log-probabilities; of {len(prompts)} greedy texts {to_tuned:.0%} differ from the"
        f" adapter's and {to_parent:.0%} from the parent's, {gap:.0%} between the two"
    )
    # quantised weights change every second greedy text
    return _nearest(to_tuned, to_parent, gap, 0.5, gap / 2, what_was_asked)


def _greedy(model: HookedModel, prompts: PromptSet) -> list[str]:
    texts = model.generate(prompts, max_new_tokens=_COMPARED_TOKENS, temperature=0.0)
    return [text.strip() for text in texts]


def _share_different(a: Sequence[str], b: Sequence[str]) -> float:
    different = [left != right for left, right in zip(a, b, strict=True)]
    return sum(different) / len(different)
