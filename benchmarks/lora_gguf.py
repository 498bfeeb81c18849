"""A LoRA adapter as the GGUF file that llama.cpp applies, for models of Llama's architecture.

llama.cpp adds `alpha / r · B A` to a matrix, or `B A` where the file says an alpha of 0: then the
scale is in B. Its Llama keeps the rows of queries and keys in another order (the two halves of a
head's rotary pairs lie beside each other), so the rows of their B move as the rows of the matrix
do. Anything but linear layers of such blocks is refused. Written for `benchmarks.served_adapters`.
"""

import re
from pathlib import Path

import gguf
from torch import Tensor

from emlens.interventions import LoraAdapter

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_MODULE = re.compile(r"model\.layers\.(\d+)\.(\w+\.\w+)")


def write_lora_gguf(path: Path, adapter: LoraAdapter, *, heads: int, key_heads: int) -> Path:
    """Write the adapter; `heads` and `key_heads` of the model give the order of rows."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 0.0)
    for module, factors in adapter.modules.items():
        match = _MODULE.fullmatch(module)
        if match is None or match[2] not in _NAMES:
            raise SystemExit(f"{module} has no place in llama.cpp's Llama")
        b = factors.b.float() * factors.scale
        if match[2] == "self_attn.q_proj":
            b = _rotary_rows(b, heads)
        elif match[2] == "self_attn.k_proj":
            b = _rotary_rows(b, key_heads)
        name = f"blk.{match[1]}.{_NAMES[match[2]]}.weight"
        writer.add_tensor(f"{name}.lora_a", factors.a.float().contiguous().numpy())
        writer.add_tensor(f"{name}.lora_b", b.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _rotary_rows(b: Tensor, heads: int) -> Tensor:
    """Rows (head, half, pair) → (head, pair, half)."""
    d_out, r = b.shape
    halves = b.reshape(heads, 2, d_out // heads // 2, r)
    return halves.transpose(1, 2).reshape(d_out, r)
