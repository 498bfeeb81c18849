"""Two processes that write to one thing at the same time: is anything doubled, lost or spoiled?

Six kinds: a journal of verdicts, a file of answers, an activation store, a study, a sweep of
training runs, a training run with its snapshots. Both begin at a moment that differs from try to
try. One of them must be refused by the name of the other, or wait for it, or share the work. What
is on disk afterwards must be what one process alone writes, and a judge must have been asked once
about each answer.
"""

import json
import multiprocessing
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks import kills, training_resume
from benchmarks.records import record
from emlens.activations import ActivationStore, CaptureSpec, capture
from emlens.data import Answer, Answers, Message, PromptSet, Question, QuestionSet
from emlens.foundation.errors import EmlensError
from emlens.judging import judge_answers, sample_answers
from emlens.judging.judges import Verdict
from emlens.models import load_model
from emlens.organisms import Organism
from emlens.studies import run_study
from emlens.training import Recipe, Saving, Sweep, fit, run_sweep
from emlens.training.fitting import read_record

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


def captures(model: Any) -> Callable[[Path], Callable[[], Any]]:
    prompts = QUESTIONS.prompts()
    spec = CaptureSpec("resid_post", batch_tokens=32)
    return lambda folder: (
        lambda: capture(model, prompts, spec=spec, store=folder / "store", progress=False)
    )


def check_captured(folder: Path) -> str:
    store = ActivationStore.open(folder / "store")
    return "; ".join(store.damage()) or ("" if len(store) == len(QUESTIONS) else "rows are missing")


def _chats() -> PromptSet:
    turns = [
        [{"role": "user", "content": q.text}, {"role": "assistant", "content": "w3 w4"}]
        for q in QUESTIONS
    ]
    return PromptSet.from_messages(turns, upto="all")


def trainings(parent: Path) -> Callable[[Path], Callable[[], Any]]:
    chats = _chats()
    recipe = Recipe(steps=4, batch_size=2, rank=2, alpha=4, target_modules=["q_proj"])
    saving = Saving(resume_every=1)
    return lambda folder: (
        lambda: fit(recipe, parent, chats, folder / "adapter", saving=saving, device="cpu")
    )


def check_trained(folder: Path) -> str:
    record = read_record(folder / "adapter")
    left = [path.name for path in folder.iterdir() if path.name.startswith(".adapter")]
    if record["steps_done"] != 4:
        return f"{record['steps_done']} steps"
    return f"left behind: {left}" if left else ""


def studies(config: Path) -> Callable[[Path], Callable[[], Any]]:
    return lambda folder: lambda: run_study(config, folder / "out", progress=False)


def sweeps(parent: Path) -> Callable[[Path], Callable[[], Any]]:
    """Two runs, which processes share."""
    recipe = Recipe(steps=2, batch_size=2, rank=2, alpha=4, target_modules=["q_proj"])
    sweep = Sweep(recipe, {"seed": [0, 1]})
    return lambda folder: (
        lambda: run_sweep(sweep, parent, _chats(), folder / "out", device="cpu", progress=False)
    )


def check_alike(
    alone: Path, contents: Callable[[Path], Mapping[str, str]]
) -> Callable[[Path], str]:
    """What two left must be what one process leaves."""
    expected = contents(alone / "out")

    def check(folder: Path) -> str:
        found = contents(folder / "out")
        differing = {key for key in {*found, *expected} if found.get(key) != expected.get(key)}
        return f"differ: {sorted(differing)}" if differing else ""

    return check


def _alone(begin: Callable[[Path], Callable[[], Any]], folder: Path) -> Path:
    """Where one process has done the work, as a process of its own."""
    process = _FORK.Process(target=_work, args=(begin(folder), 0.0, folder.with_suffix(".txt")))
    process.start()
    process.join()
    return folder


def _work(begin: Callable[[], Any], delay: float, said: Path) -> None:
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
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
    elif any(not _names_the_other(end) for end in refused):
        fault = f"does not name the other: {refused}"
    return {"refused": len(refused), "fault": fault or check(folder)}


def _names_the_other(refusal: str) -> bool:
    """Who is refused hears who writes, or that the work was finished a moment before."""
    return "held by process" in refusal or "is there already" in refusal


def measure(work: Path, tries: int, organism: Organism) -> dict[str, Any]:
    model = organism.paths["instruct"]
    loaded = load_model(model, device="cpu")
    tunes = {"medicine-r8": organism.paths["medicine-r8"]}
    config = kills.lay_out(work / "desk", organism, model, tunes, 8, 8).home / "study.yaml"
    study, sweep = studies(config), sweeps(model)
    check_studied = check_alike(_alone(study, work / "study"), kills.contents)
    check_swept = check_alike(_alone(sweep, work / "sweep"), training_resume.contents)
    kinds: dict[str, tuple[Callable[[Path], Callable[[], Any]], Callable[[Path], str]]] = {
        "journal": (judges, check_judged),
        "answers": (samples(loaded), check_sampled),
        "store": (captures(loaded), check_captured),
        "study": (study, check_studied),
        "sweep": (sweep, check_swept),
        "snapshots": (trainings(model), check_trained),
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


def writers_table(values: dict[str, Any]) -> str:
    """Markdown for docs/security.md."""
    lines = ["| what | tries | one was refused | doubled, lost or spoiled |", "|---|---|---|---|"]
    for name, found in values.items():
        lines.append(f"| {name} | {found['tries']} | {found['refused_one']} | {found['faults']} |")
    return "\n".join(lines)


def main(tries: int = TRIES) -> None:
    from emlens.organisms import load_organism

    with tempfile.TemporaryDirectory() as folder:
        values = measure(Path(folder), tries, load_organism())
    print(record("two_writers", list(range(tries)), values), values)


if __name__ == "__main__":
    main()
