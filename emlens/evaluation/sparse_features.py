"""A direction on the features of a released sparse autoencoder.

Reads what SAELens saves: a folder with `sae_weights.safetensors` (`W_dec`, `W_enc`, biases) and
`cfg.json`. The package itself is not needed, so no other format is read. A feature is described by
its decoder row, the vector that it writes. Only the cosine is given: an encoder reads activations,
and a difference of activations is none.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line, read_json
from emlens.foundation.records import tensors_beside
from emlens.geometry import Direction
from emlens.geometry.random_directions import random_directions, random_directions_like

WEIGHTS: Final = "sae_weights.safetensors"
DRAWS: Final = 200
"""Random directions whose greatest cosine is the control."""


@dataclass(frozen=True, eq=False)
class SparseFeatures:
    """Decoder of a sparse autoencoder.

    Args:
        decoder: unit rows, one a feature.
        place: the hook that the autoencoder reads, as its file says; "" where it says nothing.
    """

    decoder: Float[Tensor, "feature d_model"]
    place: str

    @classmethod
    def load(cls, folder: str | Path) -> "SparseFeatures":
        """Read a folder that SAELens wrote.

        Raises:
            InputError: no such file, no decoder in it, or one that is no matrix of finite numbers.
            IntegrityError: no whole safetensors file.
        """
        path = Path(folder) / WEIGHTS
        if not path.is_file():
            raise InputError(
                f"{folder}: holds no {WEIGHTS}; pass a folder that SAELens saved (SAE.save_model)"
            )
        tensors = tensors_beside(path, "save the autoencoder again")
        decoder = tensors.get("W_dec")
        rows = None if decoder is None else _unit_rows(decoder)
        if rows is None:
            names = one_line(", ".join(sorted(tensors)))
            raise InputError(f"{path}: W_dec is no matrix of finite numbers; it has {names}")
        return cls(rows, _place(Path(folder) / "cfg.json"))


def _unit_rows(decoder: Tensor) -> Tensor | None:
    """Rows of length 1, or None where that is no matrix of finite numbers."""
    if decoder.ndim != 2 or not decoder.numel() or not decoder.is_floating_point():
        return None
    rows = decoder.double()
    lengths = rows.norm(dim=1, keepdim=True)
    if not bool(torch.isfinite(lengths).all()):
        return None
    return (rows / lengths.clamp_min(torch.finfo(torch.float64).tiny)).float()


def _place(path: Path) -> str:
    """The hook that an autoencoder reads, which newer files keep below `metadata`."""
    if not path.is_file():
        return ""
    record: Any = read_json(path)
    metadata = record.get("metadata") if isinstance(record, dict) else None
    for fields in (record, metadata):
        if isinstance(fields, dict) and isinstance(fields.get("hook_name"), str):
            return one_line(fields["hook_name"])
    return ""


def feature_cosines(
    direction: Direction | Float[Tensor, " d_model"],
    features: SparseFeatures,
    *,
    k: int = 10,
    like: Float[Tensor, "row d_model"] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """The features whose decoder rows point most along a direction, and most against it.

    Args:
        k: features on each side.
        like: activations (row, d_model) with whose covariance the random directions are drawn;
            None: uniform on the sphere, a landmark only.

    Returns:
        One row a feature: side (`along`, `against`), rank, feature (0-based), cosine, and
        random_q95: the 95 % quantile of the greatest cosine of a random direction.

    Raises:
        InputError: another width, a direction of length 0, or k beyond the number of features.
    """
    vector = direction.vector if isinstance(direction, Direction) else direction
    n, width = features.decoder.shape
    if len(vector) != width:
        raise InputError(f"direction has {len(vector)} coordinates, the autoencoder {width}")
    if not vector.norm() > 0:
        raise InputError("direction has the length 0; pass one that points somewhere")
    if not 1 <= k <= n:
        raise InputError(f"k={k} must lie between 1 and the {n} features there are")
    rows = features.decoder.double()
    cosines = rows @ (vector.double().cpu() / vector.double().norm().cpu())
    if like is None:
        draws = random_directions(width, DRAWS, seed)
    else:
        draws = random_directions_like(like.double().cpu(), DRAWS, seed)
    greatest = (rows @ draws.double().T).amax(dim=0)
    q95 = float(torch.quantile(greatest, 0.95))
    table = []
    for side, sign in (("along", 1.0), ("against", -1.0)):
        for rank, feature in enumerate((sign * cosines).topk(k).indices.tolist(), start=1):
            table.append(
                {
                    "side": side,
                    "rank": rank,
                    "feature": feature,
                    "cosine": float(cosines[feature]),
                    "random_q95": q95,
                }
            )
    return pd.DataFrame(table)
