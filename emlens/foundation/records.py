"""Records that this library writes and reads back: JSON with a version and a checksum of itself.

A record that was cut short, edited, or written by a version that this one does not know is refused
in one line; nothing of it is believed before the whole was checked. Tensors and tables beside a
record are covered by hashes inside it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from emlens.foundation.bounded import check_tensor_file
from emlens.foundation.errors import InputError, IntegrityError, LoadError
from emlens.foundation.files import one_line, read_json, write_json
from emlens.foundation.provenance import hash_json

CHECKSUM: Final = "record_sha256"
Fields = Mapping[str, type | tuple[type, ...]]


def write_checked(path: str | Path, record: Mapping[str, Any]) -> None:
    """Write a record with its checksum; the file is whole or absent."""
    write_json(path, {**record, CHECKSUM: hash_json(dict(record))})


def read_checked(
    path: str | Path,
    *,
    fields: Fields,
    version: tuple[str, Any] | None = None,
    remedy: str = "write it again",
    checksum: bool = True,
) -> dict[str, Any]:
    """A record as it was written, without its checksum.

    Args:
        fields: name → type, of those that must be there.
        version: field that holds the version, and the version that is read.
        remedy: what the message says to do.
        checksum: False: a record without one is read, as earlier builds wrote it.

    Raises:
        InputError: no such file, no JSON, or of another version.
        IntegrityError: no object, a field that is missing or of another type, or changed after it
            was written.
    """
    record = read_json(path)
    if not isinstance(record, dict):
        raise IntegrityError(f"{path}: holds a {type(record).__name__}, not a record; {remedy}")
    if version is not None and record.get(version[0]) != version[1]:
        raise InputError(
            f"{path}: its {version[0]} is {one_line(repr(record.get(version[0])), 60)}, and this"
            f" version of emlens reads {version[1]!r}; {remedy}"
        )
    digest = record.pop(CHECKSUM, None)
    if (checksum or digest is not None) and digest != hash_json(record):
        raise IntegrityError(f"{path}: was changed after it was written; {remedy}")
    check_fields(path, record, fields, remedy)
    return record


def check_fields(path: str | Path, record: Mapping[str, Any], fields: Fields, remedy: str) -> None:
    """Refuse a record in which a field is missing or of another type.

    Raises:
        IntegrityError: names the field.
    """
    for name, kind in fields.items():
        value = record.get(name)
        wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is int)
        if name not in record or wrong:
            kinds = kind if isinstance(kind, tuple) else (kind,)
            expected = " or ".join(part.__name__ for part in kinds)
            raise IntegrityError(f"{path}: {name!r} is missing or no {expected}; {remedy}")


def tensors_beside(path: Path, remedy: str) -> dict[str, Tensor]:
    """The tensors that lie beside a record, by name; their hash is the record's to compare.

    Args:
        remedy: what the message says to do.

    Raises:
        InputError: no such file.
        IntegrityError: no whole safetensors file.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        check_tensor_file(path)
        return safetensors.torch.load(path.read_bytes())
    except (LoadError, SafetensorError) as error:
        raise IntegrityError(f"{path}: not readable as safetensors ({error}); {remedy}") from None
