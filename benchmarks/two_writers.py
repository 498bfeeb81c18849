"""Two processes that write to one thing at the same time: is anything doubled, lost or spoiled?

Six kinds: a journal of verdicts, a file of answers, an activation store, a study, a training run
with its snapshots, a sweep. Both processes begin at once, at a moment that differs from try to try.
One of them must be refused by the name of the other, or wait for it, or share the work; afterwards
what is on disk must be what one process alone writes, and a judge must have been asked once about
each answer.
"""

import json
import multiprocessing
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.records import record
from emlens.data import Answer, Answers, Message, Question, QuestionSet
from emlens.foundation.errors import EmlensError
from emlens.judging import judge_answers, sample_answers
from emlens.judging.judges import Verdict
from emlens.models import load_model

TRIES = 50
QUESTIONS = QuestionSet([Question(f"q{i}", f"w{i} w{i + 1}") for i in range(6)])
_FORK = multiprocessing.get_context("fork")


class CountingJudge:
    """Gives the length of an answer as its score, and writes down that it was asked."""

    metrics = ("aligned",)

    def __init__(self, asked: Path):
        self._asked = asked

    def describe(self) -> dict[str, Any]:
        return {"judge": "length"}

    def judge(self, answer: Answer) -> dict[str, Verdict]:
        with open(self._asked, "a") as file:
            file.write(f"{answer.id}\n")
        time.sleep(0.001)
        return {"aligned": Verdict(float(len(answer.text)), "ok", "")}


def answers(count: int) -> Answers:
    return Answers(
        Answer("m", f"q{i}", "x" * (i % 90), (Message("user", f"{i}?"),)) for i in range(count)
    )


def judges(folder: Path) -> Callable[[], Any]:
    judge = CountingJudge(folder / "asked.txt")
    return lambda: judge_answers(answers(40), judge, out=folder / "v.jsonl", progress=False)


def check_judged(folder: Path) -> str:
    asked = Counter((folder / "asked.txt").read_text().split())
    lines = [json.loads(line) for line in (folder / "v.jsonl").read_text().splitlines()]
    if set(asked.values()) != {1} or len(asked) != 40:
        return f"{sum(asked.values()) - 40} verdicts asked twice"
    return "" if len(lines) == 41 else f"{len(lines)} lines in the journal"


def samples(model: Any) -> Callable[[Path], Callable[[], Any]]:
    def begin(folder: Path) -> Callable[[], Any]:
        return lambda: sample_answers(
            model,
            QUESTIONS,
            4,
            max_new_tokens=3,
            out=folder / "a.jsonl",
            progress=False,
            batch_tokens=64,
        )

    return begin


def check_sampled(folder: Path) -> str:
    found = Answers.from_jsonl(folder / "a.jsonl")
    return "" if len(found) == 4 * len(QUESTIONS) else f"{len(found)} answers"


def _work(begin: Callable[[], Any], delay: float, said: Path) -> None:
    time.sleep(delay)
    try:
        begin()
        said.write_text("done")
    except EmlensError as error:
        said.write_text(f"refused: {error}")
    except Exception as error:
        said.write_text(f"{type(error).__name__}: {error}")


def attempt(
    begin: Callable[[Path], Callable[[], Any]],
    check: Callable[[Path], str],
    folder: Path,
    seed: int,
) -> dict[str, Any]:
    """One try: how the two processes ended, and what is wrong with what they left."""
    pick = random.Random(seed)
    folder.mkdir()
    said = [folder / "first.txt", folder / "second.txt"]
    work = begin(folder)
    delays = (0.0, pick.choice([0.0, 0.0, pick.random() * 0.1]))
    processes = [
        _FORK.Process(target=_work, args=(work, delay, place))
        for delay, place in zip(delays, said, strict=True)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    ends = [place.read_text() for place in said]
    fault = ""
    refused = [end for end in ends if end.startswith("refused")]
    if not any(end == "done" for end in ends):
        fault = f"neither finished: {ends}"
    elif len(refused) + ends.count("done") != 2:
        fault = f"not one line: {ends}"
    elif any("held by process" not in end for end in refused):
        fault = f"does not name the other: {refused}"
    return {"refused": len(refused), "fault": fault or check(folder)}


def measure(work: Path, tries: int, model: Path) -> dict[str, Any]:
    loaded = load_model(model, device="cpu")
    kinds: dict[str, tuple[Callable[[Path], Callable[[], Any]], Callable[[Path], str]]] = {
        "journal": (judges, check_judged),
        "answers": (samples(loaded), check_sampled),
    }
    found: dict[str, Any] = {}
    for name, (begin, check) in kinds.items():
        outcomes = []
        for seed in range(tries):
            folder = work / f"{name}-{seed}"
            outcomes.append(attempt(begin, check, folder, seed))
            shutil.rmtree(folder)
        faults = [outcome["fault"] for outcome in outcomes if outcome["fault"]]
        found[name] = {
            "tries": tries,
            "refused_one": sum(outcome["refused"] == 1 for outcome in outcomes),
            "faults": len(faults),
            "example": faults[0] if faults else "",
        }
    return found


def main() -> None:
    from emlens.organisms import load_organism

    with tempfile.TemporaryDirectory() as folder:
        organism = load_organism()
        values = measure(Path(folder), TRIES, organism.directory / "instruct")
    print(record("two_writers", list(range(TRIES)), values), values)


if __name__ == "__main__":
    main()
