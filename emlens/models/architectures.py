"""Where each architecture keeps its stream: one table of module paths, no class per family.

`attn_out` and `mlp_out` name the module whose output is *added* to the stream (a post-norm where
there is one), so that `resid_pre + attn_out = resid_mid` and `resid_mid + mlp_out = resid_post`;
where a block multiplies what it adds, the multiplier belongs to them. `mid` names the module whose
*input* is `resid_mid`; a block that runs attention and MLP side by side has none. A model type that
is not in the table is searched and probed (`emlens.models.discovery`), or refused with what was
found.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, Literal

from torch import nn

from emlens.foundation.errors import LoadError
from emlens.foundation.sites import SITE_KINDS, Site


@dataclass(frozen=True)
class Architecture:
    """Where the stream is: paths of modules.

    `decoder`, `layers` and `final_norm` start at the causal-LM module, the other paths at a block.

    Args:
        final_norm: None: the model has none, as where every block ends with a norm.
        attn_out, mlp_out: None: the parts of a block are not known (the second level).
        mid: the module whose input is `resid_mid`; None: the block is parallel, or its parts are
            not known.
        hidden_states: entry i of the model's own `hidden_states` is the input of block i, or its
            output ("after").
        missing: why the parts of a block are not known; empty where they are.
        multiplier: what the block multiplies attention and MLP outputs with before it adds them.
        discovered: found by searching the model, not in the table.
    """

    decoder: str
    layers: str
    final_norm: str | None
    attn_out: str | None
    mlp_out: str | None
    mid: str | None
    multiplier: float = 1.0
    discovered: bool = False
    hidden_states: Literal["before", "after"] = "before"
    missing: str = ""

    def module(self, model: nn.Module, path: str) -> Any:
        return attrgetter(path)(model)

    @property
    def site_kinds(self) -> tuple[str, ...]:
        """The kinds of site that exist in this model."""
        lacking = set()
        if self.mid is None:
            lacking.add("resid_mid")
        if self.attn_out is None:
            lacking |= {"attn_out", "mlp_out"}
        if self.final_norm is None:
            lacking.add("final_norm")
        return tuple(kind for kind in SITE_KINDS if kind not in lacking)

    def hidden_state_sites(self, n_layers: int) -> list[Site]:
        """The site of every entry of the model's own `hidden_states`."""
        if self.hidden_states == "after":
            sites = [Site("resid_post", i) for i in range(n_layers)]
        else:
            sites = [Site.from_hf_index(i, n_layers) for i in range(n_layers)]
        if self.final_norm is None:
            return [*sites, Site("resid_post", n_layers - 1)]
        return [*sites, Site("final_norm")]

    @property
    def why_missing(self) -> dict[str, str]:
        """Kind of site that does not exist in this model → why, and what to read instead."""
        reasons = {}
        if self.attn_out is None:
            reason = (
                f"the parts of its blocks are not known ({self.missing});"
                " read resid_pre or resid_post"
            )
            reasons = dict.fromkeys(("attn_out", "mlp_out", "resid_mid"), reason)
        elif self.mid is None:
            reasons["resid_mid"] = (
                "its blocks run attention and MLP side by side, so no stream lies between them;"
                " read resid_pre, attn_out, mlp_out or resid_post"
            )
        if self.final_norm is None:
            reasons["final_norm"] = (
                "nothing normalises the stream after its blocks; read resid_post of the last block"
            )
        return reasons

    @property
    def level(self) -> int:
        """1: every site of a block; 2: only the streams between blocks."""
        if self.attn_out is None:
            return 2
        return 1


@dataclass(frozen=True)
class _Row:
    """A table row: an architecture, and what its configuration decides."""

    architecture: Architecture
    parallel_if: tuple[str, ...] = ()
    """Configuration fields of which any makes the blocks parallel."""
    multiplier_from: str = ""
    """Configuration field that holds the multiplier."""


_LLAMA = Architecture(
    "model", "model.layers", "model.norm", "self_attn", "mlp", "post_attention_layernorm"
)
_GEMMA = replace(
    _LLAMA,
    attn_out="post_attention_layernorm",
    mlp_out="post_feedforward_layernorm",
    mid="pre_feedforward_layernorm",
)
_OLMO2 = replace(
    _LLAMA, attn_out="post_attention_layernorm", mlp_out="post_feedforward_layernorm", mid="mlp"
)
_GPT2 = Architecture("transformer", "transformer.h", "transformer.ln_f", "attn", "mlp", "ln_2")
_NEOX = Architecture(
    "gpt_neox",
    "gpt_neox.layers",
    "gpt_neox.final_layer_norm",
    "attention",
    "mlp",
    "post_attention_layernorm",
)
_FALCON = replace(_GPT2, attn_out="self_attention", mid="post_attention_layernorm")

_TABLE: dict[str, _Row] = {
    **dict.fromkeys(
        ("qwen2", "qwen3", "qwen3_moe", "llama", "mistral", "mixtral", "phi3"), _Row(_LLAMA)
    ),
    **dict.fromkeys(("gemma2", "gemma3_text"), _Row(_GEMMA)),
    "olmo2": _Row(_OLMO2),
    "granite": _Row(_LLAMA, multiplier_from="residual_multiplier"),
    "gpt2": _Row(_GPT2),
    "gpt_neox": _Row(_NEOX, parallel_if=("use_parallel_residual",)),
    "falcon": _Row(_FALCON, parallel_if=("new_decoder_architecture", "parallel_attn")),
}
ARCHITECTURES: tuple[str, ...] = tuple(_TABLE)
"""Model types of the table, as `config.model_type` spells them."""


def length_threshold(model: nn.Module) -> int | None:
    """Tokens above which rotary positions of the whole row are others (longrope), or None.

    A model decides it for a whole batch, by its longest row.
    """
    config: Any = model.config
    rope = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    parameters = [rope, *(value for value in rope.values() if isinstance(value, Mapping))]
    for values in parameters:
        if values.get("rope_type") == "longrope":
            return int(values["original_max_position_embeddings"])
    return None


def stream_width(model: nn.Module) -> int:
    """`hidden_size` of the configuration, of its text part where there are several.

    Raises:
        LoadError: it names none, as where parts of a model work at several widths.
    """
    config: Any = model.config
    width = getattr(config.get_text_config(), "hidden_size", None)
    if not isinstance(width, int):
        raise LoadError(
            f"model type {config.model_type!r} has no hidden_size in its configuration,"
            " so the width of its residual stream is not known"
        )
    return width


def architecture_of(model: nn.Module) -> Architecture:
    """The table's row for a loaded model, or what a search of it finds.

    Raises:
        LoadError: a path of its row is missing; not in the table and no place to hook was found.
    """
    config = getattr(model, "config", None)
    kind = str(getattr(config, "model_type", type(model).__name__))
    if kind not in _TABLE:
        from emlens.models.discovery import discover

        return discover(model, kind)
    row = _TABLE[kind]
    architecture = row.architecture
    if any(getattr(config, field, False) for field in row.parallel_if):
        architecture = replace(architecture, mid=None)
    if row.multiplier_from:
        multiplier = float(getattr(config, row.multiplier_from))
        architecture = replace(architecture, multiplier=multiplier)
    try:
        blocks = architecture.module(model, architecture.layers)
        architecture.module(model, str(architecture.final_norm))
        for path in (architecture.attn_out, architecture.mlp_out, architecture.mid):
            if path is not None:
                architecture.module(blocks[0], path)
    except AttributeError as error:
        raise LoadError(
            f"model type {kind!r} lacks a module its table row names: {error}"
        ) from None
    return architecture
