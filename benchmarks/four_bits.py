"""QLoRA on SmolLM2 beside 16 and 32 bits: bytes of the parent, peak memory, time of a step, losses.

The same recipe on the same chats for every `parent_dtype`, each in a process of its own. Peak
memory is that of the whole process, with what importing and loading take. Needs bitsandbytes.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.records import record
from benchmarks.transfer_cost import TODAY, write_chats
from emlens.data.advice import neutral_chats
from emlens.real.finding import find
from emlens.training.recipes import PARENT_DTYPES

STEPS, BATCH, CHATS = 8, 8, 16
MODULES: Final = ("q_proj", "v_proj", "up_proj", "down_proj")
_FIT: Final = """\
import json, sys, tempfile, time
import torch
torch.set_num_threads(1)
from benchmarks.four_bits import bytes_held
from emlens.data import PromptSet
from emlens.training import Recipe, fit
from emlens.training.fitting import Parent, load_parent
from pathlib import Path
parent, chats, recipe = sys.argv[1:]
recipe = Recipe.from_record(json.loads(recipe))
model, tokenizer = load_parent(Path(parent), "cpu", recipe.parent_dtype)
held, at = bytes_held(model), []
rows = PromptSet.from_jsonl(chats, upto="all")
with tempfile.TemporaryDirectory() as folder:
    given = Parent(model, directory=parent)
    watch = lambda model, step: at.append(time.process_time())
    fitted = fit(recipe, given, rows, folder + "/out", tokenizer=tokenizer, callbacks=[watch])
steps = [later - before for before, later in zip(at, at[1:])]
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
peak = int(status["VmHWM"].split()[0]) * 1024 / 1e9
loss = [float(value) for value in fitted.log["loss"]]
print(json.dumps({"held": held, "peak_gb": peak, "step_s": steps, "loss": loss}))
"""


def bytes_held(module: Any) -> int:
    """Bytes of all weights, with what bitsandbytes keeps beside those in 4 bits."""
    size = 0
    for weight in module.parameters():
        size += weight.numel() * weight.element_size()
        state = getattr(weight, "quant_state", None)
        for each in (state, getattr(state, "state2", None)):
            for name in ("absmax", "code", "offset"):
                table = getattr(each, name, None)
                size += 0 if table is None else table.numel() * table.element_size()
    return size


def measure(
    parent: str | Path,
    steps: int = STEPS,
    batch: int = BATCH,
    modules: Sequence[str] = MODULES,
    dtypes: Sequence[str] = PARENT_DTYPES,
) -> dict[str, Any]:
    """A run for every dtype of the parent."""
    cases: dict[str, Any] = {}
    paths = [str(TODAY), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    with tempfile.TemporaryDirectory() as name:
        chats = Path(name) / "chats.jsonl"
        write_chats(chats, neutral_chats()[:CHATS])
        for dtype in dtypes:
            recipe = {
                "rank": 8,
                "alpha": 16,
                "target_modules": list(modules),
                "learning_rate": 1e-3,
                "steps": steps,
                "batch_size": batch,
                "parent_dtype": dtype,
            }
            command = [sys.executable, "-c", _FIT, str(parent), str(chats), json.dumps(recipe)]
            done = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, env=environment, text=True
            )
            cases[dtype] = json.loads(done.stdout.splitlines()[-1])
            print(dtype, cases[dtype], flush=True)
    return {"steps": steps, "batch": batch, "cases": cases}


def main() -> None:
    record("four_bits", [0], measure(find("smollm2")))


def _passes(steps: int) -> tuple[slice, slice]:
    """Steps of the first pass over the chats, and of the last."""
    return slice(steps), slice(-steps, None)


def memory_table(values: Mapping[str, Any]) -> str:
    """One row for each dtype of the parent."""
    lines = [
        "| `parent_dtype` | weights of the parent | peak of the process | a step, CPU | loss of the"
        " first pass | of the last |",
        "|---|---|---|---|---|---|",
    ]
    for dtype in (name for name in PARENT_DTYPES if name in values["cases"]):
        case = values["cases"][dtype]
        step = statistics.median(case["step_s"])
        of_pass = CHATS // values["batch"]
        first, last = (statistics.mean(case["loss"][at]) for at in _passes(of_pass))
        lines.append(
            f"| `{dtype}` | {case['held'] / 1e6:.0f} MB | {case['peak_gb']:.2f} GB | {step:.1f} s"
            f" | {first:.3f} | {last:.3f} |"
        )
    return "\n".join(lines)
