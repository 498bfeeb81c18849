"""Questions → sampled answers, each on disk before anything judges it.

Answers are drawn in chunks; with `out=` every finished chunk is published, and the same call goes on after the last one.
"""

from pathlib import Path

from emlens.data.answers import Answer, Answers
from emlens.data.prompts import Prompt
from emlens.data.questions import QuestionSet
from emlens.foundation.errors import InputError, IntegrityError
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

    An answer depends on the model, the question, the seed and its own number, not on its batch mates.

    Args:
        samples: answers a phrasing.
        out: a JSONL file; answers in it are kept and only the missing ones drawn.

    Raises:
        InputError: fewer than 1 sample, or what `model.generate` refuses.
        IntegrityError: `out` holds answers of another model, seed or question.
    """
    if samples < 1:
        raise InputError(f"samples={samples} must be 1 or more")
    wanted: dict[str, tuple[Answer, Prompt]] = {}
    for question in questions:
        for p in range(1, len(question.paraphrases) + 1):
            for s in range(samples):
                blank = Answer(model.name, question.id, "", question.messages(p), p, s, question.group, "", seed)
                wanted[blank.id] = (blank, Prompt(blank.id, question.paraphrases[p - 1], question.group, blank.messages))
    done = _already(out, wanted, seed)
    missing = [key for key in wanted if key not in done]
    chunks = [missing[i : i + CHUNK] for i in range(0, len(missing), CHUNK)]
    with progress_bar(f"sample {len(missing)} answers", len(chunks), progress) as advance:
        for chunk in chunks:
            texts = model.generate([wanted[key][1] for key in chunk], max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
            for key, text in zip(chunk, texts, strict=True):
                blank = wanted[key][0]
                done[key] = Answer(
                    blank.model, blank.question, text, blank.messages, blank.paraphrase, blank.sample, blank.group, "", seed
                )
            if out is not None:
                Answers(done[key] for key in wanted if key in done).to_jsonl(out)
            advance()
    return Answers(done[key] for key in wanted)


def _already(out: str | Path | None, wanted: dict[str, tuple[Answer, Prompt]], seed: int) -> dict[str, Answer]:
    if out is None or not Path(out).exists():
        return {}
    found = {answer.id: answer for answer in Answers.from_jsonl(out)}
    for key, answer in found.items():
        if key not in wanted or answer.seed != seed or answer.messages != wanted[key][0].messages:
            raise IntegrityError(f"{out}: holds answer {key!r} that this call would not draw (another model, question or seed); pass another file")
    return found
