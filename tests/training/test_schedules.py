import pytest
import torch
from transformers import optimization

from emlens.foundation.errors import InputError
from emlens.training import Recipe
from emlens.training.schedules import Schedule

PEAK = 5e-5
ROUNDING = 1e-12  # double precision on numbers below 1


def rates(make, steps):
    """Learning rates of a torch scheduler, relative to the peak."""
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    scheduler = make(optimiser)
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0] / PEAK)
        optimiser.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("mode", ["triangular", "triangular2", "exp_range"])
@pytest.mark.parametrize(("cycles", "up"), [(4, None), (None, 7)])
def test_cyclical_rates_are_those_of_torch(mode, cycles, up):
    steps, gamma = 96, 0.95 if mode == "exp_range" else None
    ours = Schedule(
        name=mode,
        steps=steps,
        learning_rate=PEAK,
        base_learning_rate=1e-5,
        cycles=cycles,
        step_size_up=up,
        gamma=gamma,
    )
    size = up or steps // 8

    def torchs(o):
        return torch.optim.lr_scheduler.CyclicLR(
            o, 1e-5, PEAK, step_size_up=size, mode=mode, gamma=gamma or 1.0, cycle_momentum=False
        )

    assert [ours.factor(step) for step in range(steps)] == pytest.approx(
        rates(torchs, steps), abs=ROUNDING
    )
    assert max(ours.factor(step) for step in range(2 * size)) > 0.5 and ours.factor(
        0
    ) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"name": "linear"}, lambda o, w: optimization.get_linear_schedule_with_warmup(o, w, 60)),
        ({"name": "cosine"}, lambda o, w: optimization.get_cosine_schedule_with_warmup(o, w, 60)),
        ({"name": "constant"}, lambda o, w: optimization.get_constant_schedule_with_warmup(o, w)),
        (
            {"name": "cosine_with_restarts", "cycles": 4},
            lambda o, w: optimization.get_cosine_with_hard_restarts_schedule_with_warmup(
                o, w, 60, num_cycles=4
            ),
        ),
        (
            {"name": "warmup_stable_decay", "decay_steps": 20, "final_fraction": 0.1},
            lambda o, w: optimization.get_wsd_schedule(
                o, w, 20, num_training_steps=60, min_lr_ratio=0.1
            ),
        ),
    ],
)
@pytest.mark.parametrize("warmup", [0, 5])
def test_other_rates_are_those_of_transformers_once_warm(ours, theirs, warmup):
    schedule = Schedule(steps=60, learning_rate=PEAK, warmup_steps=warmup, **ours)
    expected = rates(lambda o: theirs(o, warmup), 60)
    assert [schedule.factor(step) for step in range(warmup, 60)] == pytest.approx(
        expected[warmup:], abs=ROUNDING
    )
    assert [schedule.factor(step) for step in range(warmup)] == pytest.approx(
        [(step + 1) / 5 for step in range(warmup)]
    )
    # the control: the shapes do vary
    assert len({round(value, 6) for value in expected}) > 1 or schedule.name == "constant"


def test_a_recipe_reads_its_schedule():
    recipe = Recipe(
        method="full",
        learning_rate=PEAK,
        steps=16,
        schedule="triangular",
        cycles=4,
        base_learning_rate=0.0,
    )
    assert [recipe.rate_factor(step) for step in range(5)] == pytest.approx(
        [0.0, 0.5, 1.0, 0.5, 0.0]
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schedule": "step"}, "schedule='step' is unknown; pass one of constant, linear"),
        (
            {"schedule": "constant", "final_fraction": 0.1},
            r"final_fraction=0\.1 is not read by schedule='constant', only by linear, cosine",
        ),
        (
            {"cycles": 2},
            "cycles=2 is not read by schedule='linear', only by cosine_with_restarts, triangular",
        ),
        ({"gamma": 0.9}, r"gamma=0\.9 is not read by schedule='linear', only by exp_range"),
        (
            {"decay_steps": 3},
            "decay_steps=3 is not read by schedule='linear', only by warmup_stable_decay",
        ),
        (
            {"schedule": "triangular", "warmup_steps": 2, "cycles": 2},
            "warmup_steps=2 is not read by schedule='triangular'",
        ),
        ({"schedule": "cosine_with_restarts"}, "schedule='cosine_with_restarts' needs cycles"),
        (
            {"schedule": "cosine_with_restarts", "cycles": 0},
            "cycles=0 must be an integer of 1 or more",
        ),
        (
            {"schedule": "warmup_stable_decay"},
            "needs decay_steps of at most steps - warmup_steps = 100; got None",
        ),
        (
            {"schedule": "warmup_stable_decay", "decay_steps": 95, "warmup_steps": 6},
            "steps - warmup_steps = 94; got 95",
        ),
        (
            {"schedule": "triangular", "base_learning_rate": 0.0},
            "needs one of cycles and step_size_up; got cycles=None, step_size_up=None",
        ),
        (
            {"schedule": "triangular", "cycles": 60, "base_learning_rate": 0.0},
            "cycles=60 is too many for steps=100",
        ),
        (
            {"schedule": "triangular", "cycles": 2},
            "needs base_learning_rate of 0 or more and below learning_rate=0.0001; got None",
        ),
        (
            {"schedule": "triangular2", "cycles": 2, "base_learning_rate": 1e-3},
            r"below learning_rate=0\.0001; got 0\.001",
        ),
        (
            {"schedule": "exp_range", "cycles": 2, "base_learning_rate": 0.0},
            "schedule='exp_range' needs gamma above 0 and at most 1; got None",
        ),
    ],
)
def test_what_a_schedule_lacks_or_ignores_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        Recipe(method="full", **values)
