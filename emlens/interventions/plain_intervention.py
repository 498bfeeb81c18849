"""What every intervention of this package is: frozen data that says where it acts.

`describe()` is its record, with tensors by their hash; `tensors()` gives the tensors themselves.
Both together restore it (`emlens.interventions.saving`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.intervention import Edit, PaddedRows, Touched
from emlens.foundation.notebooks import as_table, in_a_line
from emlens.foundation.provenance import hash_tensors
from emlens.foundation.sites import Site
from emlens.interventions.arguments import At, at_to_record, touched_name, touched_to_record


class PlainIntervention(ABC):
    """Frozen data; subclasses are dataclasses with `at` and `positions` among their fields.

    Subclasses are declared with `repr=False`: the generated one would print every tensor.
    """

    kind: ClassVar[str]
    by_prompt: ClassVar[bool] = False
    at: At
    positions: Touched

    @property
    @abstractmethod
    def d_model(self) -> int:
        """Width of the stream that it was made for."""

    @abstractmethod
    def targets(self, sites: Sequence[Site]) -> list[Site]:
        """The sites acted on, given all sites of the model.

        Raises:
            InputError: a site that matches nothing in the model.
        """

    @abstractmethod
    def bind(self, site: Site, rows: PaddedRows) -> Edit:
        """What it does at one site to these rows."""

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """JSON-ready: everything but the tensors, the sites and the positions."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name."""

    @classmethod
    @abstractmethod
    def restored(
        cls, at: At, positions: Touched, options: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> "PlainIntervention":
        """The intervention that `options` and `tensors` came from."""

    def describe(self) -> dict[str, Any]:
        """JSON-ready record for provenance, with tensors by their hash."""
        return {
            "kind": self.kind,
            "at": at_to_record(self.at),
            "positions": touched_to_record(self.positions),
            **self.options(),
            "sha256": self._sha256,
        }

    @cached_property
    def _sha256(self) -> str:
        return hash_tensors(self.tensors())

    def shown_options(self) -> dict[str, object]:
        """What its line shows besides place and width."""
        return self.options()

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = {
            "at": _place(self.at),
            "positions": touched_name(self.positions),
        }
        for name, value in self.shown_options().items():
            if value is not None:
                facts[name] = value
        return {**facts, "d_model": self.d_model}

    def __repr__(self) -> str:
        return in_a_line(type(self).__name__, self._facts())

    def _repr_html_(self) -> str:
        return as_table(type(self).__name__, self._facts())


def _place(at: At) -> str:
    if isinstance(at, str):
        return at
    return " ".join(str(site) for site in at)


def require_values(targets: Sequence[Site], values: Mapping[Site, Tensor], argument: str) -> None:
    """Each target must have a tensor.

    Raises:
        InputError: names the first that has none.
    """
    for site in targets:
        if site not in values:
            raise InputError(
                f"{argument} holds nothing for site {site}; it has {', '.join(map(str, values))}"
            )


def tensors_by_site(tensors: Mapping[str, Tensor], prefix: str) -> dict[Site, Tensor]:
    """Tensors saved under `prefix/site`, in the order of a forward pass."""
    values = {}
    for name, value in tensors.items():
        if name.startswith(f"{prefix}/"):
            values[Site.parse(name.removeprefix(f"{prefix}/"))] = value
    return dict(sorted(values.items()))


def tensors_by_name(values: Mapping[Site, Tensor], prefix: str) -> dict[str, Tensor]:
    """The same tensors under the names `prefix/site`; what `tensors_by_site` reads."""
    return {f"{prefix}/{site}": value for site, value in values.items()}
