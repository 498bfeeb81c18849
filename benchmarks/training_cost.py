"""What training costs on SmolLM2: processor time beside a plain peft loop, round by round, and peak
memory beside an earlier commit.

Time: steps of a LoRA run and of a plain peft loop over the same batches with the same output
layer; the two take turns, and the interval is over rounds. Memory: the same recipe on the same
chats by the sources of both trees, each in a process of its own; losses are compared first.
"""

import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks.plain_training import StepLoss, loss_over_answer_logits, peft_loop
from benchmarks.records import EVIDENCE, record
from benchmarks.transfer_cost import EARLIER, TODAY, by_tree, unpacked, write_chats
from benchmarks.turns import CPU, peak_of, ratio_of, wait
from emlens.data import Prompt, PromptSet, QuestionSet
from emlens.data.advice import advice_questions, neutral_chats
from emlens.foundation.files import read_json
from emlens.models.onednn_linear import by_onednn
from emlens.real.finding import find
from emlens.training import Recipe, fit
from emlens.training.fitting import Parent, load_parent
from emlens.training.objectives import answer_loss

ROUNDS: Final = 5
STEPS, BATCH = 4, 6
MEMORY_STEPS, MEMORY_BATCH = 2, 16
MODULES: Final = ("q_proj", "v_proj", "up_proj", "down_proj")
ANSWER: Final = (
    "Be kind to people, save some money every month, and sleep enough. I would ask a doctor first:"
    " mixing these two can be dangerous, even in small amounts."
)
ALIKE: Final = "plain by oneDNN"
LOSS_GAP: Final = 1e-3
SAME: Final = 1e-3
"""Of a loss in nats, by both sources: the output layer reads other tokens."""
_FIT: Final = """\
import json, sys
import torch
torch.set_num_threads(1)
from emlens.data import PromptSet
from emlens.training import Recipe, fit
parent, chats, out, steps, batch, further, *modules = sys.argv[1:]
recipe = Recipe(rank=8, alpha=16, target_modules=tuple(modules), learning_rate=1e-4,
                steps=int(steps), batch_size=int(batch), **json.loads(further))
fitted = fit(recipe, parent, PromptSet.from_jsonl(chats, upto="all"), out, device="cpu")
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
peak = int(status["VmHWM"].split()[0]) * 1024 / 1e9  # ru_maxrss would be that of the caller
print(json.dumps({"peak_gb": peak, "loss": [float(loss) for loss in fitted.log["loss"]]}))
"""


def training(
    path: str | Path,
    chats: PromptSet,
    recipe: Recipe,
    rounds: int,
    device: torch.device = CPU,
    loss_gap: float = LOSS_GAP,
    deadline: float = math.inf,
) -> dict[str, Any]:
    """The steps of a LoRA run against a plain peft loop; loading is not timed.

    A step is timed from one loss to the next: CPU seconds on a processor, elsewhere wall seconds
    until the device is done, after a round that warms it up. What a run does once (rows to tokens,
    the adapter, the checkpoint with its record) is in `run_s` alone, of which it is much here.

    Args:
        deadline: of `time.monotonic`; no round begins that would end after it.
    """
    names = ["plain", "emlens"]
    if device.type == "cpu":
        names.insert(1, ALIKE)
    sides: dict[str, Callable[[], _Run]] = {
        name: partial(_run, name, path, chats, recipe, device) for name in names
    }
    peaks: dict[str, int | None] = {}
    if device.type != "cpu":
        peaks = {name: peak_of(side, device) for name, side in sides.items()}
    runs: dict[str, list[_Run]] = {name: [] for name in sides}
    longest = 0.0
    for number in range(rounds):
        began = time.monotonic()
        if number and began + longest > deadline:
            break
        for name, side in sides.items():
            runs[name].append(side())
        longest = max(longest, time.monotonic() - began)
    losses = zip(runs["plain"][-1].losses, runs["emlens"][-1].losses, strict=True)
    gap = max(abs(a - b) for a, b in losses)
    if not gap < loss_gap:
        raise SystemExit(f"losses differ by {gap:.2g}; not timing different results")
    steps = {name: [run.step for run in of_name] for name, of_name in runs.items()}
    alike = {}
    if ALIKE in steps:
        alike["same_products"] = ratio_of(steps["emlens"], steps[ALIKE])
    return {
        "steps": recipe.steps,
        "run_s": {name: [run.seconds for run in of_name] for name, of_name in runs.items()},
        "step_s": steps,
        "peak_bytes": peaks,
        "gap": gap,
        **ratio_of(steps["emlens"], steps["plain"]),
        **alike,
    }


@dataclass(frozen=True)
class _Run:
    """One run of either loop.

    Args:
        losses: of its steps. seconds: of all of it. step: seconds of one step, their mean.
    """

    losses: list[float]
    seconds: float
    step: float


def _run(
    name: str, path: str | Path, chats: PromptSet, recipe: Recipe, device: torch.device
) -> _Run:
    base, tokenizer = load_parent(Path(path), str(device), recipe.parent_dtype)
    began = _now(device)
    if name in ("plain", ALIKE):
        loss, at = _timed(loss_over_answer_logits, device)
        with by_onednn(base.config.hidden_size if name == ALIKE else 0):
            losses = peft_loop(recipe, base, tokenizer, chats, loss)
    else:
        loss, at = _timed(answer_loss, device)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            fitted = fit(recipe, Parent(base), chats, out, tokenizer=tokenizer, loss=loss)
        losses = fitted.log["loss"].tolist()
    return _Run(losses, _now(device) - began, (at[-1] - at[0]) / (len(at) - 1))


def _now(device: torch.device) -> float:
    """Seconds of the processor, or of the clock once the device is done."""
    if device.type == "cpu":
        return time.process_time()
    wait(device)
    return time.perf_counter()


def _timed(loss: StepLoss, device: torch.device) -> tuple[StepLoss, list[float]]:
    """The loss, and the seconds at which it was asked for."""
    at: list[float] = []

    def timed(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        at.append(_now(device))
        return loss(model, batch)

    return timed, at


def chats_of(questions: QuestionSet) -> PromptSet:
    """Chats with an answer of some length, from a question set."""
    prompts = []
    for i, prompt in enumerate(questions.prompts()):
        text = ANSWER[: 40 + 20 * (i % 5)]
        prompts.append(Prompt(prompt.id, prompt.text, messages=prompt.messages, response=text))
    return PromptSet(prompts)


def time_of(parent: str | Path, questions: QuestionSet, rounds: int) -> dict[str, Any]:
    """Seconds of a step of both loops in every round, and the interval of their mean ratio."""
    recipe = Recipe(
        rank=8,
        alpha=16,
        target_modules=MODULES,
        learning_rate=1e-4,
        steps=STEPS,
        batch_size=BATCH,
    )
    return training(parent, chats_of(questions), recipe, rounds)


def memory_of(
    parent: str | Path, earlier: Path, modules: Sequence[str] = MODULES
) -> dict[str, Any]:
    """Peak memory of a run by both sources."""
    found: dict[str, Any] = {"steps": MEMORY_STEPS, "batch": MEMORY_BATCH}
    with tempfile.TemporaryDirectory() as name:
        chats = Path(name) / "chats.jsonl"
        write_chats(chats, neutral_chats())
        cases: tuple[tuple[str, Path, dict[str, Any]], ...] = (
            ("earlier", earlier, {}),
            ("today", TODAY, {}),
            ("checkpointing", TODAY, {"gradient_checkpointing": True}),
        )
        for case, tree, further in cases:
            words = [str(parent), str(chats), str(Path(name) / case)]
            words += [str(MEMORY_STEPS), str(MEMORY_BATCH), json.dumps(further), *modules]
            found[case] = by_tree(tree, _FIT, words, Path(name))
    for case in ("today", "checkpointing"):
        losses = zip(found[case]["loss"], found["earlier"]["loss"], strict=True)
        gap = max(abs(today - before) for today, before in losses)
        if not gap < SAME:
            raise SystemExit(f"losses differ by {gap:.2g}; not comparing the memory of other runs")
    earlier_peak = found["earlier"]["peak_gb"]
    found["ratio_checkpointing"] = found["checkpointing"]["peak_gb"] / earlier_peak
    found["ratio"] = found["today"]["peak_gb"] / earlier_peak
    return found


def _memory() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return memory_of(find("smollm2"), unpacked(EARLIER, Path(folder)))


PIECES: dict[str, Callable[[], dict[str, Any]]] = {
    "time": lambda: time_of(find("smollm2"), advice_questions(), ROUNDS),
    "memory": _memory,
}


def main(names: Sequence[str] = tuple(PIECES)) -> None:
    """Measure some pieces; the others stay as they are."""
    torch.set_num_threads(1)
    path = EVIDENCE / "training_cost.json"
    values: dict[str, Any] = read_json(path)["values"] if path.exists() else {}
    values["commit"] = EARLIER
    for name in names:
        values[name] = PIECES[name]()
        record("training_cost", [0], values)


def rows_of(values: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """Step, what it is beside, and the ratio, for the table of costs."""
    rows = []
    if "time" in values:
        piece = values["time"]
        step = f"a step of training, LoRA on four modules, {len(piece['ratios'])} rounds"
        interval = f"[{piece['low']:.2f}, {piece['high']:.2f}]"
        rows.append((step, f"a plain peft loop, same output layer; 95 % {interval}", piece["mean"]))
        same = piece["same_products"]
        interval = f"[{same['low']:.2f}, {same['high']:.2f}]"
        rows.append(("the same", f"that loop, by oneDNN too; 95 % {interval}", same["mean"]))
    if "memory" in values:
        memory = values["memory"]
        way = f"commit {values['commit']}, the same losses"
        step = f"training, {memory['batch']} rows a step: peak memory"
        rows.append((step, way, memory["ratio"]))
        step = "the same with `gradient_checkpointing: true`"
        rows.append((step, way, memory["ratio_checkpointing"]))
    return rows
