"""Reading a model in training leaves it as it was."""

import pytest
import tiny_models
from peft import PeftModel
from transformers import AutoModelForCausalLM

from emlens.foundation import StateError
from emlens.screening.live_model import adapter_off


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    root = tmp_path_factory.mktemp("live")
    path = tiny_models.build(root / "instruct")
    adapter = tiny_models.build_adapter(root / "one", path, seed=1)
    parent = AutoModelForCausalLM.from_pretrained(path)
    return PeftModel.from_pretrained(parent, str(adapter), is_trainable=True)


def flags(model):
    return [parameter.requires_grad for parameter in model.parameters()]


def test_gradient_flags_are_as_they_were_also_after_an_error(adapted):
    before = flags(adapted)
    assert any(before) and not all(before)
    with adapter_off(adapted):
        pass
    assert flags(adapted) == before
    with pytest.raises(RuntimeError, match="planted"), adapter_off(adapted):
        raise RuntimeError("planted")
    assert flags(adapted) == before


def test_an_adapter_is_switched_off_by_one_block_at_a_time(adapted):
    with (
        adapter_off(adapted),
        pytest.raises(StateError, match="is switched off by another block already"),
        adapter_off(adapted),
    ):
        pass
    with adapter_off(adapted):  # the refused block left no mark
        pass
    with adapter_off(adapted.get_base_model()):  # nothing to switch off
        pass
