"""The parts of `benchmarks.gpu`, each beside plain transformers in the same run.

What emlens gives is first compared with plain passes, in float32; nothing is timed where it
differs. Then both are timed in the model's own dtype, in turns.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import torch

from benchmarks import capture_speed, gpu_models, real_sampling, rivals, sampling_speed
from benchmarks.gpu_models import FIRST, word
from benchmarks.training_cost import training as train_both
from benchmarks.turns import compared, seconds_of
from emlens.activations import CaptureSpec, capture, estimate_capture
from emlens.data import Prompt, PromptSet, Question, QuestionSet
from emlens.data.rendering import Rendered
from emlens.foundation.seeds import numpy_rng
from emlens.judging import sample_answers
from emlens.judging.drawing_groups import prompt_of
from emlens.judging.sampling import blanks_of
from emlens.models import answering
from emlens.models.answering import rows_at_once
from emlens.models.batches import pad
from emlens.models.hooked import GENERATION_TOKENS, HookedModel
from emlens.models.transformers_backend import TransformersModel
from emlens.training import Recipe

GAP_16: Final = 0.05
"""bfloat16 keeps 8 bits: eager and fused attention, and other batch shapes, differ by that much
over 28 blocks; a wrong layer by far more.
"""
REGRET: Final = 1e-3
"""By how much a greedy token's logit may lie below the highest, in float32."""
LOSS_GAP_16: Final = 0.05
"""Of a loss in nats over passes in bfloat16."""
LORA: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Sizes:
    """How much is run.

    Args:
        large, small: shapes of the model that is captured, and of that of the other parts.
        rounds: at most, where there is time.
        prompts: of a capture. batch, batch_tokens: of a batch in the given order, and of a sorted
            one.
        questions, samples, median: to sample; tokens of the median answer.
        generate: rows at once that are tried for `generate`.
        steps, rows, answer: of training, rows of a step, tokens of an answer.
        judged: answers of two verdicts each.
        asked, chats, layers: questions of the study, chats of each fine-tune, layers that it reads.
    """

    large: Mapping[str, int]
    small: Mapping[str, int]
    rounds: int
    prompts: int
    batch: int
    batch_tokens: int
    questions: int
    samples: int
    median: int
    generate: tuple[int, ...]
    steps: int
    rows: int
    answer: int
    judged: int
    asked: int
    chats: int
    layers: tuple[int, ...]


CARD: Final = Sizes(
    large=gpu_models.SEVEN,
    small=gpu_models.ONE,
    rounds=5,
    prompts=256,
    batch=16,
    batch_tokens=8192,
    questions=16,
    samples=50,
    median=75,
    generate=(400, 200, 100, 50),
    steps=12,
    rows=8,
    answer=100,
    judged=64,
    asked=128,
    chats=128,
    layers=(4, 8, 12),
)
TINY: Final = Sizes(
    large=gpu_models.TINY,
    small=gpu_models.TINY,
    rounds=2,
    prompts=6,
    batch=2,
    batch_tokens=256,
    questions=2,
    samples=3,
    median=4,
    generate=(3,),
    steps=2,
    rows=2,
    answer=4,
    judged=2,
    asked=12,
    chats=10,
    layers=(1,),
)


def refuse(what: str, gap: float, least: float) -> None:
    """Stop where two ways differ."""
    if not gap < least:
        raise SystemExit(f"{what} differ by {gap:.2g}; not timing different results")


def texts(count: int, words: int, seed: int = 0) -> PromptSet:
    """Raw texts of random words, as long as questions under a template."""
    return capture_speed.prompts(count, words - FIRST, seed, word=_word)


def _word(number: int) -> str:
    return word(number + FIRST)


def questions(count: int, words: int, seed: int = 0) -> QuestionSet:
    """Questions of random words, in four groups."""
    asked = []
    for number, prompt in enumerate(texts(count, words, seed)):
        asked.append(Question(f"q{number}", prompt.text, f"g{number % 4}"))
    return QuestionSet(asked)


def chats(count: int, words: int, answer: int, seed: int = 0) -> PromptSet:
    """Chats of random words.

    Args:
        answer: tokens of each answer.
    """
    rng = numpy_rng(seed, "answers")
    rows = []
    for prompt in questions(count, words, seed).prompts():
        response = " ".join(map(word, rng.integers(FIRST, words, answer)))
        id = f"chat {seed}/{prompt.id}"
        rows.append(Prompt(id, prompt.text, messages=prompt.messages, response=response))
    return PromptSet(rows)


# ---- capture


@torch.no_grad()
def stream_gap(model: HookedModel, module: Any, asked: PromptSet) -> float:
    """Largest gap, relative to the norm of a vector, between a capture and the hidden states of a
    plain module, prompt by prompt; the last block is not in these.
    """
    ours = capture(model, asked, progress=False).stacked("last_prompt").double()
    gaps = []
    for number, row in enumerate(model.render(asked)):
        batch = pad([row], [0], 0, "right", model.device)
        plain = torch.stack(rivals.hidden_states(module, batch)).double().cpu()[:, 0]
        expected = plain.norm(dim=-1)
        gaps.append(((ours[: len(plain), number] - plain).norm(dim=-1) / expected).max())
    return float(torch.stack(gaps).max())


@torch.no_grad()
def capturing(sizes: Sizes, device: torch.device, deadline: float) -> dict[str, Any]:
    """The table of `capture_speed`, a capture's estimate and its store."""
    model = gpu_models.build(sizes.large, device)
    asked = texts(sizes.prompts, sizes.large["vocab_size"])
    with gpu_models.in_float32(model) as exact:
        gap = stream_gap(exact, exact.module, PromptSet(list(asked)[:4]))
    refuse("a capture and hidden states", gap, capture_speed.GAP)
    table, facts = capture_speed.measure(
        model,
        asked,
        rounds=sizes.rounds,
        batch=sizes.batch,
        batch_tokens=sizes.batch_tokens,
        gap=GAP_16,
        deadline=deadline,
    )
    spec = CaptureSpec(batch_tokens=sizes.batch_tokens)
    estimate = estimate_capture(model, asked, spec)
    with tempfile.TemporaryDirectory() as name:
        stored = capture(model, asked, spec=spec, store=Path(name) / "s", progress=False)
        kept = sum(path.stat().st_size for path in Path(name).rglob("*.safetensors"))
        in_memory = capture(model, asked, spec=spec, progress=False)
        same = torch.equal(stored.stacked(), in_memory.stacked())
    return {
        **facts.pop("beside_floor"),
        **facts,
        "gap_in_float32": gap,
        "goals": capture_speed.against_goals(table),
        "cases": table.to_dict(orient="records"),
        "estimate": {"bytes": estimate.bytes, "seconds": float(estimate.seconds)},
        "store_file_bytes": kept,
        "store_equals_memory": same,
    }


# ---- sampling


@torch.no_grad()
def regret(
    model: TransformersModel, rows: Sequence[Rendered], answers: Sequence[list[int]]
) -> float:
    """How far the logit of a greedy token lies below the highest of a plain pass over the whole
    row, at most.
    """
    worst = 0.0
    for row, tokens in zip(rows, answers, strict=True):
        whole = torch.tensor([[*row.ids, *tokens]], device=model.device)
        logits = model.module(whole, use_cache=False).logits[0, len(row.ids) - 1 : -1].float()
        picked = logits.gather(-1, torch.tensor(tokens, device=model.device)[:, None])[:, 0]
        worst = max(worst, float((logits.amax(-1) - picked).max()))
    return worst


@contextmanager
def stated_lengths(stated: Mapping[str, int], end: int) -> Iterator[None]:
    """Inside, the answer of each row that is sampled ends at its stated length, and not before."""

    def sampler(seed: int, row_ids: Sequence[str], temperature: float) -> sampling_speed.Stated:
        lengths = [stated[id] for id in row_ids]
        return sampling_speed.Stated(seed, row_ids, temperature, lengths, end)

    with patch.object(answering, "RowSampler", sampler):
        yield


def sampling(sizes: Sizes, device: torch.device, deadline: float) -> dict[str, Any]:
    """`sample_answers` beside `generate` in batches, answers of the same stated lengths."""
    model = gpu_models.build(sizes.small, device)
    asked = questions(sizes.questions, sizes.small["vocab_size"])
    rows = model.render(asked.prompts())
    short = min(sizes.median, real_sampling.GREEDY_TOKENS)
    with gpu_models.in_float32(model) as exact:
        regrets = {
            "emlens": regret(
                exact, rows, real_sampling.by_rows(exact, rows, 1, short, greedy=True)
            ),
            "generate": regret(
                exact, rows, real_sampling.by_generate(exact, rows, 1, 1, short, greedy=True)
            ),
        }
    refuse("greedy answers and the likeliest tokens", max(regrets.values()), REGRET)
    return {"regret_in_float32": regrets, **_sampling_times(model, asked, sizes, deadline)}


def _sampling_times(
    model: TransformersModel, asked: QuestionSet, sizes: Sizes, deadline: float
) -> dict[str, Any]:
    end = model.tokenizer.eos_token_id
    lengths = sampling_speed.lengths(sizes.questions, sizes.samples, sizes.median)
    most = max(lengths)
    blanks = blanks_of(model, asked, sizes.samples, 1.0, most, 0)
    stated = dict(zip(blanks, lengths, strict=True))
    rows = model.render([prompt_of(blank) for blank in blanks.values()])

    def ours(batch_tokens: int) -> None:
        with tempfile.TemporaryDirectory() as name, stated_lengths(stated, end):
            answers = sample_answers(
                model,
                asked,
                samples=sizes.samples,
                max_new_tokens=most,
                out=Path(name) / "answers.jsonl",
                progress=False,
                batch_tokens=batch_tokens,
            )
        if {answer.finish_reason for answer in answers} != {"stop"}:
            raise SystemExit("an answer did not end at its stated length; not timing it")

    def plain(batch: int, count: int) -> None:
        sampling_speed.plain(model, rows[:count], lengths[:count], batch, 1.0)

    speeds = {}
    began, few = time.monotonic(), len(rows) // 2
    for batch in sizes.generate:
        # a third of the time is for this search; the first is always tried
        if speeds and time.monotonic() - began > (deadline - began) / 3:
            break
        count = min(len(rows), max(batch, few))
        seconds = seconds_of(lambda: plain(batch, count), model.device)  # noqa: B023
        speeds[batch] = sum(lengths[:count]) / seconds
    best = max(speeds, key=lambda batch: speeds[batch])
    tokens = best * (max(len(row.ids) for row in rows) + most)
    cases: dict[str, Callable[[], object]] = {
        "emlens": lambda: ours(GENERATION_TOKENS),
        "emlens, as many rows": lambda: ours(tokens),
        "plain": lambda: plain(best, len(rows)),
    }
    found = compared(cases, sizes.rounds, model.device, deadline)
    wider = found["seconds"]["emlens, as many rows"]
    ratios = [a / b for a, b in zip(wider, found["seconds"]["plain"], strict=True)]
    return {
        "answers": len(rows),
        "tokens": sum(lengths),
        "longest": most,
        "rows_at_once": rows_at_once(model, rows, most, GENERATION_TOKENS),
        "batch_of_generate": best,
        "tokens_a_second_by_batch": {str(batch): speed for batch, speed in speeds.items()},
        **found,
        "ratios_with_as_many_rows": ratios,
    }


# ---- training


def training(sizes: Sizes, device: torch.device, deadline: float) -> dict[str, Any]:
    """Steps of a LoRA run beside a plain peft loop, the parent in its own dtype."""
    words = sizes.small["vocab_size"]
    recipe = Recipe(
        rank=16,
        alpha=32,
        target_modules=LORA,
        learning_rate=1e-4,
        steps=2,
        batch_size=sizes.rows,
    )
    rows = chats(sizes.steps * sizes.rows, words, sizes.answer)
    with tempfile.TemporaryDirectory() as name:
        path = gpu_models.save(gpu_models.build(sizes.small, device), Path(name) / "parent")
        exact = train_both(path, rows, recipe, 1, device)
        changes = {"parent_dtype": "own", "steps": sizes.steps}
        own = recipe.model_copy(update=changes)
        found = train_both(
            path, rows, own, sizes.rounds, device, loss_gap=LOSS_GAP_16, deadline=deadline
        )
    return {"rows": sizes.rows, "gap_in_float32": exact["gap"], **found}
