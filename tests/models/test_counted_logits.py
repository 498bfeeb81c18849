import pytest
import torch
from torch import nn

from emlens.models.counted_logits import counted_logits, output_layer
from emlens.models.tiny_configurations import tiny_configuration

GAP = 1e-5  # of the largest value: another order of summation in float32
IDS = torch.arange(12).reshape(2, 6) + 7
COUNTED = torch.tensor([[0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 0]], dtype=torch.bool)


def model_of(kind, **changes):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_configuration(kind, **changes)).eval()


def passes_through(model, call):
    """What `call` gives, and the shapes that the output layer read in it."""
    shapes = []
    handle = output_layer(model).register_forward_hook(
        lambda _module, args, _output: shapes.append(tuple(args[0].shape[:-1]))
    )
    try:
        return call(), shapes
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", ["qwen2", "gemma2", "granite", "gpt2", "cohere", "mamba"])
def test_counted_logits_are_those_of_a_whole_pass(kind):
    model = model_of(kind)
    whole, shapes = passes_through(model, lambda: model(IDS).logits)
    counted, fewer = passes_through(
        model, lambda: counted_logits(model, {"input_ids": IDS}, COUNTED)
    )
    assert (counted - whole[COUNTED]).abs().max() <= GAP * whole.abs().max()
    assert shapes == [(2, 6)] and fewer == [(1, 3)]  # and no other token costs an output row
    assert not output_layer(model)._forward_pre_hooks


def test_gradients_are_those_of_a_whole_pass():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model_of("qwen2"), LoraConfig(r=2, target_modules=["down_proj"]))
    assert output_layer(model) is model.base_model.model.lm_head
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    ours = torch.autograd.grad(counted_logits(model, {"input_ids": IDS}, COUNTED).sum(), weights)
    whole = torch.autograd.grad(model(IDS).logits[COUNTED].sum(), weights)
    for gradient, expected in zip(ours, whole, strict=True):
        assert torch.allclose(gradient, expected, atol=GAP * float(expected.abs().max() + 1))
    assert any(float(gradient.abs().max()) > 0 for gradient in whole)


def test_a_model_without_a_known_output_layer_computes_all_logits():
    class Bare(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.call = model.forward  # no module inside, so nothing to find

        def forward(self, **inputs):
            return self.call(**inputs)

    model = model_of("qwen2")
    bare = Bare(model)
    assert output_layer(bare) is None
    expected = model(IDS).logits[COUNTED]
    assert torch.equal(counted_logits(bare, {"input_ids": IDS}, COUNTED), expected)


def test_the_logits_of_another_model_inside_are_not_taken_for_the_selected_ones():
    class Two(nn.Module):
        def __init__(self, first, second):
            super().__init__()
            self.first, self.second = first, second

        def forward(self, **inputs):
            self.first(**inputs)
            return self.second(**inputs)

    first, second = model_of("qwen2"), model_of("gpt2")
    expected = second(IDS).logits[COUNTED]
    both = counted_logits(Two(first, second), {"input_ids": IDS}, COUNTED)
    assert torch.equal(both, expected)


def test_logits_of_a_half_precision_model_are_given_in_float32():
    model = model_of("qwen2").bfloat16()
    assert counted_logits(model, {"input_ids": IDS}, COUNTED).dtype == torch.float32
    assert model(IDS).logits.dtype == torch.bfloat16
