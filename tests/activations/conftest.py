from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_models

from emlens.data import PromptSet
from emlens.models import Family, HookedModel, load_family
from emlens.models.transformers_backend import no_hooks_left


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("activations")
    tiny_models.build(root / "instruct")
    tiny_models.build(root / "full", seed=5)
    tiny_models.build_adapter(root / "one", root / "instruct")
    return root


@pytest.fixture(scope="session")
def family(files) -> Family:
    return load_family(files / "instruct", finetuned={"one": files / "one", "full": files / "full"})


@pytest.fixture
def model(family) -> Iterator[HookedModel]:
    with no_hooks_left(family.instruct.module):
        yield family.instruct


@pytest.fixture(scope="session")
def prompts() -> PromptSet:
    """Chats of different lengths with their answers kept."""
    chats = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in zip(tiny_models.texts(9), tiny_models.texts(9, seed=1), strict=True)
    ]
    return PromptSet.from_messages(chats, ids=[f"q{i}" for i in range(9)], group="g", upto="all")
