"""What every way to make candidates for a fine-tune's direction offers.

An extraction reads rows with a parent and its fine-tune, and gives directions at several places
under keys "SITE POSITION, METHOD". Prompts give shifts (`emlens.studies.shift_candidates`), judged
answers give contrasts (`emlens.studies.answer_candidates`); selection and arms treat both alike.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from emlens.foundation.sites import Site
from emlens.geometry import Direction
from emlens.models import HookedModel


class Extraction(ABC):
    """Candidates of one origin."""

    directions: Mapping[str, Direction]
    """Key → direction."""

    @abstractmethod
    def rows(self, key: str) -> tuple[Float[Tensor, "row d_model"], Float[Tensor, "row d_model"]]:
        """What the parent and the fine-tune read at the place of a candidate, on the same rows."""

    @abstractmethod
    def mean_before(self, key: str) -> Float[Tensor, " d_model"]:
        """The parent's mean at the place of a candidate, over the same rows."""

    @abstractmethod
    def split_half_cosine(self, key: str, seed: int) -> float:
        """Cosine of the directions that two random halves of the questions give: reliability."""

    @abstractmethod
    def of_another(self, fine_tune: HookedModel, key: str) -> Direction | None:
        """The same extraction with another fine-tune of the parent, on the same rows; None where it
        moves nothing there.
        """

    @abstractmethod
    def text_content(self, key: str) -> Float[Tensor, " d_model"] | None:
        """What the parent's readings of misaligned and of aligned answers differ by at the place of
        a candidate; None where there are no answers.
        """


def key_of(site: str | Site, position: str, method: str) -> str:
    """The key of a candidate."""
    return f"{site} {position}, {method}"


def extraction_of(key: str) -> str:
    """The method of a candidate, by its key."""
    return key.rpartition(", ")[2]


def at_every_layer(directions: Mapping[str, Direction], key: str) -> dict[str, Direction]:
    """The candidates of the same position and method as `key`, in order of the layers."""
    _, _, method = key.partition(" ")
    return {
        candidate: direction
        for candidate, direction in directions.items()
        if candidate.partition(" ")[2] == method
    }
