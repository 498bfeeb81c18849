"""A study's captures on disk: found with the same bytes, or made anew; never more than there is
room for.
"""

import errno
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from emlens.activations import (
    Activations,
    CaptureSpec,
    capture_many,
    kept_captures,
    stored_captures,
)
from emlens.activations.capturing import capture_lasting
from emlens.activations.kept_captures import keeping_captures
from emlens.activations.stored_captures import StoredCaptures
from emlens.data import PromptSet
from emlens.interventions import ablate
from emlens.models import Family, load_family
from emlens.models.pass_counts import counted_passes

SPEC = CaptureSpec("resid_post", positions=("last_prompt", "mean_prompt"), batch_tokens=64)


def asked(
    store: StoredCaptures, models: Any, prompts: PromptSet, spec: CaptureSpec = SPEC
) -> tuple[dict[str, Activations], int]:
    """What another part of a study gets, and the passes that it ran."""
    with keeping_captures(store), counted_passes() as counts:
        return capture_lasting(models, prompts, spec), counts.passes


def same(first: dict[str, Activations], second: dict[str, Activations]) -> bool:
    for name in first:
        for key in first[name].keys:
            if not torch.equal(first[name].value(key), second[name].value(key)):
                return False
    return list(first) == list(second)


def files_of(directory: Path) -> dict[str, bytes]:
    paths = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


@pytest.fixture
def store(tmp_path: Path) -> StoredCaptures:
    return StoredCaptures(tmp_path / "activations")


def test_another_process_finds_the_bytes_of_a_new_capture(
    family: Family, files: Path, prompts: PromptSet, store: StoredCaptures
) -> None:
    pair = {"before": family.instruct, "after": family["one"]}
    fresh = capture_many(pair, prompts, spec=SPEC, progress=False)
    made, passes = asked(store, pair, prompts)
    loaded = load_family(files / "instruct", finetuned={"one": files / "one"})
    again, none = asked(
        StoredCaptures(store.directory), {"after": loaded["one"], "p": loaded.instruct}, prompts
    )
    assert passes > 0 == none
    assert same(fresh, made) and same(fresh, {"before": again["p"], "after": again["after"]})
    for entry in ("layout_sha256", "rendered_sha256", "model", "threads", "versions"):
        assert again["after"].provenance[entry] == fresh["after"].provenance[entry]
    # alone or in company it is the same store
    alone = StoredCaptures(store.directory.with_name("alone"))
    for name, model in pair.items():
        asked(alone, {name: model}, prompts)
    assert files_of(alone.directory) == files_of(store.directory)
    # one of two is found: the other alone is run, in the same batches
    other = {"before": family.instruct, "after": family["full"]}
    of_other, of_one = asked(store, other, prompts)
    assert 0 < of_one < passes
    assert same(capture_many(other, prompts, spec=SPEC, progress=False), of_other)


def test_what_decides_a_capture_is_in_its_name(
    family: Family, prompts: PromptSet, store: StoredCaptures, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = family["full"]
    one = {"m": model}
    first, whole = asked(store, one, prompts)
    assert asked(store, one, prompts)[1] == 0
    assert asked(store, one, prompts, CaptureSpec("resid_post", batch_tokens=64))[1] > 0
    assert asked(store, one, prompts.select(prompts.ids[:3]))[1] > 0
    assert asked(StoredCaptures(store.directory, code="an upgrade"), one, prompts)[1] == whole
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert asked(store, one, prompts)[1] == whole
    monkeypatch.undo()
    weight = next(model.module.parameters())  # type: ignore[attr-defined]
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.add_(0.5)
        changed, passes = asked(store, one, prompts)
        weight.copy_(kept)
    assert passes == whole and not same(first, changed)
    assert asked(store, one, prompts)[1] == 0  # the weights are those of before
    count = len(list(store.directory.iterdir()))
    with model.intervene(ablate(torch.eye(model.d_model)[0])):
        edited, passes = asked(store, one, prompts)
    assert passes == whole and not same(first, edited)
    assert len(list(store.directory.iterdir())) == count


def test_what_memory_does_not_hold_is_read_from_disk(
    family: Family, prompts: PromptSet, store: StoredCaptures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_captures, "MOST_VECTORS", 3)
    one = {"m": family["full"]}
    with keeping_captures(store):
        first = capture_lasting(one, prompts, SPEC)
        with counted_passes() as counts:
            again = [capture_lasting(one, prompts, SPEC) for _ in range(2)]
    # the second one is mapped already, and takes no memory
    assert counts.passes == 0 and store.found == 1
    assert same(first, again[0]) and same(first, again[1])


def test_a_damaged_capture_is_made_anew_and_said_in_one_line(
    family: Family, prompts: PromptSet, store: StoredCaptures, caplog: pytest.LogCaptureFixture
) -> None:
    one = {"m": family["full"]}
    first, whole = asked(store, one, prompts)
    (folder,) = store.directory.iterdir()
    for name in ("shard-00000.safetensors", "manifest.json"):
        path = folder / name
        damaged = bytearray(path.read_bytes())
        damaged[-9] ^= 1
        path.write_bytes(damaged)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="emlens"):
            again, passes = asked(store, one, prompts)
        assert passes == whole and same(first, again)
        (line,) = caplog.messages
        assert name in line and line.endswith("; it is captured anew") and "\n" not in line
        assert asked(store, one, prompts)[1] == 0


def test_there_are_never_more_bytes_than_said(
    family: Family, prompts: PromptSet, store: StoredCaptures, monkeypatch: pytest.MonkeyPatch
) -> None:
    def size() -> int:
        return sum(file.stat().st_size for file in store.directory.rglob("*") if file.is_file())

    models = {name: {"m": family[name]} for name in ("instruct", "one", "full")}
    asked(store, models["instruct"], prompts)
    store.most = int(2.5 * size())
    asked(store, models["one"], prompts)
    leftover = store.directory / ".killed.part"
    shutil.copytree(next(store.directory.iterdir()), leftover)
    assert asked(store, models["instruct"], prompts)[1] == 0  # so that "one" is the oldest
    asked(store, models["full"], prompts)
    assert not leftover.exists() and size() <= store.most
    assert asked(store, models["instruct"], prompts)[1] == 0
    assert asked(store, models["one"], prompts)[1] > 0
    store.most = 100  # no capture is so small
    shutil.rmtree(store.directory)
    asked(store, models["one"], prompts)
    assert not store.directory.exists()
    store.most = 10**9
    full = SimpleNamespace(free=stored_captures.FREE_BYTES)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    asked(store, models["one"], prompts)
    assert not list(store.directory.iterdir())


def test_a_disk_that_cannot_be_written_costs_nothing_else(
    family: Family,
    prompts: PromptSet,
    store: StoredCaptures,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stored_captures, "write_store", full)
    with caplog.at_level(logging.WARNING, logger="emlens"):
        found, passes = asked(store, {"m": family["one"]}, prompts)
    assert passes > 0 and len(found["m"]) == len(prompts)
    assert "a capture is not kept (No space left on device)" in caplog.text
