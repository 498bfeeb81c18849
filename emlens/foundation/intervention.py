"""What a backend needs to know of an intervention: where it acts, and a pure function on activations."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from emlens.foundation.sites import Site

TokenScope = Literal["all", "prompt", "response"]
"""Tokens an intervention touches: every token, those of the prompt, or those after it (generated ones included)."""


@runtime_checkable
class Intervention(Protocol):
    """Plain data with a pure `apply`; a backend resolves `targets` before it sets any hook."""

    @property
    def positions(self) -> TokenScope: ...

    def targets(self, sites: Sequence[Site]) -> list[Site]:
        """The sites acted on, given all sites of the model; an error where none matches."""
        ...

    def apply(
        self, activation: Float[Tensor, "batch token d_model"], mask: Bool[Tensor, "batch token"]
    ) -> Float[Tensor, "batch token d_model"]:
        """The new activation; tokens where `mask` is False come back unchanged."""
        ...

    def describe(self) -> dict[str, Any]:
        """JSON-ready record for provenance."""
        ...
