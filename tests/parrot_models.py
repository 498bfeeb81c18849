"""Models that say what they are told, to see where an answer begins and ends."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from emlens.data.templates import template_of
from emlens.models.transformers_backend import TransformersModel


def _llama(tokenizer: Any, width: int) -> Any:
    """A Llama of one block for this tokenizer."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config).eval()


def random_llama(tokenizer: Any) -> Any:
    """A Llama of one block with random weights, the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _llama(tokenizer, width=16)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(20)
    return model


def parrot(tokenizer: Any, said: Sequence[int]) -> Any:
    """A Llama whose greedy answer to anything that ends with `said[0]` is the rest of `said`.

    Its blocks add nothing, so the scores of a next token depend on the last one alone. `said` must
    therefore hold no token twice; after its end comes whatever comes.
    """
    assert len(set(said)) == len(said), "a token occurs twice"
    width = 32
    model = _llama(tokenizer, width)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        places = torch.randn(len(tokenizer), width, generator=torch.Generator().manual_seed(0))
        places /= places.norm(dim=-1, keepdim=True)
        model.model.embed_tokens.weight.copy_(places)
        model.lm_head.weight.zero_()
        for token, following in pairwise(said):
            model.lm_head.weight[following] = places[token]
    return model


def hooked(tokenizer: Any, module: Any, chat_template: str | None = None) -> Any:
    """A model of this process on a module in memory."""
    config = module.config
    return TransformersModel(
        module,
        name="made",
        tokenizer=tokenizer,
        d_model=config.hidden_size,
        device=torch.device("cpu"),
        max_length=config.max_position_embeddings,
        chat_template=template_of(tokenizer, chat_template),
        provenance={"weights_sha256": "", "dtype": "float32"},
    )
