"""Tiny real checkpoints on disk, built from configs: the architectures, a tokenizer with a chat template, adapters."""

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

WORDS = [f"w{i}" for i in range(40)]
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' <end> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
SPECIAL = ["<pad>", "<end>", "<user>", "<assistant>", "<system>", "<unk>"]
D_MODEL = 32
N_LAYERS = 3
RELATIVE = 5e-5
"""float32 through three blocks in another order of summation; measured differences stay below 2e-6."""

_SIZES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "llama": {},
    "mistral": {"sliding_window": None},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16},
    "gpt2": {},
}


def tokenizer(extra: int = 0) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS, *(f"x{i}" for i in range(extra))])}
    inner = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")
    made.chat_template = TEMPLATE
    return made


def build(path: Path, kind: str = "qwen2", seed: int = 0, template: bool = True, **changes: Any) -> Path:
    """Save a random tiny model of one architecture, with its tokenizer, at `path`."""
    torch.manual_seed(seed)
    words = tokenizer()
    if kind == "gpt2":
        sizes = {"n_layer": N_LAYERS, "n_embd": D_MODEL, "n_head": 4, "n_positions": 128}
    else:
        sizes = {
            "num_hidden_layers": N_LAYERS,
            "hidden_size": D_MODEL,
            "intermediate_size": 48,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
        }
    config = CONFIG_MAPPING[kind](
        vocab_size=len(words), pad_token_id=0, eos_token_id=1, bos_token_id=None, **{**sizes, **_SIZES[kind], **changes}
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
            elif "norm" in name or "ln" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    assert sum(p.numel() for p in model.parameters()) < 100_000
    model.save_pretrained(path)
    if not template:
        words.chat_template = None
    words.save_pretrained(path)
    return path


def build_adapter(
    path: Path, parent: Path, seed: int = 1, rank: int = 2, zero: bool = False, targets: Any = None, **changes: Any
) -> Path:
    """Save a random LoRA adapter of the model at `parent`."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(parent, dtype=torch.float32)
    targets = targets or (["c_attn", "c_fc"] if model.config.model_type == "gpt2" else ["q_proj", "down_proj"])
    config = LoraConfig(r=rank, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM", **changes)
    wrapped = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name and not zero:
                parameter.normal_(0, 0.3)
    wrapped.save_pretrained(path)
    return path


def texts(n: int, seed: int = 0, shortest: int = 2, longest: int = 9) -> list[str]:
    """Random texts of different lengths."""
    pick = random.Random(seed)
    return [" ".join(pick.choices(WORDS, k=pick.randint(shortest, longest))) for _ in range(n)]


def close(a: torch.Tensor, b: torch.Tensor, relative: float = RELATIVE) -> bool:
    """Largest difference within `relative` of the largest value."""
    a, b = a.detach(), b.detach()
    return a.shape == b.shape and float((a - b).abs().max()) <= relative * float(b.abs().max())
