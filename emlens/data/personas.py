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
    """A trait: its questions, and pairs of system prompts.

    `positive` ask for the trait; `negative`, in the same order, for its opposite.
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
    positive, negative = [], []
    for number, pair in enumerate(_list_under(content, "instruction", path), start=1):
        where = f"{path}, instruction {number}"
        positive.append(_prompt(pair, "pos", where))
        negative.append(_prompt(pair, "neg", where))
    return PersonaTrait(
        Path(path).stem, QuestionSet.from_json(path), tuple(positive), tuple(negative)
    )


def _list_under(content: Mapping[str, Any], key: str, path: str | Path) -> list[Any]:
    items = content.get(key)
    if not isinstance(items, list) or not items:
        keys = [one_line(name, 40) for name in sorted(content)[:8]]
        raise InputError(f"{path}: has no list under {key!r}; found keys {keys}")
    return items


def _prompt(pair: Any, key: str, where: str) -> str:
    text = pair.get(key) if isinstance(pair, Mapping) else None
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where}: has no text under {key!r}; each needs 'pos' and 'neg'")
    return text


def persona_records(
    path: str | Path, content: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and record of each question of a trait."""
    trait = Path(path).stem
    fields: dict[str, Any] = {"group": trait, "type": "persona"}
    if content.get("eval_prompt") is not None:
        fields["judge_prompts"] = {trait: content["eval_prompt"]}
    for number, text in enumerate(_list_under(content, "questions", path), start=1):
        record = {"id": f"{trait}_{number}", "text": text, **fields}
        yield f"{path}, question {number}", record
