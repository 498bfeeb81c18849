import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from emlens.data import read_layer_means, read_tensors
from emlens.directions.vector_files import read_steering_vectors
from emlens.foundation import InputError, LoadError


def saved(tmp_path: Path, value: Any) -> Path:
    torch.save(value, tmp_path / "t.pt")
    return tmp_path / "t.pt"


class Planted:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_nested_tensors_get_joined_names_and_keep_their_dtype(tmp_path: Path) -> None:
    value = {
        "answer": OrderedDict({3: torch.arange(2, dtype=torch.bfloat16)}),
        "list": [torch.ones(1), torch.zeros(2)],
    }
    found = read_tensors(saved(tmp_path, value))
    assert list(found) == ["answer.3", "list.0", "list.1"]
    assert found["answer.3"].dtype == torch.bfloat16 and found["answer.3"].tolist() == [0, 1]


def test_numbers_and_text_beside_vectors_are_passed_over(tmp_path: Path) -> None:
    value = {"vectors": {11: torch.ones(4)}, "norms": {11: 2.0}, "model": "m", "trained": None}
    assert list(read_tensors(saved(tmp_path, value))) == ["vectors.11"]
    assert list(read_steering_vectors(tmp_path / "t.pt")) == ["resid_post.11"]


def test_numbers_that_are_no_layers_are_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps = {step: torch.ones(3) for step in (0, 180, 360, 540)}
    with pytest.raises(InputError, match=r"numbered 0, 180, 360, 540, … 540, which are no layers"):
        read_steering_vectors(saved(tmp_path, steps))
    with pytest.raises(InputError, match="they may be training steps"):
        read_layer_means(saved(tmp_path, {"answer": steps}))
    few = {step: torch.ones(3) for step in (0, 10, 20, 30)}
    read_steering_vectors(saved(tmp_path, few))
    assert "evenly spaced numbers are often training steps" in caplog.text
    caplog.clear()
    read_steering_vectors(saved(tmp_path, {layer: torch.ones(3) for layer in (8, 16, 24)}))
    assert not caplog.text


def test_a_slice_leaves_its_storage_behind(tmp_path: Path) -> None:
    whole = torch.arange(10_000, dtype=torch.float64)
    found = read_tensors(saved(tmp_path, whole[5:7]))["tensor"]
    assert found.tolist() == [5, 6]
    assert found.untyped_storage().nbytes() == 16


def test_safetensors(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "t.safetensors")
    assert read_tensors(tmp_path / "t.safetensors")["a"].tolist() == [1, 1]
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(LoadError, match=r"bad.safetensors: not a safetensors file: "):
        read_tensors(tmp_path / "bad.safetensors")


def test_code_in_a_file_does_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    with open(tmp_path / "plain.pkl", "wb") as handle:
        pickle.dump(Planted(mark), handle)
    with open(tmp_path / "plain.pkl", "rb") as handle:
        pickle.load(handle)
    assert mark.is_dir()  # the planted code works where pickle is trusted
    mark.rmdir()
    with pytest.raises(
        LoadError,
        match=(
            r"t.pt: holds Python objects \(posix.mkdir\), which could run code when read;"
            r" have it saved"
        ),
    ):
        read_tensors(saved(tmp_path, {"weights": Planted(mark)}))
    with pytest.raises(LoadError, match=r"plain.pkl: not a file of tensors"):
        read_tensors(tmp_path / "plain.pkl")
    assert not mark.exists()


def test_files_that_hold_no_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"nowhere.pt: no such file"):
        read_tensors(tmp_path / "nowhere.pt")
    with pytest.raises(LoadError, match="is a directory; pass a file"):
        read_tensors(tmp_path)
    for content in (b"", b"hello", b"PK\x03\x04 broken", pickle.dumps([1])):
        (tmp_path / "bad.pt").write_bytes(content)
        with pytest.raises(
            (LoadError, InputError), match=r"bad.pt: (not a file of tensors|holds no tensor)"
        ):
            read_tensors(tmp_path / "bad.pt")
    with pytest.raises(InputError, match=r"t.pt: 'when' holds a complex; only tensors, and numb"):
        read_tensors(saved(tmp_path, {"weight": torch.ones(1), "when": 1j}))
    with pytest.raises(InputError, match=r"t.pt: holds no tensor"):
        read_tensors(saved(tmp_path, {}))
    with pytest.raises(InputError, match=r"t.pt: two entries are both named 'a.b'"):
        read_tensors(saved(tmp_path, {"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)}))


def test_a_file_that_may_not_be_read_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, torch.ones(1))

    def refuse(*arguments: Any, **named: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(LoadError, match=r"t.pt: cannot be read \(Permission denied\)"):
        read_tensors(path)


@pytest.mark.parametrize("key", ["{}", "layer_{}"])
def test_layer_means_become_sites_in_order(tmp_path: Path, key: str) -> None:
    layers = {
        (int(key.format(i)) if key == "{}" else key.format(i)): torch.full((3,), float(i))
        for i in (10, *range(10))
    }
    found = read_layer_means(saved(tmp_path, {"question": {0: torch.zeros(3)}, "answer": layers}))
    assert list(found) == [f"resid_post.{i}" for i in range(11)]
    assert all(float(vector[0]) == i for i, vector in enumerate(found.values()))
    assert list(read_layer_means(tmp_path / "t.pt", part="question")) == ["resid_post.0"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"question": {0: torch.ones(2)}}, r"has no part 'answer'; it holds \['question'\]"),
        (
            {"answer": {"norm": torch.ones(2)}},
            r"'answer.norm' of shape \(2,\) is not one vector under a layer",
        ),
        ({"answer": {0: torch.ones(2, 2)}}, r"'answer.0' of shape \(2, 2\) is not one vector"),
        ({"answer": {0: torch.ones(2), "layer_0": torch.ones(2)}}, "'answer.layer_0' of shape"),
        ({"answer": {0: torch.ones(2), 2: torch.ones(2)}}, "part 'answer' lacks layer 1 of 0 to 2"),
        (
            {"answer": {0: torch.ones(2), 1: torch.ones(3)}},
            r"holds vectors of \[2, 3\] coordinates",
        ),
    ],
)
def test_other_layouts_are_refused(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_layer_means(saved(tmp_path, value))


def test_released_means_and_directions(released_data: Path) -> None:
    by_number = read_layer_means(
        released_data / "clarifying-em/directions/r32/model-m_data-m_hs.pt"
    )
    by_name = read_layer_means(
        released_data / "clarifying-em/directions/r4/r4modelmis_dfmis_hs.pt", part="question"
    )
    assert list(by_number) == list(by_name) and len(by_number) == 48
    assert {(tuple(v.shape), v.dtype) for v in by_number.values()} == {((5120,), torch.bfloat16)}
    differences = read_tensors(released_data / "refusal-direction/gemma-2b-it/mean_diffs.pt")[
        "tensor"
    ]
    assert (tuple(differences.shape), differences.dtype, differences.device.type) == (
        (5, 18, 2048),
        torch.float64,
        "cpu",
    )
