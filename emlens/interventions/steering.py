"""Steering: a vector is added to the stream.

The coefficient counts in units of the vector itself, of its unit vector, or of the norm of each
token's own activation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, get_args

from jaxtyping import Bool, Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.intervention import Edit, PaddedRows, Touched
from emlens.foundation.sites import Site
from emlens.geometry import Direction
from emlens.interventions.arguments import (
    At,
    Positions,
    parse_at,
    parse_touched,
    require_width,
    resolve,
    unit_vector,
    vector_of,
)
from emlens.interventions.arithmetic import NormStep, shifting
from emlens.interventions.plain_intervention import PlainIntervention

Unit = Literal["vector", "unit", "resid_norm"]


@dataclass(frozen=True, eq=False, repr=False)
class Steering(PlainIntervention):
    """h ← h + c·v at the chosen tokens; in units of the residual norm: h ← h + c·‖h‖·v̂."""

    kind: ClassVar[str] = "steer"
    vector: Float[Tensor, " d_model"]
    coefficient: float
    unit: Unit
    at: At
    positions: Touched
    own_site: str | None

    @property
    def d_model(self) -> int:
        return self.vector.shape[0]

    def targets(self, sites: Sequence[Site]) -> list[Site]:
        return resolve(self.at, self.own_site, sites)

    def bind(self, site: Site, rows: PaddedRows) -> Edit:
        return self._edit

    @cached_property
    def _edit(self) -> Edit:
        if self.unit == "vector":
            return shifting(self.coefficient * self.vector)
        step = self.coefficient * unit_vector(self.vector)
        if self.unit == "unit":
            return shifting(step)
        return NormStep(step)

    def apply(
        self,
        activation: Float[Tensor, "batch token d_model"],
        mask: Bool[Tensor, "batch token"] | None = None,
    ) -> Float[Tensor, "batch token d_model"]:
        """The arithmetic alone, on any activation."""
        require_width(activation, self.d_model)
        return self._edit(activation, mask)

    def options(self) -> dict[str, Any]:
        return {"coefficient": self.coefficient, "unit": self.unit, "own_site": self.own_site}

    def tensors(self) -> dict[str, Tensor]:
        return {"vector": self.vector}

    @classmethod
    def restored(
        cls, at: At, positions: Touched, options: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> "Steering":
        return cls(
            tensors["vector"],
            options["coefficient"],
            options["unit"],
            at,
            positions,
            options["own_site"],
        )


def steer(
    direction: Direction | Tensor,
    coefficient: float,
    unit: Unit = "vector",
    at: At = "own_site",
    positions: Positions = "all",
) -> Steering:
    """Add a direction to the stream.

    Args:
        coefficient: how much; a negative one steers away.
        unit: what the coefficient multiplies: `"vector"`, the direction as it is; `"unit"`, its
            unit vector; `"resid_norm"`, its unit vector times the norm of each token's activation.
        at, positions: as in `ablate`.

    Raises:
        InputError: a zero vector, a coefficient that is not finite, an unknown `unit`, `at` or
            `positions`.

    Reference: h ← h + αv, 2506.11618; contrastive activation addition, 2312.06681.
    """
    at, touched = parse_at(at), parse_touched(positions)
    vector, own_site = vector_of(direction, "direction")
    if unit not in get_args(Unit):
        raise InputError(
            f"unit={unit!r} is unknown; pass 'vector', 'unit' or 'resid_norm'",
            name=unit,
            known=get_args(Unit),
        )
    if not abs(float(coefficient)) < float("inf"):
        raise InputError(f"coefficient={coefficient} is not a finite number")
    return Steering(vector, float(coefficient), unit, at, touched, own_site)
