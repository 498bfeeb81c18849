"""`plan.json` and `rows.safetensors`: a plan on disk, so that any process can run a shard of it.

A damaged plan is written again where the finished shards belong to the same plan, and is refused
otherwise; finished shards are never removed.
"""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from emlens.activations.batch_layout import BatchLayout
from emlens.activations.capture_plan import CapturePlan
from emlens.activations.capture_provenance import OTHER_WEIGHTS, WEIGHTS, dtype_name
from emlens.activations.shards import (
    FORMAT,
    TensorFile,
    damaged_tensors,
    read_record,
    tensor_sha256,
    whole_record,
    write_record,
)
from emlens.activations.store import MANIFEST, PLAN, ROWS, require_store_directory
from emlens.activations.token_rows import TokenRows
from emlens.foundation.errors import InputError, IntegrityError
from emlens.foundation.files import one_line, read_json, write_bytes
from emlens.foundation.positions import AllTokens, Chosen, Index, Last, Position, Span
from emlens.foundation.provenance import differences, hash_json
from emlens.foundation.sites import Site


class _Listed(Chosen):
    """A position given as a callable; its tokens were listed when the capture was planned."""

    def __init__(self, label: str):
        super().__init__(_unavailable, label)


def _unavailable(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    raise InputError("the tokens of a callable position are read from the plan")


def plan_to_record(
    plan: CapturePlan, provenance: Mapping[str, Any]
) -> tuple[dict[str, Any], bytes]:
    """What `plan.json` of one store holds, and the content of its `rows.safetensors`."""
    tensors = {name: value.contiguous() for name, value in plan.rows.to_tensors().items()}
    content = save(tensors)
    # a safetensors file starts with the length of its header in 8 bytes
    header = 8 + int.from_bytes(content[:8], "little")
    rows = {
        "bytes": len(content),
        "header_sha256": hashlib.sha256(content[:header]).hexdigest(),
        "tensors": {name: tensor_sha256(value) for name, value in tensors.items()},
    }
    record = {
        "format": FORMAT,
        "ids": plan.rows.ids,
        "groups": plan.rows.groups,
        "order": list(plan.layout.order),
        "batches": list(plan.layout.sizes),
        "shards": list(plan.layout.shards),
        "shared": list(plan.layout.shared),
        "sites": [str(site) for site in plan.sites],
        "positions": [_position_to_record(position) for position in plan.positions],
        "batch_tokens": plan.batch_tokens,
        "dtype": dtype_name(plan.dtype),
        "compute_dtype": dtype_name(plan.compute_dtype),
        "value_bytes": plan.value_bytes,
        "provenance": dict(provenance),
        "rows": rows,
    }
    return record, content


def begin_store(directory: Path, record: Mapping[str, Any], rows_file: bytes) -> str:
    """Write a plan into an empty directory, or check that the same plan is there; returns its hash.

    Raises:
        InputError: the path is a file.
        IntegrityError: the directory holds something else, or a store of another plan.
    """
    require_store_directory(directory)
    digest = hash_json(dict(record))
    existing = whole_record(directory / PLAN)
    if existing is None:
        _check_shards_belong(directory, digest)
        write_record(directory / PLAN, record)
    elif hash_json(existing) != digest:
        if _differ_in_weights_alone(existing, record):
            raise IntegrityError(f"{directory}: {OTHER_WEIGHTS}")
        raise IntegrityError(
            f"{directory}: holds a store begun for another model, prompt set, site,"
            f" position or library version (differs in {_differing(existing, record)});"
            " pass an empty directory"
        )
    if _is_damaged(directory / ROWS, record["rows"]):
        write_bytes(directory / ROWS, rows_file)
    return digest


def _differ_in_weights_alone(existing: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    weights = {WEIGHTS: record["provenance"].get(WEIGHTS)}
    provenance = {**existing.get("provenance", {}), **weights}
    return hash_json({**existing, "provenance": provenance}) == hash_json(dict(record))


def _differing(existing: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    names = [name.removeprefix("provenance.") for name in differences(existing, record)]
    return one_line(", ".join(names))


def _is_damaged(path: Path, record: Mapping[str, Any]) -> bool:
    try:
        return bool(damaged_tensors(TensorFile(path, record)))
    except IntegrityError:
        return True


def _check_shards_belong(directory: Path, digest: str) -> None:
    """Where plan.json is missing or damaged, the files beside it must belong to the same plan."""
    with suppress(InputError):
        written = read_json(directory / PLAN)
        if isinstance(written, dict) and written.get("format", FORMAT) != FORMAT:
            raise IntegrityError(
                f"{directory}: holds a store of another format than {FORMAT},"
                " which this version writes; pass an empty directory"
            )
    for path in [*sorted(directory.glob("shard-*.json")), directory / MANIFEST]:
        record = whole_record(path)
        if record is not None and record.get("plan_sha256") != digest:
            raise IntegrityError(
                f"{directory}: {PLAN} is missing or damaged,"
                f" and {path.name} belongs to another capture;"
                " capture into this directory with the same arguments as before,"
                " which keeps finished shards, or pass an empty directory"
            )


def read_plan(directory: Path) -> tuple[CapturePlan, dict[str, Any], str]:
    """The plan of a store, the record of it that plan.json holds, and the hash of the record.

    Raises:
        InputError: there is no plan.
        IntegrityError: it is damaged; the message says how to repair it.
    """
    if not (directory / PLAN).is_file():
        raise InputError(f"{directory}: holds no capture that was begun; plan one first")
    try:
        record = read_record(directory / PLAN)
        file = TensorFile(directory / ROWS, record["rows"])
        # copies, since the file may be replaced while it is mapped
        tensors = {name: file.read(name).clone() for name in file.names}
    except (InputError, IntegrityError, KeyError):
        raise IntegrityError(
            f"{directory}: {PLAN} or {ROWS} is damaged;"
            " capture into this directory again with the same arguments:"
            " that writes them again and keeps finished shards"
        ) from None
    return _plan_from_record(record, tensors), record, hash_json(record)


def _plan_from_record(
    record: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> CapturePlan:
    return CapturePlan(
        rows=TokenRows.from_tensors(record["ids"], record["groups"], tensors),
        sites=tuple(Site.parse(name) for name in record["sites"]),
        positions=tuple(_position_from_record(position) for position in record["positions"]),
        layout=BatchLayout(
            tuple(record["order"]),
            tuple(record["batches"]),
            tuple(record["shards"]),
            shared=tuple(record["shared"]),
        ),
        batch_tokens=record["batch_tokens"],
        dtype=_dtype_from(record["dtype"]),
        value_bytes=record["value_bytes"],
        compute_dtype=_dtype_from(record["compute_dtype"]),
    )


def _dtype_from(name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _position_to_record(position: Position) -> dict[str, Any]:
    if isinstance(position, Index):
        return {"kind": "index", "index": position.index, "of": position.of}
    if isinstance(position, Span):
        return {
            "kind": "span",
            "start": position.start,
            "stop": position.stop,
            "of": position.of,
            "skip_first": position.skip_first,
        }
    if isinstance(position, Chosen):
        return {"kind": "listed", "label": position.label}
    if isinstance(position, AllTokens):
        return {"kind": "all"}
    if isinstance(position, Last):
        return {"kind": "last"}
    raise InputError(
        f"position {position.name!r} is a {type(position).__name__},"
        " which a store cannot write down; pass Index, Span or a callable"
    )


_POSITION_KINDS = {"index": Index, "span": Span, "listed": _Listed, "all": AllTokens, "last": Last}


def _position_from_record(record: Mapping[str, Any]) -> Position:
    fields = dict(record)
    kind = fields.pop("kind")
    return _POSITION_KINDS[kind](**fields)
