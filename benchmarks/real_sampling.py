"""Fifty answers to each of eight questions by SmolLM2, with its own end of text: rows that come and
go against `generate` with `num_return_sequences`.

`generate` gets its best batch, which is looked for on one question. Greedy answers must agree token
for token before anything is timed. CPU seconds of one thread; a token counts up to the end of its
answer, that end included. Samples are other ones on both sides, so tokens a second are compared.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.records import record
from emlens.data import QuestionSet
from emlens.data.rendering import Rendered
from emlens.judging.drawing_groups import group_edges
from emlens.models.answering import rows_at_once
from emlens.models.hooked import GENERATION_TOKENS, HookedModel
from emlens.models.onednn_linear import by_onednn
from emlens.models.sampling import RowSampler
from emlens.models.stops import never_ends
from emlens.real import load

QUESTIONS, SAMPLES = 8, 50
MOST = 200
"""Tokens of an answer at most."""
BATCHES = (16, 25, 50)
"""Rows of `generate` that are tried; the samples of one question in equal parts."""
GREEDY_TOKENS = 24


def by_generate(
    model: Any, rows: Sequence[Rendered], samples: int, batch: int, most: int, *, greedy: bool
) -> list[list[int]]:
    """Answers of `generate`, question by question, `batch` at a time; tokens with their end."""
    ends = sorted(model.stops.ids)
    found = []
    how: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    if greedy:
        how = {"do_sample": False}
    for row in rows:
        ids = torch.tensor([row.ids], device=model.device)
        for start in range(0, samples, batch):
            out = model.module.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                num_return_sequences=min(batch, samples - start),
                max_new_tokens=most,
                eos_token_id=ends,
                pad_token_id=model.pad_id,
                **how,
            )
            found += [_through_end(answer, ends) for answer in out[:, len(row.ids) :].tolist()]
    return found


def _through_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    for i, token in enumerate(tokens):
        if token in ends:
            return tokens[: i + 1]
    return tokens


def by_rows(
    model: HookedModel, rows: Sequence[Rendered], samples: int, most: int, *, greedy: bool
) -> list[list[int]]:
    """The same by `HookedModel.decode`, in the groups of `sample_answers`."""
    asked = [
        Rendered(f"{row.id}/{sample}", row.group, row.ids, row.prompt_end)
        for row in rows
        for sample in range(samples)
    ]
    slots = rows_at_once(model, asked, most, GENERATION_TOKENS)
    ends = sorted(model.stops.ids)
    found: dict[int, list[int]] = {}
    for begin, stop in group_edges(model, asked, most, GENERATION_TOKENS):
        group = asked[begin:stop]
        sampler = RowSampler(0, [row.id for row in group], 0.0 if greedy else 1.0)
        for part in model.decode(group, sampler, most, slots, never_ends):
            for answer in part:
                end = ends[:1] if answer.finish_reason == "stop" else []
                found[begin + answer.index] = [*answer.tokens, *end]
    return [found[i] for i in range(len(asked))]


def best_batch(
    model: HookedModel, row: Rendered, samples: int, most: int, batches: Sequence[int]
) -> dict[int, float]:
    """Rows at a time → tokens a second of `generate` on one question."""
    speeds = {}
    for batch in batches:
        started = time.process_time()
        found = by_generate(model, [row], samples, batch, most, greedy=False)
        speeds[batch] = sum(map(len, found)) / (time.process_time() - started)
    return speeds


@torch.no_grad()
def measure(
    model: HookedModel,
    rows: Sequence[Rendered],
    samples: int,
    most: int,
    batches: Sequence[int],
) -> dict[str, Any]:
    """Tokens a second of both, the greedy answers compared first."""
    short = min(most, GREEDY_TOKENS)
    ours = by_rows(model, rows, 1, short, greedy=True)
    theirs = by_generate(model, rows, 1, 1, short, greedy=True)
    if [tokens[:-1] for tokens in ours] != [tokens[:-1] for tokens in theirs]:
        raise SystemExit("greedy answers differ: not timing different results")
    speeds = best_batch(model, rows[0], samples, most, batches)
    batch = max(speeds, key=lambda count: speeds[count])

    def generate() -> list[list[int]]:
        return by_generate(model, rows, samples, batch, most, greedy=False)

    def generate_alike() -> list[list[int]]:
        with by_onednn(model.d_model):
            return generate()

    sides = {
        "emlens": lambda: by_rows(model, rows, samples, most, greedy=False),
        "generate": generate,
        "generate by oneDNN": generate_alike,
    }
    found: dict[str, Any] = {}
    for name, run in sides.items():
        started = time.process_time()
        answers = run()
        seconds = time.process_time() - started
        tokens = sum(map(len, answers))
        found[name] = {
            "tokens": tokens,
            "longest": max(map(len, answers)),
            "cpu_s": seconds,
            "tokens_a_second": tokens / seconds,
        }
    speed = {name: side["tokens_a_second"] for name, side in found.items()}
    return {
        "questions": len(rows),
        "samples": samples,
        "most": most,
        "rows_at_once": rows_at_once(model, rows, most, GENERATION_TOKENS),
        "batch_of_generate": batch,
        "tokens_a_second_by_batch": speeds,
        **found,
        "ratio": speed["emlens"] / speed["generate"],
        "ratio_of_same_products": speed["emlens"] / speed["generate by oneDNN"],
    }


def main() -> None:
    torch.set_num_threads(1)
    model = load("smollm2", dtype="float32", device="cpu")
    path = Path(os.environ["EMLENS_RELEASED_DATA"]) / "em-generalization/first_plot_questions.yaml"
    rows = model.render(list(QuestionSet.from_file(path).prompts())[:QUESTIONS])
    record("real_sampling", [0], {"SmolLM2": measure(model, rows, SAMPLES, MOST, BATCHES)})
