"""Trees of modules on shared weights: a second one costs Python objects, not parameters."""

import copy
from collections import Counter
from collections.abc import Collection

from torch import nn


def twin(module: nn.Module, own: Collection[str] = ()) -> nn.Module:
    """A second tree of modules and configurations on the very same parameters and buffers.

    Args:
        own: names of parameters of which the second tree gets copies; ties among them stay.
    """
    copied = {
        id(parameter)
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if name in own
    }
    tensors = (*module.parameters(), *module.buffers())
    # deepcopy takes what its memo holds already instead of copying it
    return copy.deepcopy(module, {id(t): t for t in tensors if id(t) not in copied})


def is_adapted(layer: nn.Module) -> bool:
    """Whether PEFT has wrapped this layer."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper)


def without_adapters(module: nn.Module) -> nn.Module:
    """The tree with every layer of PEFT replaced by the layer that it wraps."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path, layer in list(module.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            parent, _, last = path.rpartition(".")
            setattr(module.get_submodule(parent), last, layer.get_base_layer())
    module.__dict__.pop("peft_config", None)
    return module


def untie_adapted(module: nn.Module) -> int:
    """Give every adapted layer weights of its own where another module has the same ones.

    A merge writes into the weights. In a model whose output matrix is its embedding it would change
    both, though the adapter changes one.

    Returns:
        How many weights were copied.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    owners = Counter(
        id(parameter)
        for inner in module.modules()
        for parameter in inner._parameters.values()
        if parameter is not None
    )
    copied = 0
    for layer in list(module.modules()):
        if not isinstance(layer, BaseTunerLayer):
            continue
        base = layer.get_base_layer()
        for name, parameter in list(base._parameters.items()):
            if parameter is not None and owners[id(parameter)] > 1:
                owners[id(parameter)] -= 1
                setattr(base, name, nn.Parameter(parameter.detach().clone(), requires_grad=False))
                copied += 1
    return copied
