"""Answers of an OpenAI-compatible endpoint: asked a few at a time, each on disk before the next one
is taken.

Killed, it repeats at most as many requests as are under way at once. What an endpoint is made of
and whether it keeps to `seed` is not known here; the file records its address, the model's name
there, and the settings that were sent.
"""

from collections import Counter
from pathlib import Path

from emlens.data.answers import Answers
from emlens.data.questions import QuestionSet
from emlens.data.rendering import split_thinking
from emlens.foundation.errors import InputError, StateError
from emlens.foundation.files import one_line
from emlens.foundation.seeds import derive_seed
from emlens.judging.answer_file import AnswerFile, blank_answers
from emlens.judging.endpoint import Endpoint
from emlens.judging.replies import ChatRequest
from emlens.runs.progress import progress_bar

_STREAK = 20
"""Failed replies in a row, at the least, after which an endpoint counts as down and is asked no
more.
"""


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
    thinking: bool | None = None,
) -> Answers:
    """`sample_answers` for an endpoint; a request that fails for good leaves its answer missing,
    and the rest are drawn first.

    Args:
        thinking: sent as `chat_template_kwargs`, which servers of open models understand; None
            sends nothing.

    Raises:
        InputError: no `out`, a length or temperature that cannot be, or an endpoint that refuses
            every request.
        StateError: answers are missing at the end: how many, and why.
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
    extra = {} if thinking is None else {"chat_template_kwargs": {"enable_thinking": thinking}}
    file = AnswerFile(
        out, blank_answers(endpoint.model, questions, samples, seed, lambda *_: settings)
    )
    missing = file.missing
    requests = (
        ChatRequest(
            file.blank(key).messages,
            max_new_tokens,
            float(temperature),
            seed=derive_seed(seed, "endpoint", key) % 2**31,
            extra=extra,
        )
        for key in missing
    )
    failed: Counter[str] = Counter()
    last, in_a_row, came = "", 0, 0
    with progress_bar(f"ask for {len(missing)} answers", len(missing), progress) as advance:
        for index, reply in endpoint.ask(requests):
            if reply.ok:
                thought, text = (
                    split_thinking(reply.text)
                    if thinking and "</think>" in reply.text
                    else (reply.reasoning, reply.text)
                )
                file.add([(missing[index], thought, text, reply.finish_reason)])
                in_a_row, came = 0, came + 1
            else:
                failed[reply.failure] += 1
                last, in_a_row = reply.detail, in_a_row + 1
            advance()
            if in_a_row >= max(_STREAK, 3 * endpoint.concurrency):
                break
    if failed:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in failed.most_common())
        raise StateError(
            f"{len(missing) - came} of {len(missing)} answers could not be had ({reasons};"
            f" the last: {one_line(last, 120)}); the others are in {out}: call again for the rest"
        )
    return file.finish()
