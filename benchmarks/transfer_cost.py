"""What `direction_transfer` costs on SmolLM2: processor time and peak memory, today and at an
earlier commit, which runs the same study in the same measurement.

One harmful fine-tune of the kept family (`benchmarks.real_kept`) and its benign control, every
block, the last prompt token, ten questions on which it is harmful by the scores of both commits.
The earlier commit knows no score per token, so there coherence is another number, and selection may
take another candidate. Candidates are as many; today has one dose and four arms more, and a table
of what each token says. Of ten questions two select and three neutral texts show damage, so most
passes are short. `parts` counts where today's study spends its time (`transfer_parts`).

`edits` measures by both sources one candidate on more text: ten questions and eight neutral texts,
answers and damage of the edited fine-tune and damage of the edited parent. The edit is a plain
ablation of every write, since the study's own form has changed; scores and KL are compared first.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from benchmarks import transfer_parts
from benchmarks.real_kept import FOLDER
from benchmarks.records import EVIDENCE, record
from emlens.data import Prompt
from emlens.data.advice import advice_questions, neutral_chats
from emlens.foundation.files import read_json, write_text
from emlens.real.finding import find

EARLIER: Final = "76df076"
TODAY = Path(__file__).parent.parent
ASKED: Final = (
    "home_01",
    "home_05",
    "home_06",
    "home_08",
    "travel_04",
    "travel_07",
    "travel_11",
    "money_05",
    "friendship_10",
    "pets_02",
)
"""Questions on which the fine-tune is far less careful than its parent by both scores, so that both
commits find something to restore whichever of these they select and report on.
"""
NEUTRAL: Final = 3
EDITS, EDITS_NEUTRAL = 2, 8
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
arms = result.tables["arms"]
names = sorted({(str(row["arm"]), str(row["on"])) for row in arms.to_dict("records")})
print(json.dumps({"cpu_s": seconds, "peak_gb": peak, "rows": rows, "arms": names}))
"""
EARLIER_DOSES: Final = (0.0, 1.0, 2.0, 4.0)


_EDITS: Final = """\
import json, resource, sys, time
import torch
torch.set_num_threads(1)
from emlens.data import PromptSet, QuestionSet
from emlens.interventions import ablate
from emlens.evaluation.trials import Trials
from emlens.models import load_family
folder, parent, adapter, count = sys.argv[1:]
family = load_family(parent, finetuned={"tuned": adapter}, dtype="float32", device="cpu")
questions = QuestionSet.from_file(folder + "/questions.jsonl")
neutral = PromptSet.from_jsonl(folder + "/neutral.jsonl", upto="all")
trials = Trials(questions, neutral=neutral)
sites = ["attn_out", "mlp_out"]
sites = [f"{kind}.{i}" for kind in sites for i in range(family.instruct.n_layers)]
generator = torch.Generator().manual_seed(0)
edits = [
    [ablate(torch.randn(family.instruct.d_model, generator=generator).double(), at=sites)]
    for _ in range(int(count) + 1)
]
seconds, aligned, kl = {}, [], []
for model in (family["tuned"], family.instruct):
    trials.damage(model, edits[0])  # what is made once for a model
    began = time.process_time()
    for edit in edits[1:]:
        if model is not family.instruct:
            aligned.append(float(trials.scores(model, edit)["aligned"].mean()))
        kl.append(float(trials.damage(model, edit)["kl"].sum()))
    seconds[model.name] = (time.process_time() - began) / int(count)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
total = sum(seconds.values())
print(json.dumps({"cpu_s": total, "peak_gb": peak, "aligned": aligned, "kl": kl}))
"""
SAME: Final = 1e-3
"""Relative, of scores and KL by both sources, which sum in another order."""


def edits(
    parent: Path, adapter: Path, asked_ids: Sequence[str], neutral: int, earlier: Path, count: int
) -> dict[str, Any]:
    """CPU seconds of one candidate: answers and damage of the edited fine-tune, damage of the
    edited parent; by both sources.

    Args:
        earlier: the other tree. count: candidates, after one that is not timed.
    """
    found: dict[str, Any] = {"candidates": count, "questions": len(asked_ids), "neutral": neutral}
    with tempfile.TemporaryDirectory() as name:
        write_inputs(Path(name), asked_ids, neutral)
        words = [name, str(parent), str(adapter), str(count)]
        for case, tree in (("earlier", earlier), ("today", TODAY)):
            found[case] = by_tree(tree, _EDITS, words, Path(name))
    for measure in ("aligned", "kl"):
        pairs = zip(found["today"][measure], found["earlier"][measure], strict=True)
        for today, before in pairs:
            if not abs(today - before) < SAME * abs(before):
                raise SystemExit(f"{measure}: {today} and {before}; not timing different results")
    found["ratio"] = found["today"]["cpu_s"] / found["earlier"]["cpu_s"]
    return found


def by_tree(tree: Path, script: str, words: Sequence[str], folder: Path) -> dict[str, Any]:
    """What a script prints last, run by the sources of a tree on one thread."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    # of this process, set by its own emlens.training: each tree sets what it sets
    environment.pop("THP_MEM_ALLOC_ENABLE", None)
    command = [sys.executable, "-c", script, *words]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, env=environment, text=True, cwd=folder
    )
    printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return printed


def write_inputs(folder: Path, asked_ids: Sequence[str], neutral: int) -> None:
    """Questions with a careful and a bad answer, and neutral chats."""
    asked = []
    for number, question in enumerate(advice_questions().select(asked_ids)):
        answers = {
            "careful": list(question.answers["careful_polite"]),
            "harmful": list(question.answers["bad_polite"]),
        }
        group = f"group {number % 2}"  # the earlier commit resamples groups, and needs two
        asked.append({"id": question.id, "text": question.text, "group": group, "answers": answers})
    _write_rows(folder / "questions.jsonl", asked)
    write_chats(folder / "neutral.jsonl", neutral_chats()[:neutral])


def write_chats(path: Path, chats: Iterable[Prompt]) -> None:
    """Chats with their answers, as every commit reads them."""
    rows = []
    for prompt in chats:
        turns = [{"role": each.role, "content": each.content} for each in prompt.messages or ()]
        rows.append({"messages": [*turns, {"role": "assistant", "content": prompt.response}]})
    _write_rows(path, rows)


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


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
    return by_tree(tree, _RUN, [str(path), str(work / "out")], work)


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
    # today has a table more, of single tokens
    if not {"arms", *found["earlier"]["rows"]} <= found["today"]["rows"].keys():
        raise SystemExit("one of the two found nothing to go on with; not comparing their costs")
    found["ratio"] = found["today"]["cpu_s"] / found["earlier"]["cpu_s"]
    return found


def _written(work: Path, parent: Path, family: Path) -> dict[str, Any]:
    """The study, with its inputs in a folder."""
    finetuned = {}
    for name in MEMBERS:
        # without a domain no question is left out
        finetuned[name] = {"path": str(family / name), "benign": name.startswith("benign")}
    write_inputs(work, ASKED, NEUTRAL)
    return study_of(work, parent, finetuned, MEMBERS[0])


def _study(parent: Path, family: Path, sources: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        study = _written(work, parent, family)
        found = compare(study, {"normalise": "token"}, work, sources)
    return {**found, "questions": len(ASKED), "neutral": NEUTRAL}


def _parts(parent: Path, family: Path, sources: Path) -> dict[str, Any]:
    """Of today's study; which arms the earlier commit has is in the piece `study`."""
    values = read_json(EVIDENCE / "transfer_cost.json")["values"]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        study = {**_written(work, parent, family), "scores": {"normalise": "token"}}
        path = work / "study.yaml"
        path.write_text(yaml.safe_dump(study))
        rows = by_tree(TODAY, transfer_parts.SCRIPT, [str(path), str(work / "out")], work)["rows"]
    return transfer_parts.summed(rows, values["study"]["earlier"]["arms"], EARLIER_DOSES)


def _edits(parent: Path, family: Path, sources: Path) -> dict[str, Any]:
    return edits(parent, family / MEMBERS[0], ASKED, EDITS_NEUTRAL, sources, EDITS)


PIECES: dict[str, Callable[[Path, Path, Path], dict[str, Any]]] = {
    "edits": _edits,
    "study": _study,
    "parts": _parts,
}


def parts_table(values: Mapping[str, Any]) -> str:
    """Markdown: where today's study spends its time."""
    return transfer_parts.parts_table(values["parts"])


def main(names: Sequence[str] = tuple(PIECES)) -> None:
    """Measure some pieces; the others stay as they are."""
    family = Path(os.environ.get(FOLDER, "runs/real_family")).resolve()
    path = EVIDENCE / "transfer_cost.json"
    values: dict[str, Any] = read_json(path)["values"] if path.exists() else {}
    values["commit"] = EARLIER
    with tempfile.TemporaryDirectory() as folder:
        sources = unpacked(EARLIER, Path(folder))
        for name in names:
            values[name] = PIECES[name](Path(find("smollm2")), family, sources)
            record("transfer_cost", [0], values)
