"""Interventions on disk: a JSON record and the tensors beside it as safetensors; no pickle.

The record is what `describe()` gives, so a saved intervention can be matched with the one in a
result's provenance, and its hash is checked when it is loaded. Callables are refused, since they
cannot be written down.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from torch import Tensor

from emlens.foundation.errors import InputError, IntegrityError
from emlens.foundation.files import one_line, write_bytes
from emlens.foundation.provenance import hash_tensors
from emlens.foundation.records import read_checked, tensors_beside, write_checked
from emlens.interventions.ablation import Ablation
from emlens.interventions.arguments import parse_at, require_savable, touched_from_record
from emlens.interventions.plain_intervention import PlainIntervention
from emlens.interventions.replacement import MeanAblation, ResampleAblation
from emlens.interventions.steering import Steering
from emlens.interventions.swapping import Swap

_TENSORS: Final = "interventions.safetensors"
_RECORD: Final = "interventions.json"
_FORMAT: Final = "emlens-interventions-1"
_KINDS: Final[dict[str, type[PlainIntervention]]] = {
    kind.kind: kind for kind in (Ablation, Steering, MeanAblation, ResampleAblation, Swap)
}


def intervention_to_record(
    intervention: PlainIntervention,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A JSON-ready record, and the tensors that belong to it.

    Raises:
        InputError: not an intervention of this package, or its positions are a callable.
    """
    if not isinstance(intervention, PlainIntervention):
        raise InputError(
            f"cannot write down a {type(intervention).__name__};"
            " pass what ablate, steer, mean_ablate, resample_ablate or swap returned"
        )
    require_savable(intervention.positions)
    return intervention.describe(), intervention.tensors()


def intervention_from_record(
    record: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> PlainIntervention:
    """The intervention that a record and its tensors describe.

    Raises:
        InputError: the record names no known kind, or a field is missing or wrong.
        IntegrityError: the tensors are not those of the record.
    """
    kind = record.get("kind") if isinstance(record, Mapping) else None
    if kind not in _KINDS:
        raise InputError(
            f"record is of kind {kind!r}; pass one of {', '.join(_KINDS)}", name=kind, known=_KINDS
        )
    if hash_tensors(tensors) != record.get("sha256"):
        raise IntegrityError(
            f"the tensors beside a record of kind {kind!r} are not those it describes;"
            " save it again"
        )
    try:
        return _KINDS[kind].restored(
            parse_at(record["at"]), touched_from_record(record["positions"]), record, tensors
        )
    except (KeyError, TypeError) as error:
        raise InputError(
            f"record of kind {kind!r} cannot be read ({type(error).__name__}:"
            f" {one_line(str(error))}); pass one that emlens wrote"
        ) from None


def save_interventions(directory: str | Path, interventions: Iterable[PlainIntervention]) -> Path:
    """Write `interventions.safetensors`, then `interventions.json`; returns the directory.

    The order is that of application.

    Raises:
        InputError: as `intervention_to_record`.
    """
    directory = Path(directory)
    records, stored = [], {}
    for i, intervention in enumerate(interventions):
        record, tensors = intervention_to_record(intervention)
        records.append(record)
        for name, value in tensors.items():
            # safetensors refuses tensors that share memory, as a basis used twice does
            copy = value.detach().cpu().clone(memory_format=torch.contiguous_format)
            stored[f"{i}/{name}"] = copy
    write_bytes(directory / _TENSORS, safetensors.torch.save(stored))
    write_checked(directory / _RECORD, {"format": _FORMAT, "interventions": records})
    return directory


def load_interventions(directory: str | Path) -> list[PlainIntervention]:
    """What `save_interventions` wrote, in order of application.

    Raises:
        InputError: a file is missing, or does not hold saved interventions.
        IntegrityError: the tensors are not those the record describes.
    """
    directory = Path(directory)
    records = _read_records(directory / _RECORD)
    tensors = tensors_beside(directory / _TENSORS, "save the interventions again")
    interventions = []
    for i, record in enumerate(records):
        prefix = f"{i}/"
        parts = {}
        for name, value in tensors.items():
            if name.startswith(prefix):
                parts[name.removeprefix(prefix)] = value
        interventions.append(intervention_from_record(record, parts))
    return interventions


def _read_records(path: Path) -> list[Mapping[str, Any]]:
    content = read_checked(
        path,
        fields={"interventions": list},
        version=("format", _FORMAT),
        remedy="pass a directory written by save_interventions, or save them again",
    )
    records: list[Mapping[str, Any]] = content["interventions"]
    return records
