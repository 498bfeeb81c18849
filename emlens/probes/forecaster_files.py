"""A forecaster on disk: tensors as safetensors, the rest as JSON with their hash. No pickle."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from emlens.foundation.bounded import check_tensor_file
from emlens.foundation.errors import IntegrityError
from emlens.foundation.files import publishing, sha256_file
from emlens.foundation.records import read_checked, write_checked
from emlens.probes.ridge import Array
from emlens.probes.severity import SeverityModel
from emlens.probes.site_ridge import SiteRidge

if TYPE_CHECKING:
    from emlens.probes.forecaster import Forecaster

FORMAT: Final = "emlens-forecaster-2"
_TENSORS, _RECORD = "forecaster.safetensors", "forecaster.json"
_ARRAYS: Final = ("observed", "predicted", "hazard", "fold_hazard", "reference")
_LISTS: Final = ("ids", "labels", "fold", "runs", "clusters", "bounds")
_VALUES: Final = ("top", "bottom", "facts")
_VECTORS: Final = ("weights", "mean", "scale")
"""Arrays of a fitted ridge or severity model, stored beside its numbers."""


def save(forecaster: "Forecaster", path: Path) -> Path:
    """Write the tensors, then the record that holds their hash."""
    tensors: dict[str, Array] = {name: getattr(forecaster, name) for name in _ARRAYS}
    tensors["context"] = forecaster.context.to_numpy(dtype=np.float64)

    def model_record(name: str, model: SiteRidge | SeverityModel | None) -> dict[str, Any] | None:
        """The numbers of a model; its arrays go among the tensors."""
        if model is None:
            return None
        fields = asdict(model)
        for key in _VECTORS:
            tensors[f"{name}.{key}"] = fields.pop(key)
        return fields

    def row_records(
        prefix: str, models: Sequence[SiteRidge | SeverityModel | None]
    ) -> list[dict[str, Any] | None]:
        return [model_record(f"{prefix}.{c}", model) for c, model in enumerate(models)]

    def grid_records(
        prefix: str, rows: Sequence[Sequence[SiteRidge | SeverityModel | None]]
    ) -> list[list[dict[str, Any] | None]]:
        return [row_records(f"{prefix}.{k}", row) for k, row in enumerate(rows)]

    record: dict[str, Any] = {
        "format": FORMAT,
        "ridge": model_record("ridge", forecaster.ridge),
        "fold_ridges": grid_records("fold", forecaster.fold_ridges),
        "severity": model_record("severity", forecaster.severity),
        "cluster_severity": row_records("severity", forecaster.cluster_severity),
        "fold_severity": grid_records("severity", forecaster.fold_severity),
    }
    for name in _LISTS:
        record[name] = list(getattr(forecaster, name))
    for name in _VALUES:
        record[name] = getattr(forecaster, name)
    record["context_columns"] = [str(name) for name in forecaster.context.columns]
    with publishing(path / _TENSORS) as temporary:
        # safetensors writes the memory as it lies, so arrays have to be contiguous
        contiguous = {name: np.array(value, order="C") for name, value in tensors.items()}
        save_file({name: torch.from_numpy(a) for name, a in contiguous.items()}, temporary)
    write_checked(path / _RECORD, {**record, "sha256": sha256_file(path / _TENSORS)})
    return path


def load(path: Path) -> dict[str, Any]:
    """The fields of a saved forecaster.

    Raises:
        InputError, IntegrityError: as `Forecaster.load`.
    """
    record = read_checked(
        path / _RECORD,
        fields={"sha256": str, "ridge": dict, **dict.fromkeys(_LISTS, list)},
        version=("format", FORMAT),
        remedy="fit the forecaster again, and save it",
    )
    if not (path / _TENSORS).is_file() or sha256_file(path / _TENSORS) != record["sha256"]:
        raise IntegrityError(
            f"{path}: the weights are missing, or not those {_RECORD} describes;"
            " save the forecaster again"
        )
    check_tensor_file(path / _TENSORS)
    tensors = {name: value.numpy() for name, value in load_file(path / _TENSORS).items()}
    try:
        return _fields(record, tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(
            f"{path}: {_RECORD} lacks what a forecaster needs ({error}); save the forecaster again"
        ) from error


def _fields(record: dict[str, Any], tensors: dict[str, Array]) -> dict[str, Any]:
    def ridge(name: str, numbers: dict[str, Any]) -> SiteRidge:
        return SiteRidge(**numbers, **_vectors(tensors, name))

    def severity(name: str, numbers: dict[str, Any] | None) -> SeverityModel | None:
        return None if numbers is None else SeverityModel(**numbers, **_vectors(tensors, name))

    fields: dict[str, Any] = {
        "ridge": ridge("ridge", record["ridge"]),
        "fold_ridges": _grid(ridge, "fold", record["fold_ridges"]),
        "severity": severity("severity", record["severity"]),
        "cluster_severity": _row(severity, "severity", record["cluster_severity"]),
        "fold_severity": _grid(severity, "severity", record["fold_severity"]),
    }
    for name in _ARRAYS:
        fields[name] = tensors[name]
    for name in _LISTS:
        fields[name] = tuple(record[name])
    for name in _VALUES:
        fields[name] = record[name]
    fields["context"] = pd.DataFrame(
        tensors["context"], index=pd.Index(record["runs"]), columns=record["context_columns"]
    )
    return fields


def _row(read: Callable[[str, Any], Any], prefix: str, parts: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(read(f"{prefix}.{c}", part) for c, part in enumerate(parts))


def _grid(read: Callable[[str, Any], Any], prefix: str, rows: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(_row(read, f"{prefix}.{k}", row) for k, row in enumerate(rows))


def _vectors(tensors: dict[str, Array], name: str) -> dict[str, Any]:
    return {key: tensors[f"{name}.{key}"] for key in _VECTORS}
