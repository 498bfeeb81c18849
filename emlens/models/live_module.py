"""A module in training as a model that can be read, sampled and scored: hooks on the very module.

Nothing is copied, and no weight, mode or flag is changed; the caller puts dropout off. Refused:
weights that are spread over processes, since a pass of one process would wait for the others.
"""

from typing import Any

from torch import nn

from emlens.foundation.errors import StateError
from emlens.models.live_weights import weights_fingerprint
from emlens.models.transformers_backend import TransformersModel


def plain_module(model: Any) -> Any:
    """The causal LM inside wrappers; adapter layers stay in it, and in force."""
    inner = getattr(model, "module", model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def live_module(
    inner: nn.Module,
    tokenizer: Any,
    chat_template: str | None = None,
    *,
    name: str = "live",
    fingerprint: bool = False,
) -> TransformersModel:
    """A causal LM as it is in memory now, adapter layers in it included.

    Args:
        fingerprint: record a hash of the weights as they are now, so that what is kept of this
            model is not taken for that of another step.

    Raises:
        StateError: weights that are spread over processes.
    """
    config: Any = inner.config
    parameter = next(inner.parameters())
    # DTensors of FSDP have _local_tensor; parameters that DeepSpeed ZeRO-3 partitioned have ds_id
    if any(hasattr(p, "_local_tensor") or hasattr(p, "ds_id") for p in inner.parameters()):
        raise StateError(
            "the model's weights are spread over processes, so one process cannot run it alone;"
            " guard a run that keeps them whole"
        )
    text = config.get_text_config()
    return TransformersModel(
        inner,
        name=name,
        tokenizer=tokenizer,
        d_model=int(text.hidden_size),
        device=parameter.device,
        max_length=getattr(text, "max_position_embeddings", None),
        chat_template=chat_template,
        provenance={
            "dtype": str(parameter.dtype).removeprefix("torch."),
            "weights_sha256": weights_fingerprint(inner) if fingerprint else None,
        },
    )
