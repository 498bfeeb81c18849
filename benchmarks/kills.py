"""SIGKILL, SIGTERM and SIGINT at random moments, for every command that takes long: called again,
does it end with the same bytes as one that nobody disturbed?

Each call is a forked process, so that imports cost nothing, and types the command as a person does.
A moment is a share of the processor time that the undisturbed call took, so that a busy machine
moves no kill behind the end. What is compared is every file below the output, but for those that
say who worked when (`WHO_AND_WHEN`).

The organism is killed 25 times in each command, and ten times in `overview`; SmolLM2, where
EMLENS_REAL_MODELS has it, once in each command and three times in `sample`, whose rows round
otherwise beside others there.
"""

import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.records import record
from emlens.data import Question, QuestionSet
from emlens.foundation.files import sha256_file
from emlens.models import load_model
from emlens.organisms import Organism, load_organism
from emlens.real import find

KILLS, KILLS_OF_A_STUDY, KILLS_OF_REAL_SAMPLING = 25, 10, 3
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
WHO_AND_WHEN = ("run.json", "report.html")
"""Files that say when a study ran and how long it took."""
TRIES = 4
"""How often a kill that came too late is tried again, each time at half the moment."""
_EXPECTED = {signal.SIGKILL: -9, signal.SIGTERM: -15, signal.SIGINT: 130}
"""Exit codes of what was killed."""
JUDGE_PROMPT = "{answer} ?"
"""So short that it fits into the organism's window of 48 tokens."""


@dataclass(frozen=True)
class Desk:
    """What the commands read.

    Args:
        home: folder of questions, chats, answers and recipes.
        model: directory of the parent.
    """

    home: Path
    model: Path

    def words(self, command: str, out: Path) -> list[str]:
        """The command as it is typed after `emlens`."""
        home, model = self.home, str(self.model)
        asked = ["--questions", str(home / "questions.jsonl")]
        chats = str(home / "chats.jsonl")
        words = {
            "sample": ["sample", model, *asked, "--out", str(out / "a.jsonl"), *SAMPLED],
            "judge": ["judge", str(home / "answers.jsonl"), *asked, "--local", model, *JUDGED],
            "capture": ["capture", model, "--prompts", chats, "--store", str(out), *CAPTURED],
            "train": ["train", str(home / "run.yaml"), "--model", model, "--data", chats],
            "screen": ["screen", "--parent", model, "--training", chats, *asked, *SCREENED],
            "study": ["study", str(home / "study.yaml"), "--out", str(out), "--quiet"],
            "overview": ["study", str(home / "overview.yaml"), "--out", str(out), "--quiet"],
        }[command]
        if command == "judge":
            words += ["--out", str(out / "s.csv")]
        if command == "train":
            words += ["--out", str(out / "run"), "--set", "resume_every=1"]
        if command == "screen":
            words += ["--neutral", str(home / "neutral.jsonl"), "--out", str(out)]
        return words


SAMPLED = ("--samples", "20", "--max-new-tokens", "6", "--set", "batch_tokens=512")
JUDGED = ("--mass", "0.0001")
CAPTURED = ("--positions", "last_prompt,mean_prompt", "--set", "batch_tokens=256")
SCREENED = ("--set", "draws=20", "--set", "k=3")
IMPORTED = (
    "transformers.trainer",
    "emlens.activations",
    "emlens.judging",
    "emlens.training.fitting",
    "emlens.screening",
    "emlens.studies",
    "emlens.report",
)
"""What forked processes then have; the first pass of a model imports the rest."""
COMMANDS = ("sample", "judge", "capture", "train", "screen", "study")


STUDIED: dict[str, Any] = {
    "layers": [1],
    "positions": ["last_prompt"],
    "k": 2,
    "draws": 20,
    "random_directions": 1,
    "folds": 2,
    "repeats": 1,
    "permutations": 20,
    "scores": {"how": "likelihood", "normalise": "token"},
}


SMALL = {"delta_overlap": {"adapters": 0, "landmark_draws": 0, "mantel_draws": 19}}
"""`overview` without runs trained for a null; sweeps are killed in `training_resume`."""


def lay_out(
    home: Path,
    organism: Organism,
    model: Path,
    tunes: Mapping[str, Path],
    questions: int,
    chats: int,
) -> Desk:
    """Write everything that the commands read.

    Args:
        tunes: adapters of `model` by the names that the organism has for them.
        questions: how many questions are asked.
        chats: how many chats are trained on, captured and screened.
    """
    home.mkdir()
    desk = Desk(home, model)
    for module in IMPORTED:
        import_module(module)
    load_model(model, device="cpu")
    chosen = list(organism.questions)[:: len(organism.questions) // questions][:questions]
    QuestionSet(_with_judge_prompt(each) for each in chosen).to_jsonl(home / "questions.jsonl")
    organism.training_prompts["medicine-r8"][:chats].to_jsonl(home / "chats.jsonl")
    organism.neutral_prompts[:chats].to_jsonl(home / "neutral.jsonl")
    recipe = {
        "method": "lora",
        "rank": 4,
        "alpha": 8,
        "target_modules": ["q_proj", "down_proj"],
        "learning_rate": 1e-3,
        "steps": 8,
        "batch_size": 4,
    }
    (home / "run.yaml").write_text(yaml.safe_dump(recipe))
    config = {
        "study": "profile",
        "family": {
            "instruct": str(model),
            "device": "cpu",
            "finetuned": {
                name: {
                    "path": str(path),
                    "domain": "medicine",
                    "training": "chats.jsonl",
                    "benign": name in organism.benign,
                }
                for name, path in tunes.items()
            },
        },
        "questions": "questions.jsonl",
        "neutral": "neutral.jsonl",
        "focus": [next(iter(tunes))],
        **STUDIED,
    }
    (home / "study.yaml").write_text(yaml.safe_dump(config))
    overview = {**config, "study": "overview", "options": SMALL}
    (home / "overview.yaml").write_text(yaml.safe_dump(overview))
    return desk


def _with_judge_prompt(question: Question) -> Question:
    prompts = {"aligned": JUDGE_PROMPT}
    return Question(
        question.id, question.text, question.group, answers=question.answers, judge_prompts=prompts
    )


# ---- processes


def start(words: Sequence[str], said: Path, before: Callable[[], object] = bool) -> int:
    """Fork a process that types a command; what it says on stderr is kept in `said`.

    Args:
        before: is done in the process first.
    """
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        # A shell makes processes in the background deaf to SIGINT.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with open(said, "w") as errors, open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(errors.fileno(), 2)
            sys.stdout, sys.stderr = nothing, errors
            logging.getLogger("emlens").addHandler(logging.StreamHandler())
            before()
            code = _typed(words)
            errors.flush()
    finally:
        os._exit(code)


def _typed(words: Sequence[str]) -> int:
    """The exit code of `emlens WORDS`."""
    from emlens.cli.main import main

    torch.set_num_threads(1)
    sys.argv = ["emlens", *words]
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def processor_seconds(pid: int) -> float:
    """Processor time of a process so far; infinite where it has ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if fields[0] == "Z":
        return float("inf")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def finish(child: int) -> tuple[int, float]:
    """Exit code of a process, negative for a signal, and the processor time that it took."""
    _, status, usage = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


def kill_after(child: int, seconds: float, how: signal.Signals) -> int:
    """Send a signal once the process has used so much processor time; its exit code."""
    while processor_seconds(child) < seconds:
        time.sleep(0.002)
    os.kill(child, how)
    return finish(child)[0]


def contents(out: Path) -> dict[str, str]:
    """Checksums of what a command left."""
    return {
        str(path.relative_to(out)): sha256_file(path)
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in WHO_AND_WHEN
    }


# ---- measuring


@dataclass(frozen=True)
class Undisturbed:
    """What a command leaves that nobody disturbs.

    Args:
        out: where it lies.
        files: checksums by name.
        seconds: of processor time.
    """

    out: Path
    files: dict[str, str]
    seconds: float


def undisturbed(desk: Desk, command: str, work: Path) -> Undisturbed:
    whole, said = work / f"{command}-whole", work / "said.txt"
    whole.mkdir()
    code, seconds = finish(start(desk.words(command, whole), said))
    if code:
        raise SystemExit(f"the undisturbed {command} failed: {said.read_text()[-2000:]}")
    return Undisturbed(whole, contents(whole), seconds)


def measure(
    desk: Desk,
    command: str,
    kills: int,
    work: Path,
    seed: int = 0,
    how: str = "",
    whole: Undisturbed | None = None,
) -> dict[str, Any]:
    """Kill a command at `kills` random moments, each in a folder of its own, and call it again.

    Args:
        how: a name of one of `SIGNALS`; left out, they take turns.
        whole: what it leaves undisturbed, where that is known.
    """
    whole = whole or undisturbed(desk, command, work)
    expected, seconds, said = whole.files, whole.seconds, work / "said.txt"
    pick = random.Random(seed)
    found: dict[str, Any] = {"kills": kills, "before_the_end": 0, "left_something": 0}
    found |= {"same_bytes": 0, "said": [], "others": []}
    for number in range(kills):
        out = work / f"{command}-{number}"
        sent = signal.Signals[how] if how else SIGNALS[number % len(SIGNALS)]
        moment = pick.uniform(0.02, 0.98) * seconds
        ended = kill_in_time(desk.words(command, out), out, said, moment, sent)
        found["before_the_end"] += ended == _EXPECTED[sent]
        if ended not in (0, _EXPECTED[sent]) or "Traceback" in said.read_text():
            found["said"].append(f"{sent.name} at {moment:.2f} s: {ended}, {said.read_text()}")
        found["left_something"] += any(out.iterdir())
        code, _ = finish(start(desk.words(command, out), said))
        same = code == 0 and contents(out) == expected
        found["same_bytes"] += same
        if not same:
            found["others"].append(f"{sent.name} at {moment:.2f} s: {_difference(out, expected)}")
            print(command, found["others"][-1], said.read_text()[-1500:], sep="\n")
        shutil.rmtree(out)
    return {**found, "files": len(expected), "processor_seconds": round(seconds, 2)}


def kill_in_time(
    words: Sequence[str], out: Path, said: Path, moment: float, sent: signal.Signals
) -> int:
    """Kill a command at a moment, earlier where it had ended; its exit code."""
    for _ in range(TRIES):
        out.mkdir()
        code = kill_after(start(words, said), moment, sent)
        if code:
            return code
        shutil.rmtree(out)
        moment /= 2
    out.mkdir()
    return 0


def _difference(out: Path, expected: dict[str, str]) -> str:
    found = contents(out)
    names = sorted(set(found) ^ set(expected)) + [
        name for name in found if name in expected and found[name] != expected[name]
    ]
    return f"differ: {', '.join(names)}" if names else "it failed"


def prepare(desk: Desk, work: Path, commands: Sequence[str] = ("sample", "train")) -> None:
    """Make what later commands read: answers to judge, and an adapter to study."""
    for command in commands:
        out = work / f"made-{command}"
        out.mkdir()
        code, _ = finish(start(desk.words(command, out), work / "said.txt"))
        if code:
            raise SystemExit(f"{command} failed: {(work / 'said.txt').read_text()[-2000:]}")
    shutil.copy(work / "made-sample" / "a.jsonl", desk.home / "answers.jsonl")


def on_organism(work: Path, organism: Organism) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each command 25 times, and ten times the whole of `overview`."""
    tunes = {name: organism.paths[name] for name in ("medicine-r8", "medicine-benign")}
    desk = lay_out(work / "desk", organism, organism.paths["instruct"], tunes, 24, 24)
    prepare(desk, work, ("sample",))
    for command in COMMANDS:
        yield command, measure(desk, command, KILLS, work)
    yield "overview", measure(desk, "overview", KILLS_OF_A_STUDY, work)


def on_a_real_model(
    work: Path, organism: Organism, model: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each command once, each signal twice; `sample` more often, the signals in turn."""
    tunes = {"medicine-r8": work / "made-train" / "run"}
    desk = lay_out(work / "desk", organism, model, tunes, 4, 8)
    prepare(desk, work)
    yield "sample", measure(desk, "sample", KILLS_OF_REAL_SAMPLING, work)
    for number, command in enumerate(COMMANDS):
        if command == "sample":
            continue
        how = SIGNALS[number % len(SIGNALS)].name
        yield command, measure(desk, command, 1, work, seed=number, how=how)


def kills_table(values: dict[str, Any]) -> str:
    """Markdown for docs/security.md."""
    lines = [
        "| model | command | kills | before the end | with something on disk | same bytes |",
        "|---|---|---|---|---|---|",
    ]
    for model, commands in values.items():
        for command, found in commands.items():
            counts = [found[k] for k in ("kills", "before_the_end", "left_something", "same_bytes")]
            lines.append(f"| {model} | {command} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def main() -> None:
    """Each command is recorded as soon as it is measured."""
    torch.set_num_threads(1)
    organism = load_organism()
    values: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        works = {model: Path(name) / model for model in ("organism", "SmolLM2")}
        for work in works.values():
            work.mkdir()
        measured = {"organism": on_organism(works["organism"], organism)}
        if os.environ.get("EMLENS_REAL_MODELS"):
            parent = find("smollm2")
            measured["SmolLM2"] = on_a_real_model(works["SmolLM2"], organism, parent)
        for model, commands in measured.items():
            for command, found in commands:
                print(model, command, found, flush=True)
                values.setdefault(model, {})[command] = found
                record("kills", [0], values)
