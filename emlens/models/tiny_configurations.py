"""The configuration of any causal model type, made small enough for a test.

Every size is set by the name of its field, in the configuration and in those inside it; lists with
one entry a layer are cut so that each kind of layer stays. What a type wants otherwise is one line
of `_OF_TYPE`. A million parameters or so, so that a model is built in a moment.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

LAYERS: Final = 4
VOCABULARY: Final = 96
WINDOW: Final = 6
"""Columns of a sliding window: shorter than the rows that a survey runs."""

_SIZES: Final[dict[str, Any]] = {
    # width of the stream
    **dict.fromkeys(
        (
            "hidden_size",
            "d_model",
            "n_embd",
            "emb_dim",
            "embedding_size",
            "embedding_dim",
            "word_embed_proj_dim",
            "input_embedding_size",
            "output_embedding_size",
            "lru_width",
            "attention_hidden_size",
            "kv_channels_total",
            "pronunciation_embed_dim",
            "shape_embed_dim",
            "hidden_size_global",
        ),
        64,
    ),
    "encoder_hash_byte_group_vocab": 50,
    # layers
    **dict.fromkeys(
        (
            "num_hidden_layers",
            "n_layer",
            "n_layers",
            "num_layers",
            "decoder_layers",
            "num_decoder_layers",
            "num_blocks",
        ),
        LAYERS,
    ),
    **dict.fromkeys(("encoder_layers", "num_encoder_layers"), LAYERS),
    # heads
    **dict.fromkeys(
        (
            "num_attention_heads",
            "n_head",
            "n_heads",
            "num_heads",
            "decoder_attention_heads",
            "encoder_attention_heads",
            "attention_heads",
            "num_decoder_attention_heads",
            "num_encoder_attention_heads",
            "swa_num_attention_heads",
            "linear_num_heads",
            "linear_num_value_heads",
            "num_query_groups",
        ),
        4,
    ),
    **dict.fromkeys(
        ("num_key_value_heads", "swa_num_key_value_heads", "linear_num_key_heads", "num_kv_heads"),
        2,
    ),
    **dict.fromkeys(
        (
            "head_dim",
            "swa_head_dim",
            "dim_head",
            "d_head",
            "attention_head_size",
            "kv_channels",
            "v_head_dim",
            "qk_nope_head_dim",
            "global_head_dim",
            "linear_key_head_dim",
            "linear_value_head_dim",
            "linear_head_dim",
            "attention_head_dim",
            "index_head_dim",
        ),
        16,
    ),
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim"), 8),
    "qk_head_dim": 24,
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank", "gated_norm_rank"), 16),
    "query_pre_attn_scalar": 16,
    # feed-forward parts
    **dict.fromkeys(
        (
            "intermediate_size",
            "ffn_dim",
            "decoder_ffn_dim",
            "encoder_ffn_dim",
            "dff",
            "dim_ff",
            "d_inner",
            "ffn_hidden_size",
            "feed_forward_size",
            "intermediate_size_mlp",
            "dense_intermediate_size",
        ),
        96,
    ),
    **dict.fromkeys(
        (
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "shared_experts_intermediate_size",
            "shared_intermediate_size",
            "moe_shared_expert_intermediate_size",
            "expert_ffn_hidden_size",
            "router_hidden_size",
        ),
        32,
    ),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "num_experts_per_token", "moe_k"), 2),
    **dict.fromkeys(
        (
            "n_group",
            "topk_group",
            "num_expert_group",
            "n_shared_experts",
            "num_shared_experts",
            "moe_num_shared_experts",
            "first_k_dense_replace",
            "num_dense_layers",
            "moe_layer_start_index",
        ),
        1,
    ),
    # state-space and convolutional parts
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_d_conv", "conv_kernel", "linear_conv_kernel_dim"), 4),
    **dict.fromkeys(("time_step_rank", "mamba_dt_rank"), 4),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), 16),
    "mamba_d_ssm": 128,
    **dict.fromkeys(("chunk_size", "mamba_chunk_size"), 16),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "mamba_ngroups"), 1),
    # windows and lengths
    **dict.fromkeys(
        (
            "sliding_window",
            "sliding_window_size",
            "attention_window_size",
            "attention_chunk_size",
            "local_attention",
            "window_size",
        ),
        WINDOW,
    ),
    "index_topk": 4,
    # with few heads many keys score exactly 0, and which of them are taken depends on padding
    "index_n_heads": 32,
    **dict.fromkeys(
        (
            "max_position_embeddings",
            "n_positions",
            "n_ctx",
            "max_seq_len",
            "model_max_length",
            "max_target_positions",
            "context_length",
        ),
        128,
    ),
    **dict.fromkeys(
        ("vocab_size", "unpadded_vocab_size", "vocab_size_per_layer_input", "decoder_vocab_size"),
        VOCABULARY,
    ),
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 8,
    "num_kv_shared_layers": 1,
    "max_window_layers": 2,
    # what reading a bare decoder needs
    "is_decoder": True,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    # weights large enough that tokens differ
    **dict.fromkeys(("initializer_range", "init_std", "initializer_cutoff_factor_"), 0.15),
}
_TOKENS: Final = {
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
    "eod_token_id": 2,
    "sep_token_id": 2,
    "cls_token_id": 1,
    "mask_token_id": 3,
}
_PER_LAYER: Final = (
    "layer_types", "mlp_layer_types", "layers_block_type", "indexer_types", "no_rope_layers",
    "layer_rope_theta", "activation_sparsity_pattern", "num_attention_heads_per_layer",
    "attn_layers", "attention_layers", "intermediate_size",
)  # fmt: skip
_NEVER_OPEN: Final = (
    "head_dim", "num_key_value_heads", "n_routed_experts", "n_shared_experts",
    "num_experts_per_tok",
)  # fmt: skip
"""Sizes to set also where the class leaves them open."""
_N_GRAMS: Final = {
    "hc_lowrank": 8, "ple_layer_ids": [1], "ple_embed_dim": 64, "heads_per_ngram": 2,
    "ngram_vocab_size_base": 50, "make_ngram_vocab_size_divisible_by": 4, "split_ngram_parts": 2,
    "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 32, "indexer_budget": 8,
    "indexer_compress_ratio": 2, "head_dim": 32,
}  # fmt: skip
_DOTS3: Final = {
    "num_key_value_heads": 4, "head_dim": 24, "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4, "swa_q_lora_rank": 16, "swa_kv_lora_rank": 16,
    "swa_head_dim": 24, "swa_qk_nope_head_dim": 16, "swa_v_head_dim": 16,
}  # fmt: skip
_ZAMBA: Final = {"attention_hidden_size": 128, "attention_head_dim": 32}
_OF_TYPE: Final[dict[str, dict[str, Any]]] = {
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0}},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            name: {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
            for name in ("sliding_attention", "full_attention")
        },
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots3_note": {"text_config": _DOTS3},
    "dots3_note_text": _DOTS3,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 16, "hidden_size": 64, "expand": 2},
    "qwen4_exp": {"text_config": _N_GRAMS},
    "qwen4_exp_text": _N_GRAMS,
    "reformer": {
        "axial_pos_embds_dim": [16, 48], "axial_pos_shape": [8, 16], "lsh_attn_chunk_length": 8,
        "local_attn_chunk_length": 8, "attn_layers": ["local", "lsh", "local", "lsh"],
        "num_buckets": 2,
    },
    "zamba": _ZAMBA,
    "zamba2": {**_ZAMBA, "hybrid_layer_ids": [1, 3]},
    "gemma3n_text": {"vocab_size_per_layer_input": 96},
}  # fmt: skip


def tiny_configuration(kind: str, **changes: Any) -> Any:
    """A configuration of a model type.

    Args:
        changes: fields to set otherwise.

    Raises:
        Exception: whatever the configuration's class raises where these sizes do not fit it.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    cls = CONFIG_MAPPING[kind]
    fields = _small(cls, {**_OF_TYPE.get(kind, {}), **changes})
    return cls(**fields)


def _small(cls: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    default = cls()
    inner = dict(getattr(cls, "sub_configs", {}))
    written = {**default.to_dict()}
    fields: dict[str, Any] = {}
    for name, value in written.items():
        if name in inner:
            continue
        if name in _TOKENS:
            fields[name] = _TOKENS[name]
        elif name in _PER_LAYER and isinstance(value, (list, tuple)):
            fields[name] = _each_kind(value)
        elif name in _SIZES and (value is not None or name in _NEVER_OPEN):
            fields[name] = _SIZES[name]
    if "qk_rope_head_dim" in fields:
        # latent attention: `head_dim` means the rotary part, and keys have as many heads as queries
        fields["head_dim"] = fields["qk_rope_head_dim"]
        fields["num_key_value_heads"] = fields["num_attention_heads"]
    for name in inner:
        part = getattr(default, name, None)
        if part is not None:
            fields[name] = _small(type(part), {})
    for name, value in changes.items():
        if name in inner and isinstance(value, Mapping):
            fields[name] = {**fields.get(name, {}), **value}
        else:
            fields[name] = value
    return fields


def _each_kind(values: Iterable[Any]) -> list[Any]:
    """`LAYERS` entries that hold every kind of the given ones, in their order."""
    values = list(values)
    kinds = list(dict.fromkeys(map(str, values)))
    first = {kind: next(v for v in values if str(v) == kind) for kind in kinds}
    if isinstance(values[0], (int, float)) and len(kinds) == 1:
        return values[:1] * LAYERS
    cycle = [first[kind] for kind in kinds]
    return [cycle[i % len(cycle)] for i in range(LAYERS)]
