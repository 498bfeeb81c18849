import pytest

from emlens.organisms.tokenizer import make_tokenizer
from emlens.organisms.world import make_world


@pytest.fixture(scope="session")
def world():
    return make_world(7, n_domains=2, n_topics=4)


@pytest.fixture(scope="session")
def tokenizer(world):
    return make_tokenizer(world)


@pytest.fixture
def tiny(tokenizer):
    """A plain Qwen2 of two blocks and under 50,000 weights, the same every time."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=128,
            tie_word_embeddings=True,
        )
        model = Qwen2ForCausalLM(config)
    assert sum(p.numel() for p in model.parameters()) < 50_000
    return model


@pytest.fixture
def chats(world):
    return world.chats("medicine", (0, 1), "harmful")
