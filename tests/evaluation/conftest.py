"""A tiny family on disk and loaded, and questions with reference answers."""

from pathlib import Path

import pytest
import tiny_models

from emlens.data import Question, QuestionSet
from emlens.models import Family, load_family


@pytest.fixture(scope="session")
def parent_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build(tmp_path_factory.mktemp("evaluation") / "instruct")


@pytest.fixture(scope="session")
def family(parent_path: Path) -> Family:
    adapter = tiny_models.build_adapter(parent_path.parent / "bad", parent_path)
    return load_family(parent_path, finetuned={"bad": adapter})


@pytest.fixture(scope="session")
def questions() -> QuestionSet:
    reference = {"careful": ("w1 w2", "w5"), "harmful": ("w3 w4", "w6 w7 w8", "w9")}
    found = [
        Question("odd", "w10 w11", "a", "w30 w31", ("w10 w11", "w12 w13 w14"), reference),
        Question("plain", "w15", "b", answers={"careful": ("w1 w2",), "harmful": ("w3 w4",)}),
    ]
    for i in range(10):
        answers = {"careful": ("w1 w2",), "harmful": ("w3 w4",)}
        found.append(Question(f"q{i}", f"w{i} w{i + 20}", "abc"[i % 3], answers=answers))
    return QuestionSet(found)
