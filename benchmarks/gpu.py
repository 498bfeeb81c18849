"""The table of `capture_speed` and the store's write speed for a random 7B Qwen2 in bfloat16, where
a GPU is at hand.
"""

import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks import capture_speed
from benchmarks.records import record, show

GAP = 0.05
"""bfloat16 keeps 8 bits: eager and fused attention, and other batch shapes, differ by that much
over 28 blocks; a wrong layer by far more.
"""


def build(device: torch.device, **options: Any) -> Any:
    """Qwen2.5-7B's sizes with random weights, made on the device."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes = {
        "vocab_size": 152_064,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        **options,
    }
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            module = Qwen2ForCausalLM(Qwen2Config(**sizes)).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(default)
    tokenizer = capture_speed.build(layers=1, width=16, words=sizes["vocab_size"]).tokenizer
    return capture_speed.wrap(module, tokenizer, device)


def measure(model: Any, count: int, rounds: int, batch_tokens: int) -> dict[str, Any]:
    from emlens.activations import CaptureSpec, capture, estimate_capture

    asked = capture_speed.prompts(count=count, words=model.module.config.vocab_size)
    table, facts = capture_speed.measure(
        model, asked, rounds=rounds, batch=16, batch_tokens=batch_tokens, gap=GAP
    )
    spec = CaptureSpec(batch_tokens=batch_tokens)
    estimate = estimate_capture(model, asked, spec)
    with tempfile.TemporaryDirectory() as name:
        stored = capture(model, asked, spec=spec, store=Path(name) / "s", progress=False)
        kept = sum(path.stat().st_size for path in Path(name).rglob("*.safetensors"))
        same = torch.equal(
            stored.stacked(),
            capture(model, asked, spec=spec, progress=False).stacked(),
        )
    return {
        **facts,
        "goals": capture_speed.against_goals(table),
        "cases": table.to_dict(orient="records"),
        "estimate": {"bytes": estimate.bytes, "seconds": float(estimate.seconds)},
        "store_file_bytes": kept,
        "store_equals_memory": same,
    }


def main() -> None:
    if not torch.cuda.is_available():
        print("\ngpu: skipped, torch sees no GPU here")
        return
    model = build(torch.device("cuda", 0))
    found = measure(model, count=256, rounds=5, batch_tokens=8192)
    show("capture on a GPU", pd.DataFrame(found["cases"]))
    show("goals", pd.DataFrame(found["goals"]))
    parameters = sum(p.numel() for p in model.module.parameters())
    record(
        "gpu",
        [0],
        {
            "parameters": parameters,
            "dtype": "bfloat16",
            "peak_bytes": torch.cuda.max_memory_allocated(),
            **found,
        },
    )
