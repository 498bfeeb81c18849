"""`emlens.json`, which `training.fit` writes beside a checkpoint, and what it says of the adapter.

It holds a checksum of itself and the hash of the adapter's configuration, so that an edited alpha
or a changed recipe is found before anything is loaded. Records of an earlier build, which have
neither, are read as they are.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from emlens.foundation.errors import InputError, IntegrityError, LoadError
from emlens.foundation.files import canonical_json, one_line, sha256_text
from emlens.foundation.records import Fields, check_fields, read_checked

SIDECAR: Final = "emlens.json"
ADAPTER_HASH: Final = "adapter_config_sha256"
PARENT_QUANTIZATION: Final = "parent_quantization"
"""How the parent was quantised when the adapter was trained; absent where it was not."""
_REMEDY: Final = "pass one saved by PEFT"
_OF_LORA: Final[Fields] = {
    "r": int,
    "lora_alpha": (int, float),
    "target_modules": (str, list, type(None)),
}
_KINDS: Final[Fields] = {
    "bias": str,
    "rank_pattern": (dict, type(None)),
    "alpha_pattern": (dict, type(None)),
    "modules_to_save": (list, type(None)),
    "exclude_modules": (str, list, type(None)),
    "layers_to_transform": (int, list, type(None)),
    "layers_pattern": (str, list, type(None)),
    "use_rslora": bool,
    "use_dora": bool,
    "fan_in_fan_out": bool,
}
_MOST_RANK: Final = 2**16
_MOST_ALPHA: Final = 1e6


def read_sidecar(record: Path) -> dict[str, Any]:
    """The record beside a checkpoint.

    Raises:
        LoadError: it cannot be read, is no record, or was changed after it was written.
    """
    try:
        return read_checked(
            record, fields={}, remedy="train again, or remove the file", checksum=False
        )
    except (InputError, IntegrityError) as error:
        reason = str(error).removeprefix(str(record)).lstrip(":, ")
        raise LoadError(f"{record}: cannot be read ({one_line(reason, 200)})") from None


def adapter_config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of an adapter's configuration, without the name of its base, which may move."""
    return sha256_text(canonical_json({**config, "base_model_name_or_path": None}))


def check_adapter_config(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a configuration with a field of another type or out of all range, or one that was
    edited after `training.fit` wrote it.

    Args:
        path: of the configuration.

    Raises:
        LoadError: names the field.
    """
    present = {name: kind for name, kind in _KINDS.items() if name in config}
    of_lora = str(config.get("peft_type")).upper() == "LORA"
    try:
        check_fields(path, config, {**present, **(_OF_LORA if of_lora else {})}, _REMEDY)
    except IntegrityError as error:
        raise LoadError(str(error)) from None
    if of_lora:
        _check_scale(path, config)
    record = path.parent / SIDECAR
    if not record.is_file():
        return
    expected = read_sidecar(record).get(ADAPTER_HASH)
    if expected is not None and expected != adapter_config_hash(config):
        raise LoadError(
            f"{path}: was changed after it was written, so the adapter is not the one that was"
            f" trained; train again, or remove {SIDECAR} beside it"
        )


def _check_scale(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse ranks and alphas that no adapter has: an update of that size is noise or overflow."""
    ranks = [config["r"], *(config.get("rank_pattern") or {}).values()]
    alphas = [config["lora_alpha"], *(config.get("alpha_pattern") or {}).values()]
    for name, values, most in (("rank", ranks, _MOST_RANK), ("alpha", alphas, _MOST_ALPHA)):
        for value in values:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not math.isfinite(value) or not 0 < abs(value) <= most:
                raise LoadError(
                    f"{path}: has {name} {one_line(repr(value), 40)}; a number up to {most:g} that"
                    f" is not 0 was expected; {_REMEDY}"
                )
