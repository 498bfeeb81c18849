"""Judging through an endpoint that fails 30 % of calls, by a process that is killed twice: is each
answer scored once?

The server (tests/loopback_server.py) counts the calls that it answered well, by answer. A killed
judge may repeat those that were under way; anything beyond `concurrency` a kill is a call paid
twice. Scores are compared with what the server said for each answer, so a mixed-up reply would show
too.
"""

import hashlib
import math
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.records import EVIDENCE, record
from emlens.data import Answer, Answers, Message
from emlens.data.journal import read_journal
from emlens.judging import EndpointJudge, judge_answers
from emlens.judging.endpoint import Endpoint

sys.path.append(str(EVIDENCE.parent.parent / "tests"))

ANSWERS = 10_000
FAILING = 0.3
CONCURRENCY = 16
FAULTS = ("429", "500", "503", "half json", "wrong type", "no choices", "cut", "cut body")
PROMPT = {"aligned": "Rate [ANSWER START]{answer}[ANSWER END]"}


def score_of(text: str) -> float:
    """What the server's judge thinks of a prompt: any number from 0 to 100, fixed by the text."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 101


def child(url: str, answers: str, out: str) -> None:
    """Judge; what a killed process runs."""
    judge = EndpointJudge(
        Endpoint(url, "judge", concurrency=CONCURRENCY, attempts=25, backoff=0.002, timeout=60),
        PROMPT,
    )
    judge_answers(Answers.from_jsonl(answers), judge, out=out, progress=False)


def measure(directory: Path, count: int, kills: int, seed: int) -> dict[str, Any]:
    """Judge `count` answers in processes that are killed `kills` times at random points, then to
    the end.
    """
    from loopback_server import LoopbackServer

    rng, answered, calls = random.Random(seed), Counter[str](), Counter[str]()

    def fault(body: dict[str, Any], nth: int) -> str | None:
        text = body["messages"][0]["content"]
        draw = random.Random(f"{seed}/{text}/{nth}")
        found = draw.choice(FAULTS) if draw.random() < FAILING else None
        calls[found or "answered"] += 1
        if found is None:
            answered[text] += 1
        return found

    def logprobs(body: dict[str, Any]) -> list[dict[str, float]]:
        score = {str(score_of(body["messages"][0]["content"])): math.log(0.9)}
        # a second candidate shows that tokens hold whole numbers
        return [{"55": -30.0, **score}, {".": -0.1}]

    answers, out = directory / "answers.jsonl", directory / "verdicts.jsonl"
    Answers(
        Answer("m", f"q{i % 24}", f"answer {i}", (Message("user", "Q?"),), sample=i)
        for i in range(count)
    ).to_jsonl(answers)
    stops = sorted(rng.sample(range(count // 10, 9 * count // 10), kills))
    done_at_kill = []
    started = time.perf_counter()
    with LoopbackServer(fault=fault, logprobs=logprobs) as server:
        for stop in [*stops, None]:
            process = multiprocessing.get_context("fork").Process(
                target=child, args=(server.url, str(answers), str(out))
            )
            process.start()
            while stop is not None and process.is_alive() and _lines(out) <= stop:
                time.sleep(0.005)
            if stop is not None:
                if not process.is_alive():
                    raise SystemExit(
                        f"the judge ended with {process.exitcode} before it was killed at {stop}"
                        " answers"
                    )
                process.kill()
                process.join()
                done_at_kill.append(_lines(out) - 1)
                time.sleep(0.2)  # requests of the dead process end before the next one is forked
        process.join()
        if process.exitcode:
            raise SystemExit(f"the judge ended with {process.exitcode}")
    lines = [line for _, line in read_journal(out)[1:]]
    scored = Counter(line["answer"] for line in lines)
    said = {
        line["answer"]: score_of(
            f"Rate [ANSWER START]answer {line['answer'].rpartition('/s')[2]}[ANSWER END]"
        )
        for line in lines
    }
    wrong = sum(
        line["score"] is None or abs(line["score"] - said[line["answer"]]) > 1e-6 for line in lines
    )
    return {
        "answers": count,
        "scored": sum(line["status"] == "ok" for line in lines),
        "scored_more_than_once": sum(n > 1 for n in scored.values()),
        "lost": count - len(scored),
        "wrong_scores": wrong,
        "calls": sum(calls.values()),
        "failed_share": 1 - calls["answered"] / sum(calls.values()),
        "faults": {name: calls[name] for name in FAULTS},
        "kills": kills,
        "judged_at_kill": done_at_kill,
        "concurrency": CONCURRENCY,
        "calls_repeated": sum(n - 1 for n in answered.values()),
        "allowed_repeats": kills * CONCURRENCY,
        "seconds": time.perf_counter() - started,
    }


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        found = measure(Path(directory), ANSWERS, kills=2, seed=0)
    print(found)
    record("endpoint_judging", [0], found)
