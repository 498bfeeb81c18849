"""How a direction is removed: at which sites, and towards what.

The plain form h − (h·r̂) r̂ also removes what the instruct model has along r̂, and so harms it. The
affine form h − ((h − μ)·r̂) r̂ sets the coordinate to the parent's own mean at that site, so a model
that is at μ stays as it is.

Two things wreck SmolLM2. Its first token is an attention sink: its activation is tens of times
longer than others, so it must neither be edited nor enter a mean. And the mean at the end of the
prompt is that of a few template tokens: at ordinary tokens another mean is right. So the affine
form has two means, and leaves the first token alone. On SmolLM2 this costs .03 to .06 nats per
token for random directions, one mean at every token .20 to .50, and a mean with the first token in
it 1 to 10 (docs/evidence/ablation_damage.json).

Removed after every block, a direction still acts between attention and
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
from emlens.foundation.positions import PositionLike, Span
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
        ordinary: site → μ at every token but the last of the prompt; the row's first token is then
            left alone. None: `baselines` count at every token, the first too.
    """

    name: str
    baselines: Mapping[str, Float[Tensor, " d_model"]] | None = None
    ordinary: Mapping[str, Float[Tensor, " d_model"]] | None = None

    def remove(
        self, direction: Direction | Subspace | Float[Tensor, " d_model"]
    ) -> tuple[Intervention, ...]:
        """The interventions that remove a direction or a subspace in this form."""
        if self.baselines is None:
            return (ablate(direction),)
        edits = []
        for site, mu in self.baselines.items():
            if self.ordinary is None:
                edits.append(ablate(direction, at=[site], baseline=mu))
                continue
            # the second edit sets the same coordinate at the last token anew
            for baseline, positions in (
                (self.ordinary[site], _ORDINARY),
                (mu, "last_prompt"),
                (self.ordinary[site], "response"),
            ):
                edits.append(ablate(direction, at=[site], positions=positions, baseline=baseline))
        return tuple(edits)

    def __repr__(self) -> str:
        sites = "all_layers" if self.baselines is None else " ".join(self.baselines)
        return in_a_line("AblationForm", {"name": self.name, "at": sites})


_ORDINARY: Final = Span(1, None, of="prompt")
PLAIN: Final = AblationForm("plain, after every block")


def affine_form(
    parent: HookedModel,
    prompts: PromptSet | QuestionSet,
    *,
    sites: Sequence[str] = WRITES,
    position: PositionLike | None = None,
    name: str | None = None,
) -> AblationForm:
    """Removal towards the parent's mean activation over prompts, at every layer.

    The mean at the end of the prompt counts there, where the answer is decided, and the mean over
    the prompt's other tokens at those and in the answer. The row's first token is left alone.

    Args:
        parent: the model before fine-tuning.
        prompts: those that the direction is extracted from; never those it is reported on.
        sites: kinds of site, `WRITES` or `BLOCKS`, or names of single sites.
        position: take one mean there and use it at every token, the first too; it is off
            elsewhere by as much as the parent's own tokens differ along the direction. None: two
            means, as said.

    Raises:
        InputError: no site, or a prompt of one token.
    """
    if not sites:
        raise InputError("sites is empty; pass kinds of site, such as ('attn_out', 'mlp_out')")
    named = name or f"affine, {' and '.join(sites)}"
    if position is not None:
        acts = capture(parent, prompts, sites=list(sites), positions=position, progress=False)
        return AblationForm(named, {site: acts[site].double().mean(0) for site in acts.sites})
    places: list[PositionLike] = ["last_prompt", _ORDINARY]
    acts = capture(parent, prompts, sites=list(sites), positions=places, progress=False)
    last, ordinary = acts.positions
    return AblationForm(
        named,
        {site: acts[site, last].double().mean(0) for site in acts.sites},
        {site: acts[site, ordinary].double().mean(0) for site in acts.sites},
    )
