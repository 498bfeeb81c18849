"""What `direction_transfer` costs on SmolLM2: processor time and peak memory, today and at an
earlier commit, which runs the same study in the same measurement.

One harmful fine-tune of the kept family (`benchmarks.real_kept`) and its benign control, every
block, the last prompt token, ten questions on which it is harmful. The earlier commit is unpacked
from the history; it knows no score per token, so there coherence is another number, and selection
may take another candidate. Passes, arms and candidates are of the same kinds and counts but for one
dose more today.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from benchmarks.real_kept import FOLDER
from benchmarks.records import record
from emlens.data.advice import advice_questions, neutral_chats
from emlens.foundation.files import write_text
from emlens.real.finding import find

EARLIER: Final = "76df076"
TODAY = Path(__file__).parent.parent
ASKED: Final = (
    *(f"medicine_{number:02d}" for number in (1, 3, 6, 12, 13, 14, 15)),
    "money_05",
    "cooking_11",
    "cooking_13",
)
"""Questions on which the fine-tune is less careful than its parent by both scores, so that both
commits find something to restore.
"""
NEUTRAL: Final = 3
MEMBERS: Final = ("harmful-medicine-s0", "benign-medicine-s0")
_RUN: Final = """\
import json, resource, sys, time
import torch
torch.set_num_threads(1)
from emlens.studies import run_study
began = time.process_time()
result = run_study(sys.argv[1], out=sys.argv[2], progress=False)
rows = {name: len(table) for name, table in result.tables.items()}
seconds = time.process_time() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
print(json.dumps({"cpu_s": seconds, "peak_gb": peak, "rows": rows}))
"""


def write_inputs(folder: Path, asked_ids: Sequence[str], neutral: int) -> None:
    """Questions with a careful and a bad answer, and neutral chats."""
    asked = []
    for question in advice_questions().select(asked_ids):
        answers = {
            "careful": list(question.answers["careful_polite"]),
            "harmful": list(question.answers["bad_polite"]),
        }
        asked.append(
            {"id": question.id, "text": question.text, "group": "advice", "answers": answers}
        )
    chats = []
    for prompt in neutral_chats()[:neutral]:
        turns = [{"role": each.role, "content": each.content} for each in prompt.messages]
        chats.append({"messages": [*turns, {"role": "assistant", "content": prompt.response}]})
    for name, rows in (("questions", asked), ("neutral", chats)):
        write_text(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def study_of(
    folder: Path, parent: Path, finetuned: Mapping[str, Mapping[str, Any]], focus: str
) -> dict[str, Any]:
    """The study as both commits read it."""
    return {
        "study": "direction_transfer",
        "family": {
            "instruct": str(parent),
            "dtype": "float32",
            "device": "cpu",
            "finetuned": {name: dict(spec) for name, spec in finetuned.items()},
        },
        "questions": str(folder / "questions.jsonl"),
        "neutral": str(folder / "neutral.jsonl"),
        "focus": [focus],
        "positions": ["last_prompt"],
        "random_directions": 2,
    }


def cost(tree: Path, study: Mapping[str, Any], work: Path) -> dict[str, Any]:
    """CPU seconds and peak memory of a study by the sources of a tree, in a process of its own."""
    path = work / "study.yaml"
    path.write_text(yaml.safe_dump(dict(study)))
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(path), str(work / "out")],
        check=True,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
        cwd=work,
    )
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def unpacked(commit: str, target: Path) -> Path:
    """The sources of a commit of this repository."""
    packed = target / "sources.tar"
    subprocess.run(["git", "archive", "-o", str(packed), commit, "emlens"], check=True, cwd=TODAY)
    with tarfile.open(packed) as archive:
        archive.extractall(target, filter="data")
    return target


def compare(
    study: Mapping[str, Any], scores: Mapping[str, Any], work: Path, earlier: Path
) -> dict[str, Any]:
    """The study by both sources.

    Args:
        scores: what today's configuration says of them beside.
        earlier: the other tree.
    """
    cases = {
        "earlier": (earlier, study),
        "today": (TODAY, {**study, "scores": dict(scores)}),
    }
    found: dict[str, Any] = {}
    for name, (tree, config) in cases.items():
        folder = work / name
        folder.mkdir()
        found[name] = cost(tree, config, folder)
        print(name, found[name], flush=True)
    if found["today"]["rows"].keys() != found["earlier"]["rows"].keys():
        raise SystemExit("one of the two found nothing to go on with; not comparing their costs")
    found["ratio"] = found["today"]["cpu_s"] / found["earlier"]["cpu_s"]
    return found


def main() -> None:
    family = Path(os.environ.get(FOLDER, "runs/real_family")).resolve()
    finetuned = {}
    for name in MEMBERS:
        # without a domain no question is left out
        finetuned[name] = {"path": str(family / name), "benign": name.startswith("benign")}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        write_inputs(work, ASKED, NEUTRAL)
        study = study_of(work, Path(find("smollm2")), finetuned, MEMBERS[0])
        sources = work / "sources"
        sources.mkdir()
        values = compare(study, {"normalise": "token"}, work, unpacked(EARLIER, sources))
    values |= {"commit": EARLIER, "questions": len(ASKED), "neutral": NEUTRAL}
    record("transfer_cost", [0], values)
