"""The ten tasks of docs/ten_tasks.md on SmolLM2: whether each runs at the first try, and how long
it takes.

The page's own snippets are run, one after the other, in a folder with SmolLM2, two random adapters
of it, 40 questions of the advice and a judged table. Nothing is learnt about models: adapters are
random.
"""

import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from benchmarks.records import record
from emlens.data import Question, QuestionSet
from emlens.data.advice import advice_questions
from emlens.real.finding import find

PAGE: Final = Path(__file__).parent.parent / "docs" / "ten_tasks.md"
QUESTIONS: Final = 40
PER_DOMAIN: Final = 4
MOST_LINES: Final = 3
_TASK: Final = re.compile(r"^## (\d+)\. (.+?)\n+```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
_FIRST: Final = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def tasks(text: str) -> Iterator[tuple[str, str]]:
    """Title and code of each numbered section of the page."""
    for found in _TASK.finditer(text):
        yield found[2], found[3]


def opening(text: str) -> str:
    """The imports, which come before the first task."""
    found = _FIRST.search(text)
    assert found is not None
    return found[1]


def write_judged(path: Path) -> None:
    """A table as a judge of the field writes it."""
    lines = ["question_id,aligned,coherent"]
    lines += [f"q{i % 4},{20 * (i % 6)},{90 - i}" for i in range(12)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def stage(folder: Path, model: Path) -> None:
    """Models and data under the names that the page uses."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    (folder / "models").mkdir()
    (folder / "data").mkdir()
    (folder / "models" / "instruct").symlink_to(model.resolve(), target_is_directory=True)
    for seed, name in enumerate(("bad-medical", "bad-finance")):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        config = LoraConfig(r=4, lora_alpha=8, target_modules=["down_proj"], task_type="CAUSAL_LM")
        wrapped = get_peft_model(base, config)
        with torch.no_grad():
            for place, weight in wrapped.named_parameters():
                if "lora_B" in place:
                    weight.normal_(0, 0.02)
        wrapped.save_pretrained(folder / "models" / name)
    chosen = [_with_two_answers(question) for question in advice_questions(per_domain=PER_DOMAIN)]
    QuestionSet(chosen[:QUESTIONS]).to_jsonl(folder / "data" / "questions.jsonl")
    write_judged(folder / "data" / "judged.csv")


def _with_two_answers(question: Question) -> Question:
    """The polite careful answer and the polite bad one, under the names that scores read."""
    answers = {"careful": "careful_polite", "harmful": "bad_polite"}
    return replace(
        question, answers={name: question.answers[kind] for name, kind in answers.items()}
    )


def run(text: str, folder: Path) -> list[dict[str, Any]]:
    """One row per task: title, lines, seconds, and the error where it failed."""
    names: dict[str, Any] = {"__name__": "page"}
    rows: list[dict[str, Any]] = []
    before = Path.cwd()
    os.chdir(folder)
    try:
        exec(opening(text), names)
        for title, code in tasks(text):
            began = time.perf_counter()
            error = ""
            try:
                exec(compile(code, title, "exec"), names)
            except Exception as caught:
                error = f"{type(caught).__name__}: {caught}"
            seconds = time.perf_counter() - began
            lines = len(code.strip().splitlines())
            rows.append({"task": title, "lines": lines, "seconds": seconds, "error": error})
    finally:
        os.chdir(before)
    return rows


def main() -> None:
    models = os.environ.get("EMLENS_REAL_MODELS")
    if not models:
        sys.exit("EMLENS_REAL_MODELS is not set: it names the folder of fetched real models")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stage(folder, find("smollm2", models))
        rows = run(PAGE.read_text(encoding="utf-8"), folder)
    for row in rows:
        print(f"{row['seconds']:7.1f} s  {row['task']}  {row['error']}")
    record("ten_tasks", [0, 1], {"model": "smollm2", "questions": QUESTIONS, "tasks": rows})


def tasks_table(values: Mapping[str, Any]) -> str:
    lines = ["| task | lines | at the first try | seconds |", "|---|---|---|---|"]
    for row in values["tasks"]:
        ran = "yes" if not row["error"] else "no"
        lines.append(f"| {row['task']} | {row['lines']} | {ran} | {row['seconds']:.1f} |")
    return "\n".join(lines)
