"""Adapters of every kind that PEFT saves, tiny and trained at random; what PEFT makes of them."""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

T = ["q_proj", "down_proj"]
IDS = torch.tensor([[5, 9, 12, 20, 33, 41, 44, 3, 8, 9]])
RESIZED = 50
"""Rows of a vocabulary that was resized before training."""


def lora(targets: Any = None, **options: Any) -> Any:
    return LoraConfig(r=2, lora_alpha=4, target_modules=targets or T, **options)


def others(name: str, **options: Any) -> Any:
    return getattr(peft, name)(**{"target_modules": T, **options})


KINDS: dict[str, Callable[[], Any]] = {
    "lora": lora,
    "rslora": lambda: lora(use_rslora=True),
    "dora": lambda: lora(use_dora=True),
    "patterns": lambda: lora(
        rank_pattern={"down_proj": 3}, alpha_pattern={r".*layers\.1\.mlp\.down_proj": 5}
    ),
    "orthogonal start": lambda: lora(init_lora_weights="orthogonal"),
    "lora_bias": lambda: lora(["q_proj", "v_proj"], lora_bias=True),
    "lora_bias without a bias": lambda: lora(lora_bias=True),
    "bias of all": lambda: lora(bias="all"),
    "bias of lora_only": lambda: lora(bias="lora_only"),
    "embed_tokens": lambda: lora(["embed_tokens", "q_proj"]),
    "lm_head": lambda: lora(["lm_head"]),
    "embed_tokens and lm_head": lambda: lora(["embed_tokens", "lm_head", "q_proj"]),
    "embed_tokens, tied": lambda: lora(["embed_tokens", "q_proj"], ensure_weight_tying=True),
    "dora on embed_tokens": lambda: lora(["embed_tokens"], use_dora=True),
    "saved lm_head": lambda: lora(modules_to_save=["lm_head"]),
    "saved embeddings": lambda: lora(modules_to_save=["embed_tokens", "lm_head"]),
    "saved embeddings, tied": lambda: lora(
        modules_to_save=["embed_tokens"], ensure_weight_tying=True
    ),
    "saved norms": lambda: lora(modules_to_save=["norm"]),
    "trained tokens": lambda: lora(trainable_token_indices=[3, 9]),
    "resized": lora,
    "resized, saved": lambda: lora(modules_to_save=["embed_tokens", "lm_head"]),
    "resized, embed_tokens": lambda: lora(["embed_tokens", "q_proj"]),
    "adalora": lambda: others("AdaLoraConfig", init_r=3, target_r=2, total_step=10),
    "ia3": lambda: others(
        "IA3Config",
        target_modules=["k_proj", "v_proj", "down_proj"],
        feedforward_modules=["down_proj"],
    ),
    "loha": lambda: others("LoHaConfig", r=2),
    "lokr": lambda: others("LoKrConfig", r=2),
    "vera": lambda: others("VeraConfig", r=4, target_modules=["q_proj"]),
    "oft": lambda: others("OFTConfig", r=0, oft_block_size=4),
    "hra": lambda: others("HRAConfig", r=2),
    "fourierft": lambda: others("FourierFTConfig", n_frequency=10),
    "norms": lambda: others("LNTuningConfig", target_modules=["input_layernorm", "norm"]),
    "miss": lambda: others("MissConfig", r=2),
    "tokens alone": lambda: others(
        "TrainableTokensConfig", token_indices=[3, 9], target_modules=["embed_tokens"]
    ),
}
MORE: dict[str, Callable[[], Any]] = {
    "boft": lambda: others("BOFTConfig", boft_block_size=4),
    "vblora": lambda: others(
        "VBLoRAConfig", r=2, num_vectors=8, vector_length=4, topk=2, target_modules=["q_proj"]
    ),
    "randlora": lambda: others("RandLoraConfig", r=4),
    "shira": lambda: others("ShiraConfig", r=2),
    "c3a": lambda: others("C3AConfig", block_size=4, target_modules=["q_proj"]),
    "road": lambda: others("RoadConfig", group_size=4),
    "waveft": lambda: others("WaveFTConfig", n_frequency=10, target_modules=["q_proj"]),
    "delora": lambda: others("DeloraConfig", r=2),
    "gralora": lambda: others("GraloraConfig", r=4, gralora_k=2, target_modules=["q_proj"]),
    "osf": lambda: others("OSFConfig"),
    "adamss": lambda: others("AdamssConfig"),
    "beft": lambda: others("BeftConfig"),
    "lily": lambda: others("LilyConfig"),
    "frod": lambda: others("FrodConfig"),
    "pvera": lambda: others("PveraConfig"),
    "glora": lambda: others("GloraConfig"),
    "unilora": lambda: others("UniLoraConfig"),
    "tinylora": lambda: others("TinyLoraConfig"),
    "peanut": lambda: others("PeanutConfig"),
    "psoft": lambda: others("PsoftConfig"),
    "deft": lambda: others("DeftConfig"),
    "hira": lambda: others("HiraConfig"),
}
"""Kinds that few people train; compared by the benchmark, not in the tests."""


@cache
def _loaded(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def plain(base: Path, kind: str = "") -> Any:
    """The parent as transformers loads it, resized where the kind says so."""
    model = copy.deepcopy(_loaded(base))
    if kind.startswith("resized"):
        model.resize_token_embeddings(RESIZED, mean_resizing=False)
    return model


def save(path: Path, base: Path, kind: str, config: Any, seed: int = 3) -> Path:
    """An adapter of one kind, as PEFT saves it after all that can be trained was moved."""
    torch.manual_seed(seed)
    config.task_type = "CAUSAL_LM"
    wrapped = get_peft_model(plain(base, kind), config)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    if kind == "resized":
        wrapped.save_pretrained(path, save_embedding_layers=True)
    else:
        wrapped.save_pretrained(path)
    return path


def peft_logits(path: Path, base: Path, kind: str = "") -> torch.Tensor:
    """What PEFT's own model gives."""
    model = PeftModel.from_pretrained(plain(base, kind), str(path)).eval()
    with torch.no_grad():
        logits: torch.Tensor = model(IDS).logits[0]
    return logits
