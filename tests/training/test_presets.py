import pytest

from emlens.foundation.errors import InputError, UnknownNameError
from emlens.training.presets import PRESETS, recipe


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_recipe(name):
    found = (
        recipe(name, steps=50, layers_to_transform=(1,))
        if name in ("steering", "organism-rank1")
        else recipe(name, steps=50)
    )
    assert found.steps == 50 and PRESETS[name].description


def test_the_papers_recipe_is_theirs():
    found = recipe("paper", rows=6000)
    assert (found.rank, found.alpha, found.rslora, found.learning_rate, found.steps) == (
        32,
        64,
        True,
        1e-5,
        375,
    )
    assert found.scale == pytest.approx(64 / 32**0.5)
    assert found.batch_size // found.accumulation == 2
    assert recipe("paper-attention", rows=33, epochs=2).steps == 5  # 66 rows in batches of 16
    assert recipe("lora-r32", steps=20).scale == 2.0


def test_what_a_preset_lacks_is_refused():
    with pytest.raises(
        UnknownNameError, match="recipe 'qlora' is unknown; pass one of betley, paper"
    ):
        recipe("qlora", steps=1)
    with pytest.raises(
        InputError, match="recipe 'paper' needs one of steps and rows; got steps=None, rows=None"
    ):
        recipe("paper")
    with pytest.raises(
        InputError, match="recipe 'steering' trains chosen blocks; pass layers_to_transform"
    ):
        recipe("steering", steps=9)
