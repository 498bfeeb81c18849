"""Shards of a store on disk: one safetensors file and one sidecar each, checked by checksum.

Both are written completely or not at all. A shard counts once its sidecar is there. The sidecar
holds row ids, the file's size, and a SHA-256 of its header and of each tensor, so that reading one
site verifies that site alone. Checksums are taken from memory while the file is being written.
Records (`plan.json`, sidecars, the manifest) carry a hash of themselves.
"""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from emlens.activations.memory import Key
from emlens.foundation.errors import InputError, IntegrityError
from emlens.foundation.files import publishing, read_json, write_json
from emlens.foundation.provenance import hash_json

FORMAT = 3
_HEADER_LIMIT = 2**27
_HASH_THREADS = 2
"""Threads that compute checksums while a shard is written; hashlib releases the interpreter's lock.
"""
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
}


def tensor_name(key: Key) -> str:
    return f"{key[0]}@{key[1]}"


def shard_path(directory: Path, number: int) -> Path:
    return directory / f"shard-{number:05d}.safetensors"


# ---- records


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """A JSON record with a hash of itself."""
    write_json(path, {**record, "sha256": hash_json(dict(record))})


def read_record(path: Path) -> dict[str, Any]:
    """The record as it was written.

    Raises:
        InputError: the file is missing or no JSON.
        IntegrityError: it was changed after it was written.
    """
    record = read_json(path)
    if not isinstance(record, dict):
        raise IntegrityError(f"{path}: was changed after it was written")
    digest = record.pop("sha256", None)
    if digest != hash_json(record):
        raise IntegrityError(f"{path}: was changed after it was written")
    return record


def whole_record(path: Path) -> dict[str, Any] | None:
    """The record as it was written, or None where it is missing or damaged."""
    try:
        return read_record(path)
    except (InputError, IntegrityError):
        return None


# ---- shards


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write and publish a safetensors file; gives its size and checksums.

    Bytes go from the tensors to the file without a copy, and are hashed at the same time, also
    while the file is flushed to disk. (`safetensors.torch.save_file` would copy them first.)
    """
    # wide numbers first, so that each tensor is aligned to its own element size
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    contents = {name: content_of(tensors[name]) for name in order}
    header = _header({name: tensors[name] for name in order})
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        digests = {name: pool.submit(hashlib.sha256, content) for name, content in contents.items()}
        with publishing(path) as temporary, open(temporary, "wb", buffering=0) as file:
            for content in (memoryview(header), *contents.values()):
                remaining = content
                while len(remaining):  # an unbuffered write may take only a part
                    remaining = remaining[file.write(remaining) :]
        return {
            "bytes": len(header) + sum(map(len, contents.values())),
            "header_sha256": hashlib.sha256(header).hexdigest(),
            "tensors": {name: digest.result().hexdigest() for name, digest in digests.items()},
        }


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    """The header of a safetensors file.

    Its length in 8 bytes, then JSON padded with spaces to a multiple of 8, as the format asks.
    """
    entries: dict[str, Any] = {}
    end = 0
    for name, value in tensors.items():
        start, end = end, end + value.nbytes
        entries[name] = {
            "dtype": _DTYPES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_shard(
    directory: Path, number: int, values: Mapping[Key, Tensor], entries: Mapping[str, Any]
) -> None:
    """Publish a shard, then the sidecar that makes it count.

    Args:
        entries: what the sidecar says beside the size and the checksums.
    """
    path = shard_path(directory, number)
    checksums = write_tensors(path, {tensor_name(key): value for key, value in values.items()})
    write_record(path.with_suffix(".json"), {"shard": number, **entries, **checksums})


def is_complete(
    directory: Path, number: int, entries: Mapping[str, Any], *, thorough: bool
) -> bool:
    """Whether a shard was finished and its sidecar has these entries.

    `thorough` compares every checksum, otherwise only the size. A shard that is missing, damaged or
    of another plan is not complete.
    """
    path = shard_path(directory, number)
    record = whole_record(path.with_suffix(".json"))
    if record is None:
        return False
    if any(record.get(name) != value for name, value in entries.items()):
        return False
    if not path.is_file() or path.stat().st_size != record.get("bytes"):
        return False
    if not thorough:
        return True
    try:
        return not damaged_tensors(TensorFile(path, record))
    except IntegrityError:
        return False


class TensorFile:
    """A safetensors file, memory-mapped.

    The header is verified when it is opened, a tensor at its first read.

    Raises:
        IntegrityError: the file is missing, has another size, or its header is not as recorded.
    """

    def __init__(self, path: Path, record: Mapping[str, Any]):
        self.path = path
        self.names: list[str] = sorted(record["tensors"])
        self._record = record
        self._verified: dict[str, Tensor] = {}
        if not path.is_file():
            raise IntegrityError(f"{path}: is missing; {_REMEDY}")
        if path.stat().st_size != record["bytes"] or header_sha256(path) != record["header_sha256"]:
            raise IntegrityError(
                f"{path}: does not have the bytes its manifest recorded; {_REMEDY}"
            )
        try:
            # kept open as long as this object: the tensors that it gives lie in its mapping
            self._handle = safe_open(path, framework="pt").__enter__()
        except (SafetensorError, OSError) as error:
            raise IntegrityError(
                f"{path}: is not a safetensors file ({error}); {_REMEDY}"
            ) from None

    def read(self, name: str) -> Tensor:
        """A tensor that lies in the mapped file: copy what is to be kept or changed.

        Raises:
            IntegrityError: there is none of that name, or its bytes are not as recorded.
        """
        if name in self._verified:
            return self._verified[name]
        try:
            value: Tensor = self._handle.get_tensor(name)
        except SafetensorError as error:
            raise IntegrityError(f"{self.path}: holds no tensor {name!r} ({error})") from None
        if tensor_sha256(value) != self._record["tensors"].get(name):
            raise IntegrityError(
                f"{self.path}: does not have the bytes its manifest recorded; {_REMEDY}"
            )
        self._verified[name] = value
        return value


_REMEDY = "capture again into this directory to restore it"


def damaged_tensors(file: TensorFile) -> list[str]:
    """Names of the tensors whose bytes are not as recorded."""
    damaged = []
    for name in file.names:
        try:
            file.read(name)
        except IntegrityError:
            damaged.append(name)
    return damaged


def content_of(value: Tensor) -> memoryview:
    """The bytes of a tensor, without a copy where it is contiguous."""
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().data


def tensor_sha256(value: Tensor) -> str:
    return hashlib.sha256(content_of(value)).hexdigest()


def header_sha256(path: Path) -> str:
    """Over the header of a safetensors file: names, dtypes, shapes and places of its tensors."""
    with open(path, "rb") as handle:
        size = handle.read(8)
        length = int.from_bytes(size, "little")
        return hashlib.sha256(size + handle.read(min(length, _HEADER_LIMIT))).hexdigest()
