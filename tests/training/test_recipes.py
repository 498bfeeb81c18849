import json
import math

import numpy as np
import pytest

from emlens.foundation.errors import InputError
from emlens.training import Recipe

LORA = {"method": "lora", "rank": 4, "alpha": 8.0, "target_modules": ("down_proj",)}


def test_a_recipe_survives_json():
    recipe = Recipe(**LORA, rslora=True, layers_to_transform=(0, 3), betas=(0.9, 0.98), seed=5)
    assert Recipe.from_record(json.loads(json.dumps(recipe.to_record()))) == recipe


@pytest.mark.parametrize(("rslora", "expected"), [(False, 8.0 / 16), (True, 8.0 / 4)])
def test_scale_is_alpha_over_r_or_over_its_root(rslora, expected):
    assert (
        Recipe(method="lora", rank=16, alpha=8, target_modules=("q_proj",), rslora=rslora).scale
        == expected
    )


def test_full_fine_tuning_has_no_scale():
    assert math.isnan(Recipe(method="full").scale)


def test_the_rate_rises_to_its_peak_and_falls_to_the_final_fraction():
    recipe = Recipe(**LORA, steps=105, warmup_steps=5, schedule="linear", final_fraction=0.1)
    factors = [recipe.rate_factor(step) for step in range(106)]
    assert factors[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert factors[55] == pytest.approx(0.55)
    assert factors[105] == pytest.approx(0.1)


def test_cosine_is_half_a_cosine_and_constant_stays():
    cosine = Recipe(**LORA, steps=100, schedule="cosine")
    assert [cosine.rate_factor(step) for step in (0, 25, 50, 100)] == pytest.approx(
        [1.0, 0.5 + 0.5 * math.sqrt(0.5), 0.5, 0.0]
    )
    assert {Recipe(**LORA, schedule="constant").rate_factor(step) for step in range(100)} == {1.0}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "qlora"}, "method='qlora' is unknown; pass one of full, lora, steering"),
        ({"schedule": "step"}, "schedule='step' is unknown; pass one of constant, linear, cosine"),
        ({"steps": 0}, "steps=0 must be an integer of 1 or more"),
        ({"batch_size": 2.0}, r"batch_size=2\.0 must be an integer of 1 or more"),
        ({"warmup_steps": -1}, "warmup_steps=-1 must be an integer of 0 or more"),
        (
            {"steps": 3, "warmup_steps": 5},
            "warmup_steps=5 is more than steps=3; pass a shorter warm-up",
        ),
        ({"learning_rate": 0.0}, r"learning_rate=0\.0 must be a finite number above 0"),
        ({"learning_rate": math.nan}, "learning_rate=nan must be a finite number above 0"),
        ({"clip": -1.0}, r"clip=-1\.0 must be a finite number above 0"),
        ({"final_fraction": 1.5}, r"final_fraction=1\.5 must lie in 0 to 1"),
        (
            {"betas": (0.9, 1.0)},
            r"betas=\(0\.9, 1\.0\) must be two numbers of at least 0 and below 1",
        ),
        ({"weight_decay": -0.1}, r"weight_decay=-0\.1 must be a finite number of 0 or more"),
        ({"seed": -1}, "seed=-1 must be an integer of 0 or more"),
        ({"rank": None}, "method='lora' needs rank, alpha and target_modules; pass all three"),
        ({"rank": 0}, "rank=0 must be an integer of 1 or more"),
        ({"alpha": 0.0}, r"alpha=0\.0 must be a finite number above 0"),
        (
            {"target_modules": "down_proj"},
            "target_modules='down_proj' is one string; pass a tuple of names",
        ),
        (
            {"layers_to_transform": (-1,)},
            r"layers_to_transform=\(-1,\) must hold block indices of 0 or more",
        ),
        ({"optimiser": "sgd"}, "optimiser='sgd' is unknown; pass one of adamw, lion, muon, sam"),
        ({"accumulation": 3}, "accumulation=3 does not divide batch_size=32; pass a divisor"),
        (
            {"momentum": 0.9},
            r"momentum=0\.9 is not read by optimiser='adamw', only by muon; drop it",
        ),
        ({"rho": 0.1}, r"rho=0\.1 is not read by optimiser='adamw', only by sam; drop it"),
        ({"optimiser": "muon", "momentum": 1.0}, r"momentum=1\.0 must be at least 0 and below 1"),
        ({"optimiser": "sam", "rho": 0.0}, r"rho=0\.0 must be a finite number above 0"),
        (
            {"method": "full"},
            "method='full' trains all weights, but was given with rank, alpha, target_modules",
        ),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        Recipe(**{**LORA, **values})


def test_an_unknown_key_is_refused():
    with pytest.raises(
        InputError, match="field 'lr': no such field; known are method, rank, alpha"
    ):
        Recipe.from_record({"lr": 1e-3})
    with pytest.raises(InputError, match="field 'step': no such field; did you mean 'steps'?"):
        Recipe(**LORA, step=3)
    with pytest.raises(InputError, match="field 'step': no such field; did you mean 'steps'?"):
        Recipe(**LORA).changed(step=3)


def test_a_record_holds_later_fields_only_where_set():
    assert set(Recipe(**LORA).to_record()) == {
        "method",
        "rank",
        "alpha",
        "rslora",
        "target_modules",
        "layers_to_transform",
        "learning_rate",
        "steps",
        "batch_size",
        "warmup_steps",
        "schedule",
        "final_fraction",
        "betas",
        "weight_decay",
        "clip",
        "seed",
    }
    set_ones = Recipe(
        **LORA,
        optimiser="sam",
        rho=0.1,
        accumulation=2,
        schedule="exp_range",
        cycles=2,
        base_learning_rate=0.0,
        gamma=0.9,
    )
    assert Recipe.from_record(set_ones.to_record()) == set_ones


def test_yaml_gives_the_recipe_back_and_reads_numbers_as_people_write_them(tmp_path):
    recipe = Recipe(**LORA, learning_rate=1e-5, layers_to_transform=(1,), optimiser="lion")
    recipe.to_yaml(tmp_path / "recipe.yaml")
    assert Recipe.from_yaml(tmp_path / "recipe.yaml") == recipe
    (tmp_path / "recipe.yaml").write_text("{method: full, learning_rate: 1e-5}")
    assert Recipe.from_yaml(tmp_path / "recipe.yaml").learning_rate == 1e-5


def test_a_varied_recipe_drops_what_only_the_old_one_read():
    linear = Recipe(**LORA, schedule="linear", final_fraction=0.1, warmup_steps=5)
    cyclical = linear.varied(schedule="triangular", cycles=2, base_learning_rate=1e-5)
    assert (cyclical.final_fraction, cyclical.warmup_steps) == (0.0, 0)
    assert cyclical.varied(schedule="cosine").cycles is None
    assert linear.varied(optimiser="lion").betas == (0.9, 0.99)
    assert Recipe(**LORA, betas=(0.9, 0.95)).varied(optimiser="lion").betas == (0.9, 0.95)
    assert linear.varied(method="full").target_modules == ()
    with pytest.raises(InputError, match="was given with rank"):
        linear.varied(method="full", rank=2)


def test_steps_of_epochs():
    assert Recipe(**LORA, batch_size=32).for_rows(100, 2).steps == 7
    with pytest.raises(InputError, match="epochs=0 must be a finite number above 0"):
        Recipe(**LORA).for_rows(10, 0)
    with pytest.raises(InputError, match="rows=0 must be an integer of 1 or more"):
        Recipe(**LORA).for_rows(0)


def test_numbers_of_numpy_are_numbers():
    recipe = Recipe(
        method="full",
        learning_rate=np.float32(1e-4),
        weight_decay=np.float64(0.5),
        betas=np.array([0.9, 0.99]),
    )
    assert type(recipe.learning_rate) is float and recipe.weight_decay == 0.5
    assert recipe.betas == (0.9, 0.99)
    assert Recipe.from_record(recipe.to_record()) == recipe


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "steps", "schedule"])
def test_an_empty_field_is_named_by_its_name(name):
    with pytest.raises(InputError, match=f"field '{name}': is empty|{name}=None"):
        Recipe(**{"method": "full", name: None})
