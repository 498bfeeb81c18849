"""Explicit randomness: every stream is derived from a seed and the names of what it is for.

Two streams with different names never share numbers, and adding a new one leaves the old ones as
they were.
"""

import hashlib

import numpy as np
import torch

from emlens.foundation.errors import InputError


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed from `seed` and the names of its use; stable across processes and Python
    versions.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed={seed!r} must be an integer of 0 or more")
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_rng(seed: int, *names: str | int) -> np.random.Generator:
    return np.random.default_rng(derive_seed(seed, *names))


def torch_rng(seed: int, *names: str | int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, *names))
