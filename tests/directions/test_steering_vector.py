from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM

from emlens.data import Message, Prompt, PromptSet
from emlens.directions import train_steering_vector
from emlens.foundation import InputError, Site, StateError
from emlens.geometry import direction_cosine
from emlens.interventions import steer
from emlens.models import HookedModel, load_model

SITE = "resid_post.1"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build(tmp_path_factory.mktemp("steering") / "m")


@pytest.fixture(scope="module")
def model(path: Path) -> HookedModel:
    return load_model(path)


def chats(model: HookedModel, texts: list[str], answers: list[str]) -> PromptSet:
    return PromptSet(
        Prompt(f"p{i}", t, "", (Message("user", t),), a)
        for i, (t, a) in enumerate(zip(texts, answers, strict=True))
    )


@pytest.fixture(scope="module")
def planted(model: HookedModel) -> tuple[torch.Tensor, PromptSet]:
    """Chats whose answers are what the model says with a known vector added: the truth is what
    training should find.
    """
    vector = torch.randn(tiny_models.D_MODEL, generator=torch.Generator().manual_seed(3)) * 4
    texts = tiny_models.texts(60, seed=5)
    asked = PromptSet.from_questions(texts)
    with model.intervene([steer(vector, 1.0, at=[SITE])]):
        answers = model.generate(asked, max_new_tokens=4, temperature=0)
    return vector, chats(model, texts, [answer or "w1" for answer in answers])


def test_a_planted_vector_is_found(
    model: HookedModel, planted: tuple[torch.Tensor, PromptSet]
) -> None:
    vector, data = planted
    found = train_steering_vector(
        model, data, SITE, steps=50, batch_size=30, learning_rate=0.05, progress=False
    )
    assert direction_cosine(found.direction, vector) > 0.5  # 32 coordinates: chance has sd .18
    assert (
        found.loss_after < 0.7 * found.loss_before
        and found.log["loss"].iloc[-1] < found.log["loss"].iloc[0]
    )
    assert found.direction.site == Site("resid_post", 1) and found.direction.norm == pytest.approx(
        found.log["norm"].iloc[-1], rel=1e-5
    )
    assert (
        found.direction.ids["trained on"] == tuple(data.ids)
        and found.direction.provenance["steps"] == 50
    )
    before = sum(_mean_loss(model, data, None))
    with model.intervene([steer(found.direction, 1.0)]):
        after = sum(_mean_loss(model, data, None))
    assert found.loss_before == pytest.approx(
        before, rel=1e-5
    ) and found.loss_after == pytest.approx(after, rel=1e-4)


def _mean_loss(model: HookedModel, data: PromptSet, _: Any) -> list[float]:
    """Mean negative log-likelihood by another route: the log-probability of each answer's own
    tokens.
    """
    rows = model.render(data)
    values = model.token_logprobs(data)
    picked = [
        float(-v[t - 1, row.ids[t]])
        for row, v in zip(rows, values, strict=True)
        for t in range(row.prompt_end, len(row.ids))
    ]
    return [sum(picked) / len(picked)]


def test_the_first_step_follows_the_gradient(
    model: HookedModel, path: Path, planted: tuple[torch.Tensor, PromptSet]
) -> None:
    """Adam's first step is the sign of the gradient: that of a plain model with a vector added by a
    hook.
    """
    data = planted[1][:1]
    found = train_steering_vector(
        model, data, SITE, steps=1, batch_size=1, learning_rate=0.01, progress=False
    )
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    vector = torch.zeros(tiny_models.D_MODEL, requires_grad=True)

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        return (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector

    handle = plain.model.layers[1].register_forward_hook(hook)
    row = model.render(data)[0]
    logits = plain(torch.tensor([row.ids])).logits[0]
    handle.remove()
    at = torch.arange(row.prompt_end, len(row.ids))
    torch.nn.functional.cross_entropy(logits[at - 1], torch.tensor(row.ids)[at]).backward()
    assert vector.grad is not None
    large = vector.grad.abs() > 1e-4 * vector.grad.abs().max()
    assert torch.equal(found.direction.vector.sign()[large], -vector.grad.sign()[large])


def test_nothing_of_the_model_is_touched(
    model: HookedModel, planted: tuple[torch.Tensor, PromptSet]
) -> None:
    before = {name: p.detach().clone() for name, p in model.module.named_parameters()}  # type: ignore[attr-defined]
    flags = {name: p.requires_grad for name, p in model.module.named_parameters()}  # type: ignore[attr-defined]
    one = train_steering_vector(model, planted[1], SITE, steps=3, progress=False)
    with torch.no_grad():
        again = train_steering_vector(model, planted[1], SITE, steps=3, progress=False)
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert torch.equal(one.direction.vector, again.direction.vector) and one.log.equals(again.log)
    other = train_steering_vector(model, planted[1], SITE, steps=3, seed=1, progress=False)
    assert not torch.equal(one.direction.vector, other.direction.vector)
    for name, parameter in model.module.named_parameters():  # type: ignore[attr-defined]
        assert (
            torch.equal(parameter, before[name])
            and parameter.requires_grad == flags[name]
            and parameter.grad is None
        )
    assert model.interventions == ()


def test_the_norm_is_bounded_and_the_scope_kept(
    model: HookedModel, planted: tuple[torch.Tensor, PromptSet]
) -> None:
    data = planted[1]
    free = train_steering_vector(model, data, SITE, steps=8, learning_rate=0.2, progress=False)
    bound = 0.2 * free.direction.provenance["stream_norm"]
    held = train_steering_vector(
        model, data, SITE, steps=8, learning_rate=0.2, max_norm=0.2, progress=False
    )
    assert (
        held.direction.norm == pytest.approx(bound, rel=1e-5) and free.direction.norm > 1.2 * bound
    )
    prompt = train_steering_vector(model, data, SITE, steps=3, positions="prompt", progress=False)
    assert not torch.equal(
        prompt.direction.vector,
        train_steering_vector(model, data, SITE, steps=3, progress=False).direction.vector,
    )


def test_refusals(
    model: HookedModel, planted: tuple[torch.Tensor, PromptSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = planted[1]
    for name, value in (("steps", 0), ("batch_size", 1.5)):
        with pytest.raises(InputError, match=f"{name}={value} must be an integer of 1 or more"):
            train_steering_vector(model, data, SITE, **{name: value})  # type: ignore[arg-type]
    for name in ("learning_rate", "max_norm"):
        with pytest.raises(InputError, match=f"{name}=-1.0 must be a positive number"):
            train_steering_vector(model, data, SITE, **{name: -1.0})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="names block 9"):
        train_steering_vector(model, data, "resid_post.9")
    with pytest.raises(InputError, match="prompt 'p0' keeps no answer to train on"):
        train_steering_vector(model, data.without_responses(), SITE)
    # predicted before any response token is read
    one_token = PromptSet(Prompt(f"r{i}", f"w{i}", response="w9") for i in range(2))
    with pytest.raises(
        StateError,
        match="the answers do not depend on what is added at resid_post.2 to 'response' tokens",
    ):
        train_steering_vector(
            model, one_token, "resid_post.2", positions="response", progress=False
        )
    real = model.run

    def broken(batch: Any, readers: Any = None, *, with_logits: bool = False) -> Any:
        found = real(batch, readers, with_logits=with_logits)
        return None if found is None else found * float("nan")

    monkeypatch.setattr(model, "run", broken)
    with pytest.raises(StateError, match="the loss is nan at step 1; lower learning_rate=0.03"):
        train_steering_vector(model, data, SITE, progress=False)
    monkeypatch.setattr(
        model,
        "run",
        lambda batch, readers=None, *, with_logits=False: (
            None if with_logits else real(batch, readers)
        ),
    )
    with pytest.raises(StateError, match="backend 'transformers' returned no logits"):
        train_steering_vector(model, data, SITE, progress=False)

    def silent(batch: Any, readers: Any = None, *, with_logits: bool = False) -> None:
        for reader in (readers or {}).values():
            reader(torch.zeros(*batch.ids.shape, model.d_model))

    monkeypatch.setattr(model, "run", silent)
    with pytest.raises(
        StateError, match="the stream at resid_post.1 is zero, so a vector there has no scale"
    ):
        train_steering_vector(model, data, SITE, progress=False)
