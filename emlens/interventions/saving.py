"""Interventions on disk: a JSON record and the tensors beside it as safetensors; no pickle.

What is written is what `describe()` says, so a saved intervention is the one in a result's
provenance, and its hash is checked when it is read. Callables are refused, since they cannot be
written down.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from emlens.foundation.errors import InputError, IntegrityError
from emlens.foundation.files import one_line, read_json, write_bytes, write_json
from emlens.foundation.provenance import hash_tensors
from emlens.interventions.adding import Steering
from emlens.interventions.patching import Swap
from emlens.interventions.plain import PlainIntervention
from emlens.interventions.projecting import Ablation
from emlens.interventions.replacing import MeanAblation, ResampleAblation
from emlens.interventions.where import parse_at, require_savable, restore_touched

_TENSORS, _RECORD, _FORMAT = (
    "interventions.safetensors",
    "interventions.json",
    "emlens-interventions-1",
)
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
        InputError: the record names no known kind, or lacks or mistakes a field.
        IntegrityError: the tensors are not those of the record.
    """
    kind = record.get("kind") if isinstance(record, Mapping) else None
    if kind not in _KINDS:
        raise InputError(f"record is of kind {kind!r}; pass one of {', '.join(_KINDS)}")
    if hash_tensors(tensors) != record.get("sha256"):
        raise IntegrityError(
            f"the tensors beside a record of kind {kind!r} are not those it describes;"
            " save it again"
        )
    try:
        return _KINDS[kind].restored(
            parse_at(record["at"]), restore_touched(record["positions"]), record, tensors
        )
    except (KeyError, TypeError) as error:
        raise InputError(
            f"record of kind {kind!r} cannot be read ({type(error).__name__}:"
            f" {one_line(str(error))}); pass one that emlens wrote"
        ) from None


def save_interventions(directory: str | Path, interventions: Iterable[PlainIntervention]) -> Path:
    """Write `interventions.safetensors`, then `interventions.json`, in order of application;
    returns the directory.

    Raises:
        InputError: as `intervention_to_record`.
    """
    directory = Path(directory)
    records, kept = [], {}
    for i, intervention in enumerate(interventions):
        record, tensors = intervention_to_record(intervention)
        records.append(record)
        kept.update(
            {
                f"{i}/{name}": value.detach().cpu().clone(memory_format=torch.contiguous_format)
                for name, value in tensors.items()
            }
        )
    write_bytes(directory / _TENSORS, safetensors.torch.save(kept))
    write_json(directory / _RECORD, {"format": _FORMAT, "interventions": records})
    return directory


def load_interventions(directory: str | Path) -> list[PlainIntervention]:
    """Read what `save_interventions` wrote, in order of application.

    Raises:
        InputError: a file is missing, or is no such record.
        IntegrityError: the tensors are not those the record describes.
    """
    directory = Path(directory)
    record = read_json(directory / _RECORD)
    if (
        not isinstance(record, dict)
        or record.get("format") != _FORMAT
        or not isinstance(record.get("interventions"), list)
    ):
        raise InputError(
            f"{directory / _RECORD}: not interventions saved by emlens;"
            " pass a directory written by save_interventions"
        )
    path = directory / _TENSORS
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        tensors = safetensors.torch.load(path.read_bytes())
    except SafetensorError as error:
        raise IntegrityError(
            f"{path}: not readable as safetensors ({error}); save the interventions again"
        ) from None
    found = []
    for i, one in enumerate(record["interventions"]):
        own = {
            name.removeprefix(f"{i}/"): value
            for name, value in tensors.items()
            if name.startswith(f"{i}/")
        }
        found.append(intervention_from_record(one, own))
    return found
