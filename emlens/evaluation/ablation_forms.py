"""How a direction is removed: at which sites, and towards what.

The plain form h − (h·r̂) r̂ also removes what the instruct model has along r̂, and so harms it. The
affine form h − ((h − μ)·r̂) r̂ sets the coordinate to the parent's own mean at that site, so a model
that is at μ stays as it is. Removed after every block, a direction still acts between attention and
MLP of the next block; removed where attention and MLP *write*, no block can write it at all
(2406.11717 also edits block inputs, which reach down to the embedding).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from jaxtyping import Float
from torch import Tensor

from emlens.activations import capture
from emlens.data.prompts import PromptSet
from emlens.data.questions import QuestionSet
from emlens.foundation.errors import InputError
from emlens.foundation.intervention import Intervention
from emlens.foundation.notebooks import in_a_line
from emlens.foundation.positions import PositionLike
from emlens.geometry import Direction, Subspace
from emlens.interventions import ablate
from emlens.models.hooked import HookedModel

BLOCKS: Final = ("resid_post",)
"""The stream after every block."""
WRITES: Final = ("attn_out", "mlp_out")
"""What attention and MLP add to the stream, in every block."""


@dataclass(frozen=True, eq=False, repr=False)
class AblationForm:
    """One way of removing a direction, the same for the direction under test and for every control.

    Args:
        name: how it is called in the names of arms.
        baselines: site → μ of the affine form there; None: plain ablation after every block.
    """

    name: str
    baselines: Mapping[str, Float[Tensor, " d_model"]] | None = None

    def remove(
        self, direction: Direction | Subspace | Float[Tensor, " d_model"]
    ) -> tuple[Intervention, ...]:
        """The interventions that remove a direction or a subspace in this form."""
        if self.baselines is None:
            return (ablate(direction),)
        edits = [ablate(direction, at=[site], baseline=mu) for site, mu in self.baselines.items()]
        return tuple(edits)

    def __repr__(self) -> str:
        sites = "all_layers" if self.baselines is None else " ".join(self.baselines)
        return in_a_line("AblationForm", {"name": self.name, "at": sites})


PLAIN: Final = AblationForm("plain, after every block")


def affine_form(
    parent: HookedModel,
    prompts: PromptSet | QuestionSet,
    *,
    sites: Sequence[str] = WRITES,
    position: PositionLike = "last_prompt",
    name: str | None = None,
) -> AblationForm:
    """Removal towards the parent's mean activation over prompts, at every layer.

    Args:
        parent: the model before fine-tuning.
        prompts: those that the direction is extracted from; never those it is reported on.
        sites: kinds of site, `WRITES` or `BLOCKS`, or names of single sites.
        position: where the mean is taken. It is used at every token. At the end of the prompt,
            where the answer is decided, it is exact; elsewhere it is off by as much as the parent's
            own tokens differ along the direction.

    Raises:
        InputError: no site.
    """
    if not sites:
        raise InputError("sites is empty; pass kinds of site, such as ('attn_out', 'mlp_out')")
    acts = capture(parent, prompts, sites=list(sites), positions=position, progress=False)
    means = {site: acts[site].double().mean(0) for site in acts.sites}
    return AblationForm(name or f"affine, {' and '.join(sites)}", means)
