"""Checkpoints on disk (or on the hub, where there is a network) → `HookedModel`."""

import copy
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from emlens.data.encoding import start_ids
from emlens.data.rendering import chat_format
from emlens.data.templates import date_of, template_of
from emlens.foundation.errors import InputError, LoadError
from emlens.foundation.files import one_line, sha256_text
from emlens.models.adapter_files import is_adapter, named_adapters, require_adapter
from emlens.models.architectures import stream_width
from emlens.models.backends import backend_class
from emlens.models.checkpoint_files import checkpoint_hashes
from emlens.models.configuration_fit import (
    check_all_weights,
    check_inputs_in_memory,
    check_no_weights_left,
)
from emlens.models.finite import require_finite_weights
from emlens.models.four_bits import leave_weights_unpacked
from emlens.models.hooked import HookedModel
from emlens.models.hub_reach import check_hub_has
from emlens.models.library_output import escaped_output
from emlens.models.quantizing import quantization_of, quantization_text

_log = logging.getLogger("emlens")

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
    template_date: str | None = None,
    trust_remote_code: bool = False,
) -> HookedModel:
    """Load a causal language model and its tokenizer.

    Tables call it by the last part of its path; set `model.name` for another name.

    Args:
        path_or_id: a directory saved by `save_pretrained`, or a hub id.
        dtype: `"auto"` is float32 on the CPU and the checkpoint's own dtype elsewhere; or a name
            such as `"bfloat16"`.
        device: `"auto"` takes a GPU where there is one.
        revision, device_map, quantization_config, attn_implementation: passed to transformers and
            recorded. A quantisation may be a mapping of its configuration's fields.
        chat_template: used in place of the tokenizer's own (a base model has none): Jinja,
            `"plain"`, or the name of one of several templates that the tokenizer has.
        template_date: the day, as `"2024-07-26"`, that a template is told which writes the date;
            recorded. The default is a fixed day, so that numbers do not change overnight.
        trust_remote_code: run code that comes with the checkpoint; never done by default.

    Raises:
        InputError: an unknown backend, dtype or device.
        LoadError: not a model; an adapter; weights missing; an architecture emlens does not know.
    """
    model_class = backend_class(backend)
    target = torch_device(device)
    torch_dtype = _dtype(dtype, target)
    local = _local_directory(path_or_id)
    source = str(local or path_or_id)
    quantization_config = quantization_of(quantization_config)
    if device_map is None and quantization_config is not None:
        device_map = {"": str(target)}  # quantised weights cannot be moved afterwards
    options = {
        "device_map": device_map,
        "quantization_config": quantization_config,
        "attn_implementation": attn_implementation,
    }
    tokenizer, module = _load(
        source,
        local,
        dtype=torch_dtype,
        revision=revision,
        trust_remote_code=trust_remote_code,
        options={key: value for key, value in options.items() if value is not None},
    )
    if device_map is None:
        _move(module, target, source)
    else:
        target = module.device
    require_finite_weights(module, source)
    make_ready(module)

    template = template_of(tokenizer, chat_template, template_date)
    provenance = {
        "model": Path(source).name if local else source,
        "revision": revision,
        "commit": None if local else _commit(source, revision),
        **_file_hashes(local),
        **_module_provenance(module),
        "backend": backend,
        "adapter": None,
        "merged": None,
        "device": str(target),
        "device_map": None if device_map is None else one_line(str(device_map), 400),
        "trust_remote_code": trust_remote_code,
        "chat_template_sha256": None if template is None else sha256_text(template),
        **chat_provenance(tokenizer, template, Path(source).name),
    }
    text_config = module.config.get_text_config()  # a model of several modalities has one inside
    model = model_class(
        module,
        name=Path(source).name,
        tokenizer=tokenizer,
        d_model=stream_width(module),
        device=torch.device(target),
        max_length=getattr(text_config, "max_position_embeddings", None),
        chat_template=template,
        provenance=provenance,
    )
    if model.architecture.discovered:
        model.provenance["sites_found"] = asdict(model.architecture)
    return model


def _file_hashes(local: Path | None) -> dict[str, str | None]:
    """Hashes of weights, configuration and tokenizer; None for a model of a hub.

    The template is hashed as it is in use, which need not be the one of the files.
    """
    hashes = checkpoint_hashes(local) if local else {}
    names = ("weights_sha256", "config_sha256", "tokenizer_sha256")
    return {name: hashes.get(name) for name in names}


def _load(
    source: str,
    local: Path | None,
    *,
    dtype: Any,
    revision: str | None,
    trust_remote_code: bool,
    options: Mapping[str, Any],
) -> tuple[Any, Any]:
    """The tokenizer and the module, every weight from the checkpoint."""
    from transformers import AutoModelForCausalLM

    if local is None:
        check_hub_has(source, revision)
    hub_options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        with escaped_output(), _quiet():
            tokenizer = saved_tokenizer(source, local, **hub_options)
            module, loading_info = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, output_loading_info=True, **hub_options, **options
            )
    except Exception as error:  # transformers raises whatever its parsers raise
        raise LoadError(
            f"{source}: could not be loaded as a causal language model"
            f" ({one_line(str(error), 240)})"
        ) from None
    check_loaded(source, module, loading_info)
    return tokenizer, module


def check_loaded(source: str, module: Any, loading_info: Mapping[str, Any]) -> None:
    """Refuse a model whose weights are not those of its checkpoint.

    Args:
        loading_info: as `from_pretrained(output_loading_info=True)` gives it.

    Raises:
        LoadError: weights are missing, or some of the checkpoint have no place.
    """
    check_all_weights(source, module, loading_info["missing_keys"])
    check_no_weights_left(source, module, loading_info["unexpected_keys"])
    check_inputs_in_memory(source, module)


def chat_provenance(tokenizer: Any, template: str | None, name: str) -> dict[str, Any]:
    """What was noticed about chats; said where the template does something unusual."""
    form = chat_format(tokenizer, template)
    if form is not None and form.header:
        _log.warning(
            "%r: its chat template writes no opening for an answer; prompts end with what it writes"
            " before one (%s)",
            name,
            one_line(repr(form.header), 80),
        )
    return {
        "start_ids": list(start_ids(tokenizer)),
        "template_date": date_of(template),
        "generation_prompt": None if form is None else form.generation_prompt,
    }


def _move(module: Any, device: torch.device, source: str) -> None:
    if quantization_text(module) is None:
        module.to(device)
    elif module.device.type != device.type:
        # quantised weights cannot be moved any more
        raise LoadError(
            f"{source}: a quantised checkpoint was placed on {module.device}, not on {device};"
            f" pass device_map={{'': '{device}'}}"
        )


def make_ready(module: Any) -> None:
    """Evaluation mode, no gradients, and kernels that know the dtype and change no weight."""
    experts = getattr(module.config, "_experts_implementation", None)
    if next(module.parameters()).dtype == torch.float64 and experts not in (None, "eager"):
        # the grouped kernel of mixtures of experts knows no float64
        module.set_experts_implementation("eager")
    leave_weights_unpacked(module)
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def _module_provenance(module: Any) -> dict[str, Any]:
    return {
        "architecture": module.config.model_type,
        "dtype": str(next(module.parameters()).dtype).removeprefix("torch."),
        "attention": getattr(module.config, "_attn_implementation", None),
        "quantization": quantization_text(module),
    }


def saved_tokenizer(source: str, local: Path | None, **options: Any) -> Any:
    """The tokenizer as its file declares it.

    For some model types transformers 5 replaces a declared plain `tokenizers` file by the type's
    own class, which reads the same vocabulary with another pre-tokenizer and gives other ids; such
    a file is loaded as what it says.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if _declares_plain_file(source, local, options):
        return PreTrainedTokenizerFast.from_pretrained(source, **options)
    return AutoTokenizer.from_pretrained(source, **options)


def _declares_plain_file(source: str, local: Path | None, options: Mapping[str, Any]) -> bool:
    config = _tokenizer_file(source, local, "tokenizer_config.json", options)
    if config is None or _tokenizer_file(source, local, "tokenizer.json", options) is None:
        return False
    declared = json.loads(config.read_text("utf-8")).get("tokenizer_class")
    return declared in ("TokenizersBackend", "PreTrainedTokenizerFast")


def _tokenizer_file(
    source: str, local: Path | None, name: str, options: Mapping[str, Any]
) -> Path | None:
    """A file of a tokenizer, from the hub where it is not local; None where it has none."""
    if local is not None:
        return local / name if (local / name).is_file() else None
    return _cached_file(source, name, revision=options.get("revision"))


def _commit(source: str, revision: str | None) -> str | None:
    """The commit that a hub id was loaded at: the name of its folder in the cache."""
    config = _cached_file(source, "config.json", revision=revision)
    if config is None or "snapshots" not in config.parts:
        return None
    return config.parts[config.parts.index("snapshots") + 1]


def _cached_file(source: str, name: str, **where: Any) -> Path | None:
    from transformers.utils import cached_file

    path = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **where)
    return None if path is None else Path(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """No weight-loading bars of transformers inside the block; emlens shows its own."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def with_template(model: HookedModel, template: str | None) -> HookedModel:
    """A copy of the model, on the same weights, that renders chats by `template`."""
    if template is None or model.chat_template == template:
        return model
    borrower = copy.copy(model)
    borrower.chat_template = template
    borrower.provenance = {
        **model.provenance,
        "chat_template_sha256": sha256_text(template),
        "chat_template_lent": True,
        **chat_provenance(model.tokenizer, template, model.name),
    }
    return borrower


def _local_directory(path_or_id: str | Path) -> Path | None:
    """The directory of a checkpoint, or None for a hub id.

    Raises:
        LoadError: no such directory, a file, an adapter, or no configuration in it.
    """
    path = Path(path_or_id)
    if not path.exists():
        if _is_written_as_path(path_or_id):
            raise LoadError(
                f"{path_or_id}: no such directory; pass a directory saved by save_pretrained,"
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
        if named_adapters(path):
            require_adapter(path)  # which names them
        raise LoadError(f"{path}: holds no config.json; pass a directory saved by save_pretrained")
    return path


def _is_written_as_path(path_or_id: str | Path) -> bool:
    """Whether it cannot be a hub id, which is `name` or `org/name`."""
    text = str(path_or_id)
    return isinstance(path_or_id, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1


def torch_device(device: str | torch.device) -> torch.device:
    """The torch device of a name; `"auto"` is a GPU where there is one, else the CPU.

    Raises:
        InputError: no such device, or a GPU where torch sees none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        parsed = torch.device(device)
    except RuntimeError:
        raise InputError(
            f"device {device!r} is not a torch device; pass 'auto', 'cpu' or 'cuda'"
        ) from None
    if parsed.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"device {str(device)!r} was asked for, but torch sees no GPU here;"
            " pass 'auto' or 'cpu'"
        )
    return parsed


def _dtype(dtype: str | torch.dtype, device: torch.device) -> Any:
    """What transformers takes: a torch dtype, or "auto" for the checkpoint's own."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        # 16-bit arithmetic is slow on most processors
        return torch.float32 if device.type == "cpu" else "auto"
    if dtype not in _DTYPES:
        raise InputError(
            f"dtype {dtype!r} is unknown; pass 'auto' or one of {', '.join(_DTYPES)}",
            name=dtype,
            known=_DTYPES,
        )
    return _DTYPES[dtype]
