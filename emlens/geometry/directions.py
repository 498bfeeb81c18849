"""A direction in the residual stream: where it was read, from what, and which way it points.

A `Direction` points to the `positive` class and keeps its length: `vector` is the difference
itself, `unit` its direction, `baseline` the mean of the negative class that affine ablation needs.
A zero vector has no direction and is refused. `contrasts` estimates directions from rows;
`emlens.data` reads those of other tools. On disk: tensors as safetensors, the
rest as JSON, no pickle.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError, IntegrityError
from emlens.foundation.files import write_bytes
from emlens.foundation.notebooks import Picture, as_table, in_a_line
from emlens.foundation.provenance import hash_tensors
from emlens.foundation.records import Fields, read_checked, tensors_beside, write_checked
from emlens.foundation.shapes import as_float64, require_same_width
from emlens.foundation.sites import Site
from emlens.geometry.linear import result_dtype

_TENSORS = "direction.safetensors"
_RECORD = "direction.json"
_FORMAT = "emlens-direction-1"
_FIELDS: Fields = {
    "site": str,
    "position": (str, type(None)),
    "ids": dict,
    "provenance": dict,
    "tensors": str,
}
_REMEDY = "pass a directory written by Direction.save, or save the direction again"


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
        InputError: the vector is zero, not one-dimensional or not finite, or the baseline does not
            fit it.
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
            raise InputError(
                "vector is zero and so has no direction; pass a vector of positive length"
            )
        if self.baseline is not None:
            if as_float64(self.baseline, "baseline").shape != wide.shape:
                raise InputError(
                    f"baseline has shape {tuple(self.baseline.shape)} and vector"
                    f" {tuple(wide.shape)}; pass equal shapes"
                )
            object.__setattr__(self, "baseline", self.baseline.detach())
        object.__setattr__(self, "vector", self.vector.detach())
        object.__setattr__(self, "site", Site.parse(self.site))
        ids = {name: tuple(map(str, values)) for name, values in self.ids.items()}
        object.__setattr__(self, "ids", ids)

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = {"site": self.site}
        if self.position:
            facts["position"] = self.position
        facts["d_model"] = self.d_model
        facts["norm"] = f"{self.norm:.4g}"
        facts["baseline"] = self.baseline is not None
        for name, ids in self.ids.items():
            facts[f"rows {name}"] = len(ids)
        return facts

    def __repr__(self) -> str:
        return in_a_line("Direction", self._facts())

    def _repr_html_(self) -> str:
        return as_table("Direction", self._facts())

    def plot(self) -> Picture:
        """How much of the squared length the largest coordinates hold, beside a random direction.

        A curve that lies far above the dotted one: a few massive coordinates carry the direction.
        """
        from emlens.geometry.pictures import picture_of_direction

        place = str(self.site)
        if self.position is not None:
            place = f"{self.site}, {self.position}"
        return picture_of_direction(self.vector, place)

    @property
    def norm(self) -> float:
        """Length of the vector, in the units of the stream."""
        wide = self.vector.to(torch.float64)
        # scaled first: the square of a tiny or huge entry would leave the range of float64
        largest = wide.abs().max()
        return float(largest * torch.linalg.vector_norm(wide / largest))

    @property
    def unit(self) -> Float[Tensor, " d"]:
        """The vector over its length, (d,)."""
        return unit_rows(self.vector.to(torch.float64), "vector").to(result_dtype(self.vector))

    @property
    def d_model(self) -> int:
        """Width of the stream."""
        return len(self.vector)

    def save(self, directory: str | Path) -> Path:
        """Write `direction.safetensors`, then `direction.json` with the tensors' hash.

        Returns the directory.
        """
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
        write_checked(directory / _RECORD, record)
        return directory

    @classmethod
    def load(cls, directory: str | Path) -> "Direction":
        """Read what `save` wrote.

        Raises:
            InputError: a file is missing, or is not a saved direction.
            IntegrityError: the tensors are not those the record describes.
        """
        directory = Path(directory)
        record = read_checked(
            directory / _RECORD, fields=_FIELDS, version=("format", _FORMAT), remedy=_REMEDY
        )
        path = directory / _TENSORS
        tensors = tensors_beside(path, "save the direction again")
        if hash_tensors(tensors) != record["tensors"]:
            raise IntegrityError(
                f"{path}: its tensors are not those that {_RECORD} describes;"
                " save the direction again"
            )
        return cls(
            vector=tensors["vector"],
            site=Site.parse(record["site"]),
            position=record["position"],
            baseline=tensors.get("baseline"),
            ids=record["ids"],
            provenance=record["provenance"],
        )


def unit_rows(vectors: Float[Tensor, "*batch d"], name: str) -> Float[Tensor, "*batch d"]:
    """Each row over its length; safe for lengths whose square overflows.

    Raises:
        InputError: a zero row.
    """
    largest = vectors.abs().amax(dim=-1, keepdim=True)
    if bool((largest == 0).any()):
        index = int((largest.flatten() == 0).nonzero()[0])
        raise InputError(
            f"{name} holds a zero vector (number {index}), which has no direction; leave it out"
        )
    scaled = vectors / largest
    return scaled / torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)


def _vector(direction: Direction | Tensor, name: str) -> Tensor:
    """The vector of a direction in float64."""
    vector = direction.vector if isinstance(direction, Direction) else direction
    wide = as_float64(vector, name)
    if wide.ndim != 1:
        raise InputError(
            f"{name} has shape {tuple(wide.shape)}; pass a Direction or a vector of shape (d,)"
        )
    return wide


def direction_cosine(a: Direction | Tensor, b: Direction | Tensor) -> float:
    """Cosine between two directions; range [-1, 1], invariant to their lengths and to rotation.

    Raises:
        InputError: other widths, a zero vector, values that are not finite.
    """
    first, second = _vector(a, "a"), _vector(b, "b")
    require_same_width(first, second, "a", "b")
    cosine = (unit_rows(first[None], "a") * unit_rows(second[None], "b")).sum()
    return float(cosine.clamp(-1.0, 1.0))


def cosine_matrix(
    directions: Sequence[Direction | Tensor] | Float[Tensor, "n d_model"],
) -> Float[Tensor, "n n"]:
    """Cosines between all pairs, (n, n); symmetric with ones on the diagonal, range [-1, 1].

    Args:
        directions: of one width; rows (n, d_model), or a list.

    Raises:
        InputError: no direction, other widths, a zero vector, values that are not finite.
    """
    if len(directions) == 0:
        raise InputError("directions is empty; pass at least one")
    vectors = [_vector(direction, f"directions[{i}]") for i, direction in enumerate(directions)]
    for i, vector in enumerate(vectors):
        require_same_width(vectors[0], vector, "directions[0]", f"directions[{i}]")
    units = unit_rows(torch.stack(vectors), "directions")
    cosines = (units @ units.T).clamp(-1.0, 1.0)
    cosines.fill_diagonal_(1.0)  # rounding leaves them an eps off
    inputs = [d.vector if isinstance(d, Direction) else d for d in directions]
    return cosines.to(result_dtype(*inputs))
