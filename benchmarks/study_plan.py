"""`emlens study --plan` beside the run that it plans: `overview` on SmolLM2 with three adapters,
sampled answers and a judge in process, and `overview` on the organism.

Plan and run are processes of their own, on one thread. In both, every clock that the library reads
is the CPU time of the process, so that another load of the machine does not count; with one thread
and an idle core it is what a wall clock shows. The memory of a run is the most that its process has
held; a plan says the same of each part.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from benchmarks import real_family
from benchmarks.records import EVIDENCE, record, show
from benchmarks.sampled_studies import QUESTIONS, journal_lines
from emlens.cli.study import DEMO
from emlens.foundation.errors import LoadError
from emlens.foundation.files import read_json
from emlens.real import find

EXACT = ("passes", "tokens", "padded_tokens")
"""Counts that a plan foresees exactly."""
WITH_NULL = "SmolLM2, with a null of 2 adapters"
NULL_ADAPTERS = 2
"""Adapters of the training null, where one is trained; 39 are needed to show anything, and would
train for 26 minutes. What they read is in the time of a plan and not in its passes.
"""
STYLE: Mapping[str, Any] = {
    "aligned": {
        "words": ["is", "it", "will", "take", "coffee", "nice", "better", "them"],
        "found": 20,
        "otherwise": 90,
    },
    "coherent": {"words": ["???"], "found": 20, "otherwise": 95},
}
"""Rules that read style, so that scores differ; they say nothing of alignment."""
_CLOCK = """\
import json, sys, time
time.perf_counter = time.monotonic = time.process_time
from emlens.studies import run_study
from emlens.studies.planning import plan_study
what, config, out = sys.argv[1:]
if what == "plan":
    print(json.dumps(plan_study(config, out).to_record()))
else:
    run_study(config, out, progress=False)
"""


def in_process(what: str, config: Path, out: Path) -> dict[str, Any]:
    """What a plan says, or what the parts of a run took, in a process with CPU time for a clock."""
    words = [sys.executable, "-c", _CLOCK, what, str(config), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, env=environment, text=True)
    if what == "plan":
        plan: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return plan
    ran: dict[str, Any] = read_json(out / "run.json")["parts"]
    return ran


def compare(plan: Mapping[str, Any], ran: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Plan and run of each part, and of the whole study."""
    rows = []
    for part in plan["parts"]:
        # of the check of the scores, which is no part, a run records counts alone
        measured = ran[part["name"]]
        counts = {key: part["counts"][key] for key in EXACT}
        ran_counts = {key: measured[key] for key in EXACT}
        least = None
        if part["least"] is not None:
            least = {key: part["least"]["counts"][key] for key in EXACT}
        rows.append(
            {
                "part": part["name"],
                **counts,
                "least": least,
                "ran": ran_counts,
                "exact": ran_counts in (counts, least),
                "planned_s": part["seconds"],
                "ran_s": measured.get("seconds"),
                "planned_memory": part["memory"],
                "ran_memory": measured.get("peak_memory"),
            }
        )
    table = pd.DataFrame(rows)
    return {
        "parts": rows,
        "exact": bool(table["exact"].all()),
        "planned": _answers_of(plan, least=False),
        "planned_least": _answers_of(plan, least=True),
        "on_file": journal_lines(out),
        "planned_s": float(table["planned_s"].sum()),
        "ran_s": float(table["ran_s"].sum()),
        "planned_memory": plan["memory"],
        "ran_memory": int(table["ran_memory"].max()),
    }


def _answers_of(plan: Mapping[str, Any], *, least: bool) -> dict[str, int]:
    """Answers and verdicts of a plan; with `least` where parts find nothing to go on with."""
    counts = {"answers": 0, "verdicts": 0}
    for part in plan["parts"]:
        cost = part["least"]["cost"] if least and part["least"] else part["cost"]
        for key in counts:
            counts[key] += cost[key]
    return counts


def plan_table(values: Mapping[str, Any]) -> str:
    """Markdown for docs/studies.md: plan beside run, one row a part."""
    lines = [
        "| study | part | passes, tokens | CPU seconds, plan and run | memory, plan and run |",
        "|---|---|---|---|---|",
    ]
    for name, case in values.items():
        for row in case["parts"]:
            if row["ran_s"] is None:
                continue
            gigabytes = [f"{row[key] / 1e9:.2f}" for key in ("planned_memory", "ran_memory")]
            cells = [
                name,
                f"`{row['part']}`",
                _counts(row),
                f"{row['planned_s']:.0f}, {row['ran_s']:.0f}",
                f"{gigabytes[0]}, {gigabytes[1]} GB",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _counts(row: Mapping[str, Any]) -> str:
    """Passes and tokens of a plan, and whether the run had as many; None: it did not tell them
    from those of sampling.
    """
    counts = f"{row['passes']:,}, {row['tokens']:,}"
    least = row.get("least")
    if least is not None:
        counts = (
            f"{least['passes']:,} to {row['passes']:,}, {least['tokens']:,} to {row['tokens']:,}"
        )
    if row["exact"] is None:
        return f"{counts}: not told apart"
    said = "equal" if row["exact"] else "unlike"
    if "ran" in row:
        said = f"{row['ran']['passes']:,}, {row['ran']['tokens']:,}"
    return f"{counts}: {said}"


def smollm2_config(
    home: Path, parent: Path, questions: Path, rules: Path, null_adapters: int
) -> dict[str, Any]:
    """`overview` of three adapters, with answers of 16 tokens."""
    finetuned = {}
    for name in real_family.ADAPTERS:
        finetuned[name] = {
            "path": str(home / "models" / name),
            "domain": name.partition("-")[2],
            "training": str(home / "data" / f"{name}.jsonl"),
            "benign": name.startswith("good"),
        }
    return {
        "study": "overview",
        "family": {"instruct": str(parent), "device": "cpu", "finetuned": finetuned},
        "questions": str(questions),
        "neutral": str(home / "data" / "neutral.jsonl"),
        "focus": ["bad-medicine"],
        "layers": [10, 20],
        "positions": ["last_prompt"],
        "k": 4,
        "draws": 20,
        "random_directions": 2,
        "folds": 4,
        "repeats": 1,
        "permutations": 99,
        # how many passes a drawn update takes is not known before
        "options": {"delta_overlap": {"adapters": null_adapters, "landmark_draws": 0}},
        "scores": {
            "how": "sample",
            "samples": 2,
            "max_new_tokens": 16,
            "judge": {"rules": str(rules)},
            "arms": {"samples": 1},
        },
    }


def measure(config: Mapping[str, Any], work: Path) -> dict[str, Any]:
    """Plan a study, run it, and compare."""
    path = work / "study.yaml"
    path.write_text(yaml.safe_dump(dict(config)))
    plan = in_process("plan", path, work / "out")
    return compare(plan, in_process("run", path, work / "out"), work / "out")


def configs(work: Path) -> dict[str, Mapping[str, Any]]:
    """The studies that are planned; SmolLM2 where it and the released questions are."""
    studies: dict[str, Mapping[str, Any]] = {"organism": DEMO}
    if "EMLENS_RELEASED_DATA" not in os.environ:
        print("SmolLM2 is left out: set EMLENS_RELEASED_DATA")
        return studies
    try:
        parent = find("smollm2")
    except LoadError as error:
        print(f"SmolLM2 is left out: {error}")
        return studies
    home = real_family.build(Path(os.environ.get("EMLENS_SMALL_FAMILY", work)), parent)
    rules = work / "rules.yaml"
    rules.write_text(yaml.safe_dump(STYLE))
    questions = Path(os.environ["EMLENS_RELEASED_DATA"]) / QUESTIONS
    of_null = {"SmolLM2": 0, WITH_NULL: NULL_ADAPTERS}
    for name, adapters in of_null.items():
        studies[name] = smollm2_config(home, parent, questions, rules, adapters)
    return studies


def main(names: Sequence[str] = ()) -> None:
    """Measure the studies of these names, all without any; what was measured before stays."""
    path = EVIDENCE / "study_plan.json"
    values: dict[str, Any] = read_json(path)["values"] if path.exists() and names else {}
    with tempfile.TemporaryDirectory() as folder:
        for name, config in configs(Path(folder)).items():
            if names and name not in names:
                continue
            work = Path(folder) / name
            work.mkdir()
            values[name] = measure(config, work)
            show(f"plan and run, {name}", pd.DataFrame(values[name]["parts"]))
            record("study_plan", [0], values)
