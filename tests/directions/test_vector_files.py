import os
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from emlens.directions import (
    read_persona_vectors,
    read_steering_vectors,
    write_persona_vectors,
    write_steering_vectors,
)
from emlens.foundation import InputError, LoadError, Site
from emlens.geometry import Direction


class Pickled:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("never",)


def saved(tmp_path: Path, value: Any) -> Path:
    torch.save(value, tmp_path / "v.pt")
    return tmp_path / "v.pt"


def test_persona_vectors_are_counted_from_the_embedding(tmp_path: Path) -> None:
    table = torch.arange(8.0).reshape(4, 2).to(torch.bfloat16) + 1  # three blocks
    found = read_persona_vectors(saved(tmp_path, table))
    assert list(found) == ["resid_pre.0", "resid_post.0", "resid_post.1", "final_norm"]
    assert (
        found["resid_post.1"].tolist() == [5, 6] and found["resid_post.1"].dtype == torch.bfloat16
    )
    path = write_persona_vectors(tmp_path / "p.safetensors", found, n_layers=3)
    assert torch.equal(load_file(path)["vectors"], table.float())
    again = read_persona_vectors(path)
    assert list(again) == list(found) and all(
        torch.equal(again[site], found[site].float()) for site in found
    )


def test_persona_vectors_agree_with_hidden_states(tmp_path: Path) -> None:
    """The same index that transformers' hidden_states has, checked on its own conversion."""
    table = torch.randn(6, 3)
    found = read_persona_vectors(saved(tmp_path, table))
    for i in range(6):
        assert torch.equal(found[str(Site.from_hf_index(i, 5))], table[i])


def test_directions_are_written_with_their_length(tmp_path: Path) -> None:
    directions = {
        f"resid_post.{i}": Direction(
            torch.full((4,), 2.0 + i, dtype=torch.float64), Site("resid_post", i)
        )
        for i in range(2)
    }
    path = write_persona_vectors(tmp_path / "p.safetensors", directions, n_layers=3, missing="zero")
    assert load_file(path)["vectors"].tolist() == [[0] * 4, [2] * 4, [3] * 4, [0] * 4]
    again = read_persona_vectors(path)
    assert again["resid_post.1"].tolist() == [3] * 4
    steering = write_steering_vectors(tmp_path / "s.safetensors", directions)
    first = steering.read_bytes()
    assert write_steering_vectors(tmp_path / "s.safetensors", directions).read_bytes() == first


@pytest.mark.parametrize(
    "value",
    [
        {3: torch.ones(2), 1: torch.zeros(2)},
        {"layer_activations": {1: torch.zeros(2), 3: torch.ones(2)}},
    ],
)
def test_steering_vectors_are_counted_by_block(tmp_path: Path, value: Any) -> None:
    found = read_steering_vectors(saved(tmp_path, value))
    assert list(found) == ["resid_post.1", "resid_post.3"] and found["resid_post.3"].tolist() == [
        1,
        1,
    ]
    assert list(read_steering_vectors(tmp_path / "v.pt", "mlp")) == ["mlp_out.1", "mlp_out.3"]
    path = write_steering_vectors(
        tmp_path / "s.safetensors", read_steering_vectors(tmp_path / "v.pt", "self_attn")
    )
    assert {int(k): v.tolist() for k, v in load_file(path).items()} == {1: [0, 0], 3: [1, 1]}
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"layer_type": "self_attn"}


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="holds Python objects"):
        read_persona_vectors(saved(tmp_path, Pickled()))
    with pytest.raises(
        InputError,
        match=(
            r"holds 2 tensors; a persona-vectors file is one tensor of shape \(n_layers \+ 1, d\)"
        ),
    ):
        read_persona_vectors(saved(tmp_path, {"a": torch.ones(3, 2), "b": torch.ones(3, 2)}))
    for bad in (torch.ones(4), torch.ones(1, 4), torch.ones(2, 0), torch.ones(2, 3, 4)):
        with pytest.raises(
            InputError, match=r"holds a tensor of shape .*; a persona-vectors file is"
        ):
            read_persona_vectors(saved(tmp_path, bad))
    with pytest.raises(InputError, match="holds 1 values that are NaN or infinite"):
        read_persona_vectors(saved(tmp_path, torch.tensor([[1.0, 2], [float("nan"), 1]])))
    for value in (
        {"norm": torch.ones(2)},
        {1: torch.ones(2, 2)},
        {1: torch.ones(2), "layer_activations": {1: torch.ones(2)}},
    ):
        with pytest.raises(InputError, match="is not one vector under a block index such as 24"):
            read_steering_vectors(saved(tmp_path, value))
    with pytest.raises(InputError, match=r"holds vectors of \[2, 3\] coordinates"):
        read_steering_vectors(saved(tmp_path, {1: torch.ones(2), 2: torch.ones(3)}))
    with pytest.raises(
        InputError, match="layer_type='block' is unknown; pass one of decoder_block, self_attn, mlp"
    ):
        read_steering_vectors(tmp_path / "v.pt", "block")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ({}, "vectors is empty; pass at least one"),
        (
            {"resid_post.2": torch.ones(2)},
            (
                "holds 'resid_post.2', which has no place in the persona-vectors layout of 3"
                " layers: .* resid_post.1, final_norm"
            ),
        ),
        ({"mlp_out.0": torch.ones(2)}, "holds 'mlp_out.0', which has no place"),
        (
            {"resid_post.0": torch.ones(2)},
            r"vectors lacks 'resid_pre.0' \(and 2 more\) of the layout; pass it, or missing='zero'",
        ),
        (
            {"resid_post.0": torch.ones(2), "final_norm": torch.ones(3)},
            r"vectors have \[2, 3\] coordinates",
        ),
        ({"resid_post.7": torch.ones(2)}, "names block 7"),
        (
            {"resid_post.0": torch.ones(2, 2)},
            r"the vector at resid_post.0 has shape \(2, 2\); pass one vector",
        ),
        (
            {"resid_post.0": torch.tensor([1e300], dtype=torch.float64)},
            "holds values too large for float32",
        ),
    ],
)
def test_what_a_layout_cannot_hold_is_refused(tmp_path: Path, vectors: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_persona_vectors(tmp_path / "p.safetensors", vectors, n_layers=3)
    assert not list(tmp_path.iterdir())


def test_steering_layouts_have_one_kind_of_site(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=(
            "vectors lie at sites of kind mlp_out, resid_post;"
            " a steering vector has one kind of resid_post, attn_out, mlp_out"
        ),
    ):
        write_steering_vectors(
            tmp_path / "s.safetensors", {"resid_post.0": torch.ones(2), "mlp_out.0": torch.ones(2)}
        )
    with pytest.raises(InputError, match="vectors lie at sites of kind final_norm"):
        write_steering_vectors(tmp_path / "s.safetensors", {"final_norm": torch.ones(2)})
    with pytest.raises(InputError, match=r"s\.pt: vectors are written as \.safetensors"):
        write_steering_vectors(tmp_path / "s.pt", {"resid_post.0": torch.ones(2)})
    save_file({"3": torch.ones(2)}, tmp_path / "own.safetensors")
    assert list(read_steering_vectors(tmp_path / "own.safetensors")) == ["resid_post.3"]
