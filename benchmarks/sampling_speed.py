"""Fifty answers a question with stated lengths: rows that come and go against plain batches of
`generate` in the given order.

Lengths are drawn once, log-normal with the spread of real answers (the standard deviation of log
length is .33 within a question and .26 to .39 between questions in two released sets of judged
answers), and forced on both sides: the end token can only be picked at its row's stated length.
Both sides hold equally many rows at a time; CPU seconds of one thread are compared. Both must give
exactly the stated lengths before they are timed, and greedy answers must agree token for token.
"""

import math
import os
import time
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from benchmarks import capture_speed
from benchmarks.records import record, show
from emlens.data import PromptSet
from emlens.data.rendering import Rendered
from emlens.foundation.seeds import numpy_rng
from emlens.models.hooked import HookedModel
from emlens.models.sampling import RowSampler
from emlens.models.stops import never_ends

QUESTIONS, SAMPLES, SLOTS, ROUNDS = 6, 50, 50, 2
MEDIAN, WITHIN, BETWEEN, MOST = 75, 0.33, 0.33, 600
GOAL = 1.5
SPECIAL = 3
"""The model's first ids are special tokens; of them only the end may be picked, and only where it
is due.
"""


def lengths(questions: int, samples: int, median: float = MEDIAN, seed: int = 0) -> list[int]:
    """Stated lengths in tokens, the end token included; `samples` of each question in a row."""
    rng = numpy_rng(seed, "answer lengths")
    logs = (
        math.log(median)
        + rng.normal(0, BETWEEN, (questions, 1))
        + rng.normal(0, WITHIN, (questions, samples))
    )
    return [int(min(MOST, max(2, round(math.exp(value))))) for value in logs.flatten()]


class Stated(RowSampler):
    """Sampling in which a row ends at its stated length and not before."""

    def __init__(
        self, seed: int, row_ids: Sequence[str], temperature: float, stated: list[int], end: int
    ):
        super().__init__(seed, row_ids, temperature)
        self.stated, self.end = stated, end

    def pick(self, scores: torch.Tensor, rows: Any, steps: Any) -> torch.Tensor:
        return super().pick(
            ending(
                scores,
                [step + 1 == self.stated[row] for row, step in zip(rows, steps, strict=True)],
                self.end,
            ),
            rows,
            steps,
        )


def ending(scores: torch.Tensor, now: list[bool], end: int) -> torch.Tensor:
    """Scores that leave only the end token where a row is to end now, and everything else where
    not.
    """
    ids, ends = (
        torch.arange(scores.shape[-1], device=scores.device)[None],
        torch.tensor(now, device=scores.device)[:, None],
    )
    return scores.masked_fill(torch.where(ends, ids != end, ids < SPECIAL), -torch.inf)


class _StatedProcessor(LogitsProcessor):
    def __init__(self, stated: list[int], width: int, end: int):
        self.stated, self.width, self.end = stated, width, end

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.width + 1
        return ending(scores, [step == length for length in self.stated], self.end)


def plain(
    model: Any, rows: list[Rendered], stated: list[int], slots: int, temperature: float
) -> list[list[int]]:
    """Batches of `slots` rows in the given order through `generate` of transformers, each until its
    longest answer ends.
    """
    tokenizer, end, found = model.tokenizer, model.tokenizer.eos_token_id, []
    for at in range(0, len(rows), slots):
        part, want = rows[at : at + slots], stated[at : at + slots]
        inputs = tokenizer.pad(
            {"input_ids": [list(row.ids) for row in part]}, padding_side="left", return_tensors="pt"
        ).to(model.device)
        width = inputs["input_ids"].shape[1]
        how: dict[str, Any] = (
            {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
            if temperature
            else {"do_sample": False}
        )
        out = model.module.generate(
            **inputs,
            **how,
            max_new_tokens=max(want),
            pad_token_id=model.pad_id,
            eos_token_id=end,
            logits_processor=LogitsProcessorList([_StatedProcessor(want, width, end)]),
        )
        found += [
            row[width : width + length].tolist() for row, length in zip(out, want, strict=True)
        ]
    return found


def ours(
    model: HookedModel, rows: list[Rendered], stated: list[int], slots: int, temperature: float
) -> list[list[int]]:
    end = model.tokenizer.eos_token_id
    sampler = Stated(0, [row.id for row in rows], temperature, stated, end)
    parts = model.decode(rows, sampler, max(stated), slots, never_ends)
    tokens = {
        done.index: done.tokens + [end] * (done.finish_reason == "stop")
        for part in parts
        for done in part
    }
    return [tokens[i] for i in range(len(rows))]


CASES = {"plain batches, given order": plain, "emlens": ours}


def asked(model: HookedModel, questions: int, samples: int, words: int) -> list[Rendered]:
    """Questions of unlike lengths in no order, each `samples` times: what `sample_answers` is
    given.
    """
    rng = numpy_rng(0, "questions")
    texts = [
        " ".join(str(i) for i in rng.integers(3, words, size=rng.integers(8, 60)))
        for _ in range(questions)
    ]
    rows = model.render(PromptSet.from_texts(texts))
    return [
        Rendered(f"{row.id}/s{s}", row.group, row.ids, row.prompt_end)
        for row in rows
        for s in range(samples)
    ]


def measure(
    model: HookedModel,
    rows: list[Rendered],
    stated: list[int],
    slots: int,
    rounds: int,
    temperature: float = 1.0,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    check = slice(0, min(len(rows), 2 * slots))
    greedy = [run(model, rows[check], stated[check], slots, 0.0) for run in CASES.values()]
    if greedy[0] != greedy[1]:
        raise SystemExit("greedy answers differ: not timing different results")
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(rounds):
        for name, run in CASES.items():  # taking turns, so that a busy machine strikes both
            started = time.process_time()
            found = run(model, rows, stated, slots, temperature)
            seconds[name].append(time.process_time() - started)
            if [len(tokens) for tokens in found] != stated:
                raise SystemExit(
                    f"{name} did not give the stated lengths: not timing different results"
                )
    table = pd.DataFrame(
        [
            {
                "case": name,
                "median_s": pd.Series(times).median(),
                "low_s": min(times),
                "high_s": max(times),
            }
            for name, times in seconds.items()
        ]
    )
    ratios = sorted(a / b for a, b in zip(*seconds.values(), strict=True))
    table["tokens_a_second"] = sum(stated) / table["median_s"]
    longest = [max(stated[at : at + slots]) for at in range(0, len(stated), slots)]
    facts = {
        "answers": len(rows),
        "slots": slots,
        "rounds": rounds,
        "mean_length": sum(stated) / len(stated),
        "longest": max(stated),
        "longest_over_mean_in_a_plain_batch": sum(longest) * slots / sum(stated),
        "speedup": float(pd.Series(ratios).median()),
        "speedup_low": ratios[0],
        "speedup_high": ratios[-1],
        "goal": GOAL,
        "parameters": sum(p.numel() for p in model.module.parameters()),
    }
    return table, facts


def main() -> None:
    torch.set_num_threads(1)
    words = 8000
    model = capture_speed.build(layers=6, width=256, words=words)
    rows = asked(model, QUESTIONS, SAMPLES, words)
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "processors": os.cpu_count()}
    for slots in (SLOTS, SLOTS // 2):
        table, facts = measure(model, rows, lengths(QUESTIONS, SAMPLES), slots, ROUNDS)
        show(
            f"{len(rows)} answers, {slots} at a time: {facts['speedup']:.2f} times as fast (goal"
            f" {GOAL})",
            table,
        )
        found[f"{slots} at a time"] = {**facts, "cases": table.to_dict("records")}
        record("sampling_speed", [0], found)
