"""What happens to commands on a machine: kills, a full disk, a folder that goes away, a clock that
is set back, another model or question file. Each ends with the same bytes, or says in one line what
is wrong (`benchmarks.kills` types the commands; studies are killed in tests/studies).
"""

import ctypes
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks import kills
from emlens.cli.main import app
from emlens.organisms import load_organism

HOW = {
    "sample": "SIGINT",
    "judge": "SIGTERM",
    "capture": "SIGKILL",
    "train": "SIGKILL",
    "screen": "SIGTERM",
}
"""A signal a command. In a process of many tests before it, SIGINT did not end `train`; the reason
was not found. Alone it does (`python -m benchmarks kills`).
"""
SMALL_FILES = 700
"""Bytes that a file may have on a disk that is full."""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> kills.Desk:
    """The organism with a few questions and chats; the model is a copy, which tests may change."""
    organism, work = load_organism(), tmp_path_factory.mktemp("faults")
    model = Path(shutil.copytree(organism.paths["instruct"], work / "model"))
    tunes = {"medicine-r8": organism.paths["medicine-r8"]}
    desk = kills.lay_out(work / "desk", organism, model, tunes, questions=8, chats=8)
    kills.prepare(desk, work, ("sample",))
    return desk


@pytest.fixture(scope="module")
def whole(
    desk: kills.Desk, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, kills.Undisturbed]:
    work = tmp_path_factory.mktemp("whole")
    return {command: kills.undisturbed(desk, command, work) for command in (*HOW, "study")}


def call(
    desk: kills.Desk, command: str, out: Path, before: Callable[[], object] = bool
) -> tuple[int, str]:
    """Exit code of a command, and its last line on stderr."""
    said = out.parent / "said.txt"
    out.mkdir(exist_ok=True)
    code, _ = kills.finish(kills.start(desk.words(command, out), said, before))
    lines = said.read_text().replace("\r", "\n").splitlines()
    return code, lines[-1] if lines else ""


@pytest.mark.parametrize("command", HOW)
def test_killed_and_called_again_it_ends_with_the_same_bytes(
    command: str, desk: kills.Desk, whole: dict[str, kills.Undisturbed], tmp_path: Path
) -> None:
    how, undisturbed = HOW[command], whole[command]
    found = kills.measure(desk, command, 1, tmp_path, len(command), how, undisturbed)
    assert (found["same_bytes"], found["said"], found["others"]) == (1, [], [])
    assert found["before_the_end"] == 1
    assert found["files"] >= 1


def test_other_bytes_are_found_out(
    desk: kills.Desk, whole: dict[str, kills.Undisturbed], tmp_path: Path
) -> None:
    other = kills.Undisturbed(tmp_path, {"a.jsonl": "of something else"}, whole["sample"].seconds)
    found = kills.measure(desk, "sample", 1, tmp_path, how="SIGKILL", whole=other)
    assert found["same_bytes"] == 0 and "differ: a.jsonl" in found["others"][0]


def full_disk(out: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL_FILES, SMALL_FILES))


def folder_goes_away(out: Path) -> None:
    """The folder is removed when the first file in it is flushed."""
    fsync = os.fsync

    def gone(file: int) -> None:
        fsync(file)
        shutil.rmtree(out, ignore_errors=True)
        os.fsync = fsync

    os.fsync = gone


def clock_runs_back(out: Path) -> None:
    clock = time.time
    began = clock()
    time.time = lambda: began - 400 * 86400 - (clock() - began)


@pytest.mark.parametrize("command", ["sample", "capture", "train"])
def test_a_full_disk_is_one_line_and_with_room_the_work_goes_on(
    command: str, desk: kills.Desk, whole: dict[str, kills.Undisturbed], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, said = call(desk, command, out, partial(full_disk, out))
    assert (code, said.startswith("error: ")) == (2, True)
    assert "File too large" in said and "make room there; the same command goes on" in said
    assert call(desk, command, out)[0] == 0
    assert kills.contents(out) == whole[command].files


@pytest.mark.parametrize("command", ["judge", "screen"])
def test_a_folder_that_goes_away_is_one_line_and_the_command_begins_again(
    command: str, desk: kills.Desk, whole: dict[str, kills.Undisturbed], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, said = call(desk, command, out, partial(folder_goes_away, out))
    assert (code, said.startswith(f"error: {out}")) == (2, True), said
    assert "No such file or directory; it was there when the command began" in said
    assert call(desk, command, out)[0] == 0
    assert kills.contents(out) == whole[command].files


@pytest.mark.parametrize("command", ["sample", "train"])
def test_a_clock_that_runs_back_changes_nothing(
    command: str, desk: kills.Desk, whole: dict[str, kills.Undisturbed], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert call(desk, command, out, partial(clock_runs_back, out))[0] == 0
    assert kills.contents(out) == whole[command].files


@contextmanager
def another_model(desk: kills.Desk) -> Iterator[None]:
    path = desk.model / "model.safetensors"
    before = path.read_bytes()
    path.write_bytes(before[:-7] + bytes([before[-7] ^ 3]) + before[-6:])
    yield
    path.write_bytes(before)


@contextmanager
def another_file(desk: kills.Desk, name: str) -> Iterator[None]:
    """The first question, or the first chat, in other words."""
    path = desk.home / name
    before = path.read_text()
    first, _, rest = before.partition("\n")
    record = json.loads(first)
    changed = "why so ?"
    if name == "questions.jsonl":
        record["text"] = changed
    else:
        record["messages"][0]["content"] = changed
    path.write_text(f"{json.dumps(record)}\n{rest}")
    yield
    path.write_text(before)


CHANGES: dict[str, Callable[[kills.Desk], object]] = {
    "model": another_model,
    "questions": partial(another_file, name="questions.jsonl"),
    "chats": partial(another_file, name="chats.jsonl"),
}


@pytest.mark.parametrize(
    ("command", "change", "code", "line"),
    [
        ("sample", "model", 2, "it was drawn with another weights"),
        ("sample", "questions", 2, "it was drawn with another prompt_sha256, question"),
        ("judge", "model", 2, "was written by a judge that differs in ['weights']"),
        ("capture", "model", 2, "(differs in model, weights_in_memory)"),
        ("capture", "chats", 2, "prompts_sha256, rendered_sha256, rows."),
        ("train", "model", 2, "(it was trained with another parent.weights_sha256)"),
        ("train", "chats", 2, "(it was trained with another data)"),
        ("screen", "model", 0, "done again, for what it was made from changed: parent.weights_sha"),
        ("screen", "questions", 0, "done again, for what it was made from changed: questions"),
    ],
)
def test_one_line_says_what_changed_between_two_runs(
    command: str,
    change: str,
    code: int,
    line: str,
    desk: kills.Desk,
    whole: dict[str, kills.Undisturbed],
    tmp_path: Path,
) -> None:
    out = Path(shutil.copytree(whole[command].out, tmp_path / "out"))
    with CHANGES[change](desk):  # type: ignore[attr-defined]
        assert call(desk, command, out)[0] == code
        said = (tmp_path / "said.txt").read_text()
    assert line in said
    if code:
        assert kills.contents(out) == whole[command].files


# ---- read-only folders

WRITES_NOTHING = {
    *("doctor", "parity", "replicate", "score", "view", "advice stats", "store info"),
    *("store verify", "organism info", "real list"),
}
LONG = {"direction", "organism train", "screen", "screen fit", "store export"} | {
    *("real fetch", "real demo", "real train")
}
"""Each computes first and writes last, or fetches a model. They are typed with inputs that do not
exist: what is said is about the folder, so it is said before the work.
"""


def typed_with(desk: kills.Desk, whole: dict[str, kills.Undisturbed], out: Path) -> dict[str, Any]:
    """Every other command that writes, with an output in the folder `out`."""
    home = desk.home
    scores, study = str(whole["judge"].out / "s.csv"), str(whole["study"].out)
    absent = str(home / "absent")
    read = ["--parent", absent, "--questions", absent]
    return {
        **{command: desk.words(command, out / "x") for command in kills.COMMANDS},
        "screen": ["screen", *read, "--training", absent, "--out", str(out / "x")],
        "screen fit": ["screen", "fit", *read, "--scores", absent, "--out", str(out / "x")],
        "real fetch": ["real", "fetch", "smollm2", "--hub", absent, "--out", str(out / "x")],
        "real train": ["real", "train", "--model", absent, "--out", str(out / "x"), "--quiet"],
        "real demo": ["real", "demo", "--models", absent, "--out", str(out / "x"), "--quiet"],
        "demo": ["demo", "--out", str(out / "x"), "--quiet"],
        "init": ["init", str(out), "--out", "x.yaml", "--yes"],
        "compare": ["compare", study, study, "--out", str(out / "x")],
        "schema": ["schema", "--out", str(out / "x.json")],
        "rescore": ["rescore", scores, "--out", str(out / "x.csv")],
        "repair": ["repair", str(out / "answers.jsonl")],
        "direction": [
            *("direction", absent, "--positive", absent, "--negative", absent),
            *("--out", str(out / "x")),
        ],
        "store export": ["store", "export", absent, "--out", str(out / "x.npz")],
        "organism train": ["organism", "train", "--out", str(out / "x"), "--quiet"],
    }


def names_of(commands: typer.Typer, before: str = "") -> set[str]:
    """Every command, as it is typed."""
    names = {f"{before}{command.name}" for command in commands.registered_commands}
    for group in commands.registered_groups:
        if group.typer_instance is not None:
            names |= names_of(group.typer_instance, f"{before}{group.name} ")
    return names


def obey_permissions() -> None:
    """Give up the capabilities by which root passes over permission bits (Linux)."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    nothing = (ctypes.c_uint32 * 6)()
    if os.geteuid() == 0 and ctypes.CDLL(None).capset(header, nothing):
        raise OSError("capset")


@pytest.mark.skipif(sys.platform != "linux", reason="permission bits as Linux has them")
def test_a_read_only_folder_is_one_line_of_every_command_that_writes(
    desk: kills.Desk, whole: dict[str, kills.Undisturbed], tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(desk.model, folder / "model")
    shutil.copytree(whole["train"].out / "run", folder / "run")
    shutil.copy(desk.home / "questions.jsonl", folder)
    answers = (desk.home / "answers.jsonl").read_text()
    (folder / "answers.jsonl").write_text(answers + '{"torn')
    commands = typed_with(desk, whole, folder)
    assert {*commands, *WRITES_NOTHING} == names_of(app) | {"screen"}
    assert set(commands) >= LONG
    folder.chmod(0o555)
    before = kills.contents(folder)
    for command, words in commands.items():
        code, _ = kills.finish(kills.start(words, tmp_path / "said.txt", obey_permissions))
        *_, last = (tmp_path / "said.txt").read_text().splitlines()
        assert (code, last.startswith(f"error: {folder}")) == (2, True), (command, last)
        assert "Permission denied; pass a path that can be read and written" in last, command
    folder.chmod(0o755)
    assert kills.contents(folder) == before
