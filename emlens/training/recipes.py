"""How a model is trained, as one frozen, checked record that is stored beside every checkpoint.

A recipe holds everything that decides the update of a step but the data and the loss: what is trained, optimiser
(AdamW), schedule, batch size, seed. It refuses values that would be ignored silently, such as a rank for full
fine-tuning.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal, Self

from emlens.foundation.errors import InputError
from emlens.foundation.seeds import derive_seed

METHODS: Final = ("full", "lora")
SCHEDULES: Final = ("constant", "linear", "cosine")
_LORA_ONLY: Final = ("rank", "alpha", "target_modules", "layers_to_transform")
_TUPLES: Final = ("target_modules", "layers_to_transform", "betas")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run.

    Args:
        method: `"full"` trains all weights, `"lora"` a low-rank adapter.
        rank: rank r of the adapter's matrices B (out × r) and A (r × in); only with `"lora"`.
        alpha: numerator of the adapter's scale: the update of a weight is `scale · B A`; only with `"lora"`.
        rslora: scale α/√r instead of α/r (rank-stabilised LoRA, Kalajdzievski 2023).
        target_modules: names of the linear layers that get an adapter, for example `("down_proj",)`.
        layers_to_transform: 0-based block indices that get an adapter; None for all blocks.
        learning_rate: peak learning rate.
        steps: optimiser steps.
        batch_size: rows in one step; data that comes as ready batches brings its own.
        warmup_steps: steps over which the rate rises linearly, reaching its peak at the last of them.
        schedule: how it falls afterwards: `"constant"`, `"linear"` or half a `"cosine"`.
        final_fraction: share of the peak that the schedule falls to; 0 to 1, not used by `"constant"`.
        betas: AdamW's decay rates of the first and second moment.
        weight_decay: AdamW's decoupled decay, applied to matrices only (not to biases, norms or single vectors).
        clip: largest gradient norm; None for no clipping.
        seed: seed of adapter initialisation, of the order of examples and of dropout.

    Raises:
        InputError: a value outside its range, or one that the method would ignore.
    """

    method: Literal["full", "lora"] = "lora"
    rank: int | None = None
    alpha: float | None = None
    rslora: bool = False
    target_modules: tuple[str, ...] = ()
    layers_to_transform: tuple[int, ...] | None = None
    learning_rate: float = 1e-4
    steps: int = 100
    batch_size: int = 32
    warmup_steps: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    final_fraction: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip: float | None = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"method={self.method!r} is unknown; pass one of {', '.join(METHODS)}")
        if self.schedule not in SCHEDULES:
            raise InputError(f"schedule={self.schedule!r} is unknown; pass one of {', '.join(SCHEDULES)}")
        for name in ("steps", "batch_size"):
            _require_count(name, getattr(self, name), 1)
        _require_count("warmup_steps", self.warmup_steps, 0)
        if self.warmup_steps > self.steps:
            raise InputError(f"warmup_steps={self.warmup_steps} is more than steps={self.steps}; pass a shorter warm-up")
        for name, low, high in (("learning_rate", 0.0, math.inf), ("clip", 0.0, math.inf)):
            value = getattr(self, name)
            if name == "clip" and value is None:
                continue
            if not low < value < high:
                raise InputError(f"{name}={value!r} must be a finite number above 0")
        if not 0.0 <= self.final_fraction <= 1.0:
            raise InputError(f"final_fraction={self.final_fraction!r} must lie in 0 to 1")
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise InputError(f"betas={self.betas!r} must be two numbers of at least 0 and below 1")
        if not 0.0 <= self.weight_decay < math.inf:
            raise InputError(f"weight_decay={self.weight_decay!r} must be a finite number of 0 or more")
        derive_seed(self.seed)
        self._check_adapter()

    def _check_adapter(self) -> None:
        if self.method == "full":
            given = [name for name in _LORA_ONLY if getattr(self, name)] + ["rslora"] * self.rslora
            if given:
                raise InputError(f"method='full' trains all weights, but {', '.join(given)} came with it; drop them or pass method='lora'")
            return
        if self.rank is None or self.alpha is None or not self.target_modules:
            raise InputError("method='lora' needs rank, alpha and target_modules; pass all three")
        _require_count("rank", self.rank, 1)
        if not 0.0 < self.alpha < math.inf:
            raise InputError(f"alpha={self.alpha!r} must be a finite number above 0")
        if isinstance(self.target_modules, str):
            raise InputError(f"target_modules={self.target_modules!r} is one string; pass a tuple of names")
        if self.layers_to_transform is not None and any(layer < 0 for layer in self.layers_to_transform):
            raise InputError(f"layers_to_transform={self.layers_to_transform!r} must hold block indices of 0 or more")

    @property
    def scale(self) -> float:
        """Factor of B A in the adapted weight: α/r, or α/√r with `rslora`; `nan` for full fine-tuning."""
        if self.rank is None or self.alpha is None:
            return math.nan
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def rate_factor(self, step: int) -> float:
        """Learning rate at a 0-based step as a share of its peak; range 0 to 1."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        done = min(1.0, (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps))
        left = 1.0 - done if self.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
        return self.final_fraction + (1.0 - self.final_fraction) * left

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready record; `from_dict` gives the same recipe back."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """A recipe from `to_dict`, or from a configuration file's mapping; what is left out takes its default.

        Raises:
            InputError: a key that no recipe has, or a value that `Recipe` refuses.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(map(str, record)) - set(known))
        if unknown:
            raise InputError(f"recipe has unknown keys {unknown}; known are {', '.join(known)}")
        values = dict(record)
        for name in _TUPLES:
            if isinstance(values.get(name), list):
                values[name] = tuple(values[name])
        return cls(**values)


def _require_count(name: str, value: object, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise InputError(f"{name}={value!r} must be an integer of {at_least} or more")
