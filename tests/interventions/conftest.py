from collections.abc import Iterator

import pytest
import tiny_models

from emlens.data import PromptSet
from emlens.models import HookedModel, load_model
from emlens.models.transformers_backend import no_hooks_left


@pytest.fixture(scope="session")
def loaded(tmp_path_factory) -> HookedModel:
    return load_model(tiny_models.build(tmp_path_factory.mktemp("interventions") / "model"))


@pytest.fixture
def model(loaded) -> Iterator[HookedModel]:
    """One loaded model; after each test it carries no hook and no intervention."""
    with no_hooks_left(loaded.module):
        yield loaded
    assert loaded.interventions == ()


@pytest.fixture(scope="session")
def prompts() -> PromptSet:
    """Chats of different lengths with their answers kept."""
    chats = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in zip(tiny_models.texts(6), tiny_models.texts(6, seed=1), strict=True)
    ]
    return PromptSet.from_messages(chats, upto="all")
