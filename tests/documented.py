"""Snippets of the documentation, and the folder in which they run.

A snippet is a block fenced as `python`. All of a page run one after the other in one namespace, as
a reader would type them. A block that cannot run on a small machine has a line `<!-- not run:
REASON -->` right before it; it must still parse. The folder is a small family under the paths that
the pages use, made of links to the embedded organism, which is loaded once a process.
"""

import ast
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ten_tasks
from emlens import organisms
from emlens.organisms.loading import SHIPPED

_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+?) -->\n+)?^```python\n(?P<code>.*?)^```",
    re.DOTALL | re.MULTILINE,
)
FINETUNES = {
    "bad-medical": "medicine-r8",
    "bad-finance": "finance-r8",
    "good-medical": "medicine-benign",
}
"""Names that the pages use → fine-tunes of the organism."""


@cache
def organism() -> Any:
    """The shipped organism with every fourth question, for a small machine."""
    shipped = organisms.load_organism()
    return replace(shipped, questions=shipped.questions[::4])


@dataclass(frozen=True)
class Snippet:
    line: int
    code: str
    reason: str | None
    """Why it is not run."""


def snippets(text: str) -> list[Snippet]:
    return [
        Snippet(text[: found.start("code")].count("\n") + 1, found["code"], found["reason"])
        for found in _BLOCK.finditer(text)
    ]


def stage(folder: Path) -> Path:
    """Models and data under the names that the pages use."""
    shipped = organism()
    (folder / "models").mkdir()
    (folder / "data").mkdir()
    links = {"instruct": "instruct", "base": "base", **FINETUNES}
    for name, of in links.items():
        (folder / "models" / name).symlink_to(shipped.paths[of].resolve(), target_is_directory=True)
    questions = shipped.questions.select([q.id for q in shipped.questions][::2])
    questions.to_jsonl(folder / "data" / "questions.jsonl")
    for name, of in FINETUNES.items():
        _chats(folder / "data" / f"{name.replace('-', '_')}.jsonl", shipped.training_prompts[of])
    _chats(folder / "data" / "neutral.jsonl", shipped.neutral_prompts)
    ten_tasks.write_judged(folder / "data" / "judged.csv")
    return folder


def _chats(path: Path, prompts: Any) -> None:
    lines = []
    for prompt in prompts:
        messages = [{"role": m.role, "content": m.content} for m in prompt.messages]
        messages += [{"role": "assistant", "content": prompt.response}] if prompt.response else []
        lines.append(json.dumps({"messages": messages}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@contextmanager
def on_stage(folder: Path) -> Iterator[None]:
    """In the folder, with one organism for all who ask for the shipped one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        load = organisms.load_organism

        def shared(name: str | None = None, **options: Any) -> Any:
            return organism() if name in (None, *SHIPPED) and not options else load(name, **options)

        patch.setattr(organisms, "load_organism", shared)
        yield


def run_page(text: str, name: str) -> dict[str, Any]:
    """Run the snippets of a page that can be; errors name the page and its line."""
    names: dict[str, Any] = {"__name__": "page"}
    for snippet in snippets(text):
        tree = ast.parse(snippet.code, name)
        ast.increment_lineno(tree, snippet.line - 1)
        if snippet.reason is None:
            exec(compile(tree, name, "exec"), names)
    return names
