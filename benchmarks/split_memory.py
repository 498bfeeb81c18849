"""What one process of a training holds, with whole weights (`ddp`) and with split ones (`fsdp`), on
SmolLM2.

Every case is the same run under torchrun on gloo; losses are compared with those of one process
first. Read in each process: bytes of weights that it holds in a step, and the largest resident
memory up to the first step, which begins with reading the whole parent; in the second and third
step; and from there to the end. What Python and the libraries take before is taken off.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from benchmarks.records import EVIDENCE, record
from benchmarks.transfer_cost import TODAY, write_chats
from emlens.data.advice import neutral_chats
from emlens.foundation.files import read_json, write_json
from emlens.real.finding import find
from emlens.training.objectives import answer_loss

STEPS, BATCH = 4, 4
MODULES: Final = ("q_proj", "v_proj", "up_proj", "down_proj")
CASES: Final = (
    ("lora", "one", 1),
    ("lora", "ddp", 2),
    ("lora", "fsdp", 2),
    ("full", "one", 1),
    ("full", "ddp", 2),
    ("full", "fsdp", 2),
)
"""Method, kind, processes."""
READ: Final = ("weights", "first", "steps", "after")
SAME: Final = 1e-4
"""Of a loss in nats."""
_RANK: Final = """\
import sys
from benchmarks.split_memory import train
train(*sys.argv[1:])
"""
_STATUS: Final = Path("/proc/self/status")
_CLEAR: Final = Path("/proc/self/clear_refs")


def resident(name: str) -> int:
    """Bytes of this process: "VmRSS" now, "VmHWM" the most so far."""
    lines = (line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(dict(lines)[name].split()[0]) * 1024


def bytes_here(model: nn.Module) -> int:
    """Bytes of the weights that this process holds."""
    total = 0
    for weight in model.parameters():
        held: Any = weight
        total += (held.to_local() if hasattr(held, "to_local") else held).nbytes
    return total


class Watched:
    """The loss of answers; at each step it reads what the process holds."""

    def __init__(self) -> None:
        self.calls = 0
        self.weights = 0
        self.peak_at_first = 0
        self.peak_of_steps = 0

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        self.calls += 1
        self.weights = bytes_here(model)
        if self.calls == STEPS - 2:
            self.peak_at_first = resident("VmHWM")
            _CLEAR.write_text("5")  # the largest so far is forgotten
        if self.calls == STEPS:
            self.peak_of_steps = resident("VmHWM")
        return answer_loss(model, batch)


def train(method: str, kind: str, parent: str, chats: str, out: str) -> None:
    """The run of one process, which writes what it held beside `out`."""
    import torch

    from emlens.data import PromptSet
    from emlens.training import Recipe, fit, trainer  # noqa: F401, imported before memory is read
    from emlens.training.adapters import with_adapter  # noqa: F401
    from emlens.training.parallel import Parallel

    torch.set_num_threads(1)
    fields: dict[str, Any] = {"steps": STEPS, "batch_size": BATCH, "learning_rate": 1e-4}
    if method == "lora":
        fields |= {"rank": 8, "alpha": 16, "target_modules": MODULES}
    watched = Watched()
    libraries = resident("VmRSS")
    fitted = fit(
        Recipe(method=method, **fields),  # type: ignore[arg-type]
        parent,
        PromptSet.from_jsonl(chats, upto="all"),
        out,
        loss=watched,
        parallel=None if kind == "one" else Parallel(kind=kind),  # type: ignore[arg-type]
        device="cpu",
    )
    found = {
        "weights": watched.weights,
        "first": watched.peak_at_first - libraries,
        "steps": watched.peak_of_steps - libraries,
        "after": resident("VmHWM") - libraries,
        "libraries": libraries,
        "loss": [float(loss) for loss in fitted.log["loss"]],
    }
    write_json(Path(f"{out}.{os.environ.get('RANK', '0')}.json"), found)


def held_by(
    case: tuple[str, str, int],
    parent: str | Path,
    chats: Path,
    folder: Path,
) -> list[dict[str, Any]]:
    """What each process of one case held."""
    method, kind, processes = case
    script, out = folder / "rank.py", folder / f"{method}-{kind}-{processes}"
    script.write_text(_RANK)
    command = [sys.executable]
    if kind != "one":
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(processes)]
    environment = {**os.environ, "PYTHONPATH": str(TODAY)}
    environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run(
        [*command, str(script), method, kind, str(parent), str(chats), str(out)],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    return [read_json(Path(f"{out}.{rank}.json")) for rank in range(processes)]


def memory_of(
    parent: str | Path,
    cases: Sequence[tuple[str, str, int]] = CASES,
) -> dict[str, dict[str, Any]]:
    """What the process that holds most held, by case; losses beside those of one process."""
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        chats = Path(name) / "chats.jsonl"
        write_chats(chats, neutral_chats())
        for method, kind, processes in cases:
            ranks = held_by((method, kind, processes), parent, chats, Path(name))
            case = {key: max(rank[key] for rank in ranks) for key in READ}
            alone = found.get(f"{method} one 1", {}).get("loss", ranks[0]["loss"])
            pairs = zip(ranks[0]["loss"], alone, strict=True)
            gap = max(abs(ours - theirs) for ours, theirs in pairs)
            if not gap < SAME:
                raise SystemExit(f"{method} {kind}: losses differ by {gap:.2g}; not the same run")
            found[f"{method} {kind} {processes}"] = {
                **case,
                "loss": ranks[0]["loss"],
                "gap": gap,
                "method": method,
                "kind": kind,
                "processes": processes,
            }
    return found


def main(cases: Sequence[tuple[str, str, int]] = CASES) -> None:
    """Measure some cases; the others stay as they are."""
    path = EVIDENCE / "split_memory.json"
    values: dict[str, Any] = read_json(path)["values"] if path.exists() else {}
    found = {**values.get("cases", {}), **memory_of(find("smollm2"), cases)}
    record("split_memory", [0], {"cases": found, "batch": BATCH})


def memory_table(values: Mapping[str, Any]) -> str:
    """Markdown for docs/running.md."""
    lines = [
        "| trained | processes | weights of a process | most up to the first step | in a step"
        " | to the end | largest gap of a loss |",
        "|---|---|---|---|---|---|---|",
    ]
    names = [" ".join(map(str, case)) for case in CASES]
    for case in [values["cases"][name] for name in names if name in values["cases"]]:
        method = {"lora": "adapter, rank 8", "full": "all weights"}[case["method"]]
        kind = "1" if case["kind"] == "one" else f"{case['processes']}, `{case['kind']}`"
        sizes = [f"{case[key] / 1e9:.2f} GB" for key in READ]
        gap = "–" if case["kind"] == "one" else f"{case['gap']:.0e}"
        lines.append("| " + " | ".join([method, kind, *sizes, gap]) + " |")
    return "\n".join(lines)
