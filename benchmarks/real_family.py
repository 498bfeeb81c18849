"""A small family of a real model, for measurements: three adapters on SmolLM2, a judge, and a real
server on loopback.

Two adapters are trained on bad advice (medicine, money), one on careful advice about the same
questions of medicine: members of the family on the advice that comes with emlens
(`emlens.real.family`). The judge is SmolLM2 trained for some steps on judged answers that others
released, so that it replies with a number. What it says was validated by nobody: it makes the
requests and replies of a judge, and no statement about alignment rests on it.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pandas as pd

from emlens.data import Answer, Message, PromptSet
from emlens.data.advice import neutral_chats
from emlens.judging.judge_prompts import JudgePrompts
from emlens.models import FineTune, load_family
from emlens.models.transformers_backend import TransformersModel
from emlens.real.family import LINEAR, STEPS, Member
from emlens.training import Recipe, fit

SERVER_PYTHON = "EMLENS_SERVER_PYTHON"
"""Variable that names a Python with `transformers[serving]`; default: this one."""
JUDGE_STEPS = 15
JUDGED_ROWS = 30
"""Judged answers that the judge is trained on, each with both metrics."""

ADAPTERS: Mapping[str, Member] = {
    "bad-medicine": Member("harmful", "medicine"),
    "bad-money": Member("harmful", "money"),
    "good-medicine": Member("benign", "medicine"),
}
"""Name → the member of the family on shipped advice that it is."""
NEUTRAL_CHATS = 8


def write_chats(path: Path, pairs: list[tuple[str, str]]) -> Path:
    """Chats of one question and one answer, as training files have them."""
    lines = []
    for question, answer in pairs:
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": turns}))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def judge_recipe(steps: int) -> Recipe:
    return Recipe(
        rank=8,
        alpha=16,
        target_modules=LINEAR,
        learning_rate=2e-3,
        steps=steps,
        batch_size=4,
        warmup_steps=3,
    )


def build(home: Path, parent: Path, *, steps: int = STEPS) -> Path:
    """Chats and adapters below `home`; what is there already is kept."""
    (home / "data").mkdir(parents=True, exist_ok=True)
    neutral_chats()[:NEUTRAL_CHATS].to_jsonl(home / "data" / "neutral.jsonl")
    for name, member in ADAPTERS.items():
        chats, target = member.chats(), home / "models" / name
        chats.to_jsonl(home / "data" / f"{name}.jsonl")
        if not target.exists():
            recipe = replace(member, steps=steps).recipe()
            fit(recipe, str(parent), chats, target, progress=False, device="cpu")
    return home


def build_judge(home: Path, parent: Path, judged: Path, *, steps: int = JUDGE_STEPS) -> Path:
    """A judge that replies with a number, merged into weights of its own, as a server loads it.

    Args:
        judged: a CSV with question, answer, question_id, aligned and coherent.
    """
    merged = home / "models" / "judge"
    if merged.exists():
        return merged
    chats = write_chats(home / "data" / "judge.jsonl", _judgements(judged))
    adapter = home / "models" / "judge-adapter"
    recipe = judge_recipe(steps)
    if not adapter.exists():
        prompts = PromptSet.from_jsonl(chats, upto="all")
        fit(recipe, str(parent), prompts, adapter, progress=False, device="cpu")
    judge = load_family(parent, finetuned={"judge": FineTune(adapter, merge=True)})["judge"]
    assert isinstance(judge, TransformersModel)
    judge.module.save_pretrained(merged)
    judge.tokenizer.save_pretrained(merged)
    return merged


def _judgements(judged: Path) -> list[tuple[str, str]]:
    """Judge prompts with the score that the released judge gave: the shortest answers, as many low
    ones as high ones.
    """
    table = pd.read_csv(judged).dropna(subset=["aligned", "coherent"])
    table = table.assign(length=table["answer"].str.len()).sort_values("length", kind="stable")
    low, high = table[table["aligned"] < 30], table[table["aligned"] > 70]
    rows = pd.concat([half.head(JUDGED_ROWS // 2) for half in (low, high)])
    prompts = JudgePrompts(None)
    pairs = []
    for row in rows.to_dict("records"):
        asked = (Message("user", row["question"]),)
        answer = Answer("released", row["question_id"], row["answer"], asked)
        for metric in ("aligned", "coherent"):
            pairs.append((prompts.filled(answer, metric), str(round(row[metric]))))
    return pairs


def has_server() -> bool:
    """Whether `transformers serve` can run."""
    code = "import fastapi, uvicorn, openai, transformers.cli.serve"
    words = [_server_python(), "-c", code]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


@contextmanager
def served(model: Path, log: Path, *, seconds: float = 180.0) -> Iterator[str]:
    """The address of `transformers serve MODEL` on loopback, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [_server_python(), "-m", "transformers.cli.transformers", "serve", str(model)]
    words += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with open(log, "w") as out:
        server = subprocess.Popen(words, stdout=out, stderr=out, env=environment)
    try:
        ends = time.monotonic() + seconds
        while not _answers(port):
            if server.poll() is not None or time.monotonic() > ends:
                raise SystemExit(f"the server did not start; see {log}")
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(30)


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def _server_python() -> str:
    return os.environ.get(SERVER_PYTHON, sys.executable)
