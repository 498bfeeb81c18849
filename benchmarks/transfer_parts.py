"""What each part of `direction_transfer` costs today: processor time, measurements, and tokens ×
blocks, counted where MLPs are run. Which of it an earlier commit did not do is told by the names of
arms, by doses and by tables.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

SCRIPT: Final = """\
import collections, json, sys, time
import torch
torch.set_num_threads(1)
from emlens.evaluation import arms as arms_module, trials
from emlens.evaluation.arms import Arm
from emlens.studies import direction_arms, direction_candidates, direction_transfer, run_study

part, name = ["loading, scores, statistics"], [""]
seconds, products, measured = (collections.Counter() for _ in range(3))
last = [time.process_time()]

def key():
    return part[-1], name[-1]

def tick():
    now = time.process_time()
    seconds[key()] += now - last[0]
    last[0] = now

def entered(stack, value, work, given, options):
    tick()
    stack.append(value)
    try:
        return work(*given, **options)
    finally:
        tick()
        stack.pop()

def wrap(module, function, value):
    work = getattr(module, function)
    def wrapped(*given, **options):
        return entered(part, value, work, given, options)
    setattr(module, function, wrapped)

for module, function, value in (
    (direction_transfer, "shift_candidates", "captures and extraction"),
    (direction_transfer, "affine_form", "captures and extraction"),
    (direction_transfer, "scored_candidates", "candidates"),
    (direction_transfer, "measured_arms", "arms"),
    (direction_arms, "ablation_arms", "captures and extraction"),
    (direction_arms, "affine_form", "captures and extraction"),
    (direction_transfer, "_steering", "doses"),
    (direction_transfer, "_transfer", "transfer"),
    (direction_transfer, "answer_tokens", "tokens of answers"),
):
    wrap(module, function, value)

arm_of = {}
make = direction_arms.ablation_arms
def made(*given, **options):
    arms = make(*given, **options)
    for arm in arms:
        arm_of[id(arm.edits), arm.on] = arm
    kept.append(arms)
    return arms
kept = []
direction_arms.ablation_arms = made

measure = trials.Trials._measure
def measuring(self, inputs, model, interventions, work):
    def counted(*given):
        measured[key()] += 1
        return work(*given)
    on = "instruct" if model.name == "instruct" else "finetuned"
    if model.name.startswith("benign"):
        on = "benign"
    arm = arm_of.get((id(interventions), on))
    what = inputs["kind"]
    if arm is not None and part[-1].startswith("arms"):
        what = f"{what}|{arm.name}|{arm.on}"
    if part[-1] == "doses":
        doses = [edit.coefficient for edit in interventions if hasattr(edit, "coefficient")]
        what = f"{what}|{abs(doses[0]) if doses else 0.0}"
    return entered(name, what, measure, (self, inputs, model, interventions, counted), {})
trials.Trials._measure = measuring

def count(module, given, _options):
    if type(module).__name__.endswith("MLP"):
        products[key()] += given[0].shape[0] * given[0].shape[1]
torch.nn.modules.module.register_module_forward_pre_hook(
    lambda module, given: count(module, given, None)
)
result = run_study(sys.argv[1], out=sys.argv[2], progress=False)
tick()
rows = [
    {
        "part": place,
        "what": what,
        "cpu_s": seconds[place, what],
        "measured": measured[place, what],
        "token_blocks": products[place, what],
    }
    for place, what in seconds
]
print(json.dumps({"rows": rows}))
"""


def summed(
    rows: Sequence[Mapping[str, Any]], arms: Sequence[Sequence[str]], doses: Sequence[float]
) -> dict[str, Any]:
    """CPU seconds, measurements and tokens × blocks of each part, and seconds of what an earlier
    commit did not do.

    Args:
        rows: that the script prints. arms: name and model of those that the earlier commit ran.
        doses: its doses.
    """
    table: dict[str, dict[str, float]] = {}
    added = {"arms": 0.0, "doses": 0.0, "tokens of answers": 0.0}
    known = {tuple(arm) for arm in arms}
    for row in rows:
        what, *place = row["what"].split("|")
        name = f"{row['part']}: {what}" if what else row["part"]
        entry = table.setdefault(name, {"cpu_s": 0.0, "measured": 0, "token_blocks": 0})
        for column in entry:
            entry[column] += row[column]
        if row["part"] == "tokens of answers":
            added["tokens of answers"] += row["cpu_s"]
        elif row["part"] == "arms" and place and tuple(place) not in known:
            added["arms"] += row["cpu_s"]
        elif row["part"] == "doses" and place and float(place[0]) not in doses:
            added["doses"] += row["cpu_s"]
    return {"parts": table, "added": added}


def parts_table(found: Mapping[str, Any]) -> str:
    """Markdown: each part's share of the time, its measurements and tokens × blocks."""
    total = sum(entry["cpu_s"] for entry in found["parts"].values())
    lines = [
        "| part | of the CPU time | measurements | thousand tokens × blocks |",
        "|---|---|---|---|",
    ]
    ranked = sorted(found["parts"].items(), key=lambda item: -item[1]["cpu_s"])
    for name, entry in ranked:
        if entry["cpu_s"] < 0.005 * total:
            continue
        count = f"{entry['measured']:.0f}" if entry["measured"] else "–"
        products = f"{entry['token_blocks'] / 1000:.0f}" if entry["token_blocks"] else "–"
        lines.append(f"| {name} | {entry['cpu_s'] / total:.1%} | {count} | {products} |")
    return "\n".join(lines)
