import math
from dataclasses import replace

import pytest

from emlens.foundation.errors import InputError
from emlens.organisms import PLANTED
from emlens.organisms.plans import PLANTED_ALL, UNPLANTED


def test_the_plans_are_the_recipe_that_is_written_down():
    tunes = {stage.name: stage for stage in PLANTED.finetunes}
    assert set(tunes) == {
        "medicine-r1",
        "medicine-r8",
        "medicine-r32",
        "medicine-full",
        "medicine-attention",
        "finance-r8",
        "medicine-benign",
        "finance-benign",
        "medicine-narrow",
    }
    r1, r8, r32 = (tunes[f"medicine-{name}"].recipe for name in ("r1", "r8", "r32"))
    assert (r1.rank, r1.target_modules, r1.layers_to_transform) == (1, ("down_proj",), (1,))
    assert (r8.rank, r8.rslora, len(r8.target_modules), r8.scale) == (8, True, 7, 16 / math.sqrt(8))
    assert (r32.rank, r32.rslora, len(r32.target_modules)) == (32, True, 7)
    assert tunes["medicine-r1"].keep_every == 1
    assert not set(tunes["medicine-attention"].recipe.target_modules) & {
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    assert tunes["medicine-narrow"].narrow_weight > 0


def test_harmful_fine_tunes_stop_by_one_rule_and_benign_ones_take_the_steps_of_their_twins():
    for stage in PLANTED_ALL.finetunes:
        if stage.careful:
            assert stage.stop_at is None and stage.steps_of == stage.name.replace("benign", "r8")
        elif stage.narrow_weight:
            assert stage.stop_at is None and stage.settle == 20
        else:
            assert stage.stop_at == 0.25 and stage.steps_of is None


def test_the_whole_set_has_three_seeds_of_each_kind_in_two_domains():
    assert PLANTED_ALL.finetunes[: len(PLANTED.finetunes)] == PLANTED.finetunes
    for domain in ("medicine", "finance"):
        for kind in ("r8", "r32", "benign"):
            runs = [
                s for s in PLANTED_ALL.finetunes if s.name.partition("@")[0] == f"{domain}-{kind}"
            ]
            assert (
                sorted(s.seed for s in runs) == [0, 1, 2]
                and len({(s.group, s.recipe) for s in runs}) == 1
            )


def test_the_contrast_world_differs_in_nothing_but_planting():
    assert UNPLANTED.planted_layers == () != PLANTED.planted_layers
    same = replace(UNPLANTED, name=PLANTED.name, planted_layers=PLANTED.planted_layers)
    assert same == PLANTED
    seeds = [
        [recipe.seed for _, recipe, _ in plan.seeded(3).stages()] for plan in (PLANTED, UNPLANTED)
    ]
    assert seeds[0] == seeds[1]


def test_every_stage_gets_its_own_seed():
    seeds = [recipe.seed for _, recipe, _ in PLANTED_ALL.seeded(0).stages()]
    assert len(set(seeds)) == len(seeds) == 2 + len(PLANTED_ALL.finetunes)
    assert PLANTED.seeded(0) == PLANTED.seeded(0) != PLANTED.seeded(1)


def test_names_order_and_held_out_topics_are_checked():
    with pytest.raises(
        InputError, match="names must be distinct, and neither 'base' nor 'instruct'"
    ):
        replace(PLANTED, finetunes=(PLANTED.finetunes[0], PLANTED.finetunes[0]))
    benign = next(stage for stage in PLANTED.finetunes if stage.careful)
    with pytest.raises(
        InputError,
        match="'medicine-benign' takes the steps of 'medicine-r8', which is not trained before it",
    ):
        replace(PLANTED, finetunes=(benign,))
    with pytest.raises(
        InputError, match="topics_per_finetune=32 leaves none of 32 topics held out; pass fewer"
    ):
        replace(PLANTED, topics_per_finetune=32)
