"""Random models for `benchmarks.gpu`, with a tokenizer of their own: nothing is fetched.

The tokenizer writes as those of open models do: a space belongs to the word after it, numbers are
single digits, and what is decoded reads as what was encoded.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Digits, Metaspace, Sequence as Steps
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from benchmarks import capture_speed
from emlens.models.transformers_backend import TransformersModel

SEVEN: Final[Mapping[str, int]] = {
    "vocab_size": 152_064,
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
"""Of Qwen2.5-7B, but for the context."""
ONE: Final[Mapping[str, int]] = {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
"""Of Llama-3.2-1B, but for the context."""
TINY: Final[Mapping[str, int]] = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
TEMPLATE: Final = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
_SPECIAL: Final = ("<pad>", "<end>", "<unk>", "<user>", "<assistant>")
_KNOWN: Final = (*_SPECIAL, "▁", *"0123456789", "▁REFUSAL", "▁CODE")
FIRST: Final = len(_KNOWN)
"""Id of the first word."""


def word(number: int) -> str:
    """The text of a token by its id: letters alone, so that no word holds a digit."""
    return "w" + str(number).translate(str.maketrans("0123456789", "abcdefghij"))


def tokenizer(words: int) -> PreTrainedTokenizerFast:
    """A tokenizer of so many tokens."""
    vocabulary = {text: i for i, text in enumerate(_KNOWN)}
    vocabulary |= {f"▁{word(i)}": i for i in range(FIRST, words)}
    inner = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = Steps([Metaspace(), Digits(individual_digits=True)])
    inner.decoder = decoders.Metaspace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"],
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = TEMPLATE
    return made


def build(
    shape: Mapping[str, int], device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> TransformersModel:
    """A random Qwen2 of this shape, made on the device."""
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    config = Qwen2Config(**shape, pad_token_id=0, eos_token_id=1, bos_token_id=None, dtype=dtype)
    try:
        with device:
            module = Qwen2ForCausalLM(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(default)
    return capture_speed.wrap(module, tokenizer(shape["vocab_size"]), device, TEMPLATE)


@contextmanager
def in_float32(model: TransformersModel) -> Iterator[TransformersModel]:
    """The same weights in float32 inside, where results are compared; then as they were.

    In 16 bits two right ways differ by per cents, as wrong ones do. The weights come back bit by
    bit, since float32 holds every number of 16 bits. What is proved for the model inside is not
    taken over: the model that is timed proves it in its own dtype.
    """
    module: Any = model.module
    weights = [weight for weight in module.parameters() if weight.is_floating_point()]
    dtype = weights[0].dtype
    _cast(weights, torch.float32)
    try:
        yield capture_speed.wrap(module, model.tokenizer, model.device, model.chat_template)
    finally:
        _cast(weights, dtype)


def _cast(weights: list[torch.nn.Parameter], dtype: torch.dtype) -> None:
    """Parameters alone: the angles of rotary positions stay in float32."""
    for weight in weights:
        weight.data = weight.data.to(dtype)


def save(model: TransformersModel, path: Path) -> Path:
    """The model as a checkpoint directory."""
    module: Any = model.module
    module.save_pretrained(path)
    model.tokenizer.save_pretrained(path)
    return path
