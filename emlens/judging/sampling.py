"""Questions → sampled answers of a model in this process or of an endpoint, each on disk before
anything judges it.

A model's rows are generated under any active intervention; rows that finish leave, and others take
their place. A row's answer does not depend on its batch mates (exactly so in float32 on the same
thread count). The answers file is written as answers come, and the same call goes on after the last
one. What an endpoint answers is up to it: `seed` is only handed over.
"""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emlens.data.answers import Answers
from emlens.data.prompts import Prompt
from emlens.data.questions import Question, QuestionSet
from emlens.data.rendering import split_thinking, with_thinking
from emlens.foundation.files import sha256_text
from emlens.foundation.provenance import hash_json
from emlens.judging.answer_file import AnswerFile, blank_answers
from emlens.judging.endpoint import Endpoint
from emlens.judging.endpoint_sampling import sample_from_endpoint
from emlens.models.hooked import GENERATION_TOKENS, HookedModel
from emlens.runs.progress import progress_bar

SYNC_SECONDS = 5.0
"""Answers are in the file as soon as they end, so that a kill loses none; so often they are flushed
through to the disk, for a power cut.
"""


def sample_answers(
    model: HookedModel | Endpoint,
    questions: QuestionSet,
    samples: int = 50,
    temperature: float = 1.0,
    max_new_tokens: int = 600,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
    *,
    thinking: bool | None = None,
    batch_tokens: int = GENERATION_TOKENS,
) -> Answers:
    """Draw answers to every phrasing of every question, under any active intervention.

    An answer depends on the model, the rendered question, the settings, the seed and its own
    number, not on its batch mates.

    Args:
        model: a model of this process, or an `Endpoint`.
        samples: answers a phrasing.
        out: a JSONL file; answers in it are kept and only the missing ones drawn. Each records in
            its `meta` what it was drawn with (temperature, length, weights, interventions, the
            rendered prompt's hash), so that a file never mixes two settings or templates. Needed
            for an endpoint, whose answers are paid for.
        thinking: switches the thinking mode of the chat template on or off; must be said where the
            template has one. The thought is kept in `meta["thought"]` and is no part of the answer.
        batch_tokens: tokens that a model's rows under way may hold (`HookedModel.generate`).

    Raises:
        InputError: fewer than 1 sample, an endpoint without `out`, `thinking` that does not fit the
            template, or what `model.generate` refuses.
        IntegrityError: `out` holds answers of another model, question, template, seed or setting,
            or more samples than asked for.
        StateError: an endpoint did not give every answer; those that came are in `out`.
    """
    if isinstance(model, Endpoint):
        return sample_from_endpoint(
            model,
            questions,
            samples,
            temperature,
            max_new_tokens,
            seed,
            out,
            progress,
            thinking=thinking,
        )
    with _thinking(model, thinking) as model:
        general = _settings(model, temperature, max_new_tokens)

        def settings(question: Question, paraphrase: int) -> dict[str, Any]:
            [row] = model.render(
                [
                    Prompt(
                        question.id,
                        question.paraphrases[paraphrase - 1],
                        messages=question.messages(paraphrase),
                    )
                ]
            )
            return {**general, "prompt_sha256": sha256_text(",".join(map(str, row.ids)))}

        file = AnswerFile(out, blank_answers(model.name, questions, samples, seed, settings))
        missing = file.missing
        blanks = [file.blank(key) for key in missing]
        prompts = [
            Prompt(blank.id, blank.messages[-1].content, blank.group, blank.messages)
            for blank in blanks
        ]
        synced = time.monotonic()
        with progress_bar(f"sample {len(missing)} answers", len(missing), progress) as advance:
            parts = (
                model.generate_each(
                    prompts,
                    max_new_tokens=max_new_tokens,
                    temperature=temperature,
                    seed=seed,
                    batch_tokens=batch_tokens,
                )
                if prompts
                else iter(())
            )
            for part in parts:
                due = time.monotonic() - synced > SYNC_SECONDS
                synced = time.monotonic() if due else synced
                file.add(
                    [
                        (missing[index], *_told_apart(text, thinking), reason)
                        for index, text, reason in part
                    ],
                    sync=due,
                )
                advance(len(part))
        return file.finish()


def _told_apart(text: str, thinking: bool | None) -> tuple[str, str]:
    """(thought, answer)."""
    return split_thinking(text) if thinking else ("", text)


@contextmanager
def _thinking(model: HookedModel, thinking: bool | None) -> Iterator[HookedModel]:
    """The model with its template's thinking mode switched, under the same interventions."""
    template = with_thinking(model.chat_template, thinking)
    if template == model.chat_template:
        yield model
        return
    other = copy.copy(model)
    other.chat_template = template
    with other.intervene(model.interventions):
        yield other


def _settings(model: HookedModel, temperature: float, max_new_tokens: int) -> dict[str, Any]:
    adapter = model.provenance.get("adapter") or {}
    return {
        "temperature": float(temperature),
        "max_new_tokens": max_new_tokens,
        "weights": [model.provenance.get("weights_sha256"), adapter.get("sha256")],
        "dtype": model.provenance.get("dtype"),
        "interventions": (
            hash_json([edit.describe() for edit in model.interventions])
            if model.interventions
            else ""
        ),
    }
