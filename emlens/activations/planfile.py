"""`plan.json` and `rows.safetensors`: a capture written down, so that any process can run a shard
of it.

A damaged plan is written anew where the finished shards belong to this very plan, and is refused
otherwise; finished shards are never thrown away.
"""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from emlens.activations.batch_layout import BatchLayout
from emlens.activations.reading import Reading
from emlens.activations.shards import (
    FORMAT,
    TensorFile,
    damage_of,
    read_record,
    tensor_sha256,
    whole_record,
    write_record,
)
from emlens.activations.store import MANIFEST, PLAN, ROWS, require_ours
from emlens.activations.token_rows import CaptureRows
from emlens.foundation.errors import InputError, IntegrityError
from emlens.foundation.files import read_json, write_bytes
from emlens.foundation.positions import AllTokens, Chosen, Index, Position, Span
from emlens.foundation.provenance import hash_json
from emlens.foundation.sites import Site


class _Listed(Chosen):
    """A position whose tokens were listed when the capture was planned."""

    def __init__(self, label: str):
        super().__init__(_unavailable, label)


def _unavailable(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    raise InputError("the tokens of a callable position are read from the plan")


def plan_record(reading: Reading, provenance: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    """The plan of one store, and the content of its `rows.safetensors`."""
    tensors = {name: value.contiguous() for name, value in reading.rows.tensors().items()}
    content = save(tensors)
    header = 8 + int.from_bytes(content[:8], "little")
    rows = {
        "bytes": len(content),
        "header_sha256": hashlib.sha256(content[:header]).hexdigest(),
        "tensors": {name: tensor_sha256(value) for name, value in tensors.items()},
    }
    plan = {
        "format": FORMAT,
        "ids": reading.rows.ids,
        "groups": reading.rows.groups,
        "order": list(reading.layout.order),
        "batches": list(reading.layout.sizes),
        "shards": list(reading.layout.shards),
        "sites": [str(site) for site in reading.sites],
        "positions": [_position_record(p) for p in reading.positions],
        "batch_tokens": reading.batch_tokens,
        "dtype": None if reading.dtype is None else str(reading.dtype).removeprefix("torch."),
        "value_bytes": reading.value_bytes,
        "provenance": dict(provenance),
        "rows": rows,
    }
    return plan, content


def begin_store(directory: Path, plan: Mapping[str, Any], rows: bytes) -> str:
    """Write the plan into an empty directory, or find it there; returns its hash.

    Raises:
        InputError: the path is a file.
        IntegrityError: the directory holds something else, or a store of another plan.
    """
    require_ours(directory)
    digest = hash_json(dict(plan))
    found = whole_record(directory / PLAN)
    if found is not None and hash_json(found) != digest:
        raise IntegrityError(
            f"{directory}: holds a store begun for another model, prompt set, site,"
            " position or library version; pass an empty directory"
        )
    if found is None:
        _check_belongs(directory, digest)
        write_record(directory / PLAN, plan)
    file = directory / ROWS
    try:
        damaged = bool(damage_of(TensorFile(file, plan["rows"])))
    except IntegrityError:
        damaged = True
    if damaged:
        write_bytes(file, rows)
    return digest


def _check_belongs(directory: Path, digest: str) -> None:
    """Where plan.json is missing or damaged: what stands beside it must belong to the same plan."""
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
                " capture into this directory with the arguments of before,"
                " which keeps finished shards, or pass an empty directory"
            )


def open_plan(directory: Path) -> tuple[Reading, dict[str, Any], str]:
    """What a plan says: the reading, the whole record, and its hash.

    Raises:
        InputError: there is no plan.
        IntegrityError: it is damaged; the message says how to repair it.
    """
    if not (directory / PLAN).is_file():
        raise InputError(f"{directory}: holds no capture that was begun; plan one first")
    try:
        plan = read_record(directory / PLAN)
        file = TensorFile(directory / ROWS, plan["rows"])
        tensors = {name: file.read(name).clone() for name in file.names}
    except (InputError, IntegrityError, KeyError):
        raise IntegrityError(
            f"{directory}: {PLAN} or {ROWS} is damaged; capture into this directory again with the"
            " same arguments: that writes them anew and keeps finished shards"
        ) from None
    rows = CaptureRows.from_tensors(plan["ids"], plan["groups"], tensors)
    layout = BatchLayout(tuple(plan["order"]), tuple(plan["batches"]), tuple(plan["shards"]))
    positions = tuple(_position(record) for record in plan["positions"])
    dtype = None if plan["dtype"] is None else getattr(torch, plan["dtype"])
    sites = tuple(Site.parse(name) for name in plan["sites"])
    return (
        Reading(rows, sites, positions, layout, plan["batch_tokens"], dtype, plan["value_bytes"]),
        plan,
        hash_json(plan),
    )


def _position_record(position: Position) -> dict[str, Any]:
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
    raise InputError(
        f"position {position.name!r} is a {type(position).__name__},"
        " which a store cannot write down; pass Index, Span or a callable"
    )


def _position(record: Mapping[str, Any]) -> Position:
    facts = {name: value for name, value in record.items() if name != "kind"}
    return {"index": Index, "span": Span, "listed": _Listed, "all": AllTokens}[record["kind"]](
        **facts
    )
