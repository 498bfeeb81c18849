"""Questions → sampled answers, each on disk before anything judges it.

Answers are drawn in chunks; with `out=` every finished chunk is published, and the same call goes on after the last one.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from emlens.data.answers import Answer, Answers
from emlens.data.prompts import Prompt
from emlens.data.questions import QuestionSet
from emlens.foundation.errors import InputError, IntegrityError
from emlens.foundation.files import one_line
from emlens.foundation.provenance import hash_json
from emlens.models.hooked import HookedModel
from emlens.runs.progress import progress_bar

CHUNK = 256


def sample_answers(
    model: HookedModel,
    questions: QuestionSet,
    samples: int = 50,
    temperature: float = 1.0,
    max_new_tokens: int = 600,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
) -> Answers:
    """Draw answers to every phrasing of every question, under any active intervention.

    An answer depends on the model, the question, the settings, the seed and its own number, not on its batch mates.

    Args:
        samples: answers a phrasing.
        out: a JSONL file; answers in it are kept and only the missing ones drawn. Each records in its `meta` what it was
            drawn with (temperature, length, weights, interventions), so that a file never mixes two settings.

    Raises:
        InputError: fewer than 1 sample, or what `model.generate` refuses.
        IntegrityError: `out` holds answers of another model, question, seed or setting, or more samples than asked for.
    """
    if samples < 1:
        raise InputError(f"samples={samples} must be 1 or more")
    settings = _settings(model, temperature, max_new_tokens)
    wanted: dict[str, tuple[Answer, Prompt]] = {}
    for question in questions:
        for p in range(1, len(question.paraphrases) + 1):
            for s in range(samples):
                blank = Answer(model.name, question.id, "", question.messages(p), p, s, question.group, "", seed, settings)
                wanted[blank.id] = (blank, Prompt(blank.id, question.paraphrases[p - 1], question.group, blank.messages))
    done = _already(out, wanted)
    missing = [key for key in wanted if key not in done]
    chunks = [missing[i : i + CHUNK] for i in range(0, len(missing), CHUNK)]
    with progress_bar(f"sample {len(missing)} answers", len(chunks), progress) as advance:
        for chunk in chunks:
            texts = model.generate([wanted[key][1] for key in chunk], max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
            for key, text in zip(chunk, texts, strict=True):
                done[key] = replace(wanted[key][0], text=text)
            if out is not None:
                Answers(done[key] for key in wanted if key in done).to_jsonl(out)
            advance()
    return Answers(done[key] for key in wanted)


def _settings(model: HookedModel, temperature: float, max_new_tokens: int) -> dict[str, Any]:
    adapter = model.provenance.get("adapter") or {}
    return {
        "temperature": float(temperature),
        "max_new_tokens": max_new_tokens,
        "weights": [model.provenance.get("weights_sha256"), adapter.get("sha256")],
        "interventions": hash_json([edit.describe() for edit in model.interventions]) if model.interventions else "",
    }


def _already(out: str | Path | None, wanted: dict[str, tuple[Answer, Prompt]]) -> dict[str, Answer]:
    if out is None or not Path(out).exists():
        return {}
    found = {answer.id: answer for answer in Answers.from_jsonl(out)}
    for key, answer in found.items():
        blank = wanted[key][0] if key in wanted else None
        if blank is None or (answer.seed, answer.messages, dict(answer.meta)) != (blank.seed, blank.messages, dict(blank.meta)):
            raise IntegrityError(
                f"{out}: holds answer {one_line(key)!r} that this call would not draw (another model, question, seed or setting, or more samples); "
                "pass another file"
            )
    return found
