"""200 of the 5,000 bombs of `benchmarks.bombs`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bombs

COSTLY = {
    "pattern of modules": 1,
    "chat template": 1,
    "YAML, many values": 3,
    "JSONL, a long line": 3,
    "table, no shared column": 3,
    "Parquet, one value": 3,
    "pickle, shared lists": 2,
    "safetensors header": 4,
    "header of weights": 4,
}
"""How many of the kinds that take more than .02 s to make or to refuse."""


def test_every_bomb_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bombs, "MEGABYTES", (70,))
    counts = {name: COSTLY.get(name, 10) for name in bombs.KINDS}
    found = bombs.measure(tmp_path, counts)
    assert {name: kind["others"] for name, kind in found["kinds"].items() if kind["others"]} == {}
    assert found["refused"] == found["bombs"] >= 200
    assert found["within_200_MB"] == found["bombs"]


def test_a_reader_without_bounds_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reads(path: Path) -> Any:
        return bytearray(300 * 2**20)

    kind = replace(bombs.KINDS["npz"], read=reads, make=lambda pick: b"x")
    monkeypatch.setattr(bombs, "KINDS", {"npz": kind})
    found = bombs.measure(tmp_path, {"npz": 1})
    assert (found["refused"], found["within_200_MB"]) == (0, 0)
