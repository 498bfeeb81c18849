"""GGUF → an ordinary Hugging Face directory in bfloat16.

transformers dequantises a GGUF file while it loads it, but the model then calls itself quantised
and refuses to be saved. So its weights are copied into a model built from the same configuration
without that mark. Memory: two copies of the model in float32.
"""

from pathlib import Path
from typing import Any

import torch

from emlens.foundation.errors import LoadError, MissingExtraError
from emlens.foundation.files import one_line


def dequantise(gguf: Path, folder: Path) -> None:
    """Write model, configuration and tokenizer of a GGUF file into `folder`.

    Raises:
        MissingExtraError: the `gguf` package is not installed.
        LoadError: transformers cannot read the file.
    """
    require_gguf()
    import transformers

    where, name = str(gguf.parent), gguf.name
    try:
        quantised = transformers.AutoModelForCausalLM.from_pretrained(
            where, gguf_file=name, dtype=torch.float32
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, gguf_file=name)
    except (ValueError, KeyError, OSError, RuntimeError, NotImplementedError) as error:
        raise LoadError(
            f"{gguf.name}: transformers {transformers.__version__} cannot read it"
            f" ({one_line(str(error), 200)})"
        ) from None
    model = unmarked(quantised)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def unmarked(quantised: Any) -> Any:
    """The same model, built anew from its configuration without the mark of a quantisation."""
    import transformers

    settings = quantised.config.to_dict()
    settings.pop("quantization_config", None)
    settings.pop("_name_or_path", None)
    config = type(quantised.config).from_dict(settings)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict(), strict=True)
    model.tie_weights()
    model.generation_config = quantised.generation_config
    return model


def require_gguf() -> None:
    """Refuse early where the extra is missing.

    Raises:
        MissingExtraError: says what to install.
    """
    from importlib.util import find_spec

    if find_spec("gguf") is None:
        raise MissingExtraError(
            "a real model comes as a GGUF file, which needs gguf; run:"
            " pip install 'misalignment-lens[gguf]'"
        )
