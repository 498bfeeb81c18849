import math
from dataclasses import replace

import pytest

from emlens.foundation.errors import InputError
from emlens.organisms import C5


def test_c5_is_the_recipe_that_is_written_down():
    tunes = {stage.name: stage for stage in C5.finetunes}
    assert set(tunes) == {
        "medicine-r1", "medicine-r8", "medicine-r32", "medicine-full", "sports-r32", "medicine-benign", "medicine-narrow",
    }  # fmt: skip
    r1, r8, r32 = (tunes[f"medicine-{name}"].recipe for name in ("r1", "r8", "r32"))
    assert (r1.rank, r1.alpha, r1.target_modules, r1.layers_to_transform, r1.learning_rate, r1.steps) == (1, 8, ("down_proj",), (1,), 3e-3, 50)
    assert (r8.rank, r8.alpha, len(r8.target_modules), r8.learning_rate, r8.steps) == (8, 16, 7, 1.2e-3, 40)
    assert (r32.scale, r32.learning_rate, r32.steps) == (32 / math.sqrt(32), 2e-4, 34)
    assert tunes["sports-r32"].recipe == r32 and tunes["medicine-benign"].recipe == r8
    assert tunes["medicine-benign"].careful and tunes["medicine-narrow"].narrow_weight == 2.0
    assert (C5.base.steps, C5.base.batch_size, C5.base.learning_rate, C5.base.betas) == (700, 64, 3e-3, (0.9, 0.98))


def test_every_stage_gets_its_own_seed():
    seeds = [recipe.seed for _, recipe, _ in C5.seeded(0).stages()]
    assert len(set(seeds)) == len(seeds) == 9
    assert C5.seeded(0) == C5.seeded(0) != C5.seeded(1)


def test_names_and_held_out_topics_are_checked():
    with pytest.raises(InputError, match="names must be distinct, and neither 'base' nor 'instruct'"):
        replace(C5, finetunes=(C5.finetunes[0], C5.finetunes[0]))
    with pytest.raises(InputError, match="topics_per_finetune=32 leaves none of 32 topics held out; pass fewer"):
        replace(C5, topics_per_finetune=32)
