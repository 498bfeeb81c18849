from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from emlens.activations import capture
from emlens.activations.server_captures import import_server_captures
from emlens.data import PromptSet
from emlens.foundation.errors import InputError, LoadError
from emlens.models import Family

LAYERS, TOKENS, WIDTH = 3, 4, 5


def states(seed: int) -> Tensor:
    return torch.randn(LAYERS + 1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("form", ["one array", "by layer"])
def test_both_numberings(tmp_path: Path, form: str) -> None:
    for seed, name in enumerate(("b", "a")):
        whole = states(seed)
        tensors: dict[str, Tensor] = {"hidden_states": whole}
        if form == "by layer":
            tensors = {f"hidden_states.{i}": rows.clone() for i, rows in enumerate(whole)}
        tensors["token_ids"] = torch.arange(TOKENS)
        save_file(tensors, tmp_path / f"{name}.safetensors")
    acts = import_server_captures(tmp_path, numbering="hidden_states", n_layers=LAYERS)
    assert acts.ids == ["a", "b"]
    assert acts.sites == ["resid_pre.0", "resid_post.0", "resid_post.1", "final_norm"]
    assert torch.equal(acts["resid_post.0"][0], states(1)[1, -1])
    mean = import_server_captures(
        tmp_path, numbering="block", n_layers=LAYERS + 1, position="mean_prompt", ids=["b"]
    )
    assert mean.sites == [f"resid_post.{i}" for i in range(LAYERS + 1)]
    assert torch.allclose(mean["resid_post.2"][0], states(0)[2].mean(0))


def test_what_transformers_returns_is_what_is_captured(family: Family, tmp_path: Path) -> None:
    """A file as a server writes it, of the model's own hidden states."""
    model = family.instruct
    prompts = PromptSet.from_texts(["w1 w2 w3", "w4 w5"], ids=["a", "b"])
    module: Any = model.module  # type: ignore[attr-defined]
    for prompt in prompts:
        ids = torch.tensor([model.render([prompt])[0].ids])
        with torch.no_grad():
            hidden = module(ids, output_hidden_states=True).hidden_states
        tensors = {f"layer_{i}": rows[0].clone() for i, rows in enumerate(hidden)}
        save_file(tensors, tmp_path / f"{prompt.id}.safetensors")
    own = capture(model, prompts, progress=False)
    found = import_server_captures(tmp_path, numbering="hidden_states", n_layers=model.n_layers)
    assert torch.allclose(found["resid_post.0"], own["resid_post.0"], atol=1e-6)


@pytest.mark.parametrize(
    ("tensors", "options", "message"),
    [
        ({"x": torch.ones(2, 3)}, {}, "'x' is not one array under a layer's number"),
        ({"layer_7": torch.ones(2, 3)}, {}, "holds layer 7, and 3 blocks numbered as 'block' end"),
        ({"layer_0": torch.ones(3)}, {}, r"layer 0 has shape \(3,\); write \(token, d_model\)"),
        ({"ids": torch.arange(3)}, {}, "holds no array of hidden states"),
        ({"layer_0": torch.ones(2, 3)}, {"numbering": "hf"}, "numbering='hf' is unknown"),
        ({"layer_0": torch.ones(2, 3)}, {"position": "last"}, "position='last' is unknown here"),
    ],
)
def test_other_files_are_refused(
    unchecked: None,
    tmp_path: Path,
    tensors: dict[str, Tensor],
    options: dict[str, Any],
    message: str,
) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    settings: dict[str, Any] = {"numbering": "block", "n_layers": LAYERS, **options}
    with pytest.raises(InputError, match=message):
        import_server_captures(tmp_path, **settings)


def test_files_that_differ_or_are_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no .safetensors file"):
        import_server_captures(tmp_path, numbering="block", n_layers=LAYERS)
    with pytest.raises(InputError, match="is no folder"):
        import_server_captures(tmp_path / "no", numbering="block", n_layers=LAYERS)
    save_file({"layer_0": torch.ones(2, 3)}, tmp_path / "a.safetensors")
    with pytest.raises(LoadError, match=r"b.safetensors: no such file"):
        import_server_captures(tmp_path, numbering="block", n_layers=LAYERS, ids=["a", "b"])
    save_file({"layer_1": torch.ones(2, 3)}, tmp_path / "b.safetensors")
    with pytest.raises(InputError, match="holds other layers than the first file"):
        import_server_captures(tmp_path, numbering="block", n_layers=LAYERS)
    save_file({"layer_0": torch.ones(2, 4)}, tmp_path / "b.safetensors")
    with pytest.raises(InputError, match=r"holds rows of \[3, 4\] coordinates"):
        import_server_captures(tmp_path, numbering="block", n_layers=LAYERS)
