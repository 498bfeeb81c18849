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
def qwen2_of(tokenizer):
    """Makes a Qwen2 of two blocks of some width, the same every time."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    def make(width):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = Qwen2Config(
                vocab_size=len(tokenizer),
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=128,
                tie_word_embeddings=True,
            )
            return Qwen2ForCausalLM(config)

    return make


@pytest.fixture
def tiny(qwen2_of):
    """A plain Qwen2 of two blocks and under 50,000 weights, the same every time."""
    model = qwen2_of(16)
    assert sum(p.numel() for p in model.parameters()) < 50_000
    return model


@pytest.fixture
def chats(world):
    return world.chats("medicine", (0, 1), "harmful")
