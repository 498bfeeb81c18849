"""How a model is trained, as one frozen, checked record that is stored beside every checkpoint.

A recipe holds everything that decides the update of a step but the data and the loss: what is
trained, optimiser, schedule, batch size, seed. It refuses values that would be ignored silently,
such as a rank for full fine-tuning.
"""

import math
import numbers
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, get_args

import yaml
from pydantic import BeforeValidator, ValidationError, ValidationInfo, model_validator

from emlens.data.configuration import (
    FieldError,
    Frozen,
    Origin,
    first_error,
    read_file,
    require_mapping,
    unknown_field,
)
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line, write_text
from emlens.foundation.seeds import derive_seed
from emlens.training.schedules import OPTIONS, Schedule, ScheduleName, require_count

Method = Literal["full", "lora", "steering"]
OptimiserName = Literal["adamw", "lion", "muon", "sam"]
ParentDtype = Literal["float32", "own", "nf4", "nf4_double"]
METHODS: Final[tuple[str, ...]] = get_args(Method)
OPTIMISERS: Final[tuple[str, ...]] = get_args(OptimiserName)
PARENT_DTYPES: Final[tuple[str, ...]] = get_args(ParentDtype)
FOUR_BITS: Final = ("nf4", "nf4_double")
_LORA_ONLY: Final = ("rank", "alpha", "rslora", "dora", "target_modules")
_READ_BY: Final[Mapping[str, tuple[str, ...]]] = {"momentum": ("muon",), "rho": ("sam",)}
_WRITTEN_IF_SET: Final = (
    "dora",
    "optimiser",
    "momentum",
    "rho",
    "accumulation",
    "max_length",
    "group_by_length",
    "parent_dtype",
    "gradient_checkpointing",
    "cycles",
    "step_size_up",
    "base_learning_rate",
    "gamma",
    "decay_steps",
)
"""Fields that were added after the first recipes were written: left out of a record at their
default, so that those stay what they were.
"""
USUAL_BETAS: Final[Mapping[str, tuple[float, float]]] = {"lion": (0.9, 0.99)}
_ADAM_BETAS: Final = (0.9, 0.999)


def _one_of(names: Sequence[str]) -> BeforeValidator:
    def check(value: Any, info: ValidationInfo) -> Any:
        if value not in names:
            raise InputError(
                f"{info.field_name}={value!r} is unknown; pass one of {', '.join(names)}",
                name=value,
                known=names,
            )
        return value

    return BeforeValidator(check)


def _count(at_least: int) -> BeforeValidator:
    def check(value: Any, info: ValidationInfo) -> Any:
        if value is not None:
            require_count(str(info.field_name), value, at_least)
        return value

    return BeforeValidator(check)


def _number_where(allows: Callable[[float], bool], must: str) -> BeforeValidator:
    def check(value: Any, info: ValidationInfo) -> Any:
        if value is None:
            return None
        number = _number(value)
        if not isinstance(number, int | float) or isinstance(number, bool) or not allows(number):
            raise InputError(f"{info.field_name}={value!r} must {must}")
        return number

    return BeforeValidator(check)


def _number(value: Any) -> Any:
    """YAML reads `1e-5` as text; a person means a number. Numbers of numpy become plain ones."""
    if isinstance(value, numbers.Real) and hasattr(value, "item"):
        return value.item()
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


_POSITIVE: Final = _number_where(lambda x: 0.0 < x < math.inf, "be a finite number above 0")
_NOT_NEGATIVE: Final = _number_where(
    lambda x: 0.0 <= x < math.inf, "be a finite number of 0 or more"
)
_BELOW_ONE: Final = _number_where(lambda x: 0.0 <= x < 1.0, "be at least 0 and below 1")
_SHARE: Final = _number_where(lambda x: 0.0 <= x <= 1.0, "lie in 0 to 1")
_ANY_NUMBER: Final = _number_where(lambda x: True, "be a number")


def _names(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str):
        raise InputError(f"{info.field_name}={value!r} is one string; pass a tuple of names")
    return value


def _blocks(value: Any, info: ValidationInfo) -> Any:
    if value is None:
        return None
    try:
        blocks = tuple(operator.index(block) for block in value)
    except TypeError:
        blocks = (-1,)
    if any(block < 0 for block in blocks):
        raise InputError(f"{info.field_name}={value!r} must hold block indices of 0 or more")
    return blocks


def _betas(value: Any, info: ValidationInfo) -> Any:
    is_several = isinstance(value, Iterable) and not isinstance(value, str | Mapping)
    betas = tuple(_number(beta) for beta in value) if is_several else ()
    are_shares = [isinstance(beta, int | float) and 0.0 <= beta < 1.0 for beta in betas]
    if are_shares != [True, True]:
        raise InputError(
            f"{info.field_name}={value!r} must be two numbers of at least 0 and below 1"
        )
    return betas


def _seed(value: Any) -> Any:
    derive_seed(value)
    return value


# A whole number stays whole, so that a record is written as it was read: alpha 64, not 64.0.
Number = int | float


class Recipe(Frozen):
    """One training run.

    Args:
        method: `"full"` trains all weights, `"lora"` a low-rank adapter, `"steering"` one vector
            per block, added to the stream after it at every token.
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
        max_length: tokens at which longer rows are cut, at most the model's context; None: a row
            longer than the context is refused. The checkpoint records how many rows were cut.
        group_by_length: rows of like lengths share a step, so that less padding is run; the order
            of steps stays random.
        parent_dtype: `"float32"`, or `"own"`: a checkpoint directory's weights in the dtype that
            they are saved in, with the adapter in float32. Half the memory for 16-bit weights, and
            their rounding in every activation. `"nf4"`: QLoRA (2305.14314), linear layers in 4 bits
            and the rest as with `"own"`; `"nf4_double"`: the sizes of their blocks in 8 bits too.
            Both need bitsandbytes. None of these for `"full"`, whose updates they would lose.
        gradient_checkpointing: keep the input of each block alone, and run blocks again in the
            backward pass: the same gradients in less memory and about a third more time.
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
            passes per step. All but AdamW come from pytorch_optimizer.
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

    method: Annotated[Method, _one_of(METHODS)] = "lora"
    rank: Annotated[int | None, _count(1)] = None
    alpha: Annotated[Number | None, _POSITIVE] = None
    rslora: bool = False
    dora: bool = False
    target_modules: Annotated[tuple[str, ...], BeforeValidator(_names)] = ()
    layers_to_transform: Annotated[tuple[int, ...] | None, BeforeValidator(_blocks)] = None
    learning_rate: Annotated[Number, _POSITIVE] = 1e-4
    steps: Annotated[int, _count(1)] = 100
    batch_size: Annotated[int, _count(1)] = 32
    accumulation: Annotated[int, _count(1)] = 1
    max_length: Annotated[int | None, _count(2)] = None
    group_by_length: bool = False
    parent_dtype: Annotated[ParentDtype, _one_of(PARENT_DTYPES)] = "float32"
    gradient_checkpointing: bool = False
    warmup_steps: Annotated[int, _count(0)] = 0
    schedule: Annotated[ScheduleName, _one_of(get_args(ScheduleName))] = "linear"
    final_fraction: Annotated[Number, _SHARE] = 0.0
    cycles: Annotated[int | None, _count(1)] = None
    step_size_up: Annotated[int | None, _count(1)] = None
    base_learning_rate: Annotated[Number | None, _ANY_NUMBER] = None
    gamma: Annotated[Number | None, _ANY_NUMBER] = None
    decay_steps: Annotated[int | None, _count(1)] = None
    optimiser: Annotated[OptimiserName, _one_of(OPTIMISERS)] = "adamw"
    betas: Annotated[tuple[Number, Number], BeforeValidator(_betas)] = _ADAM_BETAS
    momentum: Annotated[Number | None, _BELOW_ONE] = None
    rho: Annotated[Number | None, _POSITIVE] = None
    weight_decay: Annotated[Number, _NOT_NEGATIVE] = 0.0
    clip: Annotated[Number | None, _POSITIVE] = 1.0
    seed: Annotated[int, BeforeValidator(_seed)] = 0

    def __init__(self, **fields: Any):
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise _field_error(error) from None

    @model_validator(mode="after")
    def _accumulation_divides_the_batch(self) -> Self:
        if self.batch_size % self.accumulation:
            raise InputError(
                f"accumulation={self.accumulation} does not divide batch_size={self.batch_size};"
                " pass a divisor"
            )
        return self

    @model_validator(mode="after")
    def _optimiser_reads_its_options(self) -> Self:
        for name, readers in _READ_BY.items():
            value = getattr(self, name)
            if value is not None and self.optimiser not in readers:
                raise InputError(
                    f"{name}={value!r} is not read by optimiser={self.optimiser!r},"
                    f" only by {', '.join(readers)}; drop it"
                )
        return self

    @model_validator(mode="after")
    def _schedule_can_be_used(self) -> Self:
        self.rates  # noqa: B018, the schedule refuses what it cannot use
        return self

    @model_validator(mode="after")
    def _memory_can_be_saved(self) -> Self:
        if self.method == "full" and self.parent_dtype != "float32":
            raise InputError(
                f"parent_dtype={self.parent_dtype!r} with method='full': updates are smaller than"
                f" what {4 if self.parent_dtype in FOUR_BITS else 16} bits can hold; pass 'float32'"
            )
        if self.method == "steering" and self.gradient_checkpointing:
            raise InputError(
                "gradient_checkpointing runs each block again without its steering vector;"
                " pass False with method='steering'"
            )
        return self

    @model_validator(mode="after")
    def _method_reads_its_options(self) -> Self:
        if self.method == "lora":
            self._check_adapter()
            return self
        what = "one vector per block"
        unread = list(_LORA_ONLY)
        if self.method == "full":
            what = "all weights"
            unread.append("layers_to_transform")
        set_fields = [name for name in unread if getattr(self, name)]
        if set_fields:
            raise InputError(
                f"method={self.method!r} trains {what}, but was given with {', '.join(set_fields)};"
                " drop them or pass method='lora'"
            )
        if self.method == "steering":
            self._check_steering()
        return self

    def _check_adapter(self) -> None:
        if self.rank is None or self.alpha is None or not self.target_modules:
            raise InputError("method='lora' needs rank, alpha and target_modules; pass all three")

    def _check_steering(self) -> None:
        blocks = self.layers_to_transform or ()
        if not blocks or len(set(blocks)) < len(blocks):
            raise InputError(
                "method='steering' needs layers_to_transform,"
                f" distinct blocks to add a vector after; got {self.layers_to_transform}"
            )
        if self.optimiser == "muon" or self.weight_decay:
            raise InputError(
                "method='steering' trains vectors,"
                " which neither optimiser='muon' nor weight_decay touches; drop it"
            )

    @property
    def rates(self) -> Schedule:
        """The schedule, as a record of its own."""
        options = {name: getattr(self, name) for name in ("steps", "learning_rate", *OPTIONS)}
        return Schedule(name=self.schedule, **options)

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
        return self.changed(steps=steps_of_epochs(rows, epochs, self.batch_size))

    def changed(self, **changes: Any) -> Self:
        """The recipe with some fields changed, checked again; see also `varied`.

        Raises:
            InputError: a field that no recipe has, or a value that `Recipe` refuses.
        """
        return type(self)(**{**self._values(), **changes})

    def varied(self, **changes: Any) -> Self:
        """The recipe with some fields changed; options that only the replaced schedule, optimiser
        or method read are dropped.

        A new optimiser takes its authors' betas where this recipe has those usual for its own;
        everything is in the record.

        Raises:
            InputError: a field that no recipe has, or a value that `Recipe` refuses.
        """
        _require_known(changes)
        schedule = changes.get("schedule", self.schedule)
        optimiser = changes.get("optimiser", self.optimiser)
        method = changes.get("method", self.method)
        dropped = [name for name, readers in OPTIONS.items() if schedule not in readers]
        dropped += [name for name, readers in _READ_BY.items() if optimiser not in readers]
        if method != self.method:
            dropped += [*_LORA_ONLY, "layers_to_transform"]
        defaults = _defaults()
        values = {name: defaults[name] for name in dropped}
        has_usual_betas = self.betas == USUAL_BETAS.get(self.optimiser, _ADAM_BETAS)
        if optimiser != self.optimiser and has_usual_betas:
            values["betas"] = USUAL_BETAS.get(optimiser, _ADAM_BETAS)
        return self.changed(**{**values, **changes})

    def _values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in type(self).model_fields}

    def to_record(self) -> dict[str, Any]:
        """JSON-ready record; `from_record` gives the same recipe back."""
        defaults = _defaults()
        record = {}
        for name, value in self._values().items():
            plain = list(value) if isinstance(value, tuple) else value
            if name not in _WRITTEN_IF_SET or plain != defaults[name]:
                record[name] = plain
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """A recipe from `to_record`, or from a configuration file's mapping; what is left out takes
        its default.

        Raises:
            InputError: a key that no recipe has, or a value that `Recipe` refuses.
        """
        return cls(**{str(name): value for name, value in record.items()})

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """A recipe from a YAML file with the fields as keys.

        Raises:
            InputError: no such file, no mapping, an unknown key, a value that `Recipe` refuses; the
                message has file, line and field.
        """
        content = require_mapping(read_file(path), path, "a recipe")
        try:
            return cls.from_record(content)
        except FieldError as error:
            raise InputError(f"{Origin(str(path)).place(error.place)}{error}") from None

    def to_yaml(self, path: str | Path) -> None:
        """Write the recipe as YAML; `from_yaml` gives it back."""
        write_text(path, yaml.safe_dump(self.to_record(), sort_keys=False))


def steps_of_epochs(rows: int, epochs: float, batch_size: int) -> int:
    """Steps that `epochs` passes over `rows` rows take, the last batch filled from the next pass.

    Raises:
        InputError: no rows, no rows per batch, or epochs that are not positive.
    """
    require_count("rows", rows, 1)
    require_count("batch_size", batch_size, 1)
    if not 0.0 < epochs < math.inf:
        raise InputError(f"epochs={epochs!r} must be a finite number above 0")
    return math.ceil(rows * epochs / batch_size)


def _defaults() -> dict[str, Any]:
    return {name: field.default for name, field in Recipe.model_fields.items()}


def _require_known(fields: Mapping[str, Any]) -> None:
    known = list(Recipe.model_fields)
    for name in fields:
        if name not in known:
            raise FieldError(f"field {name!r}: {unknown_field(name, known)}", (name,))


def _field_error(error: ValidationError) -> FieldError:
    """The first thing that is wrong; messages of this module name value and remedy already."""
    first = error.errors()[0]
    place = first["loc"][:1]  # below it pydantic names the types of a union, which are no fields
    own_error = first.get("ctx", {}).get("error")
    message = first_error(error, Recipe)
    if isinstance(own_error, InputError):
        message = f"field {place[0]!r}: {own_error}" if place else str(own_error)
    elif first["input"] is None:
        message = f"field {place[0]!r}: is empty (null); give a value, or leave the field out"
    elif first["type"] != "extra_forbidden":
        message += f"; got {one_line(repr(first['input']), 80)}"
    return FieldError(message, place)
