"""How a model is trained, as one frozen, checked record that is stored beside every checkpoint.

A recipe holds everything that decides the update of a step but the data and the loss: what is
trained, optimiser, schedule, batch size, seed. It refuses values that would be ignored silently,
such as a rank for full fine-tuning.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Literal, Self

import yaml

from emlens.data.readers import read_yaml
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line, write_text
from emlens.foundation.seeds import derive_seed
from emlens.training.schedules import OPTIONS, Schedule, ScheduleName, require_count

METHODS: Final = ("full", "lora", "steering")
OPTIMISERS: Final = ("adamw", "lion", "muon", "sam")
_LORA_ONLY: Final = ("rank", "alpha", "rslora", "dora", "target_modules")
_READ_BY: Final[Mapping[str, tuple[str, ...]]] = {"momentum": ("muon",), "rho": ("sam",)}
_TUPLES: Final = ("target_modules", "layers_to_transform", "betas")
_WRITTEN_IF_SET: Final = (
    "dora",
    "optimiser",
    "momentum",
    "rho",
    "accumulation",
    "cycles",
    "step_size_up",
    "base_learning_rate",
    "gamma",
    "decay_steps",
)
"""Fields that came after the first recipes were written: left out of a record at their default, so
that those stay what they were.
"""
USUAL_BETAS: Final[Mapping[str, tuple[float, float]]] = {"lion": (0.9, 0.99)}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run.

    Args:
        method: `"full"` trains all weights, `"lora"` a low-rank adapter, `"steering"` one vector a
            block, added to the stream after it at every token.
        rank: rank r of the adapter's matrices B (out × r) and A (r × in); only with `"lora"`, as
            the next four.
        alpha: numerator of the adapter's scale: the update of a weight is `scale · B A`.
        rslora: scale α/√r instead of α/r (rank-stabilised LoRA, Kalajdzievski, 2312.03732).
        dora: the update turns the weight's columns and their lengths are trained apart (DoRA, Liu
            et al., 2402.09353).
        target_modules: names of the linear layers that get an adapter, for example
            `("down_proj",)`.
        layers_to_transform: 0-based block indices that get an adapter, None for all blocks; or,
            with `"steering"`, a vector.
        learning_rate: peak learning rate.
        steps: optimiser steps.
        batch_size: rows in one step; data that comes as ready batches brings its own.
        accumulation: parts that a step's rows are run in, one after the other, for less memory; the
            gradient is that of the whole batch. Divides batch_size.
        warmup_steps: steps over which the rate rises linearly, reaching its peak at the last of
            them; not with cyclical schedules.
        schedule: `"constant"`; falling `"linear"`, as half a `"cosine"`, or as one after the other
            (`"cosine_with_restarts"`); cyclical `"triangular"`, `"triangular2"` (each cycle half as
            high) or `"exp_range"`; `"warmup_stable_decay"`.
        final_fraction: share of the peak that linear, cosine and warm-up–stable–decay fall to; 0 to
            1.
        cycles: restarts: how many half cosines; cyclical: how many triangles in all steps.
        step_size_up: cyclical, instead of cycles: steps in which the rate rises, and as many in
            which it falls.
        base_learning_rate: lowest rate of a cyclical schedule, whose highest is learning_rate.
        gamma: exp_range: the triangles' height is multiplied by γ each step.
        decay_steps: warm-up–stable–decay: the last steps, over which the rate falls as half a
            cosine.
        optimiser: `"adamw"`; `"lion"` (2302.06675); `"muon"` for matrices with AdamW for embeddings
            and vectors, steps scaled by .2 √max(out, in) as in Moonlight (2502.16982), so that
            rates are AdamW's; `"sam"`, AdamW at the gradient of a point ρ uphill (2010.01412), two
            passes a step. All but AdamW come from pytorch_optimizer.
        betas: decay rates of the first and second moment; in Lion of the update and the momentum
            (its authors: .9, .99).
        momentum: Muon's, with Nesterov's look ahead; None: .95.
        rho: SAM's radius ρ, in units of the trained weights; None: .05.
        weight_decay: decoupled decay, applied to matrices only (not to biases, norms or single
            vectors).
        clip: largest gradient norm; None for no clipping.
        seed: seed of adapter initialisation, of the order of examples and of dropout.

    Raises:
        InputError: a value outside its range, or one that the method, the optimiser or the schedule
            would ignore.
    """

    method: Literal["full", "lora", "steering"] = "lora"
    rank: int | None = None
    alpha: float | None = None
    rslora: bool = False
    dora: bool = False
    target_modules: tuple[str, ...] = ()
    layers_to_transform: tuple[int, ...] | None = None
    learning_rate: float = 1e-4
    steps: int = 100
    batch_size: int = 32
    accumulation: int = 1
    warmup_steps: int = 0
    schedule: ScheduleName = "linear"
    final_fraction: float = 0.0
    cycles: int | None = None
    step_size_up: int | None = None
    base_learning_rate: float | None = None
    gamma: float | None = None
    decay_steps: int | None = None
    optimiser: Literal["adamw", "lion", "muon", "sam"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float | None = None
    rho: float | None = None
    weight_decay: float = 0.0
    clip: float | None = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"method={self.method!r} is unknown; pass one of {', '.join(METHODS)}")
        if self.optimiser not in OPTIMISERS:
            raise InputError(
                f"optimiser={self.optimiser!r} is unknown; pass one of {', '.join(OPTIMISERS)}"
            )
        for name in ("steps", "batch_size", "accumulation"):
            require_count(name, getattr(self, name), 1)
        if self.batch_size % self.accumulation:
            raise InputError(
                f"accumulation={self.accumulation} does not divide batch_size={self.batch_size};"
                " pass a divisor"
            )
        for name, low, high in (
            ("learning_rate", 0.0, math.inf),
            ("clip", 0.0, math.inf),
            ("rho", 0.0, math.inf),
        ):
            value = getattr(self, name)
            if name != "learning_rate" and value is None:
                continue
            if isinstance(value, str) or not low < value < high:
                raise InputError(f"{name}={value!r} must be a finite number above 0")
        for name, readers in _READ_BY.items():
            if getattr(self, name) is not None and self.optimiser not in readers:
                raise InputError(
                    f"{name}={getattr(self, name)!r} is not read by optimiser={self.optimiser!r},"
                    f" only by {', '.join(readers)}; drop it"
                )
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise InputError(f"betas={self.betas!r} must be two numbers of at least 0 and below 1")
        if self.momentum is not None and not 0.0 <= self.momentum < 1.0:
            raise InputError(f"momentum={self.momentum!r} must be at least 0 and below 1")
        if not 0.0 <= self.weight_decay < math.inf:
            raise InputError(
                f"weight_decay={self.weight_decay!r} must be a finite number of 0 or more"
            )
        derive_seed(self.seed)
        self.rates  # noqa: B018, the schedule refuses what it cannot use
        self._check_method()

    def _check_method(self) -> None:
        if self.method != "lora":
            ignored = (*_LORA_ONLY, "layers_to_transform") if self.method == "full" else _LORA_ONLY
            given = [name for name in ignored if getattr(self, name)]
            if given:
                what = "all weights" if self.method == "full" else "one vector a block"
                raise InputError(
                    f"method={self.method!r} trains {what}, but {', '.join(given)} came with it;"
                    " drop them or pass method='lora'"
                )
        if self.layers_to_transform is not None and any(
            layer < 0 for layer in self.layers_to_transform
        ):
            raise InputError(
                f"layers_to_transform={self.layers_to_transform!r} must hold block indices of 0 or"
                " more"
            )
        if self.method == "steering":
            self._check_steering()
        if self.method != "lora":
            return
        if self.rank is None or self.alpha is None or not self.target_modules:
            raise InputError("method='lora' needs rank, alpha and target_modules; pass all three")
        require_count("rank", self.rank, 1)
        if not 0.0 < self.alpha < math.inf:
            raise InputError(f"alpha={self.alpha!r} must be a finite number above 0")
        if isinstance(self.target_modules, str):
            raise InputError(
                f"target_modules={self.target_modules!r} is one string; pass a tuple of names"
            )

    def _check_steering(self) -> None:
        if not self.layers_to_transform or len(set(self.layers_to_transform)) < len(
            self.layers_to_transform
        ):
            raise InputError(
                "method='steering' needs layers_to_transform,"
                f" distinct blocks to add a vector after; got {self.layers_to_transform}"
            )
        if self.optimiser == "muon" or self.weight_decay:
            raise InputError(
                "method='steering' trains vectors, which neither optimiser='muon' nor weight_decay"
                " touches; drop it"
            )

    @property
    def rates(self) -> Schedule:
        """The schedule, as a record of its own."""
        return Schedule(
            name=self.schedule,
            **{name: getattr(self, name) for name in ("steps", "learning_rate", *OPTIONS)},
        )

    @property
    def scale(self) -> float:
        """Factor of B A in the adapted weight: α/r, or α/√r with `rslora`; `nan` without an
        adapter.
        """
        if self.rank is None or self.alpha is None:
            return math.nan
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def rate_factor(self, step: int) -> float:
        """Learning rate at a 0-based step as a share of its peak; range 0 to 1."""
        return self.rates.factor(step)

    def for_rows(self, rows: int, epochs: float = 1.0) -> Self:
        """The same recipe with as many steps as `epochs` passes over `rows` rows take, the last
        batch filled from the next pass.

        Raises:
            InputError: no rows, or epochs that are not positive.
        """
        require_count("rows", rows, 1)
        if not 0.0 < epochs < math.inf:
            raise InputError(f"epochs={epochs!r} must be a finite number above 0")
        return replace(self, steps=math.ceil(rows * epochs / self.batch_size))

    def varied(self, **changes: Any) -> Self:
        """The recipe with some fields changed; options that only the replaced schedule, optimiser
        or method read are dropped.

        A new optimiser takes its authors' betas where this recipe has those usual for its own;
        everything is in the record.

        Raises:
            InputError: a field that no recipe has, or a value that `Recipe` refuses.
        """
        self._require_known(changes)
        given = _with_tuples(changes)
        usual = USUAL_BETAS.get(self.optimiser, (0.9, 0.999))
        now = {
            "schedule": self.schedule,
            "optimiser": self.optimiser,
            "method": self.method,
        } | given
        defaults = {field.name: field.default for field in fields(self)}
        dropped = [name for name, readers in OPTIONS.items() if now["schedule"] not in readers]
        dropped += [name for name, readers in _READ_BY.items() if now["optimiser"] not in readers]
        if now["method"] != self.method:
            dropped += [*_LORA_ONLY, "layers_to_transform"]
        for name in [name for name in dropped if name not in given]:
            given[name] = defaults[name]
        if now["optimiser"] != self.optimiser and "betas" not in changes and self.betas == usual:
            given["betas"] = USUAL_BETAS.get(now["optimiser"], (0.9, 0.999))
        return replace(self, **given)

    def to_record(self) -> dict[str, Any]:
        """JSON-ready record; `from_record` gives the same recipe back."""
        defaults = {field.name: field.default for field in fields(self)}
        record = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }
        return {
            key: value
            for key, value in record.items()
            if key not in _WRITTEN_IF_SET or value != defaults[key]
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """A recipe from `to_record`, or from a configuration file's mapping; what is left out takes
        its default.

        Raises:
            InputError: a key that no recipe has, or a value that `Recipe` refuses.
        """
        cls._require_known(record)
        try:
            return cls(**_with_tuples(record))
        except TypeError as error:
            raise InputError(
                f"recipe cannot be read ({one_line(str(error), 200)});"
                " compare each value with the field's type"
            ) from None

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """A recipe from a YAML file with the fields as keys.

        Raises:
            InputError: no such file, no mapping, an unknown key, a value that `Recipe` refuses.
        """
        return cls.from_record(read_mapping(path))

    def to_yaml(self, path: str | Path) -> None:
        """Write the recipe as YAML; `from_yaml` gives it back."""
        write_text(path, yaml.safe_dump(self.to_record(), sort_keys=False))

    @classmethod
    def _require_known(cls, record: Mapping[str, Any]) -> None:
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(map(str, record)) - set(known))
        if unknown:
            raise InputError(f"recipe has unknown keys {unknown}; known are {', '.join(known)}")


def _with_tuples(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if name in _TUPLES and isinstance(value, list) else _number(value)
        for name, value in record.items()
    }


def _number(value: Any) -> Any:
    """YAML reads `1e-5` as text; a person means a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        InputError: what `emlens.data.readers.read_yaml` refuses, or no mapping.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: holds {type(content).__name__}, not a mapping from fields to values"
        )
    return content
