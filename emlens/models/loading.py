"""Checkpoints on disk (or on the hub, where there is a network) → `HookedModel`."""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from emlens.data.rendering import template_of
from emlens.foundation.errors import InputError, LoadError
from emlens.foundation.files import one_line, sha256_text
from emlens.foundation.provenance import hash_directory
from emlens.models.adapters import is_adapter
from emlens.models.backends import backend_class
from emlens.models.hooked import HookedModel

_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load_model(
    path_or_id: str | Path,
    *,
    backend: str = "transformers",
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    revision: str | None = None,
    device_map: Any = None,
    quantization_config: Any = None,
    attn_implementation: str | None = None,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
    name: str | None = None,
) -> HookedModel:
    """Load a causal language model and its tokenizer.

    Args:
        path_or_id: a directory saved by `save_pretrained`, or a hub id.
        dtype: `"auto"` is float32 on the CPU and the checkpoint's own dtype elsewhere; or a name
            such as `"bfloat16"`.
        device: `"auto"` takes a GPU where there is one.
        revision, device_map, quantization_config, attn_implementation: passed to transformers and
            recorded.
        chat_template: used in place of the tokenizer's own (a base model has none).
        trust_remote_code: run code that comes with the checkpoint; never done unless asked.
        name: how the model is called in tables; default: the last part of the path.

    Raises:
        InputError: an unknown backend, dtype or device.
        LoadError: not a model; an adapter; weights missing; an architecture emlens does not know.
    """
    from transformers import AutoModelForCausalLM

    kind_of_model = backend_class(backend)
    where = torch_device(device)
    kind = _dtype(dtype, where)
    local = _local_directory(path_or_id)
    source = str(local or path_or_id)
    if device_map is None and quantization_config is not None:
        device_map = {"": str(where)}  # quantised weights cannot be moved afterwards
    placement = {"device_map": device_map} if device_map is not None else {}
    extras = {
        key: value
        for key, value in (
            ("quantization_config", quantization_config),
            ("attn_implementation", attn_implementation),
        )
        if value is not None
    }
    try:
        with _quiet():
            tokenizer = saved_tokenizer(
                source, local, revision=revision, trust_remote_code=trust_remote_code
            )
            module, found = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=kind,
                revision=revision,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **placement,
                **extras,
            )
    except Exception as error:  # transformers raises whatever its parsers raise
        raise LoadError(
            f"{source}: could not be loaded as a causal language model"
            f" ({one_line(str(error), 240)})"
        ) from None
    missing = sorted(found["missing_keys"])
    if missing:
        raise LoadError(
            f"{source}: holds no weights for {len(missing)} tensors of a"
            f" {module.config.model_type!r} model, first {missing[0]!r};"
            " they would be random numbers; pass a whole checkpoint"
        )
    quantized = getattr(module.config, "quantization_config", None)
    if placement:
        where = module.device
    elif quantized is None:
        module.to(where)
    elif module.device.type != where.type:
        raise LoadError(
            f"{source}: a quantised checkpoint was placed on {module.device}, not on {where};"
            f" pass device_map={{'': '{where}'}}"
        )
    if next(module.parameters()).dtype == torch.float64 and getattr(
        module.config, "_experts_implementation", None
    ) not in (None, "eager"):
        # the grouped kernel of mixtures of experts knows no float64
        module.set_experts_implementation("eager")
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    config = module.config
    called = name or Path(source).name
    template = template_of(tokenizer, chat_template)
    facts = {
        "model": Path(source).name if local else source,
        "revision": revision,
        "commit": getattr(module.config, "_commit_hash", None),
        "weights_sha256": hash_directory(local) if local else None,
        "architecture": config.model_type,
        "dtype": str(next(module.parameters()).dtype).removeprefix("torch."),
        "attention": getattr(config, "_attn_implementation", None),
        "quantization": (
            None
            if quantized is None
            else one_line(json.dumps(_plain(quantized), sort_keys=True, default=str), 400)
        ),
        "backend": backend,
        "adapter": None,
        "merged": None,
        "device": str(where),
        "device_map": None if device_map is None else one_line(str(device_map), 400),
        "trust_remote_code": trust_remote_code,
        "chat_template_sha256": None if template is None else sha256_text(template),
    }
    text = config.get_text_config()
    model = kind_of_model(
        module,
        name=called,
        tokenizer=tokenizer,
        n_layers=int(text.num_hidden_layers),
        d_model=int(text.hidden_size),
        device=torch.device(where),
        max_length=getattr(text, "max_position_embeddings", None),
        chat_template=template,
        provenance=facts,
    )
    if model.architecture.discovered:
        model.provenance["sites_found"] = asdict(model.architecture)
    return model


def _plain(quantized: Any) -> Any:
    return quantized.to_dict() if hasattr(quantized, "to_dict") else quantized


def saved_tokenizer(source: str, local: Path | None, **options: Any) -> Any:
    """The tokenizer as its file declares it.

    For some model types transformers 5 replaces a declared plain `tokenizers` file by the type's
    own class, which reads the same vocabulary with another pre-tokenizer and gives other ids; such
    a file is loaded as what it says.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if (
        local is not None
        and (local / "tokenizer.json").is_file()
        and (local / "tokenizer_config.json").is_file()
    ):
        declared = json.loads((local / "tokenizer_config.json").read_text("utf-8")).get(
            "tokenizer_class"
        )
        if declared in ("TokenizersBackend", "PreTrainedTokenizerFast"):
            return PreTrainedTokenizerFast.from_pretrained(source)
    return AutoTokenizer.from_pretrained(source, **options)


@contextmanager
def _quiet() -> Iterator[None]:
    """No weight-loading bars of transformers inside the block; emlens shows its own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def with_template(model: HookedModel, template: str | None) -> HookedModel:
    """The same model rendering chats by `template`; its own template is left as it was."""
    if template is None or model.chat_template == template:
        return model
    other = copy.copy(model)
    other.chat_template = template
    other.provenance = {
        **model.provenance,
        "chat_template_sha256": sha256_text(template),
        "chat_template_lent": True,
    }
    return other


def _local_directory(path_or_id: str | Path) -> Path | None:
    path = Path(path_or_id)
    if not path.exists():
        text = str(path_or_id)
        if (
            isinstance(path_or_id, Path)
            or text.startswith((".", "/", "~"))
            or (text.count("/") != 1 and "/" in text)
        ):
            raise LoadError(
                f"{text}: no such directory; pass a directory saved by save_pretrained,"
                " or a hub id such as 'org/name'"
            )
        return None
    if not path.is_dir():
        raise LoadError(f"{path}: is a file; pass the directory that holds config.json")
    if is_adapter(path):
        raise LoadError(
            f"{path}: is an adapter, not a whole model;"
            " pass it to load_family(instruct, finetuned={name: path})"
        )
    if not (path / "config.json").is_file():
        raise LoadError(f"{path}: holds no config.json; pass a directory saved by save_pretrained")
    return path


def torch_device(device: str | torch.device) -> torch.device:
    """The torch device of a name; `"auto"` is a GPU where there is one, else the CPU.

    Raises:
        InputError: no such device, or a GPU where torch sees none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise InputError(
            f"device {device!r} is not a torch device; pass 'auto', 'cpu' or 'cuda'"
        ) from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"device {str(device)!r} was asked for, but torch sees no GPU here;"
            " pass 'auto' or 'cpu'"
        )
    return found


def _dtype(dtype: str | torch.dtype, device: torch.device) -> Any:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    if dtype not in _DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown; pass 'auto' or one of {', '.join(_DTYPES)}")
    return _DTYPES[dtype]
