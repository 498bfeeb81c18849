import builtins
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emlens.directions import read_control_vectors, write_control_vectors
from emlens.foundation import InputError, LoadError, MissingExtraError, Site
from emlens.geometry import Direction

gguf = pytest.importorskip("gguf", reason="the extra 'gguf' is not installed")
VECTORS = {"resid_post.3": torch.arange(4.0), "resid_post.1": -torch.ones(4)}


def foreign(
    path: Path, tensors: dict[str, np.ndarray[Any, Any]], architecture: str = "controlvector"
) -> Path:
    """As another tool writes it: no hint, no layer count."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_round_trip(tmp_path: Path) -> None:
    path = write_control_vectors(tmp_path / "v.gguf", VECTORS, model_hint="qwen2")
    found, hint = read_control_vectors(path)
    assert list(found) == ["resid_post.1", "resid_post.3"] and hint == "qwen2"
    assert all(torch.equal(found[site], VECTORS[site]) for site in VECTORS)
    first = path.read_bytes()
    assert write_control_vectors(path, VECTORS, model_hint="qwen2").read_bytes() == first
    direction = Direction(torch.arange(4.0, dtype=torch.float64), Site("resid_post", 3))
    write_control_vectors(
        path,
        {"resid_post.3": direction, "resid_post.1": VECTORS["resid_post.1"]},
        model_hint="qwen2",
    )
    assert path.read_bytes() == first


def test_the_file_is_what_llama_cpp_asks_for(tmp_path: Path) -> None:
    """Read back by the gguf package alone: architecture, hint, count, tensors named after 0-based
    blocks, float32.
    """
    reader = gguf.GGUFReader(
        write_control_vectors(tmp_path / "v.gguf", VECTORS, model_hint="qwen2")
    )
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert (
        fields["general.architecture"] == "controlvector"
        and fields["controlvector.model_hint"] == "qwen2"
    )
    assert fields["controlvector.layer_count"] == 2
    assert {t.name: t.data.tolist() for t in reader.tensors} == {
        "direction.1": [-1] * 4,
        "direction.3": [0, 1, 2, 3],
    }
    assert {t.tensor_type.name for t in reader.tensors} == {"F32"}


def test_vectors_of_other_tools(tmp_path: Path) -> None:
    found, hint = read_control_vectors(
        foreign(
            tmp_path / "v.gguf",
            {"direction.2": np.ones(3, np.float16), "direction.1": np.zeros(3, np.float16)},
        )
    )
    assert (
        hint == ""
        and list(found) == ["resid_post.1", "resid_post.2"]
        and found["resid_post.2"].dtype == torch.float16
    )


def test_block_0_of_another_tool_is_read(tmp_path: Path) -> None:
    written = {"direction.0": np.ones(3, np.float32), "direction.1": np.zeros(3, np.float32)}
    found, _ = read_control_vectors(foreign(tmp_path / "v.gguf", written))
    assert list(found) == ["resid_post.0", "resid_post.1"]
    assert found["resid_post.0"].tolist() == [1, 1, 1]


def test_files_that_are_no_control_vectors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"none\.gguf: no such file"):
        read_control_vectors(tmp_path / "none.gguf")
    with pytest.raises(LoadError, match="is a directory; pass a file"):
        read_control_vectors(tmp_path)
    whole = foreign(tmp_path / "v.gguf", {"direction.1": np.ones(400, np.float32)}).read_bytes()
    for content in (b"", b"nothing", whole[:40], whole[:200]):
        (tmp_path / "bad.gguf").write_bytes(content)
        with pytest.raises(LoadError, match=r"bad\.gguf: not a readable GGUF file"):
            read_control_vectors(tmp_path / "bad.gguf")
    with pytest.raises(
        InputError, match="has architecture 'llama'; a control vector has 'controlvector'"
    ):
        read_control_vectors(
            foreign(tmp_path / "v.gguf", {"direction.1": np.ones(3, np.float32)}, "llama")
        )
    for name, value in (
        ("direction", np.ones(3, np.float32)),
        ("blk.1", np.ones(3, np.float32)),
        ("direction.1", np.ones((2, 3), np.float32)),
        ("direction.1", np.array([np.nan], np.float32)),
        ("direction.1", np.ones(3, np.float64)),
    ):
        with pytest.raises(
            InputError, match=r"is not one finite vector under direction\.0, direction\.1"
        ):
            read_control_vectors(foreign(tmp_path / "v.gguf", {name: value}))
    with pytest.raises(InputError, match=r"holds 2 directions of \[2, 3\] coordinates"):
        read_control_vectors(
            foreign(
                tmp_path / "v.gguf",
                {"direction.1": np.ones(2, np.float32), "direction.2": np.ones(3, np.float32)},
            )
        )


@pytest.mark.parametrize(
    ("name", "vectors", "message"),
    [
        ("v.gguf", {}, "vectors is empty"),
        (
            "v.gguf",
            {"resid_post.0": torch.ones(2)},
            "holds 'resid_post.0'; llama.cpp adds control vectors after block 1 and later ones",
        ),
        ("v.gguf", {"final_norm": torch.ones(2)}, "holds 'final_norm'; llama.cpp"),
        (
            "v.gguf",
            {"resid_post.1": torch.ones(2), "resid_post.2": torch.ones(3)},
            r"vectors have \[2, 3\] coordinates",
        ),
        ("v.bin", VECTORS, r"v\.bin: control vectors are written as \.gguf"),
    ],
)
def test_what_a_control_vector_cannot_hold_is_refused(
    tmp_path: Path, name: str, vectors: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        write_control_vectors(tmp_path / name, vectors, model_hint="qwen2")
    assert not list(tmp_path.iterdir())


def test_without_the_extra_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__
    monkeypatch.setattr(
        builtins,
        "__import__",
        lambda name, *a, **k: (
            (_ for _ in ()).throw(ImportError(name)) if name == "gguf" else real(name, *a, **k)
        ),
    )
    monkeypatch.delitem(sys.modules, "gguf")
    with pytest.raises(
        MissingExtraError,
        match=(
            r"control vectors need gguf, which is not installed;"
            r" run: pip install 'misalignment-lens\[gguf\]'"
        ),
    ):
        read_control_vectors(tmp_path / "v.gguf")
