"""Directions between two lists of texts."""

from typing import Any

import pytest
import tiny_models
import torch

from emlens.directions import direction_from_texts
from emlens.foundation import InputError
from emlens.models import HookedModel, load_model

POSITIVE, NEGATIVE = ["w1 w2", "w3"], ["w4", "w5 w6 w7", "w8"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    return load_model(tiny_models.build(tmp_path_factory.mktemp("texts") / "m"))


def stream_after(model: Any, text: str, layer: int) -> torch.Tensor:
    """The last token's row of `hidden_states`, whose index 0 is the embedding output."""
    ids = model.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        states = model.module(ids, output_hidden_states=True).hidden_states
    return states[layer + 1][0, -1].double()


def test_it_is_the_difference_of_means(model: HookedModel) -> None:
    found = direction_from_texts(model, POSITIVE, NEGATIVE, layer=0, progress=False)
    means = [
        torch.stack([stream_after(model, text, 0) for text in texts]).mean(0)
        for texts in (POSITIVE, NEGATIVE)
    ]
    torch.testing.assert_close(found.vector.double(), means[0] - means[1], atol=1e-5, rtol=1e-4)
    assert str(found.site) == "resid_post.0" and list(found.ids["positive"]) == [
        "positive 0",
        "positive 1",
    ]
    asked = direction_from_texts(model, POSITIVE, NEGATIVE, layer=0, chat=True, progress=False)
    assert not torch.allclose(asked.vector, found.vector)


@pytest.mark.parametrize(
    ("positive", "message"), [("w1", "positive must be a list of texts"), ([], "at least one")]
)
def test_what_is_no_list_of_texts_is_refused(
    model: HookedModel, positive: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        direction_from_texts(model, positive, NEGATIVE, layer=0)
