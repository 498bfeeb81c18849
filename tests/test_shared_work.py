"""The measurements of shared work, in miniature."""

from pathlib import Path
from typing import Any

import judge_models
import pytest
import tiny_models

from benchmarks import shared_work, training_cost, turns
from emlens.data import PromptSet
from emlens.models import load_model
from emlens.training import Recipe

LOOSE = 5e-5
"""Relative, float32: another order of summation through three blocks."""


def test_a_capture_is_compared_before_it_is_timed(tmp_path: Path) -> None:
    model = load_model(tiny_models.build(tmp_path / "m", max_position_embeddings=256))
    start = " ".join(["w1 w2 w3 w4"] * 8)
    asked = PromptSet.from_questions([f"{start} {text}" for text in tiny_models.texts(8)])

    class Questions(PromptSet):
        def prompts(self) -> PromptSet:
            return self

    questions = Questions(asked)
    found = shared_work.capturing(model, questions, 1, LOOSE)
    assert found["compared"] == 8 and 0 < found["gap"] < LOOSE
    assert found["ratio"] == found["cpu_s"]["shared"] / found["cpu_s"]["bare"]
    with pytest.raises(SystemExit, match="differ by"):
        shared_work.capturing(model, questions, 1, 1e-12)


def test_a_pair_is_compared_with_two_captures(tmp_path: Path) -> None:
    path = tiny_models.build(tmp_path / "m", num_hidden_layers=4)
    found = shared_work.pairing(path, tiny_models.prompts(8), 1, tmp_path)
    assert found["shared_trunk"] == {"with": "before", "blocks": 2}
    assert found["gap"] < 1e-6 and found["ratio"] > 0


@pytest.mark.parametrize(
    "numbers, most, of_whole_texts",
    [("digits", 1.3, 50), ("words", 1.1, 1)],
    ids=["a token a digit", "a token a number"],
)
def test_a_verdict_costs_little_more_than_its_prompt(
    numbers: str, most: float, of_whole_texts: float, tmp_path: Path
) -> None:
    model = judge_models.build(tmp_path / "j", numbers, max_position_embeddings=2048)
    found = shared_work.judging(model, ["ask say fine . " * 60, "say " * 200])
    assert found["verdicts"] == 4 and 0 < found["prefills_per_verdict"] < most
    assert found["prefills_per_verdict_of_whole_texts"] >= of_whole_texts


def test_training_is_compared_with_a_plain_loop(tmp_path: Path) -> None:
    path = tiny_models.build(tmp_path / "m")
    asked = PromptSet.from_questions(tiny_models.texts(6))

    class Questions:
        def prompts(self) -> PromptSet:
            return asked

    recipe = Recipe(
        rank=2, alpha=4, target_modules=("q_proj",), learning_rate=1e-3, steps=2, batch_size=2
    )
    found = training_cost.training(path, training_cost.chats_of(Questions()), recipe, 1)  # type: ignore[arg-type]
    assert found["steps"] == 2 and found["gap"] < 1e-4 and found["ratio"] > 0


def test_the_interval_is_over_rounds_and_memory_compares_the_same_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = turns.over_rounds([0.9, 1.0, 1.1])
    # Student's t of 2 degrees of freedom: 4.303 times .1 / √3
    assert found["mean"] == pytest.approx(1) and found["high"] == pytest.approx(1.2484, abs=1e-4)
    assert turns.over_rounds([1.0])["high"] is None
    losses = {"old": 2.0, "new": 2.0}

    def by_tree(tree: Path, script: str, words: Any, folder: Path) -> dict[str, Any]:
        assert len((folder / "chats.jsonl").read_text().splitlines()) > 10
        name = "old" if tree == tmp_path else "new"
        return {"peak_gb": {"old": 4.0, "new": 1.0}[name], "loss": [losses[name]]}

    monkeypatch.setattr(training_cost, "by_tree", by_tree)
    assert training_cost.memory_of(tmp_path, tmp_path)["ratio"] == 0.25
    losses["new"] = 1.9
    with pytest.raises(SystemExit, match="losses differ by 0.1"):
        training_cost.memory_of(tmp_path, tmp_path)
