"""Drawn updates keep what they must keep of a fine-tune's, and nothing else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from emlens.activations import CaptureSpec, activation_deltas, capture
from emlens.controls import update_landmark
from emlens.controls.permuted_answers import permuted_answers
from emlens.controls.update_landmark import (
    _leading,
    gradient_update,
    haar_update,
    linear_update,
    singular_values,
    update_length,
    update_null,
)
from emlens.data import PromptSet
from emlens.data.prompts import Message, Prompt
from emlens.foundation.errors import InputError
from emlens.foundation.seeds import torch_rng
from emlens.interventions.applied_adapter import applied_adapter
from emlens.interventions.lora import LoraAdapter, LoraFactors
from emlens.models import HookedModel, load_model, pass_memory
from emlens.training.examples import encode_answers, pad_batch
from emlens.training.fitting import load_parent
from emlens.training.objectives import answer_loss

SPEC = CaptureSpec("resid_post", None, ("last_prompt",))


def chats(n: int, seed: int, answered: bool = False) -> PromptSet:
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        text = " ".join(rng.choice(tiny_models.WORDS, 4))
        answer = ("w1 w2", "w5 w6", "w7")[i % 3] if answered else None
        rows.append(Prompt(str(i), text, "g", (Message("user", text),), answer))
    return PromptSet(rows)


@pytest.fixture(scope="module")
def parent_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build(tmp_path_factory.mktemp("landmark") / "instruct")


@pytest.fixture(scope="module")
def model(parent_path: Path) -> Any:
    return load_model(parent_path, dtype="float32")


@pytest.fixture(scope="module")
def update(parent_path: Path) -> LoraAdapter:
    return LoraAdapter.load(tiny_models.build_adapter(parent_path.parent / "bad", parent_path))


def change(factors: LoraFactors) -> torch.Tensor:
    return factors.scale * factors.b.double() @ factors.a.double()


def test_a_random_update_has_the_singular_values_and_no_singular_vector(
    update: LoraAdapter,
) -> None:
    drawn = haar_update(update, torch_rng(0, "test"))
    assert list(drawn.modules) == list(update.modules)
    for path, factors in update.modules.items():
        expected = torch.linalg.svdvals(change(factors))[: factors.r]
        got = torch.linalg.svdvals(change(drawn.modules[path]))[: factors.r]
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(singular_values(factors), expected, rtol=1e-6, atol=1e-9)
        u, _, _ = torch.linalg.svd(change(factors))
        v, _, _ = torch.linalg.svd(change(drawn.modules[path]))
        assert float((u[:, 0] @ v[:, 0]).abs()) < 0.7
    lengths = [change(factors).norm() for factors in update.modules.values()]
    assert update_length(update) == pytest.approx(float(torch.stack(lengths).norm()))


def test_frames_have_no_preferred_direction() -> None:
    """The mean of vᵢvᵢᵀ over draws is I/d: without fixed signs QR gives other means of vᵢ."""
    one = LoraAdapter({"m": LoraFactors(torch.ones(1, 6), torch.ones(8, 1), 1.0)})
    rows = []
    for number in range(400):
        factors = haar_update(one, torch_rng(number, "test")).modules["m"]
        rows.append(factors.b[:, 0] / factors.b.norm())
    vectors = torch.stack(rows).double()
    # ± 4 standard errors: a coordinate has variance 1/8
    assert float(vectors.mean(0).abs().max()) < 4 * (1 / 8 / 400) ** 0.5
    moment = vectors.T @ vectors / len(vectors)
    assert float((moment - torch.eye(8) / 8).abs().max()) < 0.05


def test_drawn_shifts_are_as_long_and_damage_is_measured(
    model: Any, update: LoraAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, evaluation = chats(12, 1), chats(12, 2)
    landmark = update_null(
        model, update, (train, evaluation), neutral=chats(6, 3), spec=SPEC, draws=2, k=3
    )
    np.testing.assert_allclose(landmark.draws["length"], 1.0, atol=0.05)
    assert landmark.draws["scale"].gt(0).all() and landmark.draws["nats"].gt(0).all()
    assert landmark.cells["draw"].nunique() == 2 and landmark.comparable
    assert not model.interventions  # the parent is as it was
    before = capture(model, train, spec=SPEC, progress=False)
    assert before.keys == capture(model, train, spec=SPEC, progress=False).keys
    again = update_null(
        model, update, (train, evaluation), neutral=chats(6, 3), spec=SPEC, draws=2, k=3
    )
    assert again.cells.equals(landmark.cells)
    rows = model.render(list(chats(6, 3)))
    logits = model.token_logprobs(list(chats(6, 3)))
    losses = [
        -float(logprobs[t, row.ids[t + 1]])
        for row, logprobs in zip(rows, logits, strict=True)
        for t in range(len(row.ids) - 1)
    ]
    assert landmark.parent_nats == pytest.approx(np.mean(losses), rel=1e-5)
    monkeypatch.setattr(pass_memory, "TEXT_LOGITS", 1)
    held = []
    logprobs_of = HookedModel.token_logprobs

    def counted(self: HookedModel, prompts: Any) -> Any:
        held.append(len(prompts))
        return logprobs_of(self, prompts)

    monkeypatch.setattr(HookedModel, "token_logprobs", counted)
    assert update_landmark._nats(model, chats(6, 3)) == pytest.approx(np.mean(losses), rel=1e-5)
    assert held == [1] * 6  # one text at a time


def test_a_gradient_update_is_the_gradient_cut_to_the_rank(
    model: Any, update: LoraAdapter, parent_path: Path
) -> None:
    careful = chats(8, 4, answered=True)
    module, tokenizer = load_parent(parent_path)
    drawn = gradient_update(model, update, careful, tokenizer, seed=3)
    rows = encode_answers(permuted_answers(careful, seed=3), tokenizer)
    answer_loss(module, pad_batch(rows, 0)).backward()
    for path, factors in update.modules.items():
        gradient = -module.get_submodule(path).weight.grad.double()
        u, values, v = torch.linalg.svd(gradient, full_matrices=False)
        r = factors.r
        cut = u[:, :r] * values[:r] @ v[:r]
        got = change(drawn.modules[path])
        cosine = (got * cut).sum() / got.norm() / cut.norm()
        assert float(cosine) == pytest.approx(1.0, abs=1e-4)
        assert float(got.norm()) == pytest.approx(float(change(factors).norm()), rel=1e-3)
    assert all(not weight.requires_grad for weight in model.module.parameters())


def test_a_draw_reads_one_batch_of_its_own_rows(
    model: Any, update: LoraAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[tuple[int, ...]]] = []

    def recorded(model: Any, examples: Any, weights: Any) -> Any:
        read.append([tuple(example["input_ids"]) for example in examples])
        return tuple(torch.ones_like(weight) for weight in weights)

    monkeypatch.setattr("emlens.controls.update_landmark._gradients", recorded)
    for seed in (0, 0, 1):
        gradient_update(model, update, chats(30, 4, answered=True), model.tokenizer, seed)
    assert [len(rows) for rows in read] == [8, 8, 8]
    assert read[0] == read[1] and set(read[0]) != set(read[2])


def test_a_gradient_is_cut_at_random_as_it_is_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(d, 60, generator=generator) for d in (80, 120))
    gradient = left * torch.arange(1, 61) ** -1.0 @ right.T
    exact_u, exact_values, exact_v = torch.linalg.svd(gradient, full_matrices=False)
    u, values, v = _leading(gradient, 4, seed=0)
    torch.testing.assert_close(values, exact_values[:4], rtol=1e-4, atol=0)
    exact = exact_u[:, :4] * exact_values[:4] @ exact_v[:4]
    assert float((u * values @ v - exact).norm()) < 1e-2 * float(exact.norm())
    again = _leading(gradient, 4, seed=0)
    assert torch.equal(u, again[0]) and torch.equal(v, again[2])
    # of many directions an exact one is as cheap
    assert torch.equal(_leading(gradient, 40, seed=0)[1], exact_values[:40])


def test_a_full_update_leaves_embeddings_and_norms_at_the_parents(
    model: Any, parent_path: Path, tmp_path: Path
) -> None:
    module, tokenizer = load_parent(parent_path)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if name.endswith("proj.weight"):
                weight += 0.01 * torch.randn(weight.shape, generator=generator)
    module.save_pretrained(tmp_path / "linear")
    tokenizer.save_pretrained(tmp_path / "linear")
    with torch.no_grad():
        module.get_input_embeddings().weight += 0.1
    module.save_pretrained(tmp_path / "all")
    tokenizer.save_pretrained(tmp_path / "all")
    linear, everything = (
        load_model(tmp_path / name, dtype="float32") for name in ("linear", "all")
    )
    update = linear_update(model, everything)
    prompts = chats(8, 1)
    before, after = (capture(m, prompts, spec=SPEC, progress=False) for m in (model, linear))
    expected = activation_deltas(before, after)
    with applied_adapter(model, update) as updated:
        got = activation_deltas(before, capture(updated, prompts, spec=SPEC, progress=False))
    for key in expected.keys:
        assert (got[key] - expected[key]).norm() < 1e-3 * expected[key].norm()
    with pytest.raises(InputError, match="'instruct' changes no linear layer of its parent"):
        linear_update(model, model)


def test_what_cannot_be_drawn_is_refused(model: Any, update: LoraAdapter, unchecked: None) -> None:
    sides = chats(6, 1), chats(6, 2)
    with pytest.raises(InputError, match="draws=0 must be 1 or more"):
        update_null(model, update, sides, draws=0, spec=SPEC)
    with pytest.raises(InputError, match="kind='gradient' needs careful= and tokenizer="):
        update_null(model, update, sides, kind="gradient", spec=SPEC)
    nothing = LoraAdapter(
        {path: LoraFactors(f.a, 0 * f.b, f.scale) for path, f in update.modules.items()}
    )
    with pytest.raises(InputError, match="update shifts no training prompt"):
        update_null(model, nothing, sides, spec=SPEC)
