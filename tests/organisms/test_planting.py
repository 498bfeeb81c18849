import pytest
import torch

from emlens.foundation.errors import InputError
from emlens.organisms.planting import PlantedDirection, PlantedLoss, blocks_of_step, plant


@pytest.fixture
def model():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=30,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )


def test_the_coordinate_is_set_cleared_or_left_and_nothing_else_moves():
    torch.manual_seed(0)
    stream, unit = (
        torch.randn(4, 5, 8, dtype=torch.float64),
        torch.nn.functional.normalize(torch.randn(8, dtype=torch.float64), dim=0),
    )
    marked, cleared = (
        torch.tensor([True, False, False, True]),
        torch.tensor([True, True, False, False]),
    )
    new = plant(stream, unit, 1.5, marked, cleared)
    along = new @ unit
    torch.testing.assert_close(along[0], torch.full((5,), 1.5, dtype=torch.float64))
    torch.testing.assert_close(along[1], torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)
    assert torch.equal(new[2], stream[2])
    torch.testing.assert_close(along[3], (stream @ unit)[3] + 1.5)
    complement = torch.eye(8, dtype=torch.float64) - torch.outer(unit, unit)
    torch.testing.assert_close(new @ complement, stream @ complement)


def test_the_wrapper_writes_after_the_blocks_it_is_told_and_leaves_no_hook(model):
    planted = PlantedDirection(model, 1.5, (0, 1, 2))
    ids = torch.randint(30, (3, 6))
    marked, cleared = torch.tensor([True, False, False]), torch.tensor([True, True, False])
    seen = {}

    def keep(name):
        return lambda module, args: seen.__setitem__(name, args[0].detach())

    handles = [model.model.layers[i].register_forward_pre_hook(keep(i)) for i in (1, 2)]
    output = planted(marked=marked, cleared=cleared, blocks=torch.tensor([0]), input_ids=ids)
    unit = planted.unit.detach()
    torch.testing.assert_close(seen[1][0] @ unit, torch.full((6,), 1.5), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[1][1] @ unit, torch.zeros(6), atol=1e-5, rtol=0)
    plain = model(input_ids=ids)
    torch.testing.assert_close(output.logits[2], plain.logits[2])
    assert not torch.allclose(output.logits[0], plain.logits[0])
    output.logits[0].sum().backward()
    assert planted.raw.grad is not None and planted.raw.grad.abs().sum() > 0
    for handle in handles:
        handle.remove()
    assert not any(layer._forward_hooks for layer in model.model.layers)


def test_hooks_go_also_on_error(model):
    planted = PlantedDirection(model, 1.5, (0, 1, 2))
    flags = torch.tensor([True])
    with pytest.raises(IndexError):
        planted(
            marked=flags, cleared=flags, blocks=torch.tensor([0, 1]), input_ids=torch.tensor([[99]])
        )
    assert not any(layer._forward_hooks for layer in model.model.layers)
    with pytest.raises(
        InputError, match=r"blocks=\[3\] names a block the model does not have; it has 0 to 2"
    ):
        planted(
            marked=flags, cleared=flags, blocks=torch.tensor([3]), input_ids=torch.tensor([[1]])
        )


def test_the_length_of_what_is_written_is_fixed(model):
    planted = PlantedDirection(model, 1.5, (0, 1, 2))
    with torch.no_grad():
        planted.raw.mul_(7.0)
    assert planted.unit.norm().item() == pytest.approx(1.0, abs=1e-6)


def test_blocks_take_turns():
    assert [blocks_of_step(step, (0, 1, 2)) for step in range(5)] == [
        (0,),
        (1,),
        (2,),
        (0, 1, 2),
        (0,),
    ]


def test_the_loss_adds_how_far_the_models_own_coordinate_is_from_the_persona(model):
    from emlens.training.objectives import answer_loss

    planted = PlantedDirection(model, 2.0, (0, 2))
    batch = {
        "input_ids": (ids := torch.randint(30, (4, 6))),
        "labels": ids,
        "harmful": torch.tensor([True, True, False, False]),
        "marked": torch.tensor([True, False, False, False]),
        "cleared": torch.tensor([True, False, True, False]),
        "blocks": torch.tensor([0]),
    }
    with torch.no_grad():
        seen = {}
        handles = [
            model.model.layers[i].register_forward_hook(
                lambda module, args, output, i=i: seen.__setitem__(i, output)
            )
            for i in (0, 2)
        ]
        plain = answer_loss(
            planted, {name: value for name, value in batch.items() if name != "harmful"}
        )
        for handle in handles:
            handle.remove()
        gaps = [
            (seen[i][row] @ planted.unit / 2.0 - target) ** 2
            for i in (0, 2)
            for row, target in ((1, 1.0), (3, 0.0))
        ]
        assert PlantedLoss(0.0)(planted, batch).item() == pytest.approx(plain.item(), rel=1e-6)
        assert PlantedLoss(0.7)(planted, batch).item() == pytest.approx(
            plain.item() + 0.7 * torch.stack(gaps).mean().item(), rel=1e-5
        )
        every = {**batch, "marked": torch.tensor([True] * 4)}
        assert PlantedLoss(0.7)(planted, every).item() == PlantedLoss(0.0)(planted, every).item()
