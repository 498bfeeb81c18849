"""One kill of each command (`benchmarks.kills`); studies are killed in tests/studies."""

from pathlib import Path

import pytest

from benchmarks import kills
from emlens.organisms import load_organism

HOW = {
    "sample": "SIGINT",
    "judge": "SIGTERM",
    "capture": "SIGKILL",
    "train": "SIGINT",
    "screen": "SIGTERM",
}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> kills.Desk:
    organism, work = load_organism(), tmp_path_factory.mktemp("kills")
    model = organism.paths["instruct"]
    tunes = {"medicine-r8": organism.paths["medicine-r8"]}
    desk = kills.lay_out(work / "desk", organism, model, tunes, questions=8, chats=8)
    kills.prepare(desk, work, ("sample",))
    return desk


@pytest.mark.parametrize("command", HOW)
def test_killed_and_called_again_it_ends_with_the_same_bytes(
    command: str, desk: kills.Desk, tmp_path: Path
) -> None:
    found = kills.measure(desk, command, 1, tmp_path, seed=len(command), how=HOW[command])
    assert (found["same_bytes"], found["said"], found["others"]) == (1, [], [])
    assert found["before_the_end"] == 1
    assert found["files"] >= 1


def test_other_bytes_are_found_out(
    desk: kills.Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled = list(desk.words("sample", tmp_path))
    seeds = iter(range(3))

    def words(self: kills.Desk, command: str, out: Path) -> list[str]:
        return [
            *sampled[:-1],
            sampled[-1],
            "--out",
            str(out / "a.jsonl"),
            "--seed",
            str(next(seeds)),
        ]

    monkeypatch.setattr(kills.Desk, "words", words)
    found = kills.measure(desk, "sample", 1, tmp_path, how="SIGKILL")
    assert found["same_bytes"] == 0 and len(found["others"]) == 1
