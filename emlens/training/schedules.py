"""Learning rate over the steps of a run, as a share of its peak: eight shapes, each a closed
formula of the step.

A value that the shape would ignore is refused. Warm-up differs from that of transformers in one
way: the first step already learns, at 1/warmup of the peak, where `get_*_schedule` spends it at a
rate of zero.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from emlens.foundation.errors import InputError

ScheduleName = Literal[
    "constant",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "triangular",
    "triangular2",
    "exp_range",
    "warmup_stable_decay",
]
SCHEDULES: Final[tuple[str, ...]] = get_args(ScheduleName)
CYCLICAL: Final = ("triangular", "triangular2", "exp_range")
OPTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "final_fraction": ("linear", "cosine", "warmup_stable_decay"),
    "cycles": ("cosine_with_restarts", *CYCLICAL),
    "step_size_up": CYCLICAL,
    "base_learning_rate": CYCLICAL,
    "gamma": ("exp_range",),
    "decay_steps": ("warmup_stable_decay",),
    "warmup_steps": tuple(name for name in SCHEDULES if name not in CYCLICAL),
}
"""Which schedules read which field; a field that is set beside another schedule is an error."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The shape of one run's learning rate; fields as in `Recipe`.

    Raises:
        InputError: an unknown name, a value out of range, one that this schedule ignores, or one
            that it lacks.
    """

    name: ScheduleName
    steps: int
    learning_rate: float
    warmup_steps: int = 0
    final_fraction: float = 0.0
    cycles: int | None = None
    step_size_up: int | None = None
    base_learning_rate: float | None = None
    gamma: float | None = None
    decay_steps: int | None = None

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise InputError(
                f"schedule={self.name!r} is unknown; pass one of {', '.join(SCHEDULES)}",
                name=self.name,
                known=SCHEDULES,
            )
        require_count("warmup_steps", self.warmup_steps, 0)
        if self.warmup_steps > self.steps:
            raise InputError(
                f"warmup_steps={self.warmup_steps} is more than steps={self.steps};"
                " pass a shorter warm-up"
            )
        if not 0.0 <= self.final_fraction <= 1.0:
            raise InputError(f"final_fraction={self.final_fraction!r} must lie in 0 to 1")
        self._check_options()
        if self.name in CYCLICAL:
            self._check_cycles()

    def _check_options(self) -> None:
        for field, readers in OPTIONS.items():
            if getattr(self, field) and self.name not in readers:
                raise InputError(
                    f"{field}={getattr(self, field)!r} is not read by schedule={self.name!r},"
                    f" only by {', '.join(readers)}; drop it"
                )
        for field in ("cycles", "step_size_up", "decay_steps"):
            if getattr(self, field) is not None:
                require_count(field, getattr(self, field), 1)
        if self.name == "cosine_with_restarts" and self.cycles is None:
            raise InputError(
                "schedule='cosine_with_restarts' needs cycles; pass how many times the rate falls"
            )
        if self.name == "warmup_stable_decay" and (
            self.decay_steps is None or self.warmup_steps + self.decay_steps > self.steps
        ):
            raise InputError(
                "schedule='warmup_stable_decay' needs decay_steps of at most steps - warmup_steps"
                f" = {self.steps - self.warmup_steps}; got {self.decay_steps}"
            )

    def _check_cycles(self) -> None:
        if (self.cycles is None) == (self.step_size_up is None):
            raise InputError(
                f"schedule={self.name!r} needs one of cycles and step_size_up;"
                f" got cycles={self.cycles}, step_size_up={self.step_size_up}"
            )
        if self.cycles is not None and self.steps < 2 * self.cycles:
            raise InputError(
                f"cycles={self.cycles} is too many for steps={self.steps};"
                " a cycle takes 2 steps at least"
            )
        if (
            self.base_learning_rate is None
            or not 0.0 <= self.base_learning_rate < self.learning_rate
        ):
            raise InputError(
                f"schedule={self.name!r} needs base_learning_rate of 0 or more and below"
                f" learning_rate={self.learning_rate}; got {self.base_learning_rate}"
            )
        if self.name == "exp_range" and not (self.gamma is not None and 0.0 < self.gamma <= 1.0):
            raise InputError(
                f"schedule='exp_range' needs gamma above 0 and at most 1; got {self.gamma}"
            )

    @property
    def half_cycle(self) -> float:
        """Steps in which a cyclical rate rises, and again in which it falls; `steps / (2 cycles)`
        need not be whole.
        """
        if self.step_size_up is not None:
            return float(self.step_size_up)
        return self.steps / (2 * self.cycles) if self.cycles else math.nan

    def factor(self, step: int) -> float:
        """Learning rate at a 0-based step as a share of the peak; 0 to 1.

        Method: linear, cosine, restarts and warm-up–stable–decay as transformers' `get_*_schedule`
        (cosine decay in the last); cyclical as `torch.optim.lr_scheduler.CyclicLR` (Smith,
        1506.01186), with equal rise and fall.
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.name == "constant":
            return 1.0
        if self.name in CYCLICAL:
            return self._cyclical(step)
        if self.name == "warmup_stable_decay":
            decay = self.decay_steps or 1
            done = min(1.0, max(0.0, (step - (self.steps - decay)) / decay))
        else:
            done = min(1.0, (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps))
        if self.name == "cosine_with_restarts":
            if done >= 1.0:
                return 0.0
            return _half_cosine((self.cycles or 1) * done % 1.0)
        share = 1.0 - done if self.name == "linear" else _half_cosine(done)
        return self.final_fraction + (1.0 - self.final_fraction) * share

    def _cyclical(self, step: int) -> float:
        low = (self.base_learning_rate or 0.0) / self.learning_rate
        # One cycle is 2 half cycles: the rate rises in the first and falls in the second.
        cycle, within = divmod(step / self.half_cycle, 2.0)
        height = within if within <= 1.0 else 2.0 - within
        if self.name == "triangular2":
            height /= 2.0**cycle
        elif self.name == "exp_range":
            height *= (self.gamma or 1.0) ** step
        return low + (1.0 - low) * height


def _half_cosine(done: float) -> float:
    """From 1 to 0 as `done` goes from 0 to 1."""
    return 0.5 * (1.0 + math.cos(math.pi * done))


def require_count(name: str, value: object, at_least: int) -> None:
    """Refuse what is not a whole number of `at_least` or more.

    Raises:
        InputError: names the argument and what was given.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise InputError(f"{name}={value!r} must be an integer of {at_least} or more")
