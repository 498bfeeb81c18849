"""What every intervention of this package is: frozen data that says where it acts and can be
written down.

`describe()` is its record, tensors by their hash; `tensors()` are the tensors themselves. Both
together restore it (`emlens.interventions.saving`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.intervention import Edit, PaddedRows, Touched
from emlens.foundation.provenance import hash_tensors
from emlens.foundation.sites import Site
from emlens.interventions.where import At, record_at, record_touched


class PlainIntervention(ABC):
    """Frozen data; subclasses are dataclasses with `at` and `positions` among their fields."""

    kind: ClassVar[str]
    by_prompt: ClassVar[bool] = False
    at: At
    positions: Touched

    @property
    @abstractmethod
    def d_model(self) -> int:
        """Width of the stream it was made for."""

    @abstractmethod
    def targets(self, sites: Sequence[Site]) -> list[Site]:
        """The sites acted on, given all sites of the model; an error where one matches nothing."""

    @abstractmethod
    def bind(self, site: Site, rows: PaddedRows) -> Edit:
        """What it does at one site to these rows."""

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """JSON-ready: everything but the tensors, the sites and the positions."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What it holds, by name."""

    @classmethod
    @abstractmethod
    def restored(
        cls, at: At, positions: Touched, options: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> "PlainIntervention":
        """The intervention that `options` and `tensors` came from."""

    def describe(self) -> dict[str, Any]:
        """JSON-ready record for provenance; tensors by their hash."""
        return {
            "kind": self.kind,
            "at": record_at(self.at),
            "positions": record_touched(self.positions),
            **self.options(),
            "sha256": self._sha256,
        }

    @cached_property
    def _sha256(self) -> str:
        return hash_tensors(self.tensors())


def check_held(targets: Sequence[Site], held: Mapping[Site, Tensor], argument: str) -> list[Site]:
    """The targets, each of which must have a tensor.

    Raises:
        InputError: names the first that has none.
    """
    for site in targets:
        if site not in held:
            raise InputError(
                f"{argument} holds nothing for site {site}; it has {', '.join(map(str, held))}"
            )
    return list(targets)


def by_site(tensors: Mapping[str, Tensor], prefix: str) -> dict[Site, Tensor]:
    """Tensors saved under `prefix/site`, in the order of a pass."""
    found = {
        Site.parse(name.removeprefix(f"{prefix}/")): value
        for name, value in tensors.items()
        if name.startswith(f"{prefix}/")
    }
    return dict(sorted(found.items()))


def named(values: Mapping[Site, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}/{site}": value for site, value in values.items()}
