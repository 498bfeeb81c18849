"""Miniatures of `make bench`: both ways give the same, ratios are numbers, nothing is written."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import bench

MINIATURES: dict[str, Callable[[], dict[str, float]]] = {
    "capture": lambda: bench.capturing(layers=2, width=64, prompts=6, rounds=1),
    "sampling": lambda: bench.sampling(layers=2, width=64, samples=3, rounds=1),
    "training": lambda: bench.training(steps=2, rounds=1),
    "judging": lambda: bench.judging(count=8, rounds=1),
}


@pytest.mark.parametrize("name", MINIATURES)
def test_both_ways_give_the_same_and_are_timed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    timing = MINIATURES[name]()
    assert 0 < timing["least"] <= timing["ratio"] <= timing["greatest"]
    assert timing["plain_s"] > 0 and timing["emlens_s"] > 0
    assert list(tmp_path.iterdir()) == []


def test_different_results_are_not_timed() -> None:
    bench.refuse("losses", True)
    with pytest.raises(SystemExit, match="losses differ: not timing different results"):
        bench.refuse("losses", False)


def test_two_ways_take_turns() -> None:
    calls: list[str] = []
    timing = bench.compare(lambda: calls.append("plain"), lambda: calls.append("emlens"), rounds=2)
    assert calls == ["plain", "emlens"] * 2
    assert timing["least"] <= timing["greatest"]
