from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_models

from emlens.data import PromptSet
from emlens.models import HookedModel, load_model
from emlens.models.transformers_backend import no_hooks_left


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    """Checkpoints and adapters that the tests of this package read and never change."""
    root = tmp_path_factory.mktemp("models")
    instruct = tiny_models.build(root / "instruct")
    tiny_models.build(root / "base", seed=7, template=False)
    tiny_models.build(root / "full", seed=5)
    tiny_models.build(root / "wide", hidden_size=16)
    tiny_models.build_adapter(root / "one", instruct, seed=1)
    tiny_models.build_adapter(
        root / "two", instruct, seed=2, rank=3, targets=["v_proj", "up_proj"], lora_dropout=0.5
    )
    tiny_models.build_adapter(root / "wide-adapter", root / "wide")
    tiny_models.build_adapter(root / "zero", instruct, zero=True)
    return root


@pytest.fixture(scope="session")
def shared(files) -> HookedModel:
    return load_model(files / "instruct")


@pytest.fixture
def model(shared) -> Iterator[HookedModel]:
    """One loaded model, shown to be left without hooks after each test."""
    with no_hooks_left(shared.module):
        yield shared


@pytest.fixture(scope="session")
def prompts() -> PromptSet:
    return PromptSet.from_questions(tiny_models.texts(7))
