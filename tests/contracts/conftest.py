from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models

from emlens.data.rendering import Rendered
from emlens.models.backends import BACKENDS


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request) -> str:
    return tiny_models.need_backend(request.param)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Callable[[str], Path]:
    """kind → directory with `model`, `adapter` and `mlp` (an adapter that leaves attention alone)."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            root = tmp_path_factory.mktemp("contracts")
            path = tiny_models.build(root / "model", kind)
            tiny_models.build_adapter(root / "adapter", path)
            made[kind] = root
        return made[kind]

    return get


@pytest.fixture(scope="session")
def rows() -> list[Rendered]:
    import torch

    generator = torch.Generator().manual_seed(3)
    return [
        Rendered(f"r{i}", "", tuple(torch.randint(6, 40, (n,), generator=generator).tolist()), n) for i, n in enumerate((9, 3, 6))
    ]
