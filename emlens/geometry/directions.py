"""A direction in the residual stream: where it was read, from what, and which way it points.

A `Direction` points to the `positive` class and keeps its length: `vector` is the difference itself, `unit` its
direction, `baseline` the mean of the negative class that affine ablation needs. A zero difference has no direction and
is refused. Means are taken in float64; results are float64 for float64 input and float32 otherwise. On disk: tensors as
safetensors, the rest as JSON, no pickle.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from emlens.foundation.errors import InputError, IntegrityError
from emlens.foundation.files import read_json, write_bytes, write_json
from emlens.foundation.provenance import hash_tensors
from emlens.foundation.seeds import torch_rng
from emlens.foundation.shapes import as_float64, require_same_width
from emlens.foundation.sites import Site
from emlens.geometry.linear import EPS64, gaussian_factor, result_dtype
from emlens.geometry.subspaces import centred_rows, top_k_subspace

_TENSORS, _RECORD, _FORMAT = "direction.safetensors", "direction.json", "emlens-direction-1"


@dataclass(frozen=True, eq=False)
class Direction:
    """One vector with its place and origin.

    Args:
        vector: the direction with its length (d,).
        site: where it lives; a site name is parsed.
        position: name of the token position it was read at.
        baseline: mean of the negative class (d,), for affine ablation.
        ids: ids of the rows used, by class.
        provenance: anything JSON-ready about where the rows came from.

    Raises:
        InputError: the vector is zero, not one-dimensional or not finite, or the baseline does not fit it.
    """

    vector: Float[Tensor, " d"]
    site: Site
    position: str | None = None
    baseline: Float[Tensor, " d"] | None = None
    ids: Mapping[str, Sequence[str]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wide = as_float64(self.vector, "vector")
        if wide.ndim != 1:
            raise InputError(f"vector has shape {tuple(wide.shape)}; pass one vector of shape (d,)")
        if not bool((wide != 0).any()):
            raise InputError("vector is zero and so has no direction; pass a vector of positive length")
        if self.baseline is not None:
            if as_float64(self.baseline, "baseline").shape != wide.shape:
                raise InputError(
                    f"baseline has shape {tuple(self.baseline.shape)} and vector {tuple(wide.shape)}; pass equal shapes"
                )
            object.__setattr__(self, "baseline", self.baseline.detach())
        object.__setattr__(self, "vector", self.vector.detach())
        object.__setattr__(self, "site", Site.parse(self.site))
        object.__setattr__(self, "ids", {name: tuple(map(str, ids)) for name, ids in self.ids.items()})

    @property
    def norm(self) -> float:
        wide = self.vector.to(torch.float64)
        largest = wide.abs().max()  # so that the square of a tiny or huge entry stays a float64
        return float(largest * torch.linalg.vector_norm(wide / largest))

    @property
    def unit(self) -> Float[Tensor, " d"]:
        return _unit_rows(self.vector.to(torch.float64), "vector").to(result_dtype(self.vector))

    @property
    def d_model(self) -> int:
        return len(self.vector)

    def save(self, directory: str | Path) -> Path:
        """Write `direction.safetensors`, then `direction.json` with its hash; returns the directory."""
        directory = Path(directory)
        tensors = {"vector": self.vector.cpu().contiguous()}
        if self.baseline is not None:
            tensors["baseline"] = self.baseline.cpu().contiguous()
        write_bytes(directory / _TENSORS, safetensors.torch.save(tensors))
        record = {
            "format": _FORMAT,
            "site": str(self.site),
            "position": self.position,
            "ids": dict(self.ids),
            "provenance": dict(self.provenance),
            "tensors": hash_tensors(tensors),
        }
        write_json(directory / _RECORD, record)
        return directory

    @classmethod
    def load(cls, directory: str | Path) -> "Direction":
        """Read what `save` wrote.

        Raises:
            InputError: a file is missing, or is not a saved direction.
            IntegrityError: the tensors are not those the record describes.
        """
        directory = Path(directory)
        record = read_json(directory / _RECORD)
        fields = {"site", "position", "ids", "provenance", "tensors"}
        if not isinstance(record, dict) or record.get("format") != _FORMAT or not fields <= set(record):
            raise InputError(
                f"{directory / _RECORD}: not a direction saved by emlens; pass a directory written by Direction.save"
            )
        path = directory / _TENSORS
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        try:
            tensors = safetensors.torch.load(path.read_bytes())
        except SafetensorError as error:
            raise IntegrityError(f"{path}: not readable as safetensors ({error}); save the direction again") from None
        if hash_tensors(tensors) != record["tensors"]:
            raise IntegrityError(
                f"{path}: its tensors are not those that {_RECORD} describes; save the direction again"
            )
        return cls(
            tensors["vector"],
            Site.parse(record["site"]),
            record["position"],
            tensors.get("baseline"),
            _tuples(record["ids"]),
            record["provenance"],
        )


def mean_difference_direction(
    positive: Float[Tensor, "pos d_model"],
    negative: Float[Tensor, "neg d_model"],
    *,
    site: str | Site,
    position: str | None = None,
    ids: Mapping[str, Sequence[str]] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Direction:
    """Mean of `positive` rows minus mean of `negative` rows, so it points to `positive`; `baseline` is the latter.

    Every row weighs the same within its class, so class sizes may differ. Invariant to a common shift of all rows.

    Raises:
        InputError: an empty class, other widths, values that are not finite, or means that agree to rounding.
    """
    first, _, _ = centred_rows(positive, False, "positive")
    second, _, _ = centred_rows(negative, False, "negative")
    require_same_width(first, second, "positive", "negative")
    if first.ndim != 2 or second.ndim != 2:
        raise InputError(
            f"positive has shape {tuple(first.shape)} and negative {tuple(second.shape)}; pass two (row, d) matrices"
        )
    up, down = first.mean(dim=0), second.mean(dim=0)
    difference = up - down
    scale = float(torch.linalg.vector_norm(up) + torch.linalg.vector_norm(down))
    size = float(torch.linalg.vector_norm(difference))
    if size <= 8 * EPS64 * scale:
        raise InputError(
            f"positive and negative have the same mean (they differ by {size:.3g}), so no direction lies between them"
        )
    out = result_dtype(positive, negative)
    return Direction(difference.to(out), Site.parse(site), position, down.to(out), _tuples(ids), dict(provenance or {}))


def _tuples(ids: Mapping[str, Sequence[str]] | None) -> dict[str, tuple[str, ...]]:
    return {name: tuple(members) for name, members in (ids or {}).items()}


def direction_from_deltas(
    deltas: Float[Tensor, "row d_model"],
    *,
    site: str | Site,
    kind: Literal["mean", "top_component"] = "mean",
    position: str | None = None,
    ids: Mapping[str, Sequence[str]] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Direction:
    """A direction from deltas (after − before): their mean, or their first uncentred component.

    The component is signed to agree with the mean delta and scaled to the deltas' root-mean-square coordinate on it.

    Raises:
        InputError: no row, values that are not finite, a zero mean or rank 0, an unknown kind.
    """
    rows, _, _ = centred_rows(deltas, False, "deltas")
    if rows.ndim != 2:
        raise InputError(f"deltas has shape {tuple(rows.shape)}; pass one (row, d) matrix")
    mean = rows.mean(dim=0)
    if kind == "mean":
        scale = float(torch.linalg.vector_norm(rows, dim=1).max())
        if float(torch.linalg.vector_norm(mean)) <= 8 * EPS64 * scale:
            raise InputError("deltas have mean zero, so their mean has no direction; use kind='top_component'")
        vector = mean
    elif kind == "top_component":
        axis = top_k_subspace(rows, 1, center=False).basis[:, 0]
        axis = -axis if float(axis @ mean) < 0 else axis
        vector = axis * (rows @ axis).square().mean().sqrt()
    else:
        raise InputError(f"kind={kind!r} is unknown; pass 'mean' or 'top_component'")
    return Direction(
        vector.to(result_dtype(deltas)), Site.parse(site), position, None, _tuples(ids), dict(provenance or {})
    )


def _unit_rows(vectors: Tensor, name: str) -> Tensor:
    largest = vectors.abs().amax(dim=-1, keepdim=True)
    if bool((largest == 0).any()):
        index = int((largest.flatten() == 0).nonzero()[0])
        raise InputError(f"{name} holds a zero vector (number {index}), which has no direction; leave it out")
    scaled = vectors / largest
    return scaled / torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)


def _vector(direction: Direction | Tensor, name: str) -> Tensor:
    vector = direction.vector if isinstance(direction, Direction) else direction
    wide = as_float64(vector, name)
    if wide.ndim != 1:
        raise InputError(f"{name} has shape {tuple(wide.shape)}; pass a Direction or a vector of shape (d,)")
    return wide


def direction_cosine(a: Direction | Tensor, b: Direction | Tensor) -> float:
    """Cosine between two directions; range [-1, 1], blind to their lengths.

    Raises:
        InputError: other widths, a zero vector, values that are not finite.
    """
    first, second = _vector(a, "a"), _vector(b, "b")
    require_same_width(first, second, "a", "b")
    return float((_unit_rows(first[None], "a") * _unit_rows(second[None], "b")).sum().clamp(-1.0, 1.0))


def cosine_matrix(directions: Sequence[Direction | Tensor] | Float[Tensor, "n d_model"]) -> Float[Tensor, "n n"]:
    """Cosines between all pairs; symmetric with ones on the diagonal.

    Raises:
        InputError: none given, other widths, a zero vector, values that are not finite.
    """
    if len(directions) == 0:
        raise InputError("directions is empty; pass at least one")
    vectors = [_vector(direction, f"directions[{i}]") for i, direction in enumerate(directions)]
    for i, vector in enumerate(vectors):
        require_same_width(vectors[0], vector, "directions[0]", f"directions[{i}]")
    units = _unit_rows(torch.stack(vectors), "directions")
    cosines = (units @ units.T).clamp(-1.0, 1.0)
    cosines.fill_diagonal_(1.0)
    given = [d.vector if isinstance(d, Direction) else d for d in directions]
    return cosines.to(result_dtype(*given))


def random_directions(d_model: int, count: int, seed: int = 0) -> Float[Tensor, "count d_model"]:
    """Unit vectors uniform on the sphere, float64.

    As a control arm of an ablation they pass by construction, since they carry almost no variance of activations.

    Raises:
        InputError: d_model or count below 1.
    """
    _require_counts(d_model=d_model, count=count)
    draws = torch.randn(count, d_model, dtype=torch.float64, generator=torch_rng(seed, "random_directions", d_model))
    return _unit_rows(draws, "draws")


def random_directions_like(
    covariance_or_vectors: Float[Tensor, "row d_model"], count: int, seed: int = 0
) -> Float[Tensor, "count d_model"]:
    """Unit vectors along Gaussian draws with a covariance: random directions that carry as much variance as rows do.

    Args:
        covariance_or_vectors: (d, d) symmetric covariance, or vectors (row, d) whose sample covariance is taken.

    Raises:
        InputError: count below 1, or a covariance that cannot be used.
    """
    _require_counts(count=count)
    factor = gaussian_factor(covariance_or_vectors, "covariance_or_vectors")
    rng = torch_rng(seed, "random_directions_like", factor.shape[1])
    draws = torch.randn(count, len(factor), dtype=torch.float64, generator=rng) @ factor
    return _unit_rows(draws, "draws").to(result_dtype(covariance_or_vectors))


def _require_counts(**counts: int) -> None:
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"{name}={count!r} must be an integer of 1 or more")
