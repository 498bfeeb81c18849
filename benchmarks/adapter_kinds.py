"""Every kind of adapter that PEFT saves, beside PEFT's own model.

Merged and unmerged, on each backend, and some of them on a real checkpoint.

Adapters are tiny and moved at random in everything that PEFT would train.
"""

import copy
import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

import emlens.real
from benchmarks.records import record, show
from emlens.data.rendering import Rendered
from emlens.foundation.errors import EmlensError, LoadError
from emlens.models import HookedModel, load_model
from emlens.models.attaching import attach

T = ["q_proj", "down_proj"]
IDS = torch.tensor([[5, 9, 12, 20, 33, 41, 44, 3, 8, 9]])
ADDED = 4
"""Rows by which a vocabulary was resized before training."""


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
"""Kinds that few people train; measured here, not in the tests."""
REAL = (
    "lora",
    "dora",
    "embed_tokens",
    "lm_head",
    "embed_tokens and lm_head",
    "saved lm_head",
    "trained tokens",
    "resized",
    "resized, saved",
    "ia3",
)
"""Kinds that are measured on a real checkpoint, whose output matrix is its embedding."""
BACKENDS = ("transformers", "nnsight", "transformer_lens")


@cache
def _loaded(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def plain(base: Path, kind: str = "") -> Any:
    """The parent as transformers loads it, resized where the kind says so."""
    model = copy.deepcopy(_loaded(base))
    if kind.startswith("resized"):
        rows = model.get_input_embeddings().weight.shape[0] + ADDED
        model.resize_token_embeddings(rows, mean_resizing=False)
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


def _peft_merged(path: Path, base: Path, kind: str) -> torch.Tensor | None:
    """What PEFT's own model gives once PEFT has merged it; None where PEFT refuses."""
    model: Any = PeftModel.from_pretrained(plain(base, kind), str(path)).eval()
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except (NotImplementedError, RuntimeError, ValueError):
        return None
    with torch.no_grad():
        logits: torch.Tensor = merged(IDS).logits[0]
    return logits


def logits(model: HookedModel) -> torch.Tensor:
    """What emlens gives for the same ids."""
    ids = tuple(IDS[0].tolist())
    [batch] = model.batches([Rendered("x", "", ids, len(ids))])
    found = model.run(batch, with_logits=True)
    if found is None:
        raise SystemExit("asked for logits, got none")
    return found[0]


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference of a logit."""
    return float("inf") if a.shape != b.shape else float((a - b).abs().max())


def tiny_base(path: Path) -> Path:
    """A Qwen2 of two blocks whose output matrix is its embedding."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    torch.manual_seed(0)
    words = {"<pad>": 0, "<end>": 1, "<unk>": 2, **{f"w{i}": i for i in range(3, 46)}}
    config = Qwen2Config(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    model.save_pretrained(path)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")),
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unk>",
    )
    tokenizer.save_pretrained(path)
    return path


def measure(
    base: Path,
    kinds: Sequence[str],
    backends: Sequence[str] = BACKENDS[:1],
    folder: Path | None = None,
) -> list[dict[str, Any]]:
    """One row per kind and backend: largest differences from PEFT, or the refusal."""
    made = {**KINDS, **MORE}
    root = folder or Path(tempfile.mkdtemp())
    parents = {backend: load_model(base, backend=backend) for backend in backends}
    before = {backend: logits(parent) for backend, parent in parents.items()}
    untouched = before[backends[0]]
    rows = []
    for kind in kinds:
        path = save(root / kind.replace(" ", "-"), base, kind, made[kind]())
        expected = peft_logits(path, base, kind)
        for backend, parent in parents.items():
            row: dict[str, Any] = {"kind": kind, "backend": backend}
            row["moved"] = apart(expected[:, : untouched.shape[1]], untouched)
            row["largest_logit"] = float(expected.abs().max())
            by_peft = _peft_merged(path, base, kind)
            if by_peft is not None:
                row["peft_merged"] = apart(by_peft, expected)
            for way, merge in (("unmerged", False), ("merged", True)):
                on = load_model(base, backend=backend) if merge else parent
                try:
                    given = logits(attach(on, kind, path, merge=merge))
                except EmlensError as error:
                    row[way] = str(error).replace(str(root), "").removeprefix("/")
                    continue
                row[way] = apart(given, expected)
                if merge and by_peft is not None:
                    row["merged_from_peft_merged"] = apart(given, by_peft)
            if kind in parent.bank.names:  # type: ignore[attr-defined]
                parent.bank.detach(kind)  # type: ignore[attr-defined]
            row["parent_as_before"] = torch.equal(logits(parent), before[backend])
            rows.append(row)
        shutil.rmtree(path)
    return rows


def _cell(value: float | None) -> str:
    """A difference as the page writes it; an exact 0 stays 0."""
    if value is None:
        return "–"
    return f"{value:.1e}" if value else "0"


LARGEST = 1e-5
"""Goal: the largest difference of a logit from PEFT's own, in float32."""
WRONG = 0.1
"""A merge whose logits differ by more from the unmerged ones is another model."""


def goals(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Cells (kind × backend × merged or not) within LARGEST, and cells that are not refused; the
    largest differences.

    Merges are compared with PEFT's own where that is right: of two tied matrices PEFT changes both.
    """
    unmerged = [row["unmerged"] for row in rows if not isinstance(row["unmerged"], str)]
    merged = [row["merged"] for row in rows if not isinstance(row["merged"], str)]
    beside = [
        row["merged_from_peft_merged"]
        for row in rows
        if row["backend"] == BACKENDS[0] and row.get("peft_merged", WRONG) < WRONG
    ]
    return {
        "largest": LARGEST,
        "within": sum(value <= LARGEST for value in (*unmerged, *merged)),
        "cells": len(unmerged) + len(merged),
        "unmerged": max(unmerged),
        "merged": max(merged),
        "from_peft_merge": max(beside),
    }


def tiny_table(values: dict[str, Any]) -> str:
    """Markdown for docs/adapters.md: the tiny model, one row a backend."""
    lines = [
        "| backend | kinds | largest, unmerged | largest, merged | refused |",
        "|---|---|---|---|---|",
    ]
    for backend, group in pd.DataFrame(values["tiny"]).groupby("backend", sort=False):
        is_refused = [isinstance(value, str) for value in group["merged"]]
        refused = group[is_refused]["kind"].tolist()
        merged = group[~group["kind"].isin(refused)]["merged"].astype(float)
        unmerged = group["unmerged"].astype(float)
        cells = [backend, str(len(group)), f"{unmerged.max():.1e}", f"{merged.max():.1e}"]
        cells.append("merged: " + ", ".join(refused) if refused else "–")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def smollm2_table(values: dict[str, Any]) -> str:
    """Markdown for docs/adapters.md: SmolLM2, one row a kind, PEFT's own merge beside ours."""
    lines = [
        "| kind | largest logit | unmerged | merged | PEFT's own merge | our merge − PEFT's |",
        "|---|---|---|---|---|---|",
    ]
    for row in values["smollm2"]:
        cells = [row["kind"], f"{row['largest_logit']:.0f}"]
        for name in ("unmerged", "merged", "peft_merged", "merged_from_peft_merged"):
            cells.append(_cell(row.get(name)))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        base = tiny_base(Path(folder) / "base")
        installed = [b for b in BACKENDS if b == "transformers" or importlib.util.find_spec(b)]
        found = {"tiny": measure(base, [*KINDS, *MORE], installed)}
    try:
        found["smollm2"] = measure(emlens.real.find("smollm2"), REAL)
    except LoadError as error:
        print(f"left out: {error}")
    for name, rows in list(found.items()):
        show(f"largest difference of a logit from PEFT's own model, {name}", pd.DataFrame(rows))
    record("adapter_kinds", [3], found | {"goals": {name: goals(found[name]) for name in found}})
