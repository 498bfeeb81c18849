import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from emlens.foundation import InputError
from emlens.foundation.seeds import derive_seed, numpy_rng, torch_rng


def test_streams_are_the_same_in_every_process() -> None:
    code = (
        "from emlens.foundation.seeds import derive_seed; import sys;"
        " sys.stdout.write(str(derive_seed(3, 'null', 7)))"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "5"},
    ).stdout
    assert int(elsewhere) == derive_seed(3, "null", 7)


def test_other_seeds_and_names_give_other_streams() -> None:
    seeds = {
        derive_seed(seed, *names)
        for seed in range(20)
        for names in ((), ("a",), ("b",), ("a", "b"), ("ab",), ("b", "a"), ("a", 1))
    }
    assert len(seeds) == 140 and all(0 <= seed < 2**63 for seed in seeds)


def test_generators_repeat_and_leave_global_state_alone() -> None:
    before_torch, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    assert torch.equal(
        torch.randn(4, generator=torch_rng(1, "x")), torch.randn(4, generator=torch_rng(1, "x"))
    )
    assert not torch.equal(
        torch.randn(4, generator=torch_rng(1, "x")), torch.randn(4, generator=torch_rng(1, "y"))
    )
    assert np.array_equal(numpy_rng(1, "x").random(4), numpy_rng(1, "x").random(4))
    correlation = np.corrcoef(
        numpy_rng(1, "x").normal(size=10_000), numpy_rng(1, "y").normal(size=10_000)
    )[0, 1]
    assert abs(correlation) < 0.05  # five standard errors
    assert torch.equal(before_torch, torch.get_rng_state())
    assert np.array_equal(before_numpy, np.random.get_state()[1])  # type: ignore[index]


@pytest.mark.parametrize("seed", [-1, 1.0, True, "1", None])
def test_seeds_that_are_none_are_refused(seed: Any) -> None:
    with pytest.raises(InputError, match=f"seed={seed!r} must be an integer of 0 or more"):
        derive_seed(seed)
