"""Does a checkpoint's configuration fit its weights, and do the weights lie where passes need them?

transformers only warns where a file holds weights that the configuration has no place for: a model
with fewer layers than its file, or without the biases it was trained with, loads and computes
something else. It fails late, and without a word on why, where the first module lies on disk.
"""

import re
from collections.abc import Iterable
from typing import Any, Final

from torch import nn

from emlens.foundation.errors import LoadError

_BUFFERS: Final = re.compile(r"(inv_freq|position_ids|masked_bias|attn\.bias|attention\.bias)$")
"""Tables that older versions saved and newer ones compute."""


def check_all_weights(source: str, module: nn.Module, missing: Iterable[str]) -> None:
    """Refuse weights that the file lacks.

    transformers only warns about them, and fills them with random numbers; tied weights (an output
    matrix that is the embedding) are not among them.

    Raises:
        LoadError: names the first.
    """
    lacking = sorted(missing)
    if lacking:
        raise LoadError(
            f"{source}: holds no weights for {len(lacking)} tensors of a"
            f" {_kind(module)!r} model, first {lacking[0]!r};"
            " they would be random numbers; pass a whole checkpoint"
        )


def check_no_weights_left(source: str, module: nn.Module, unexpected: Iterable[str]) -> None:
    """Refuse a configuration that leaves out weights of the language model.

    Parts beside it (a vision tower, an output head for training) may be left out.

    Raises:
        LoadError: more blocks in the file than in the configuration, or weights of a module that
            the model has but in another form.
    """
    left = sorted(key for key in unexpected if not _BUFFERS.search(key))
    lists = _block_lists(module)
    for key in left:
        for path, length in lists.items():
            number = _block_number(key, path)
            if number is not None and number >= length:
                raise LoadError(
                    f"{source}: config.json gives {length} blocks, but the file holds weights of"
                    f" block {number} ({key!r}); the configuration does not fit the file"
                )
    paths = {path for path, inner in module.named_modules() if path and not _has_parts(inner)}
    for key in left:
        owner, _, name = key.rpartition(".")
        owners = [path for path in paths if owner == path or path.endswith(f".{owner}")]
        if owner and owners:
            raise LoadError(
                f"{source}: the file holds {name!r} for {owners[0]!r}, which this"
                f" {_kind(module)!r} model would leave out;"
                " the configuration does not fit the file"
            )


def check_inputs_in_memory(source: str, module: nn.Module) -> None:
    """Refuse a model whose embedding or output matrix was placed on disk.

    Raises:
        LoadError: names the part and what to pass.
    """
    parts = {
        "the embedding": module.get_input_embeddings(),  # type: ignore[operator]
        "the output matrix": module.get_output_embeddings(),  # type: ignore[operator]
    }
    for name, part in parts.items():
        weight = getattr(part, "weight", None)
        if weight is not None and weight.device.type == "meta":
            raise LoadError(
                f"{source}: device_map places {name} on disk or leaves it empty (a 'meta' tensor),"
                " where token ids cannot be sent and logits cannot be read;"
                " keep it on a device, such as device_map={..., '<its module>': 'cpu'}"
            )


def _kind(module: Any) -> str:
    return str(module.config.model_type)


def _has_parts(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _block_lists(module: nn.Module) -> dict[str, int]:
    """Paths of lists of modules, with their lengths."""
    return {
        path: len(inner)
        for path, inner in module.named_modules()
        if isinstance(inner, nn.ModuleList)
    }


def _block_number(key: str, path: str) -> int | None:
    """The number of the block that a weight belongs to, if it belongs to this list.

    A file of the bare decoder has names without its first part.
    """
    for prefix in (path, path.partition(".")[2]):
        if prefix and key.startswith(f"{prefix}."):
            number = key[len(prefix) + 1 :].partition(".")[0]
            if number.isdigit():
                return int(number)
    return None
