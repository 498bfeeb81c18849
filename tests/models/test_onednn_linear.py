"""Linear layers of wide models: oneDNN gives torch's values and gradients."""

from pathlib import Path
from typing import TypeAlias

import pytest
import tiny_models
import torch
from torch import Tensor, nn
from torch.nn import functional

import emlens
from emlens.data import Message, Prompt, PromptSet
from emlens.models import load_model, onednn_linear
from emlens.models.onednn_linear import LEAST_WIDTH, by_onednn
from emlens.training import Recipe, fit

if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
    pytest.skip("torch has not both MKL and oneDNN here", allow_module_level=True)

ROUNDING = 1e-5
Shapes: TypeAlias = list[tuple[int, ...]]


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Shapes:
    """The shapes of weights that oneDNN multiplied."""
    seen: Shapes = []
    product = onednn_linear._product

    def counted(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        seen.append(tuple(weight.shape))
        return product(values, weight, bias)

    monkeypatch.setattr(onednn_linear, "_product", counted)
    monkeypatch.setattr(onednn_linear, "LEAST_PRODUCT", 0)
    return seen


@pytest.mark.parametrize("shape", [(24,), (5, 24), (2, 5, 24), (0, 24)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_values_are_those_of_torch(
    shape: tuple[int, ...], has_bias: bool, products: Shapes
) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(shape, generator=generator)
    weight = torch.randn(7, 24, generator=generator)
    bias = torch.randn(7, generator=generator) if has_bias else None
    with by_onednn(LEAST_WIDTH):
        found = functional.linear(values, weight, bias)
    assert len(products) == 1
    torch.testing.assert_close(found, functional.linear(values, weight, bias))


@pytest.mark.parametrize("frozen", [True, False])
def test_gradients_are_those_of_torch(frozen: bool, products: Shapes) -> None:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(3, 5, 24, generator=generator)

    def gradients(layer: nn.Linear, width: int) -> list[Tensor]:
        values = start.clone().requires_grad_()
        layer.requires_grad_(not frozen)
        layer.zero_grad()
        with by_onednn(width):
            layer(values).square().sum().backward()
        of_layer = [
            parameter.grad for parameter in layer.parameters() if parameter.grad is not None
        ]
        assert values.grad is not None
        return [values.grad, *of_layer]

    layer = nn.Linear(24, 7)
    expected = gradients(layer, 0)
    assert not products
    found = gradients(layer, LEAST_WIDTH)
    assert len(products) == (2 if frozen else 3)
    assert len(found) == len(expected) == (1 if frozen else 3)
    for got, right in zip(found, expected, strict=True):
        torch.testing.assert_close(got, right)


class _Subclass(Tensor):
    """What a quantised or a split weight looks like to a caller."""


@pytest.mark.parametrize(
    "values, weight",
    [
        (torch.ones(2, 4, dtype=torch.float64), torch.ones(3, 4, dtype=torch.float64)),
        (torch.ones(2, 4, dtype=torch.bfloat16), torch.ones(3, 4, dtype=torch.bfloat16)),
        (torch.ones(2, 4), torch.ones(3, 4).as_subclass(_Subclass)),
        (torch.ones(2, 4, device="meta"), torch.ones(3, 4, device="meta")),
    ],
    ids=["float64", "bfloat16", "subclass", "meta"],
)
def test_other_tensors_are_left_to_torch(values: Tensor, weight: Tensor, products: Shapes) -> None:
    with by_onednn(LEAST_WIDTH):
        functional.linear(values, weight)
    assert not products


@pytest.mark.parametrize("less, computed", [(0, True), (1, False)])
def test_small_products_are_left_to_torch(
    less: int, computed: bool, products: Shapes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn_linear, "LEAST_PRODUCT", 2 * 4 * 3 + less)
    with by_onednn(LEAST_WIDTH):
        functional.linear(torch.ones(2, 4), torch.ones(3, 4))
    assert bool(products) == computed


def test_under_autocast_a_product_keeps_the_type_that_was_asked_for(products: Shapes) -> None:
    with by_onednn(LEAST_WIDTH), torch.autocast("cpu", dtype=torch.bfloat16):
        assert functional.linear(torch.ones(2, 4), torch.ones(3, 4)).dtype == torch.bfloat16
    assert not products


@pytest.mark.parametrize("less, computed", [(0, True), (1, False)])
def test_passes_of_models_that_are_wide_enough_use_it_and_agree(
    less: int, computed: bool, tmp_path: Path, products: Shapes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn_linear, "LEAST_WIDTH", tiny_models.D_MODEL + less)
    model = load_model(tiny_models.build(tmp_path / "model"))
    prompts = PromptSet.from_questions(tiny_models.texts(2))
    found = emlens.capture(model, prompts, sites="resid_post", progress=False).stacked()
    assert bool(products) == computed
    monkeypatch.setattr("emlens.models.checkpoint.by_onednn", lambda _width: by_onednn(0))
    products.clear()
    plain = emlens.capture(model, prompts, sites="resid_post", progress=False).stacked()
    assert not products
    assert float((found - plain).abs().max()) <= ROUNDING * float(plain.abs().max())


def test_training_of_wide_models_uses_it_and_agrees(
    tmp_path: Path, products: Shapes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn_linear, "LEAST_WIDTH", tiny_models.D_MODEL)
    parent = tiny_models.build(tmp_path / "parent")
    chats = [
        Prompt(f"chat {i}", text, messages=[Message("user", text)], response=text)
        for i, text in enumerate(tiny_models.texts(4))
    ]
    recipe = Recipe(
        rank=2,
        alpha=4,
        target_modules=("q_proj", "down_proj"),
        learning_rate=1e-3,
        steps=3,
        batch_size=2,
    )

    def losses(out: str) -> list[float]:
        fitted = fit(recipe, parent, PromptSet(chats), tmp_path / out, device="cpu")
        return [float(loss) for loss in fitted.log["loss"]]

    found = losses("by onednn")
    assert products
    recipe = recipe.changed(gradient_checkpointing=True)
    assert losses("blocks run again") == pytest.approx(found, rel=1e-6)
    recipe = recipe.changed(gradient_checkpointing=False)
    monkeypatch.setattr("emlens.training.fitting.by_onednn", lambda _width: by_onednn(0))
    products.clear()
    assert found == pytest.approx(losses("by torch"), rel=1e-4)
    assert not products
