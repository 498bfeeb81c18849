"""A forecaster on disk: tensors as safetensors, the rest as JSON with their hash. No pickle."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from emlens.foundation.errors import InputError, IntegrityError
from emlens.foundation.files import publishing, read_json, sha256_file, write_json
from emlens.probes.ridge import Array
from emlens.probes.severity import SeverityModel
from emlens.probes.site_ridge import SiteRidge

if TYPE_CHECKING:
    from emlens.probes.forecaster import Forecaster

FORMAT: Final = "emlens-forecaster-2"
_TENSORS, _RECORD = "forecaster.safetensors", "forecaster.json"
_PLAIN: Final = ("observed", "predicted", "hazard", "fold_hazard", "reference")
_LISTS: Final = ("ids", "labels", "fold", "runs", "clusters", "bounds")


def save(forecaster: "Forecaster", path: Path) -> Path:
    """Write the tensors, then the record that holds their hash."""
    tensors: dict[str, Array] = {name: getattr(forecaster, name) for name in _PLAIN}
    tensors["context"] = forecaster.context.to_numpy(dtype=np.float64)

    def kept(name: str, part: SiteRidge | SeverityModel | None) -> dict[str, Any] | None:
        if part is None:
            return None
        record = asdict(part)
        for key in ("weights", "mean", "scale"):
            tensors[f"{name}.{key}"] = record.pop(key)
        return record

    body = {
        "format": FORMAT,
        "ridge": kept("ridge", forecaster.ridge),
        "fold_ridges": [
            [kept(f"fold.{k}.{c}", r) for c, r in enumerate(row)]
            for k, row in enumerate(forecaster.fold_ridges)
        ],
        "severity": kept("severity", forecaster.severity),
        "cluster_severity": [
            kept(f"severity.{c}", model) for c, model in enumerate(forecaster.cluster_severity)
        ],
        "fold_severity": [
            [kept(f"severity.{k}.{c}", model) for c, model in enumerate(row)]
            for k, row in enumerate(forecaster.fold_severity)
        ],
        **{name: list(getattr(forecaster, name)) for name in _LISTS},
        **{name: getattr(forecaster, name) for name in ("top", "bottom", "facts")},
        "context_columns": [str(name) for name in forecaster.context.columns],
    }
    with publishing(path / _TENSORS) as temporary:
        save_file(
            {name: torch.from_numpy(np.array(value, order="C")) for name, value in tensors.items()},
            temporary,
        )
    write_json(path / _RECORD, {**body, "sha256": sha256_file(path / _TENSORS)})
    return path


def load(path: Path) -> dict[str, Any]:
    """The fields of a saved forecaster.

    Raises:
        InputError, IntegrityError: as `Forecaster.load`.
    """
    record = read_json(path / _RECORD)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(
            f"{path}: holds no forecaster of this version ({FORMAT}); fit it again, and save it"
        )
    if not (path / _TENSORS).is_file() or sha256_file(path / _TENSORS) != record["sha256"]:
        raise IntegrityError(
            f"{path}: the weights are missing, or not those {_RECORD} describes;"
            " save the forecaster again"
        )
    tensors = {name: value.numpy() for name, value in load_file(path / _TENSORS).items()}

    def ridge(name: str, part: dict[str, Any]) -> SiteRidge:
        return SiteRidge(**part, **_vectors(tensors, name))

    def severity(name: str, part: dict[str, Any] | None) -> SeverityModel | None:
        return None if part is None else SeverityModel(**part, **_vectors(tensors, name))

    try:
        return {
            "ridge": ridge("ridge", record["ridge"]),
            "fold_ridges": tuple(
                tuple(ridge(f"fold.{k}.{c}", part) for c, part in enumerate(row))
                for k, row in enumerate(record["fold_ridges"])
            ),
            "severity": severity("severity", record["severity"]),
            "cluster_severity": tuple(
                severity(f"severity.{c}", part) for c, part in enumerate(record["cluster_severity"])
            ),
            "fold_severity": tuple(
                tuple(severity(f"severity.{k}.{c}", part) for c, part in enumerate(row))
                for k, row in enumerate(record["fold_severity"])
            ),
            **{name: tensors[name] for name in _PLAIN},
            **{name: tuple(record[name]) for name in _LISTS},
            **{name: record[name] for name in ("top", "bottom", "facts")},
            "context": pd.DataFrame(
                tensors["context"],
                index=pd.Index(record["runs"]),
                columns=record["context_columns"],
            ),
        }
    except (KeyError, TypeError) as error:
        raise IntegrityError(
            f"{path}: {_RECORD} lacks what a forecaster needs ({error}); save the forecaster again"
        ) from error


def _vectors(tensors: dict[str, Array], name: str) -> dict[str, Any]:
    return {key: tensors[f"{name}.{key}"] for key in ("weights", "mean", "scale")}
