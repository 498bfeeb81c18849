"""Where a result came from: hashes of what was read, versions of what read it."""

import hashlib
import logging
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emlens.foundation.files import canonical_json, one_line, sha256_text

_log = logging.getLogger("emlens")

DISTRIBUTION = "misalignment-lens"
"""What `pip install` calls this library; `emlens` on the index belongs to another project."""
_LIBRARIES = (
    "emlens",
    "torch",
    "transformers",
    "peft",
    "safetensors",
    "numpy",
    "scipy",
    "scikit-learn",
)
_COMPUTING = ("emlens", "torch", "transformers", "peft", "numpy")


def library_versions(names: tuple[str, ...] = _LIBRARIES) -> dict[str, str]:
    """Installed versions by import name; what is absent is left out."""
    versions = {}
    for name in names:
        distribution = DISTRIBUTION if name == "emlens" else name
        try:
            versions[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return versions


def made_with() -> str:
    """Libraries and threads, which decide the last digits of what is computed."""
    versions = [f"{name} {version}" for name, version in library_versions(_COMPUTING).items()]
    return ", ".join([*versions, f"threads {torch.get_num_threads()}"])


def warn_if_made_otherwise(path: str | Path, before: object) -> None:
    """Say in one line that unfinished work was begun with other libraries or threads.

    Args:
        before: what `made_with` gave then; anything but text says nothing.
    """
    now = made_with()
    if isinstance(before, str) and before != now:
        _log.warning(
            "%s: was begun with %s and is gone on with %s; what was finished stays, and the last"
            " digits of the rest may be others",
            path,
            one_line(before, 200),
            now,
        )


def hardware() -> dict[str, Any]:
    """Machine facts for evidence files: processor family, cores, threads, accelerator."""
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def peak_memory() -> int | None:
    """Most bytes that this process has held so far, on an accelerator and in main memory together;
    None where the system does not say.
    """
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if platform.system() == "Darwin" else 1024
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if torch.cuda.is_available():
        held += torch.cuda.max_memory_allocated()
    return held


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of tensors, in name order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def qualified_name(value: Any) -> str:
    """Module and name of a function or class; of an instance, its class's; of a
    `functools.partial`, its function's.

    Two functions made by one `def` (closures) share it, whatever they hold.
    """
    if type(value).__name__ == "partial":
        value = getattr(value, "func", value)
    if not hasattr(value, "__qualname__"):  # an instance
        value = type(value)
    return f"{value.__module__}.{value.__qualname__}"


def hash_json(value: Any) -> str:
    return sha256_text(canonical_json(value))


def hashes_by_name(value: Any, depth: int = 2) -> dict[str, str]:
    """Short hashes of what a mapping holds, by dotted names: `{"config.seed": "5feceb66ffc8"}`.

    Args:
        depth: of mappings in mappings; what lies deeper has one hash with its holder.
    """
    if not isinstance(value, Mapping) or depth == 0:
        return {"": hash_json(value)[:12]}
    hashes = {}
    for key, part in value.items():
        for name, digest in hashes_by_name(part, depth - 1).items():
            hashes[f"{key}.{name}".rstrip(".")] = digest
    return hashes


def differences(first: Any, second: Any, depth: int = 2) -> list[str]:
    """Names of what differs between two JSON-ready mappings, sorted (`hashes_by_name`)."""
    one, other = hashes_by_name(first, depth), hashes_by_name(second, depth)
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
