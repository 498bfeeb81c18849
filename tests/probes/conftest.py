"""Activations with known contents."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from emlens.activations import Activations

Make = Callable[..., Activations]


@pytest.fixture(scope="session")
def make() -> Make:
    def built(
        values: Mapping[tuple[str, str], np.ndarray] | np.ndarray,
        ids: Sequence[str] | None = None,
        groups: Sequence[str] | None = None,
        model: Mapping[str, Any] | None = None,
    ) -> Activations:
        cells = (
            dict(values)
            if isinstance(values, Mapping)
            else {("resid_post.0", "last_prompt"): values}
        )
        n = len(next(iter(cells.values())))
        return Activations(
            {key: torch.tensor(value, dtype=torch.float64) for key, value in cells.items()},
            ids=ids or [f"q{i}" for i in range(n)],
            groups=groups or [f"g{i % 4}" for i in range(n)],
            sites=list(dict.fromkeys(site for site, _ in cells)),
            positions=list(dict.fromkeys(position for _, position in cells)),
            provenance={} if model is None else {"model": dict(model)},
        )

    return built
