"""Questions → sampled answers of a model in this process, or of an endpoint.

Each answer is on disk before anything judges it. A model's rows are generated under any active
intervention; rows that finish leave the batch, and others take their place. The answer of a row
does not depend on its batch mates, but for rounding. So answers are drawn in fixed groups
(`emlens.judging.drawing_groups`): the file is written as answers come, and the same call draws an
unfinished group anew and ends with the same bytes as one that was never cut. An endpoint may
ignore `seed`.
"""

import copy
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from emlens.data.answers import Answer, Answers
from emlens.data.prompt_inputs import as_questions
from emlens.data.prompts import Prompt
from emlens.data.questions import Question, QuestionSet
from emlens.data.templates import Thinking, split_thinking, with_thinking
from emlens.foundation.files import sha256_text
from emlens.foundation.provenance import hash_json
from emlens.judging.answer_file import (
    AnswerFile,
    DrawnAnswer,
    OtherAnswers,
    answer_file,
    blank_answers,
)
from emlens.judging.drawing_groups import call_key, cut_groups, prompt_of
from emlens.judging.endpoint import Endpoint
from emlens.judging.endpoint_sampling import sample_from_endpoint
from emlens.models.hooked import GENERATION_TOKENS, HookedModel
from emlens.runs.progress import progress_bar

_log = logging.getLogger("emlens")
SYNC_SECONDS = 5.0
"""How often answers are flushed to the disk itself, against a power cut.

Against a kill they are in the file as soon as they end.
"""


def sample_answers(
    model: HookedModel | Endpoint,
    questions: QuestionSet | str | Iterable[str],
    samples: int = 50,
    temperature: float = 1.0,
    max_new_tokens: int = 600,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
    *,
    thinking: Thinking = None,
    others: OtherAnswers = "refuse",
    batch_tokens: int = GENERATION_TOKENS,
) -> Answers:
    """Draw answers to every paraphrase of every question, under any active intervention.

    An answer depends on the model, the rendered question, the settings, the seed and its own
    number, and but for rounding not on its batch mates. The same call with the same number of
    threads gives the same bytes, wherever it was cut and gone on with.

    Args:
        model: a model of this process, or an `Endpoint`.
        questions: a `QuestionSet`; or a text or several, which are asked as they are.
        samples: answers per paraphrase.
        out: a JSONL file; answers in it are kept and only the missing ones drawn. Each records in
            its `meta` what it was drawn with (temperature, length, weights, interventions, the
            rendered prompt's hash), so that a file never mixes two settings or templates. Needed
            for an endpoint, whose answers are paid for.
        thinking: switches the thinking mode of the chat template on or off; must be passed where
            the template has one. "strip" switches nothing and takes a thought off the answer, for
            models that think by themselves. A thought is kept in `Answer.thought`, apart from the
            answer, also where the template opens one or the answer begins with `<think>`; an answer
            whose thought did not end is empty.
        others: with `"keep"`, `out` may hold answers that this call would not draw: they stay
            there, and the file serves further questions, samples and settings. With `"other ids"`
            only those of other models, questions and sample numbers stay.
        batch_tokens: tokens of all rows generated at once at most (`HookedModel.generate`). It
            decides which answers are drawn side by side, and so the last digits of a logit: an
            unfinished file that is gone on with under another number keeps its answers, and is
            that of neither call.
        max_new_tokens: length of an answer at most, with its thought.

    Raises:
        InputError: fewer than 1 sample, an endpoint without `out`, `thinking` that does not fit the
            template, or what `model.generate` refuses.
        IntegrityError: `out` holds answers of another model, question, template, seed or setting,
            or more samples than asked for, and `others` is `"refuse"`.
        StateError: an endpoint did not give every answer; those that were received are in `out`.
    """
    questions = as_questions(questions)
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
            others=others,
        )
    with thinking_model(model, thinking) as model:
        blank = blanks_of(model, questions, samples, temperature, max_new_tokens, seed)
        call = call_key(model, blank, batch_tokens)
        with answer_file(out, blank, others, call) as file:
            return _sampled(
                model, file, temperature, max_new_tokens, seed, thinking, batch_tokens, progress
            )


def blanks_of(
    model: HookedModel,
    questions: QuestionSet,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
) -> dict[str, Answer]:
    """Every answer that a call is to draw, without its text, by id.

    Raises:
        InputError: fewer than 1 sample.
    """
    settings = partial(_settings_of, model, sampling_settings(model, temperature, max_new_tokens))
    return blank_answers(model.name, questions, samples, seed, settings)


def _sampled(
    model: HookedModel,
    file: AnswerFile,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    thinking: Thinking,
    batch_tokens: int,
    progress: bool,
) -> Answers:
    """Draw the groups of which a file lacks an answer."""
    own = [file.blank(id) for id in file.own]
    missing = set(file.missing)
    groups = [
        [file.blank(id) for id in group]
        for group in cut_groups(model, own, max_new_tokens, batch_tokens)
        if not missing.isdisjoint(group)
    ]
    if not groups:
        return file.finish()
    if len(own) < file.size:
        _log.info(
            "%d of %d answers were left by another call (other questions, samples or batch_tokens,"
            " or an earlier version); they are kept, and the others are drawn without them",
            file.size - len(own),
            file.size,
        )
    total = sum(map(len, groups))
    synced = time.monotonic()
    with progress_bar(f"sample {total} answers", total, progress, unit="tokens") as advance:
        for group in groups:
            for drawn in draw_group(
                model, group, temperature, max_new_tokens, seed, thinking, batch_tokens
            ):
                is_due = time.monotonic() - synced > SYNC_SECONDS
                if is_due:
                    synced = time.monotonic()
                file.add(drawn, sync=is_due)
                advance(len(drawn), _tokens_in(model, drawn))
    return file.finish()


def draw_group(
    model: HookedModel,
    blanks: Sequence[Answer],
    temperature: float,
    max_new_tokens: int,
    seed: int,
    thinking: Thinking,
    batch_tokens: int,
) -> Iterator[list[DrawnAnswer]]:
    """Draw answers side by side, a few at a time as they end.

    Args:
        model: its template has the thinking mode that `thinking` asks for (`thinking_model`).
        blanks: one group of `cut_groups`.
    """
    opened = _begins_in_thought(model, thinking)
    for generated in model.generate_each(
        [prompt_of(blank) for blank in blanks],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        batch_tokens=batch_tokens,
    ):
        drawn = []
        for index, text, finish_reason in generated:
            thought, answer = split_thinking(text, opened=opened)
            drawn.append(DrawnAnswer(blanks[index].id, thought, answer, finish_reason))
        yield drawn


def _tokens_in(model: HookedModel, drawn: Sequence[DrawnAnswer]) -> int:
    """How many tokens these answers are, for the speed that is shown."""
    texts = [answer.thought + answer.text for answer in drawn]
    return sum(len(model.tokenizer.encode(text, add_special_tokens=False)) for text in texts)


def _begins_in_thought(model: HookedModel, thinking: Thinking) -> bool | None:
    """`opened` of `split_thinking` for answers of this model.

    A model that is to think opens the thought itself where the template does not, or it does not
    think: what it writes then is its answer.
    """
    if model.opens_thought:
        return True
    if thinking in (True, "strip"):
        return None
    return False


@contextmanager
def thinking_model(model: HookedModel, thinking: Thinking) -> Iterator[HookedModel]:
    """The model with its template's thinking mode switched, under the same interventions."""
    template = with_thinking(model.chat_template, thinking, opens_thought=model.opens_thought)
    if template == model.chat_template:
        yield model
        return
    # a shallow copy shares the weights; the caller's model keeps its template
    switched = copy.copy(model)
    switched.chat_template = template
    with switched.edited_like(model):
        yield switched


def _settings_of(
    model: HookedModel, settings: Mapping[str, Any], question: Question, paraphrase: int
) -> dict[str, Any]:
    """The settings of a call, with the hash of one rendered prompt."""
    text, messages = question.paraphrases[paraphrase - 1], question.messages(paraphrase)
    [row] = model.render([Prompt(question.id, text, messages=messages)])
    return {**settings, "prompt_sha256": sha256_text(",".join(map(str, row.ids)))}


def sampling_settings(
    model: HookedModel, temperature: float, max_new_tokens: int
) -> dict[str, Any]:
    """What answers are drawn with; recorded in the `meta` of each."""
    adapter = model.provenance.get("adapter") or {}
    interventions = ""
    edits = model.edit_records()
    if edits:
        interventions = hash_json(edits)
    return {
        "temperature": float(temperature),
        "max_new_tokens": max_new_tokens,
        "weights": [model.provenance.get("weights_sha256"), adapter.get("sha256")],
        "config": model.provenance.get("config_sha256"),
        "dtype": model.provenance.get("dtype"),
        "interventions": interventions,
        "stops": [sorted(model.stops.ids), list(model.stops.texts)],
    }
