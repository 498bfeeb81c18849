"""Whether an adapter was made for the parent that it is put on.

By the hashes that training recorded beside it, and by the base that its configuration names.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emlens.foundation.errors import LoadError
from emlens.foundation.files import one_line
from emlens.models.adapter_files import CONFIG
from emlens.models.checkpoint_files import read_object
from emlens.models.quantizing import quantization_in_words
from emlens.models.sidecars import PARENT_QUANTIZATION, SIDECAR, read_sidecar

_PARENT_HASHES = (
    "weights_sha256",
    "config_sha256",
    "tokenizer_sha256",
    "chat_template_sha256",
)
_log = logging.getLogger("emlens")


def parent_differences(path: str | Path, parent: Mapping[str, Any]) -> list[str]:
    """Which files of the parent are not those that `training.fit` recorded beside an adapter.

    Args:
        parent: provenance of the model that the adapter is to be put on.

    Returns:
        Among "config", "tokenizer", "chat_template" and "quantization"; empty without a record. The
        last is also said in the log.

    Raises:
        LoadError: other weights, or a record that cannot be read.
    """
    record = Path(path) / SIDECAR
    if not record.is_file():
        return []
    sidecar = read_sidecar(record)
    recorded = sidecar.get("parent")
    if recorded is None:
        return []
    if not isinstance(recorded, dict):
        raise LoadError(
            f"{record}: its parent is a {type(recorded).__name__}, not a record; train again, or"
            " remove the file"
        )
    if "sha256" in recorded:
        raise LoadError(
            f"{record}: names its parent by a hash of whole directories, as an earlier build wrote"
            " it, which says nothing about the weights; train again, or remove the file"
        )
    differences = []
    for name in _PARENT_HASHES:
        expected, given = recorded.get(name), parent.get(name)
        if expected is not None and given is not None and expected != given:
            differences.append(name.removesuffix("_sha256"))
    if "weights" in differences:
        expected, given = str(recorded["weights_sha256"]), str(parent["weights_sha256"])
        raise LoadError(
            f"{path}: was trained on a base whose weights hash begins {one_line(expected[:12])},"
            f" but the base given has {given[:12]}; pass the base it was trained on"
        )
    if _quantised_otherwise(path, sidecar.get(PARENT_QUANTIZATION), parent.get("quantization")):
        differences.append("quantization")
    return differences


def _quantised_otherwise(path: str | Path, trained: Any, given: Any) -> bool:
    """Whether the weights of the parent were rounded in another way in training; said if so."""
    if trained == given:
        return False
    _log.warning(
        "%s: was trained on its parent in %s and is put on it in %s: other weights, other shifts",
        one_line(str(path), 200),
        quantization_in_words(trained),
        quantization_in_words(given),
    )
    return True


def check_named_base(path: str | Path, parent: str | Path, other_parent: str | Path | None) -> None:
    """Refuse an adapter whose configuration names another base than its parent.

    Directories may have been moved, so a name counts only where it is that of the family's other
    parent, or where both are hub ids.

    Args:
        parent, other_parent: where the two parents of the family were loaded from.

    Raises:
        LoadError: says which base the adapter names.
    """
    base = read_object(Path(path) / CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base or _last_part(base) == _last_part(parent):
        return
    if other_parent is not None and _last_part(base) == _last_part(other_parent):
        raise LoadError(
            f"{path}: says it was trained on {base!r}, the family's other parent,"
            f" not on {str(parent)!r}; name it with FineTune(..., parent=)"
        )
    if is_hub_id(base) and is_hub_id(str(parent)) and not Path(parent).exists():
        raise LoadError(
            f"{path}: says it was trained on {base!r}, but was given {str(parent)!r};"
            " pass that base, or FineTune(..., check_base=False) where both names hold the same"
            " weights"
        )


def is_hub_id(text: str) -> bool:
    """Whether it is written like `org/name`."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text) is not None


def _last_part(source: str | Path) -> str:
    return re.split(r"[/\\]", str(source).rstrip("/\\"))[-1].lower()
