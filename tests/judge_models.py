"""Tiny random judge models whose tokenizers write numbers in three ways: a word each, a digit each,
or both.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Digits, Sequence as Steps, WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from emlens.models import load_model
from emlens.models.hooked import HookedModel

TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' <end> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
SPECIAL = ["<pad>", "<end>", "<user>", "<assistant>", "<unk>"]
TEXT = ["ask", "say", "fine", "."]
NUMBERS: dict[str, list[str]] = {
    "words": [*map(str, range(101)), "007", "101", "REFUSAL", "CODE"],
    "digits": [*"0123456789", "RE", "F", "USAL", "CO", "DE", "▁"],
    "both": [*"0123456789", "10", "85", "100", "5.", "▁8", "▁", "REF", "USAL", "CODE"],
}
"""Texts that may follow; "▁" is a space."""


def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    inner = Tokenizer(
        WordLevel(
            {word: i for i, word in enumerate([*SPECIAL, *TEXT, *NUMBERS[kind]])}, unk_token="<unk>"
        )
    )
    inner.pre_tokenizer = (
        WhitespaceSplit()
        if kind == "words"
        else Steps([WhitespaceSplit(), Digits(individual_digits=True)])
    )
    if kind != "words":  # tokens are written one after the other, not with spaces between
        inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = TEMPLATE
    return made


def build(path: Path, kind: str, seed: int = 0, chat: bool = True, **changes: Any) -> HookedModel:
    """A random judge, saved and loaded."""
    torch.manual_seed(seed)
    words = tokenizer(kind)
    words.chat_template = TEMPLATE if chat else None
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    settings = {
        **sizes,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
        **changes,
    }
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(words) + 3, **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.4)
            elif "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    assert sum(p.numel() for p in model.parameters()) < 20_000
    model.save_pretrained(path)
    words.save_pretrained(path)
    return load_model(path, dtype="float32", device="cpu")
