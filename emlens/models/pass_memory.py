"""What a pass holds in memory beside the weights, and the limits of batches that follow from it.

Batches are counted in padded tokens, since their time goes with tokens. How many tokens fit is a
question of bytes: of logits, and of keys and values while answers are generated. Both limits follow
from the shape of the model and a fixed number of bytes, never from what is free at the moment, so
that a call has the same batches wherever it runs. What does not fit although it is within them is
cut when the system says so (captures, generation).

`pass_bytes` is the arithmetic behind them: at the usual batches a 14B model in 16 bits stays within
an 80 GB card, which `tests/models/test_pass_memory.py` holds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from emlens.data.prompts import Prompt

if TYPE_CHECKING:
    from emlens.models.hooked import HookedModel

LOGITS: Final = 2**28
"""Logits in memory at most (1 GiB in float32): a vocabulary of 152,000 makes batches smaller."""
TEXT_LOGITS: Final = 2**26
"""Log-probabilities at every token of texts that are held together (256 MiB in float32)."""
CACHE_BYTES: Final = 2**33
"""Keys and values of all rows that are generated at once (8 GiB). While rows come and go there are
two copies for a moment.
"""
_STREAMS: Final = 12
"""Vectors as wide as the stream that a block holds for a token at most: the stream and its normed
copy, then queries, keys and values, which attention without a fused kernel copies for every head.
"""
_INNER: Final = 3
"""Vectors of the width of an MLP: gate, up, and their product."""
_WIDENED: Final = 256
"""Rows of logits that are summed in float64 at once."""


@dataclass(frozen=True)
class PassShape:
    """What of a model decides how much memory a pass takes.

    Args:
        itemsize: bytes of a value that passes compute with.
    """

    layers: int
    d_model: int
    inner: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    itemsize: int

    @classmethod
    def of(cls, model: "HookedModel") -> "PassShape":
        """Of a model; where its configuration does not say something, the largest that is usual:
        keys and values for every head, an MLP four times as wide as the stream.
        """
        module = getattr(model, "module", None)
        config: Any = getattr(module, "config", None)
        if hasattr(config, "get_text_config"):
            config = config.get_text_config()
        heads = _number(config, "num_attention_heads", 1)
        return cls(
            model.n_layers,
            model.d_model,
            _number(config, "intermediate_size", 4 * model.d_model),
            heads,
            _number(config, "num_key_value_heads", heads),
            _number(config, "head_dim", -(-model.d_model // heads)),
            model.vocab_size,
            model.dtype.itemsize,
        )

    @property
    def cached(self) -> int:
        """Bytes of one token's keys and values."""
        return 2 * self.layers * self.kv_heads * self.head * self.itemsize


def _number(config: Any, name: str, otherwise: int) -> int:
    value = getattr(config, name, None)
    return value if isinstance(value, int) and value > 0 else otherwise


def pass_bytes(
    shape: PassShape,
    tokens: int,
    *,
    logits: int = 0,
    kept: int = 0,
    cached: int = 0,
    masked: int = 0,
) -> int:
    """Bytes that a pass holds beside the weights, without gradients.

    Args:
        tokens: of the batch, padding included.
        logits: tokens at which logits are computed.
        kept: vectors as wide as the stream that the caller keeps until the pass ends.
        cached: tokens whose keys and values are held, those of this pass included.
        masked: (row, token, seen token) triples of a mask for each query, at which the weights of
            all heads are held; 0 where attention takes none.
    """
    of_block = tokens * (_STREAMS * shape.d_model + _INNER * shape.inner)
    of_attention = masked * (shape.heads + 1)
    values = of_block + of_attention + logits * shape.vocabulary + kept * shape.d_model
    in_float64 = min(logits, _WIDENED) * shape.vocabulary * 8
    return values * shape.itemsize + in_float64 + cached * shape.cached


def rows_that_fit(shape: PassShape, tokens: int, batch_tokens: int) -> int:
    """Rows that are generated at once at most, one or more.

    Args:
        tokens: of the longest row, its answer included. batch_tokens: of all rows together at most.
    """
    by_tokens = batch_tokens // tokens
    by_cache = CACHE_BYTES // max(1, tokens * shape.cached)
    by_logits = LOGITS // max(1, shape.vocabulary)
    return max(1, min(by_tokens, by_cache, by_logits))


def text_chunks(model: "HookedModel", prompts: Sequence[Prompt]) -> Iterator[list[Prompt]]:
    """Prompts in order, in chunks whose log-probabilities at every token fit into memory; one
    prompt at least.
    """
    chunk: list[Prompt] = []
    size = 0
    for prompt, row in zip(prompts, model.render(prompts), strict=True):
        row_size = len(row.ids) * model.vocab_size
        if chunk and size + row_size > TEXT_LOGITS:
            yield chunk
            chunk, size = [], 0
        chunk.append(prompt)
        size += row_size
    yield chunk
