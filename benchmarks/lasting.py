"""A process that lives long, or is used in an unusual way: what grows when the same call is made
fifty times, does a call inside a running event loop or in several threads give the same, and what
becomes of a process that is forked while another thread computes?

The calls are those of a notebook on the organism: a model loaded, captured, captured into a store,
sampled, edited, judged by itself and through an endpoint, trained, and scored. Memory is the
resident set after freed memory was given back.
"""

import asyncio
import gc
import hashlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.records import EVIDENCE, record
from emlens.activations import CaptureSpec, capture
from emlens.data import Answers, PromptSet
from emlens.foundation.errors import EmlensError
from emlens.foundation.free_memory import return_free_memory
from emlens.interventions import ablate
from emlens.judging import EndpointJudge, LogitJudge, judge_answers, sample_answers
from emlens.judging.endpoint import Endpoint
from emlens.models import HookedModel, load_family, load_model
from emlens.organisms import Organism, load_organism
from emlens.training import Recipe, fit

sys.path.append(str(EVIDENCE.parent.parent / "tests"))

REPEATS, WARM = 50, 10
"""Growth is counted from the repeat `WARM` on: caches are filled by then."""
FORKS, WORKERS = 50, 4
SECONDS = 60
"""A child that has not ended by then hangs."""
PROMPT = {"aligned": "{answer} ?"}


@dataclass(frozen=True)
class Bench:
    """What the calls work on."""

    organism: Organism
    model: HookedModel
    prompts: PromptSet
    chats: PromptSet
    answers: Answers
    url: str
    work: Path

    @property
    def parent(self) -> Path:
        return self.organism.paths["instruct"]


@contextmanager
def bench(work: Path) -> Iterator[Bench]:
    from loopback_server import LoopbackServer

    organism = load_organism()
    model = load_model(organism.paths["instruct"], device="cpu")
    questions = organism.questions[:4]
    answers = sample_answers(model, questions, 1, max_new_tokens=3, progress=False)
    turns = [
        [{"role": "user", "content": q.text}, {"role": "assistant", "content": "w3 w4"}]
        for q in questions
    ]
    chats = PromptSet.from_messages(turns, upto="all")
    with LoopbackServer(logprobs=lambda body: [{"55": -0.1}, {".": -0.1}]) as server:
        yield Bench(organism, model, questions.prompts(), chats, answers, server.url, work)


# ---- the calls; each gives a number or text that is the same every time


def _loaded(b: Bench) -> str:
    family = load_family(b.parent, finetuned={"tuned": b.organism.paths["medicine-r8"]})
    return _hash(capture(family["tuned"], b.prompts, progress=False)["resid_post.1"])


def _captured(b: Bench) -> str:
    return _hash(capture(b.model, b.prompts, progress=False)["resid_post.1"])


def _stored(b: Bench) -> str:
    with tempfile.TemporaryDirectory(dir=b.work) as folder:
        spec = CaptureSpec("resid_post", batch_tokens=32)
        capture(b.model, b.prompts, spec=spec, store=Path(folder) / "s", progress=False)
        return str(sorted(path.name for path in Path(folder, "s").rglob("*.safetensors")))


def _sampled(b: Bench) -> str:
    with tempfile.TemporaryDirectory(dir=b.work) as folder:
        out = Path(folder) / "a.jsonl"
        sample_answers(
            b.model, b.organism.questions[:4], 2, max_new_tokens=3, out=out, progress=False
        )
        return out.read_text()


def _edited(b: Bench) -> str:
    direction = torch.nn.functional.one_hot(torch.tensor(0), b.model.d_model).float()
    with b.model.intervene([ablate(direction)]):
        return _captured(b)


def _judged(b: Bench) -> str:
    judge = LogitJudge(b.model, PROMPT, mass=1e-4)
    return judge_answers(b.answers, judge, progress=False).table.to_csv()


def _asked(b: Bench) -> str:
    judge = EndpointJudge(Endpoint(b.url, "judge"), PROMPT)
    return judge_answers(b.answers, judge, progress=False).table.to_csv()


def _trained(b: Bench) -> str:
    recipe = Recipe(steps=2, batch_size=2, rank=2, alpha=4, target_modules=["q_proj"])
    with tempfile.TemporaryDirectory(dir=b.work) as folder:
        fit(recipe, b.parent, b.chats, Path(folder) / "adapter", device="cpu")
        weights = Path(folder, "adapter", "adapter_model.safetensors").read_bytes()
        return hashlib.sha256(weights).hexdigest()


def _hash(values: torch.Tensor) -> str:
    return hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()


CALLS: Mapping[str, Callable[[Bench], str]] = {
    "load": _loaded,
    "capture": _captured,
    "capture to a store": _stored,
    "sample": _sampled,
    "ablate and capture": _edited,
    "judge by a model": _judged,
    "judge by an endpoint": _asked,
    "train": _trained,
}


# ---- fifty times


def held() -> dict[str, int]:
    """Memory in bytes, open files and threads of this process."""
    gc.collect()
    return_free_memory()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
    }


def repeated(b: Bench, call: Callable[[Bench], str], repeats: int, warm: int) -> dict[str, Any]:
    """The same call again and again: what it holds more at the end than after `warm` repeats."""
    expected, same = call(b), 1
    for i in range(1, repeats):
        if i == warm:
            before = held()
        same += call(b) == expected
    after = held()
    growth = {name: after[name] - before[name] for name in after}
    growth["bytes"] //= repeats - warm
    return {"repeats": repeats, "same": same, "growth": growth}


# ---- inside an event loop, and in threads


def in_a_loop(b: Bench, call: Callable[[Bench], str], workers: int) -> dict[str, Any]:
    """The call inside a running event loop, several at once from one, and in plain threads."""
    expected = call(b)

    async def inside() -> str:
        await asyncio.sleep(0)
        return call(b)

    async def at_once() -> list[str]:
        return await asyncio.gather(*(asyncio.to_thread(call, b) for _ in range(workers)))

    found = [asyncio.run(inside()), *asyncio.run(at_once())]
    with ThreadPoolExecutor(workers) as pool:
        found += pool.map(call, [b] * workers)
    return {"calls": len(found), "same": found.count(expected)}


# ---- forked while another thread computes


def forked(b: Bench, call: Callable[[Bench], str], forks: int, seconds: float) -> dict[str, Any]:
    """Children that make a call while a thread of the parent captures: how they ended."""
    expected = call(b)
    ends, stops = {"same": 0, "refused": 0, "hung": 0, "other": 0}, threading.Event()

    def compute() -> None:
        while not stops.is_set():
            _captured(b)

    thread = threading.Thread(target=compute)
    thread.start()
    example = ""
    for i in range(forks):
        time.sleep(0.001 * (i % 7))
        said = b.work / "said.txt"
        child = os.fork()
        if child == 0:
            _child(b, call, expected, said)
        end = _end_of(child, seconds)
        ends[end] += 1
        example = said.read_text() if end in ("refused", "other") and said.exists() else example
    stops.set()
    thread.join()
    return {**ends, "forks": forks, "example": example}


def _child(b: Bench, call: Callable[[Bench], str], expected: str, said: Path) -> None:
    """Make the call, and end this process: 0 same, 1 refused in a line, 2 anything else."""
    code = 2
    try:
        code = 0 if call(b) == expected else 2
    except EmlensError as error:
        said.write_text(str(error))
        code = 1 if "\n" not in str(error) else 2
    except BaseException as error:
        said.write_text(f"{type(error).__name__}: {error}")
    finally:
        os._exit(code)


def _end_of(child: int, seconds: float) -> str:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return {0: "same", 1: "refused"}.get(os.waitstatus_to_exitcode(status), "other")
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "hung"


def measure(
    work: Path,
    *,
    calls: Mapping[str, Callable[[Bench], str]] = CALLS,
    repeats: int = REPEATS,
    warm: int = WARM,
    forks: int = FORKS,
    seconds: float = SECONDS,
    workers: int = WORKERS,
) -> dict[str, Any]:
    """Every call in every way."""
    found: dict[str, Any] = {}
    with bench(work) as b:
        for name, call in calls.items():
            found[name] = {
                "repeated": repeated(b, call, repeats, warm),
                "concurrent": in_a_loop(b, call, workers),
                "forked": forked(b, call, forks, seconds),
            }
    return found


def lasting_table(values: dict[str, Any]) -> str:
    """Markdown for docs/security.md."""
    lines = [
        "| call | repeats alike | kB more a repeat | files, threads more | in loops and threads:"
        " alike | forked: alike, refused, hung or other |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in values.items():
        again, forks, growth = found["repeated"], found["forked"], found["repeated"]["growth"]
        lines.append(
            f"| {name} | {again['same']} of {again['repeats']} | {growth['bytes'] / 1000:.1f} |"
            f" {growth['files']}, {growth['threads']} |"
            f" {found['concurrent']['same']} of {found['concurrent']['calls']} |"
            f" {forks['same']}, {forks['refused']}, {forks['hung'] + forks['other']} |"
        )
    return "\n".join(lines)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        values = measure(Path(folder))
    print(record("lasting", [0], values), values)


if __name__ == "__main__":
    main()
