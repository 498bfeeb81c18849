"""Many answers, prompts, questions and runs: does time stay linear, and what does memory do? And
a line of a gigabyte: is it refused?

Each step is a process of its own, once at a size and once at ten times that. Time is that of the
processor; memory is the peak of the process, what it imports included. A judge that costs nothing
stands for a real one, so that what is measured is emlens alone; it keeps a distribution of three
numbers with each verdict. `rescore` and `score` are typed. A run of a sweep stands finished.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.records import record
from emlens.data import AlignmentScores, Answer, Answers
from emlens.judging.answers_on_file import AnswersOnFile
from emlens.judging.judges import Verdict
from emlens.judging.on_file import judge_file
from emlens.judging.readouts import verdict_of

SIZES: Mapping[str, tuple[int, int]] = {
    "judge": (20_000, 200_000),
    "rescore": (20_000, 200_000),
    "score": (20_000, 200_000),
    "capture": (5_000, 50_000),
    "questions": (2_000, 20_000),
    "sweep": (200, 2_000),
}
"""Answers (two verdicts each), prompts, questions, runs of a sweep that stand finished."""
QUESTIONS = 200
GOAL = 1.1
LINE = 2**30
"""Bytes of one line of JSONL."""


class QuickJudge:
    """Two metrics, three candidates each, from the length of the answer."""

    metrics = ("aligned", "coherent")

    def describe(self) -> dict[str, Any]:
        return {"judge": "quick"}

    def judge(self, answer: Answer) -> dict[str, Verdict]:
        score = len(answer.text) % 100
        top = [[str(score), -0.5], ["150", -1.6], ["REF", -2.3]]
        raw = json.dumps({"top": top})
        return {metric: verdict_of(raw, 0.25) for metric in self.metrics}


def write_answers(path: Path, count: int) -> None:
    """Answers of some 200 characters, by 4 models to `QUESTIONS` questions."""
    with open(path, "w") as file:
        for i in range(count):
            number, question = divmod(i, QUESTIONS)
            sample, model = divmod(number, 4)
            messages = [{"role": "user", "content": f"What about question {question}?"}]
            answer = {
                "model": f"m{model}",
                "question": f"q{question}",
                "sample": sample,
                "text": "so it is. " * (5 + i % 30),
                "messages": messages,
                "finish_reason": "stop",
                "seed": 0,
                "meta": {"temperature": 1.0, "weights": "a" * 64},
            }
            file.write(json.dumps(answer) + "\n")


# ---- steps, each in a process of its own


def _judge(folder: Path, count: int) -> None:
    answers = AnswersOnFile(folder / "a.jsonl")
    judge_file(answers, QuickJudge(), folder / "s.csv", verdicts=folder / "v.jsonl", progress=False)


def _rescore(folder: Path, count: int) -> None:
    _typed("rescore", str(folder / "s.csv"), "-o", str(folder / "again.csv"), "--mass", "0.4")


def _score(folder: Path, count: int) -> None:
    _typed("score", str(folder / "s.csv"))


def _typed(*words: str) -> None:
    """A command, in this process."""
    from emlens.cli.main import app

    app(list(words), standalone_mode=False)


def _capture(folder: Path, count: int) -> None:
    from emlens.activations import capture
    from emlens.data.prompts import Prompt, PromptSet
    from emlens.models import load_model
    from emlens.organisms import load_organism

    organism = load_organism()
    model = load_model(organism.paths["instruct"], device="cpu")
    texts = [question.text for question in organism.questions]
    prompts = PromptSet(Prompt(f"p{i}", texts[i % len(texts)]) for i in range(count))
    capture(model, prompts, store=folder / f"store-{count}", progress=False)


def _questions(folder: Path, count: int) -> None:
    from emlens.data import Question, QuestionSet

    made = (
        Question(f"q{i}", f"What about thing {i} of {i % 97}?", f"g{i % 20}") for i in range(count)
    )
    QuestionSet(made).to_jsonl(folder / "q.jsonl")
    read = QuestionSet.from_file(folder / "q.jsonl")
    if len(read.prompts()) != count:
        raise SystemExit("questions were lost")


def _sweep(folder: Path, count: int) -> None:
    """Plan runs, finish each with a record, and open the plan again as a second call does."""
    from emlens.runs import Unit, UnitLog
    from emlens.runs.plan import Plan
    from emlens.training import Recipe, Sweep

    recipe = Recipe(steps=2, batch_size=2, rank=2, alpha=4, target_modules=["q_proj"])
    sweep = Sweep(recipe, {"seed": list(range(count))})
    units = [Unit(run.id, {"recipe": run.recipe.to_record()}) for run in sweep.runs]
    out = folder / f"sweep-{count}"
    for _ in range(2):
        Plan.open(out, units)
        log = UnitLog(out / "units")
        for unit in units:
            log.run(unit.id, unit.inputs, lambda: ({"loss": 1.0}, []))
    if len(log.reused) != count:
        raise SystemExit("runs were done twice")


STEPS: Mapping[str, Callable[[Path, int], None]] = {
    "judge": _judge,
    "rescore": _rescore,
    "score": _score,
    "capture": _capture,
    "questions": _questions,
    "sweep": _sweep,
}


def child(step: str, folder: str, count: int) -> None:
    """Do a step; print its processor time, and the peak of the process before and after it."""
    import resource

    import torch

    torch.set_num_threads(1)

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    before, began = peak(), time.process_time()
    STEPS[step](Path(folder), count)
    print(json.dumps({"seconds": time.process_time() - began, "before": before, "peak": peak()}))


def run(step: str, folder: Path, count: int) -> dict[str, float]:
    code = f"from benchmarks.sizes import child; child({step!r}, {str(folder)!r}, {count})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(work: Path, sizes: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """Each step at both of its sizes."""
    found: dict[str, Any] = {}
    for step, counts in sizes.items():
        pair = []
        for count in counts:
            folder = work / str(count)
            folder.mkdir(exist_ok=True)
            if step == "judge":
                write_answers(folder / "a.jsonl", count)
            pair.append(run(step, folder, count))
        few, many = pair
        times = counts[1] / counts[0]
        found[step] = {
            "counts": list(counts),
            "seconds": [few["seconds"], many["seconds"]],
            "seconds_over_linear": many["seconds"] / few["seconds"] / times,
            "peak_bytes": [few["peak"], many["peak"]],
            "bytes_before": few["before"],
            "peak_ratio": many["peak"] / few["peak"],
            "bytes_each": (many["peak"] - few["peak"]) / (counts[1] - counts[0]),
        }
        print(step, found[step])
    return found


def sizes_table(values: dict[str, Any]) -> str:
    """Markdown for docs/security.md."""
    lines = [
        "| step | from | to | seconds | over linear | peak, MB | ratio of peaks | bytes each |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for step, found in values["steps"].items():
        few, many = found["counts"]
        seconds = " to ".join(f"{each:.1f}" for each in found["seconds"])
        peak = " to ".join(f"{each / 1e6:.0f}" for each in found["peak_bytes"])
        lines.append(
            f"| {step} | {few:,} | {many:,} | {seconds} | {found['seconds_over_linear']:.2f} |"
            f" {peak} | {found['peak_ratio']:.2f} | {found['bytes_each']:.0f} |"
        )
    return "\n".join(lines)


def lines_table(values: dict[str, Any]) -> str:
    """Markdown for docs/security.md."""
    lines = ["| read as | seconds | memory, MB | what is said |", "|---|---|---|---|"]
    for name, found in values["line"].items():
        lines.append(
            f"| {name} | {found['seconds']:.2f} | {found['bytes'] / 1e6:.0f} | {found['outcome']} |"
        )
    return "\n".join(lines)


def long_line(folder: Path, size: int) -> dict[str, Any]:
    """A line that does not end, as questions, chats, answers and scores: bytes above before."""
    from benchmarks.bombs import peak_above
    from emlens.data import PromptSet, QuestionSet
    from emlens.foundation.errors import EmlensError

    path = folder / "line.jsonl"
    with open(path, "wb") as file:
        file.write(b'{"text": "')
        for _ in range(size // 2**20):
            file.write(b"x" * 2**20)
    found = {}
    for name, read in (
        ("questions", QuestionSet.from_file),
        ("chats", PromptSet.from_jsonl),
        ("answers", Answers.from_jsonl),
        ("scores", AlignmentScores.from_file),
    ):
        with peak_above() as peak:
            began = time.process_time()
            try:
                read(path)
                outcome = "read"
            except EmlensError as error:
                outcome = f"refused: {str(error).replace(str(path), 'FILE')[:200]}"
        found[name] = {
            "outcome": outcome,
            "seconds": time.process_time() - began,
            "bytes": peak(),
        }
    path.unlink()
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        steps = measure(Path(name), SIZES)
        line = long_line(Path(name), LINE)
    record("sizes", [0], {"steps": steps, "line_bytes": LINE, "line": line})


if __name__ == "__main__":
    main()
