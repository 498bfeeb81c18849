"""Persona traits: the JSON that persona-vector work passes around (2507.21509).

    {"instruction": [{"pos": system prompt, "neg": its counterpart}, ...], "questions": [...],
    "eval_prompt": judge's prompt}

The trait's name is the file's. The questions are read by `QuestionSet.from_json` too; this adds the
pairs of system prompts.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emlens.data.readers import read_json_text
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line

if TYPE_CHECKING:
    from emlens.data.questions import QuestionSet


@dataclass(frozen=True)
class PersonaTrait:
    """A trait: its questions, and system prompts that ask for it and, pair by pair, for its
    opposite.
    """

    name: str
    questions: "QuestionSet"
    positive: tuple[str, ...]
    negative: tuple[str, ...]


def read_persona_trait(path: str | Path) -> PersonaTrait:
    """A persona trait with its system prompts, for `directions.persona_questions`.

    Raises:
        InputError: no trait, a pair without `pos` and `neg`, or a question that is broken: file,
            entry and reason.
    """
    from emlens.data.questions import QuestionSet

    content = read_json_text(path)
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: holds a {type(content).__name__};"
            " a persona trait is an object with 'instruction' and 'questions'"
        )
    pairs = content.get("instruction")
    if not isinstance(pairs, list) or not pairs:
        raise InputError(
            f"{path}: has no list under 'instruction';"
            f" found keys {[one_line(key, 40) for key in sorted(content)[:8]]}"
        )
    sides: dict[str, list[str]] = {"pos": [], "neg": []}
    for number, pair in enumerate(pairs, start=1):
        for side, texts in sides.items():
            text = pair.get(side) if isinstance(pair, Mapping) else None
            if not isinstance(text, str) or not text.strip():
                raise InputError(
                    f"{path}, instruction {number}: has no text under {side!r};"
                    " each needs 'pos' and 'neg'"
                )
            texts.append(text)
    return PersonaTrait(
        Path(path).stem, QuestionSet.from_json(path), tuple(sides["pos"]), tuple(sides["neg"])
    )


def persona_records(
    path: str | Path, content: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and record of each question of a trait."""
    trait, questions = Path(path).stem, content.get("questions")
    if not isinstance(questions, list) or not questions:
        raise InputError(
            f"{path}: has no list under 'questions';"
            f" found keys {[one_line(key, 40) for key in sorted(content)[:8]]}"
        )
    judged = (
        {"judge_prompts": {trait: content["eval_prompt"]}}
        if content.get("eval_prompt") is not None
        else {}
    )
    for number, text in enumerate(questions, start=1):
        yield (
            f"{path}, question {number}",
            {
                "id": f"{trait}_{number}",
                "text": text,
                "group": trait,
                "type": "persona",
                **judged,
            },
        )
