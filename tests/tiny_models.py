"""Tiny real checkpoints on disk, built from configs: the architectures, a tokenizer with a chat
template, adapters.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from emlens.data import PromptSet
from emlens.models.architectures import ARCHITECTURES
from emlens.models.backends import backend_class

WORDS = [f"w{i}" for i in range(40)]
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' <end> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
SPECIAL = ["<pad>", "<end>", "<user>", "<assistant>", "<system>", "<unk>"]
D_MODEL = 32
N_LAYERS = 3
RELATIVE = 5e-5
"""float32 through three blocks in another order of summation; measured differences stay below 2e-6.
"""

_SIZES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen3_moe": {
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "phi3": {},
    "olmo2": {},
    "granite": {
        "residual_multiplier": 0.6,
        "embedding_multiplier": 2.0,
        "attention_multiplier": 0.3,
        "logits_scaling": 2.0,
    },
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16},
    "gpt2": {},
    "gpt_neox": {"use_parallel_residual": True},
    "falcon": {"parallel_attn": True, "multi_query": True, "alibi": False, "ffn_hidden_size": 48},
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox, sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "falcon, sequential": ("falcon", {"parallel_attn": False}),
    "falcon, two norms": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
}
"""Other configurations of an architecture, which put their streams elsewhere."""

_TARGETS: dict[str, list[str]] = {
    "gpt2": ["c_attn", "c_fc"],
    "gpt_neox": ["query_key_value", "dense_4h_to_h"],
    "falcon": ["query_key_value", "dense_4h_to_h"],
    "phi3": ["qkv_proj", "down_proj"],
    "qwen3_moe": ["q_proj", "o_proj"],
    "mixtral": ["q_proj", "o_proj"],
}
KINDS = [*ARCHITECTURES, *VARIANTS]

MLP_TARGETS: dict[str, list[str]] = {
    "gpt2": ["c_fc"],
    "gpt_neox": ["dense_4h_to_h"],
    "falcon": ["dense_4h_to_h"],
    "phi3": ["down_proj"],
}
"""Targets that leave the fused projections of attention alone."""


def tokenizer(extra: int = 0) -> PreTrainedTokenizerFast:
    vocabulary = {
        word: i for i, word in enumerate([*SPECIAL, *WORDS, *(f"x{i}" for i in range(extra))])
    }
    inner = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    )
    made.chat_template = TEMPLATE
    return made


def build(
    path: Path, kind: str = "qwen2", seed: int = 0, template: bool = True, **changes: Any
) -> Path:
    """Save a random tiny model of one architecture, with its tokenizer, at `path`."""
    torch.manual_seed(seed)
    words = tokenizer()
    if kind in VARIANTS:
        kind, variant = VARIANTS[kind]
        changes = {**variant, **changes}
    if kind == "gpt2":
        sizes = {"n_layer": N_LAYERS, "n_embd": D_MODEL, "n_head": 4, "n_positions": 128}
    else:
        sizes = {
            "num_hidden_layers": N_LAYERS,
            "hidden_size": D_MODEL,
            "intermediate_size": 48,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
        }
        if kind not in ("gpt_neox", "falcon"):
            sizes["num_key_value_heads"] = 2
    config = CONFIG_MAPPING[kind](
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        **{"vocab_size": len(words), **sizes, **_SIZES.get(kind, {}), **changes},
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
    path: Path,
    parent: Path,
    seed: int = 1,
    rank: int = 2,
    zero: bool = False,
    targets: Any = None,
    **changes: Any,
) -> Path:
    """Save a random LoRA adapter of the model at `parent`."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(parent, dtype=torch.float32)
    targets = targets or _TARGETS.get(model.config.model_type, ["q_proj", "down_proj"])
    config = LoraConfig(
        r=rank, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM", **changes
    )
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


def prompts(n: int, seed: int = 0) -> PromptSet:
    return PromptSet.from_texts(texts(n, seed))


def close(a: torch.Tensor, b: torch.Tensor, relative: float = RELATIVE) -> bool:
    """Largest difference within `relative` of the largest value."""
    a, b = a.detach(), b.detach()
    return a.shape == b.shape and float((a - b).abs().max()) <= relative * float(b.abs().max())


def greedy(plain: Any, words: Any, ids: Sequence[int], n: int) -> str:
    """Greedy decoding by a loop over whole passes, without a cache."""
    new: list[int] = []
    for _ in range(n):
        with torch.no_grad():
            token = int(plain(torch.tensor([[*ids, *new]]), use_cache=False).logits[0, -1].argmax())
        if token in (words.eos_token_id, words.pad_token_id):
            break
        new.append(token)
    return words.decode(new, skip_special_tokens=True).strip()


def need_backend(backend: str) -> str:
    """Skip where the extra of a backend is not installed; a wrong version is a failure."""
    if backend != "transformers":
        pytest.importorskip(backend, reason=f"the extra of backend {backend!r} is not installed")
    backend_class(backend)
    return backend
