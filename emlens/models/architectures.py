"""Where each architecture keeps its stream: one table of module paths, no class per family.

`attn_out` and `mlp_out` name the module whose output is *added* to the stream (a post-norm where there is one), so
that `resid_pre + attn_out = resid_mid` and `resid_mid + mlp_out = resid_post`. `mid_norm` is the module whose *input*
is `resid_mid`. An architecture that is not in the table is refused with what was found.
"""

from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import nn

from emlens.foundation.errors import LoadError


@dataclass(frozen=True)
class Architecture:
    """Paths from the causal-LM module (`decoder`, `layers`, `final_norm`) and from a block (the rest)."""

    decoder: str
    layers: str
    final_norm: str
    attn_out: str
    mlp_out: str
    mid_norm: str

    def module(self, model: nn.Module, path: str) -> Any:
        return attrgetter(path)(model)


_LLAMA = Architecture("model", "model.layers", "model.norm", "self_attn", "mlp", "post_attention_layernorm")
_GEMMA = Architecture(
    "model", "model.layers", "model.norm", "post_attention_layernorm", "post_feedforward_layernorm", "pre_feedforward_layernorm"
)
_GPT2 = Architecture("transformer", "transformer.h", "transformer.ln_f", "attn", "mlp", "ln_2")

ARCHITECTURES: dict[str, Architecture] = {
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gpt2": _GPT2,
}


def architecture_of(model: nn.Module) -> Architecture:
    """The table's row for a loaded model.

    Raises:
        LoadError: the model type is not in the table, or a path of its row is missing.
    """
    kind = str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
    if kind not in ARCHITECTURES:
        children = ", ".join(name for name, _ in model.named_children())
        raise LoadError(
            f"model type {kind!r} is not one emlens knows where to hook ({', '.join(sorted(ARCHITECTURES))}); found top modules: {children}"
        )
    found = ARCHITECTURES[kind]
    try:
        blocks = found.module(model, found.layers)
        found.module(model, found.final_norm)
        for path in (found.attn_out, found.mlp_out, found.mid_norm):
            found.module(blocks[0], path)
    except AttributeError as error:
        raise LoadError(f"model type {kind!r} lacks a module its table row names: {error}") from None
    return found
