import copy

import pytest
import tiny_models
from torch import nn

from emlens.foundation import InputError, LoadError, Site
from emlens.models import load_model
from emlens.models.architectures import ARCHITECTURES, architecture_of


def test_the_table_holds_what_the_documentation_promises():
    promised = {
        "qwen2",
        "qwen3",
        "llama",
        "mistral",
        "gemma2",
        "gemma3_text",
        "phi3",
        "olmo2",
        "gpt2",
        "gpt_neox",
        "falcon",
        "qwen3_moe",
    }
    assert promised <= set(ARCHITECTURES)


def test_a_missing_module_is_named(shared):
    broken = copy.deepcopy(shared.module)
    del broken.model.layers[0].post_attention_layernorm
    with pytest.raises(
        LoadError,
        match="model type 'qwen2' lacks a module its table row names: .*post_attention_layernorm",
    ):
        architecture_of(broken)
    architecture_of(shared.module)


def test_what_the_configuration_decides(tmp_path):
    side_by_side = load_model(tiny_models.build(tmp_path / "parallel", "gpt_neox"))
    one_by_one = load_model(tiny_models.build(tmp_path / "sequential", "gpt_neox, sequential"))
    assert (
        side_by_side.architecture.mid is None
        and one_by_one.architecture.mid == "post_attention_layernorm"
    )
    assert (
        Site("resid_mid", 0) not in side_by_side.sites and Site("resid_mid", 0) in one_by_one.sites
    )
    assert len(side_by_side.sites) == 4 * 3 + 1
    multiplied = load_model(tiny_models.build(tmp_path / "granite", "granite"))
    assert multiplied.architecture.multiplier == 0.6 and one_by_one.architecture.multiplier == 1


def test_a_parallel_block_has_no_stream_between_its_halves(tmp_path):
    from emlens.activations import capture
    from emlens.interventions import steer

    model = load_model(tiny_models.build(tmp_path / "parallel", "falcon"))
    batch = next(model.batches(model.render(tiny_models.prompts(2))))
    match = (
        "site resid_mid.1 does not exist in 'parallel': its blocks run attention and MLP side by"
        " side, so no stream lies between them"
    )
    with pytest.raises(InputError, match=match):
        model.run(batch, {Site("resid_mid", 1): lambda x: None})
    with pytest.raises(InputError, match=match):
        capture(
            model, tiny_models.prompts(2), "resid_mid.1", store=tmp_path / "store", progress=False
        )
    assert not (tmp_path / "store").exists(), "refused before anything was begun"
    with (
        pytest.raises(InputError, match=r"site resid_mid.1 matches nothing in this model"),
        model.intervene([steer(model.unembedding()[0], 1.0, at=["resid_mid.1"])]),
    ):
        pass


def test_what_is_no_language_model_is_refused():
    with pytest.raises(
        LoadError,
        match="model type 'Linear' is not one emlens knows where to hook.*it has no configuration",
    ):
        architecture_of(nn.Linear(1, 1))
