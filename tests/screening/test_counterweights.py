"""What to add: scores against an independent route, and what is chosen."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_models
import torch

from emlens.activations import capture
from emlens.data import PromptSet
from emlens.foundation.errors import InputError
from emlens.foundation.sites import Site
from emlens.geometry import Direction
from emlens.models import HookedModel, load_model
from emlens.screening.counterweights import choose_counterweights, opposing_scores

PLACE = Site.parse("resid_post.1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    return load_model(tiny_models.build(tmp_path_factory.mktemp("added") / "m"))


@pytest.fixture(scope="module")
def pool() -> PromptSet:
    texts, answers = tiny_models.texts(8, seed=1), tiny_models.texts(8, seed=2)
    asked = PromptSet.from_questions(texts)
    return PromptSet(
        replace(prompt, response=answer) for prompt, answer in zip(asked, answers, strict=True)
    )


@pytest.fixture(scope="module")
def direction(model: HookedModel) -> Direction:
    draw = torch.randn(model.d_model, generator=torch.Generator().manual_seed(4))
    return Direction(draw, PLACE)


def test_the_gradient_score_is_the_derivative_of_the_loss(
    model: HookedModel, pool: PromptSet, direction: Direction
) -> None:
    scores = opposing_scores(model, pool, direction)
    module = model.module  # type: ignore[attr-defined]
    for row, score in zip(model.render(pool), scores, strict=True):
        part = row.spans.part("response")
        push = torch.zeros((), requires_grad=True)
        unit = direction.unit.float()

        def added(_: object, __: object, output: torch.Tensor) -> torch.Tensor:
            return output + push * unit  # noqa: B023

        hook = module.model.layers[1].register_forward_hook(added)
        ids = torch.tensor([list(row.ids)])
        logprobs = module(ids).logits[0].double().log_softmax(-1)
        hook.remove()
        picked = [logprobs[i - 1, ids[0, i]] for i in part]
        loss = -torch.stack(picked).mean()
        (by_hand,) = torch.autograd.grad(loss, push)
        assert score == pytest.approx(float(by_hand), rel=0.02, abs=2e-5)


def test_the_shift_score_is_minus_the_projection_of_the_answer(
    model: HookedModel, pool: PromptSet, direction: Direction
) -> None:
    scores = opposing_scores(model, pool, direction, by="shift")
    acts = capture(model, pool, sites=[PLACE], positions=["mean_response"], progress=False)
    along = acts[str(PLACE), "mean_response"].double() @ direction.unit.double()
    assert np.allclose(scores, float(along.mean()) - along.numpy(), atol=1e-5)


@pytest.mark.parametrize("by", ["gradient", "shift"])
def test_the_chats_that_oppose_most_are_chosen_and_the_other_sign_chooses_others(
    model: HookedModel, pool: PromptSet, direction: Direction, by: str
) -> None:
    chosen = choose_counterweights(model, pool, direction, 3, by=by)  # type: ignore[arg-type]
    best = chosen.table.nlargest(3, "score")["id"]
    assert set(chosen.chats.ids) == set(best) == set(chosen.table.query("chosen")["id"])
    assert chosen.chats.ids == [name for name in pool.ids if name in set(best)]
    turned = Direction(-direction.vector, PLACE)
    other = choose_counterweights(model, pool, turned, 3, by=by)  # type: ignore[arg-type]
    assert not set(other.chats.ids) & set(best)


def test_what_cannot_be_chosen_is_refused(
    model: HookedModel, pool: PromptSet, direction: Direction
) -> None:
    with pytest.raises(InputError, match="count=9 must lie between 1 and the 8 chats"):
        choose_counterweights(model, pool, direction, 9)
    with pytest.raises(InputError, match="has no answer; pass chats with answers"):
        opposing_scores(model, pool.without_responses(), direction)
    with pytest.raises(InputError, match="direction has 5 coordinates and 'm'"):
        opposing_scores(model, pool, Direction(torch.ones(5), PLACE))
    with pytest.raises(InputError, match="by='loss'"):
        opposing_scores(model, pool, direction, by="loss")  # type: ignore[arg-type]
