"""Capture against the bare forward pass, as ratios within one run: equal results asserted first, then interleaved timings."""

import statistics
import time
from collections.abc import Callable

import pandas as pd
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from benchmarks.records import record, show
from emlens.activations import capture
from emlens.data import PromptSet
from emlens.foundation.seeds import numpy_rng
from emlens.models.batches import pad, plan_batches
from emlens.models.transformers_backend import TransformersModel

WORDS = 32_000
ROUNDS = 5


def build(layers: int = 8, width: int = 384, words: int = WORDS) -> TransformersModel:
    """A random Qwen2 with a large vocabulary, whose words are numbers."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=words, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True,
    )
    inner = Tokenizer(WordLevel({str(i): i for i in range(words)}, unk_token="0"))
    inner.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="0", unk_token="0")
    module = Qwen2ForCausalLM(config).eval()
    return TransformersModel(
        module, name="random", tokenizer=tokenizer, n_layers=layers, d_model=width, device=torch.device("cpu"), max_length=2048,
        chat_template=None, provenance={},
    )


def prompts(count: int = 64, words: int = WORDS, seed: int = 0) -> PromptSet:
    """Lengths like those of questions under a chat template: log-normal, median 48 tokens, some several times that."""
    rng = numpy_rng(seed, "prompts")
    lengths = rng.lognormal(3.87, 0.6, count).clip(8, 512).astype(int)
    return PromptSet.from_texts([" ".join(map(str, rng.integers(1, words, n))) for n in lengths])


@torch.no_grad()
def measure(model: TransformersModel, asked: PromptSet, rounds: int = ROUNDS, batch: int = 8, batch_tokens: int = 2048) -> pd.DataFrame:
    rows = model.render(asked)
    given = [list(range(i, min(i + batch, len(rows)))) for i in range(0, len(rows), batch)]
    layout = plan_batches([len(row.ids) for row in rows], batch_tokens)
    batches = {
        name: [pad([rows[i] for i in index], index, 0, "right", model.device) for index in plan]
        for name, plan in (("given", given), ("sorted", layout))
    }
    decoder = model.module.model

    def bare(order: str) -> None:
        for b in batches[order]:
            decoder(input_ids=b.ids, attention_mask=b.mask.long(), use_cache=False)

    def hidden_states() -> torch.Tensor:
        kept = torch.empty(model.n_layers - 1, len(rows), model.d_model)
        for b in batches["given"]:
            out = model.module(input_ids=b.ids, attention_mask=b.mask.long(), use_cache=False, output_hidden_states=True)
            for i, row in enumerate(b.rows):
                for layer in range(model.n_layers - 1):
                    kept[layer, b.index[i]] = out.hidden_states[layer + 1][i, len(row.ids) - 1]
        return kept

    def captured() -> torch.Tensor:
        return capture(model, asked, progress=False, batch_tokens=batch_tokens).stacked("last_prompt")

    ours, theirs = captured(), hidden_states()
    gap = float((ours[:-1] - theirs).norm() / theirs.norm())
    if not gap < 5e-5:
        raise SystemExit(f"capture and output_hidden_states differ by {gap:.2g}; not timing different results")
    cases: dict[str, Callable[[], object]] = {
        "bare decoder, given order": lambda: bare("given"),
        "bare decoder, sorted by length": lambda: bare("sorted"),
        "emlens capture, last prompt token, all layers": captured,
        "output_hidden_states with LM head, given order": hidden_states,
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            seconds[name].append(time.perf_counter() - start)
    floor = statistics.median(seconds["bare decoder, sorted by length"])
    table = [
        {"case": name, "median_s": statistics.median(s), "min_s": min(s), "max_s": max(s), "ratio_to_bare_sorted": statistics.median(s) / floor}
        for name, s in seconds.items()
    ]
    return pd.DataFrame(table)


def main() -> None:
    model = build()
    table = measure(model, prompts())
    show("capture against the bare forward pass", table)
    parameters = sum(p.numel() for p in model.module.parameters())
    record("capture_speed", [0], {"parameters": parameters, "prompts": 64, "rounds": ROUNDS, "cases": table.to_dict(orient="records")})
