from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
import torch

from emlens.data.rendering import Rendered

LAYERS = 2


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Callable[[str], Path]:
    """kind → directory with `model` and `adapter`."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            root = tmp_path_factory.mktemp("contracts")
            path = tiny_models.build(
                root / "model",
                kind,
                **{"n_layer" if kind == "gpt2" else "num_hidden_layers": LAYERS},
            )
            tiny_models.build_adapter(root / "adapter", path)
            made[kind] = root
        return made[kind]

    return get


@pytest.fixture(scope="session")
def rows() -> list[Rendered]:
    generator = torch.Generator().manual_seed(3)
    return [
        Rendered(f"r{i}", "", tuple(torch.randint(6, 40, (n,), generator=generator).tolist()), n)
        for i, n in enumerate((9, 3, 6))
    ]
