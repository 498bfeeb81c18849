"""How a direction is removed: at which sites, and towards what.

The plain form h − (h·r̂) r̂ also removes what the instruct model holds along r̂, and so harms it.
The affine form h − ((h − μ)·r̂) r̂ sets the coordinate to the parent's own mean at that site, so a
model that is at μ stays as it is. Edited after every block, a direction still acts inside the next
block's input; edited where attention and MLP *write*, no block can write it at all (2406.11717 also
edits block inputs, which reach down to the embedding).
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
from emlens.foundation.positions import PositionLike
from emlens.geometry import Direction, Subspace
from emlens.interventions import ablate
from emlens.models.hooked import HookedModel

BLOCKS: Final = ("resid_post",)
"""The stream after every block."""
WRITES: Final = ("attn_out", "mlp_out")
"""What attention and MLP add to the stream, in every block."""


@dataclass(frozen=True, eq=False)
class AblationForm:
    """One way of removing a direction, the same for the direction under test and for every control.

    Args:
        name: how arms call it.
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
        return tuple(
            ablate(direction, at=[site], baseline=mean) for site, mean in self.baselines.items()
        )


PLAIN: Final = AblationForm("plain, after every block")


def affine_form(
    parent: HookedModel,
    prompts: PromptSet | QuestionSet,
    *,
    sites: Sequence[str] = WRITES,
    position: PositionLike = "last_prompt",
    name: str | None = None,
) -> AblationForm:
    """Removal towards the parent's mean activation over prompts, at every layer of these kinds of
    site.

    Args:
        parent: the model before fine-tuning. prompts: those a direction is extracted from; never
            those it is reported on.
        sites: kinds of site, `WRITES` or `BLOCKS`, or names of single sites.
        position: where the mean is taken. It is used at every token: at the end of the prompt,
            where the answer is decided, it is exact; elsewhere it is off by what the parent's own
            tokens differ along the direction.

    Raises:
        InputError: no site.
    """
    if not sites:
        raise InputError("sites is empty; pass kinds of site, such as ('attn_out', 'mlp_out')")
    found = capture(parent, prompts, sites=list(sites), positions=position, progress=False)
    means = {site: found[site].double().mean(0) for site in found.sites}
    return AblationForm(name or f"affine, {' and '.join(sites)}", means)
