"""A tiny family on disk and loaded, and questions with reference answers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

from emlens.data import Question, QuestionSet
from emlens.interventions import steer
from emlens.models import Family, load_family


class Steered:
    """A "fine-tune" that is its parent plus one vector at one site: taking the vector away restores
    it exactly.
    """

    name = "steered"

    def __init__(self, inner: Any, vector: torch.Tensor, site: str):
        self.inner, self.edit = inner, steer(vector, 1.0, at=[site])
        self.render, self.vocab_size = inner.render, inner.vocab_size
        self.provenance = {**inner.provenance, "steered": self.edit.describe()}

    interventions: tuple[Any, ...] = ()

    @contextmanager
    def intervene(self, edits: Sequence[Any]) -> Iterator["Steered"]:
        before, self.interventions = self.interventions, (*self.interventions, *edits)
        try:
            yield self
        finally:
            self.interventions = before

    def edit_records(self) -> list[dict[str, Any]]:
        return [edit.describe() for edit in self.interventions]

    def sequence_logprob(self, *given: Any, **named: Any) -> torch.Tensor:
        with self.inner.intervene([self.edit, *self.interventions]):
            return self.inner.sequence_logprob(*given, **named)

    def response_logprob(self, *given: Any, **named: Any) -> torch.Tensor:
        with self.inner.intervene([self.edit, *self.interventions]):
            return self.inner.response_logprob(*given, **named)

    def token_logprobs(self, *given: Any) -> list[torch.Tensor]:
        with self.inner.intervene([self.edit, *self.interventions]):
            return self.inner.token_logprobs(*given)


@pytest.fixture(scope="session")
def steered() -> type[Steered]:
    """Makes a fine-tune whose whole effect is one vector at one site: `steered(model, vector,
    "resid_post.1")`.
    """
    return Steered


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
