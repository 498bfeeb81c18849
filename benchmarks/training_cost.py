"""What training costs on SmolLM2: processor time beside a plain peft loop, round by round, and peak
memory beside an earlier commit.

Time: steps of a LoRA run and of a plain peft loop over the same batches with the same output
layer; the two take turns, and the interval is over rounds. Memory: the same recipe on the same
chats by the sources of both trees, each in a process of its own; losses are compared first.
"""

import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from benchmarks.plain_training import StepLoss, loss_over_answer_logits, peft_loop
from benchmarks.records import EVIDENCE, record
from benchmarks.transfer_cost import EARLIER, TODAY, by_tree, unpacked, write_chats
from emlens.data import Prompt, PromptSet, QuestionSet
from emlens.data.advice import advice_questions, neutral_chats
from emlens.foundation.files import read_json
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


def training(path: str | Path, chats: PromptSet, recipe: Recipe, rounds: int) -> dict[str, Any]:
    """The steps of a LoRA run against a plain peft loop; loading is not timed.

    A step is timed from one loss to the next. What a run does once (rows to tokens, the adapter,
    the checkpoint with its record) is in `run_s` alone, of which it is much here.
    """
    losses: dict[str, list[float]] = {}
    runs: dict[str, list[float]] = {"plain": [], "emlens": []}
    steps: dict[str, list[float]] = {"plain": [], "emlens": []}
    for _ in range(rounds):
        for name in runs:
            base, tokenizer = load_parent(Path(path))
            began = time.process_time()
            if name == "plain":
                loss, at = _timed(loss_over_answer_logits)
                losses[name] = peft_loop(recipe, base, tokenizer, chats, loss)
            else:
                loss, at = _timed(answer_loss)
                with tempfile.TemporaryDirectory() as folder:
                    out = Path(folder) / "out"
                    fitted = fit(recipe, Parent(base), chats, out, tokenizer=tokenizer, loss=loss)
                losses[name] = fitted.log["loss"].tolist()
            runs[name].append(time.process_time() - began)
            steps[name].append((at[-1] - at[0]) / (len(at) - 1))
    gap = max(abs(a - b) for a, b in zip(losses["plain"], losses["emlens"], strict=True))
    if not gap < LOSS_GAP:
        raise SystemExit(f"losses differ by {gap:.2g}; not timing different results")
    ratios = [a / b for a, b in zip(steps["emlens"], steps["plain"], strict=True)]
    return {
        "steps": recipe.steps,
        "run_s": runs,
        "step_s": steps,
        "ratio": statistics.median(ratios),
        "gap": gap,
    }


def _timed(loss: StepLoss) -> tuple[StepLoss, list[float]]:
    """The loss, and the CPU seconds at which it was asked for."""
    at: list[float] = []

    def timed(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        at.append(time.process_time())
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
    found = training(parent, chats_of(questions), recipe, rounds)
    pairs = zip(found["step_s"]["emlens"], found["step_s"]["plain"], strict=True)
    return {**found, **over_rounds([ours / plain for ours, plain in pairs])}


def over_rounds(ratios: Sequence[float]) -> dict[str, Any]:
    """Mean of ratios and its 95 % interval (Student's t over rounds)."""
    from scipy.stats import t

    mean, half = float(np.mean(ratios)), math.inf
    if len(ratios) > 1:
        error = float(np.std(ratios, ddof=1)) / math.sqrt(len(ratios))
        half = float(t.ppf(0.975, len(ratios) - 1)) * error
    return {"ratios": list(ratios), "mean": mean, "low": mean - half, "high": mean + half}


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
    if "memory" in values:
        memory = values["memory"]
        way = f"commit {values['commit']}, the same losses"
        step = f"training, {memory['batch']} rows a step: peak memory"
        rows.append((step, way, memory["ratio"]))
        step = "the same with `gradient_checkpointing: true`"
        rows.append((step, way, memory["ratio_checkpointing"]))
    return rows
