"""What loads models in the processes and actors of the executor tests, with accidents planted in
files.
"""

import os
import signal
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import tiny_models
import torch

from emlens.activations import CaptureSpec, batch_layout
from emlens.activations.executor_capture import capture_over
from emlens.data import PromptSet
from emlens.models import Family, HookedModel, load_family, load_model
from emlens.runs import RankExecutor

SPEC = CaptureSpec(positions=["last_prompt", "all"], batch_tokens=45, layers=[0, 2])
ROWS = 6


def prompts(n: int = 48) -> PromptSet:
    return PromptSet.from_questions(tiny_models.texts(n), ids=[f"q{i}" for i in range(n)])


@dataclass(frozen=True)
class Load:
    """Loads a tiny model; leaves a line per load, and dies in the pass that `accidents/die-at-N`
    names, once.
    """

    path: Path
    accidents: Path

    def __call__(self) -> HookedModel:
        torch.use_deterministic_algorithms(True)
        batch_layout.SHARD_ROWS = ROWS
        model = load_model(self.path)
        with open(self.accidents / "loads", "a") as file:
            file.write(f"{os.getpid()}\n")
        run, passes = model.run, 0

        def counted(*arguments: Any, **named: Any) -> Any:
            nonlocal passes
            passes += 1
            try:
                (self.accidents / f"die-at-{passes}").unlink()
            except FileNotFoundError:
                return run(*arguments, **named)
            os.kill(os.getpid(), signal.SIGKILL)

        model.run = counted  # type: ignore[method-assign]
        return model

    @property
    def loads(self) -> list[str]:
        return (self.accidents / "loads").read_text().split()


def load_both(instruct: Path, adapter: Path) -> Family:
    batch_layout.SHARD_ROWS = ROWS
    return load_family(instruct, finetuned={"one": adapter})


def rank_main(load: Load, store: Path, rank: int, count: int) -> None:
    executor = RankExecutor(rank, count, run="test", lease=5.0)
    capture_over(executor, load, prompts(), store, threads=1, spec=SPEC)


def start(*arguments: Any) -> BaseProcess:
    """A real process, from a server that has imported the libraries once."""
    context = get_context("forkserver")
    context.set_forkserver_preload(
        ["emlens.activations", "transformers.models.qwen2.modeling_qwen2"]
    )
    process = context.Process(target=rank_main, args=arguments)
    process.start()
    return process


def bytes_of(store: Path) -> dict[str, bytes]:
    """Contents of a store, without the records of who captured it."""
    return {path.name: path.read_bytes() for path in store.iterdir() if path.name != "units"}
