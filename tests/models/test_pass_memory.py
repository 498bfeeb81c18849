"""The arithmetic of a pass's memory: against what a pass really holds, and against a card."""

import weakref
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen2Config, Qwen2ForCausalLM

from emlens.activations.capture_spec import BATCH_TOKENS
from emlens.models.hooked import DEFAULT_BATCH_TOKENS, GENERATION_TOKENS
from emlens.models.pass_memory import CACHE_BYTES, LOGITS, PassShape, pass_bytes, rows_that_fit

CARD = 80 * 10**9
QWEN_14B = PassShape(48, 5120, 13_824, 40, 8, 128, 152_064, 2)
WEIGHTS_14B = 2 * 14_770_033_664
"""Qwen2.5-14B in 16 bits."""
LLAMA_13B = PassShape(40, 5120, 13_824, 40, 40, 128, 32_000, 2)
"""Every head has keys and values of its own."""
SMOLLM2 = PassShape(30, 576, 1536, 9, 3, 64, 49_152, 4)


class Held(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside the block and still alive.

    Args:
        module: its weights are not counted.
    """

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self.now = self.most = 0
        weights = [*module.parameters(), *module.buffers()]
        self._seen = {weight.untyped_storage()._cdata for weight in weights}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes()
        self._seen.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def meta_model(layers: int) -> Any:
    """A decoder of the 14B shape with fewer blocks, on a device that computes nothing."""
    config = Qwen2Config(
        vocab_size=QWEN_14B.vocabulary,
        hidden_size=QWEN_14B.d_model,
        intermediate_size=QWEN_14B.inner,
        num_hidden_layers=layers,
        num_attention_heads=QWEN_14B.heads,
        num_key_value_heads=QWEN_14B.kv_heads,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        return Qwen2ForCausalLM(config).to(torch.bfloat16).eval()


def test_the_arithmetic_covers_what_a_pass_holds() -> None:
    module, layers, rows, length = meta_model(2), 2, 16, 110
    wrapped: Any = SimpleNamespace(
        module=module,
        n_layers=layers,
        d_model=QWEN_14B.d_model,
        vocab_size=QWEN_14B.vocabulary,
        dtype=torch.bfloat16,
    )
    shape = PassShape.of(wrapped)
    assert (shape.cached, QWEN_14B.cached) == (2 * 2 * 8 * 128 * 2, 196_608)
    ids = torch.zeros(rows, length, dtype=torch.long, device="meta")
    no_mask = {"full_attention": None}
    tokens = rows * length
    for logits, cache in ((0, False), (tokens, False), (rows, True)):
        keep = {"logits_to_keep": 1} if cache else {}
        with torch.no_grad(), Held(module) as held:
            call = module if logits else module.model
            call(input_ids=ids, attention_mask=no_mask, use_cache=cache, **keep)
        said = pass_bytes(shape, tokens, logits=logits, cached=tokens * cache)
        assert 0.4 * said < held.most <= said, (logits, cache, held.most / said)


def test_usual_batches_of_a_14b_model_fit_a_card() -> None:
    logits = LOGITS // QWEN_14B.vocabulary
    every_site = BATCH_TOKENS * (5 * QWEN_14B.layers + 1)
    rows = rows_that_fit(QWEN_14B, 700, GENERATION_TOKENS)
    passes = {
        "capture, every token at every site": pass_bytes(
            QWEN_14B, BATCH_TOKENS, kept=every_site, masked=BATCH_TOKENS**2
        ),
        "likelihood": pass_bytes(QWEN_14B, logits, logits=logits, masked=logits**2),
        "generation, while rows change": pass_bytes(
            QWEN_14B, GENERATION_TOKENS, logits=rows, cached=2 * GENERATION_TOKENS
        ),
    }
    assert all(WEIGHTS_14B + held < CARD for held in passes.values()), passes
    # without their limits the logits of a batch, or keys and values of all heads, would not
    # fit beside the weights of two models
    free = CARD - WEIGHTS_14B
    assert passes["likelihood"] < 3e9
    whole = pass_bytes(QWEN_14B, DEFAULT_BATCH_TOKENS, logits=DEFAULT_BATCH_TOKENS)
    assert whole > 3e9
    assert 2 * GENERATION_TOKENS * LLAMA_13B.cached > free


def test_rows_at_once_follow_from_bytes() -> None:
    assert rows_that_fit(QWEN_14B, 700, GENERATION_TOKENS) == GENERATION_TOKENS // 700
    assert rows_that_fit(SMOLLM2, 64, GENERATION_TOKENS) == GENERATION_TOKENS // 64
    rows = rows_that_fit(LLAMA_13B, 700, GENERATION_TOKENS)
    assert rows == CACHE_BYTES // (700 * LLAMA_13B.cached) == 14
    assert rows_that_fit(QWEN_14B, 1, 2**40) == LOGITS // QWEN_14B.vocabulary
    assert rows_that_fit(QWEN_14B, 10**6, GENERATION_TOKENS) == 1
