import pytest
from torch import nn

from emlens.foundation import LoadError
from emlens.models.architectures import architecture_of


def test_an_unknown_architecture_is_refused_with_what_was_found():
    from transformers import BertConfig, BertModel

    small = BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    with pytest.raises(LoadError, match=r"model type 'bert' is not one emlens knows .*qwen2.*found top modules: embeddings, encoder"):
        architecture_of(BertModel(small))
    with pytest.raises(LoadError, match="model type 'Linear' is not one emlens knows"):
        architecture_of(nn.Linear(1, 1))


def test_a_missing_module_is_named(shared):
    import copy

    broken = copy.deepcopy(shared.module)
    del broken.model.layers[0].post_attention_layernorm
    with pytest.raises(LoadError, match="model type 'qwen2' lacks a module its table row names: .*post_attention_layernorm"):
        architecture_of(broken)
    architecture_of(shared.module)
