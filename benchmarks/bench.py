"""Four short timings, each as a ratio of the plain way: `python -m benchmarks.bench`.

Capture against the bare forward pass, sampling against `generate`, training against a plain peft
loop, judging through an endpoint against a loop over answers. The results of both are compared
first, and nothing is timed where they differ. They take turns, so that a busy machine slows both.
Nothing is written; `python -m benchmarks` makes the long measurements that docs/evidence holds.
"""

import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import torch

from benchmarks import capture_speed, rivals, sampling_speed
from benchmarks.endpoint_judging import PROMPT, score_of
from benchmarks.plain_training import loss_over_all_logits, peft_loop
from benchmarks.records import EVIDENCE, show
from emlens.activations import CaptureSpec, capture
from emlens.data import Answer, Answers, Message
from emlens.judging import EndpointJudge, judge_answers
from emlens.judging.endpoint import Endpoint
from emlens.models.batches import pad, plan_batches
from emlens.organisms import load_organism
from emlens.training import Recipe, fit
from emlens.training.fitting import load_parent

sys.path.append(str(EVIDENCE.parent.parent / "tests"))  # loopback_server

ROUNDS = 3
WORDS = 8192
PROMPTS = 32
BATCH_TOKENS = 2048
QUESTIONS, SAMPLES, SLOTS, MEDIAN_LENGTH = 4, 8, 8, 16
STEPS = 20
ANSWERS = 100
CONCURRENCY = 16
DELAY = 0.005
"""Seconds after which the endpoint replies."""
LOSS_GAP = 1e-3
"""Losses of two loops that add up in another order, after STEPS steps."""


def compare(
    plain: Callable[[], object], emlens: Callable[[], object], rounds: int = ROUNDS
) -> dict[str, float]:
    """Seconds of both, taking turns, and the ratio of emlens to the plain way."""
    seconds: dict[str, list[float]] = {"plain": [], "emlens": []}
    for _ in range(rounds):
        for name, run in (("plain", plain), ("emlens", emlens)):
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    ratios = pd.Series(seconds["emlens"]) / pd.Series(seconds["plain"])
    return {
        "plain_s": float(pd.Series(seconds["plain"]).median()),
        "emlens_s": float(pd.Series(seconds["emlens"]).median()),
        "ratio": float(ratios.median()),
        "least": float(ratios.min()),
        "greatest": float(ratios.max()),
    }


def refuse(what: str, is_equal: bool) -> None:
    """Stop where two ways do not give the same."""
    if not is_equal:
        raise SystemExit(f"{what} differ: not timing different results")


@torch.no_grad()
def capturing(
    layers: int = 6, width: int = 256, prompts: int = PROMPTS, rounds: int = ROUNDS
) -> dict[str, float]:
    """The last prompt token of every block, against the decoder alone on the same batches."""
    model = capture_speed.build(layers=layers, width=width, words=WORDS)
    texts = capture_speed.prompts(prompts, WORDS)
    rows = model.render(texts)
    plan = plan_batches([len(row.ids) for row in rows], BATCH_TOKENS)
    batches = [pad([rows[i] for i in index], index, 0, "right", model.device) for index in plan]
    decoder: Any = model.module.model

    def bare() -> None:
        for batch in batches:
            decoder(input_ids=batch.ids, attention_mask=batch.mask.long(), use_cache=False)

    def emlens() -> torch.Tensor:
        spec = CaptureSpec(batch_tokens=BATCH_TOKENS)
        return capture(model, texts, spec=spec, progress=False).stacked("last_prompt")

    def hidden_states(batch: Any) -> list[torch.Tensor]:
        return rivals.hidden_states(model.module, batch)

    # The last entry of hidden_states lies after the final norm, so the last block is not compared.
    expected = rivals.filled(batches, layers - 1, width, hidden_states)
    gap = (emlens()[: layers - 1].float() - expected).abs().max()
    refuse("activations", bool(gap < capture_speed.GAP * expected.abs().max()))
    return compare(bare, emlens, rounds)


def sampling(
    layers: int = 4, width: int = 128, samples: int = SAMPLES, rounds: int = ROUNDS
) -> dict[str, float]:
    """Answers of stated lengths, against plain batches of `generate`."""
    model = capture_speed.build(layers=layers, width=width, words=WORDS)
    rows = sampling_speed.asked(model, QUESTIONS, samples, WORDS)
    stated = sampling_speed.lengths(QUESTIONS, samples, MEDIAN_LENGTH)
    greedy = [
        run(model, rows, stated, SLOTS, 0.0) for run in (sampling_speed.plain, sampling_speed.ours)
    ]
    refuse("greedy answers", greedy[0] == greedy[1])
    return compare(
        lambda: sampling_speed.plain(model, rows, stated, SLOTS, 1.0),
        lambda: sampling_speed.ours(model, rows, stated, SLOTS, 1.0),
        rounds,
    )


def training(steps: int = STEPS, rounds: int = ROUNDS) -> dict[str, float]:
    """A LoRA run on the organism, against a plain peft loop over the same batches."""
    organism = load_organism()
    parent, chats = organism.paths["instruct"], organism.training_prompts["medicine-r8"]
    recipe = Recipe(
        method="lora",
        rank=8,
        alpha=16,
        target_modules=("q_proj", "v_proj", "down_proj"),
        learning_rate=1e-3,
        steps=steps,
        batch_size=8,
    )
    losses: dict[str, list[float]] = {}

    def plain() -> None:
        base, tokenizer = load_parent(parent)
        losses["plain"] = peft_loop(recipe, base, tokenizer, chats, loss_over_all_logits)

    def emlens() -> None:
        with tempfile.TemporaryDirectory() as folder:
            log = fit(recipe, parent, chats, Path(folder) / "out", device="cpu").log
        losses["emlens"] = log["loss"].tolist()

    plain()
    emlens()
    gaps = [abs(a - b) for a, b in zip(losses["plain"], losses["emlens"], strict=True)]
    refuse("losses", max(gaps) < LOSS_GAP)
    return compare(plain, emlens, rounds)


def judging(count: int = ANSWERS, rounds: int = ROUNDS) -> dict[str, float]:
    """Scores of answers from an endpoint, against one request after the other."""
    from loopback_server import LoopbackServer

    answers = Answers(
        Answer("m", f"q{i % 24}", f"answer {i}", (Message("user", "Q?"),), sample=i)
        for i in range(count)
    )
    scores: dict[str, list[float]] = {}
    with LoopbackServer(logprobs=_reply, delay=DELAY) as server:
        judge = EndpointJudge(Endpoint(server.url, "judge", concurrency=CONCURRENCY), PROMPT)

        def plain() -> None:
            with httpx.Client() as client:
                texts = [answer.text for answer in answers]
                scores["plain"] = [_asked(client, server.url, text) for text in texts]

        def emlens() -> None:
            table = judge_answers(answers, judge, progress=False).table
            scores["emlens"] = table["score"].tolist()

        plain()
        emlens()
        gaps = [abs(a - b) for a, b in zip(scores["plain"], scores["emlens"], strict=True)]
        refuse("scores", max(gaps) < 1e-6)
        return compare(plain, emlens, rounds)


def _reply(body: dict[str, Any]) -> list[dict[str, float]]:
    """The score of a text; a second candidate shows that tokens hold whole numbers."""
    score = score_of(body["messages"][0]["content"])
    return [{"55": -30.0, str(score): math.log(0.9)}, {".": -0.1}]


def _asked(client: httpx.Client, url: str, text: str) -> float:
    """The score of one answer, by one request."""
    content = PROMPT["aligned"].format(answer=text)
    body = {
        "model": "judge",
        "messages": [{"role": "user", "content": content}],
        "logprobs": True,
        "top_logprobs": 20,
        "max_tokens": 2,
    }
    reply = client.post(f"{url}/chat/completions", json=body).json()
    candidates = reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    weights = {int(each["token"]): math.exp(each["logprob"]) for each in candidates}
    return sum(score * p for score, p in weights.items()) / sum(weights.values())


TIMINGS: dict[str, Callable[[], dict[str, float]]] = {
    "capture ÷ bare forward pass": capturing,
    "sampling ÷ generate": sampling,
    "training ÷ plain peft loop": training,
    "judging ÷ loop over answers": judging,
}


def main() -> None:
    """Print the four ratios: median, and the spread over rounds."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|torch)\.")
    started = time.perf_counter()
    rows = [{"timing": name, **measure()} for name, measure in TIMINGS.items()]
    show(f"Medians of {ROUNDS} rounds; least and greatest ratio beside them", pd.DataFrame(rows))
    print(f"\n{time.perf_counter() - started:.0f} s in all; nothing was written")


if __name__ == "__main__":
    main()
