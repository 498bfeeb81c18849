"""The projection of every token on a direction, beside the model's own hidden states."""

import pytest
import tiny_models
import torch

from emlens.data.prompts import Prompt, PromptSet
from emlens.directions import token_projections as module
from emlens.directions.token_projections import spread_layers, token_projections
from emlens.foundation.sites import Site
from emlens.geometry import Direction
from emlens.models import HookedModel, load_model

TEXTS = ("w1 w2 w3 w4", "w5 w6")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    return load_model(tiny_models.build(tmp_path_factory.mktemp("tokens") / "m"))


def a_direction(model: HookedModel) -> Direction:
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(model.d_model, generator=generator) * 7  # its length must not matter
    return Direction(vector, site=Site.parse("resid_post.0"), position="last_prompt")


def prompts() -> PromptSet:
    return PromptSet(Prompt(f"p{i}", text) for i, text in enumerate(TEXTS))


def test_projections_are_dot_products_with_the_unit_vector(model: HookedModel) -> None:
    direction = a_direction(model)
    table = token_projections(model, direction, prompts(), [0, 1])
    unit = direction.vector.double() / direction.vector.double().norm()
    for i, text in enumerate(TEXTS):
        ids = model.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            states = model.module(ids, output_hidden_states=True).hidden_states
        rows = table[(table["id"] == f"p{i}") & (table["layer"] == 0)]
        want = states[1][0].double() @ unit
        torch.testing.assert_close(
            torch.tensor(rows["projection"].to_numpy()), want, atol=1e-5, rtol=1e-4
        )
        assert list(rows["token_index"]) == list(range(len(want)))
        assert "".join(rows["token"]) == model.tokenizer.decode(ids[0])
    assert sorted(set(table["layer"])) == [0, 1] and bool(table["prompt"].all())


def test_only_a_vector_far_longer_than_the_median_is_a_sink() -> None:
    stream = torch.ones(5, 3)
    assert not module._sinks(stream).any()
    stream[0] *= module.SINK_FACTOR + 1
    assert module._sinks(stream).tolist() == [True, False, False, False, False]


def test_layers_are_spread_and_hold_the_directions_own() -> None:
    assert spread_layers(30, 7) == [7, 10, 19, 29] and spread_layers(4, 2) == [1, 2, 3]
    assert spread_layers(1, 0) == [0]
