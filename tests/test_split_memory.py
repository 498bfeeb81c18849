"""The measurement of what a process holds, in miniature and in one process."""

from pathlib import Path
from typing import Any

import pytest
import tiny_models
from transformers import AutoModelForCausalLM

from benchmarks import split_memory
from emlens.training import Recipe, fit


def test_what_a_process_holds_is_read_in_its_steps(tmp_path: Path) -> None:
    parent = tiny_models.build(tmp_path / "parent")
    model = AutoModelForCausalLM.from_pretrained(parent, dtype="float32")
    rows: Any = [{"input_ids": [1 + i, 2, 3], "labels": [-100, 2, 3]} for i in range(4)]
    recipe = Recipe(method="full", steps=split_memory.STEPS, batch_size=2, learning_rate=1e-3)
    watched = split_memory.Watched()
    fit(recipe, parent, rows, tmp_path / "watched", loss=watched, device="cpu")
    assert watched.calls == split_memory.STEPS
    assert watched.weights == 4 * sum(weight.numel() for weight in model.parameters())
    # the kernel counts pages of each thread by the handful, so its highest may lag a little
    assert 0 < watched.peak_of_steps <= 1.01 * split_memory.resident("VmHWM")
    assert watched.peak_at_first >= watched.weights


def test_only_the_same_runs_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = {"one": 2.0, "fsdp": 2.0 + 1e-6}

    def held_by(case: tuple[str, str, int], *_: Any) -> list[dict[str, Any]]:
        _method, kind, processes = case
        rank = {"weights": 8 // processes, "first": 9, "steps": 4, "after": 5}
        first = {**rank, "loss": [losses[kind]]}
        return [first, *({**first, "steps": 6} for _ in range(1, processes))]

    monkeypatch.setattr(split_memory, "held_by", held_by)
    monkeypatch.setattr(split_memory, "write_chats", lambda path, chats: None)
    cases = [("lora", "one", 1), ("lora", "fsdp", 2)]
    found = split_memory.memory_of("parent", cases)
    split = found["lora fsdp 2"]
    assert (split["weights"], split["steps"]) == (4, 6)  # of the process that holds most
    assert split["gap"] == pytest.approx(1e-6)
    rows = split_memory.memory_table({"cases": found}).splitlines()
    assert len(rows) == 4 and rows[3].startswith("| adapter, rank 8 | 2, `fsdp` | 0.00 GB |")
    losses["fsdp"] = 2.1
    with pytest.raises(SystemExit, match="lora fsdp: losses differ by 0.1"):
        split_memory.memory_of("parent", cases)
