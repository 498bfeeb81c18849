"""How a direction is removed: at which sites, and towards what.

The plain form h − (h·r̂) r̂ also removes what the instruct model has along r̂, and so harms it. The
affine form h − ((h − μ)·r̂) r̂ sets the coordinate to the parent's own mean at that site, so a model
that is at μ stays as it is.

Three things wreck real models. The first token is an attention sink: its activation is tens of
times longer than others, so it must neither be edited nor enter a mean. The mean at the end of the
prompt is that of a few template tokens: at ordinary tokens another mean is right. And a few
coordinates vary by up to thousands of times the others (massive coordinates): h·r̂ is then mostly
theirs, whatever r̂ is, and removing it writes their variation into all other coordinates. So the
affine form has two means, leaves the first token alone, and reads each coordinate in units of its
spread over the parent's own tokens: h·q with q = D⁻¹r̂/(r̂ᵀD⁻¹r̂), D the standard deviations. What an
update adds along r̂ is removed whole, since q·r̂ = 1; what is constant afterwards is h·q, not h·r̂.
docs/evidence/ablation_damage.json has what each of the three costs.

Removed after every block, a direction still acts between attention and
MLP of the next block; removed where attention and MLP *write*, no block can write it at all
(2406.11717 also edits block inputs, which reach down to the embedding).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.activations import capture
from emlens.data.prompts import PromptSet
from emlens.data.questions import QuestionSet
from emlens.foundation.errors import InputError
from emlens.foundation.intervention import Intervention
from emlens.foundation.notebooks import in_a_line
from emlens.foundation.positions import Position, PositionLike, RowSpans, Span
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
        scales: site → standard deviation of each coordinate over the parent's tokens, by which
            the component is read (`ablate`). None: it is read along the direction itself.
    """

    name: str
    baselines: Mapping[str, Float[Tensor, " d_model"]] | None = None
    ordinary: Mapping[str, Float[Tensor, " d_model"]] | None = None
    scales: Mapping[str, Float[Tensor, " d_model"]] | None = None

    def remove(
        self, direction: Direction | Subspace | Float[Tensor, " d_model"]
    ) -> tuple[Intervention, ...]:
        """The interventions that remove a direction or a subspace in this form."""
        if self.baselines is None:
            return (ablate(direction),)
        edits = []
        for site, mu in self.baselines.items():
            scales = None if self.scales is None else self.scales[site]
            if self.ordinary is None:
                edits.append(ablate(direction, at=[site], baseline=mu, scales=scales))
                continue
            # the second edit sets the same coordinate at the last token anew
            for baseline, positions in (
                (self.ordinary[site], _ORDINARY),
                (mu, "last_prompt"),
                (self.ordinary[site], "response"),
            ):
                edits.append(ablate(direction, [site], positions, baseline, scales))
        return tuple(edits)

    def __repr__(self) -> str:
        sites = "all_layers" if self.baselines is None else " ".join(self.baselines)
        return in_a_line("AblationForm", {"name": self.name, "at": sites})


_ORDINARY: Final = Span(1, None, of="prompt")
PLAIN: Final = AblationForm("plain, after every block")


@dataclass(frozen=True)
class _Between(Position):
    """One token of the prompt: so far on the way from its second token to its last."""

    share: float

    @property
    def name(self) -> str:
        return f"between[{self.share:g},prompt]"

    def tokens(self, ids: Sequence[int], spans: RowSpans) -> list[int]:
        others = spans.part("prompt")[1:]
        if not others:
            raise InputError(f"position {self.name} does not exist in a prompt of one token")
        return [others[int(self.share * len(others))]]


_SAMPLED: Final = tuple(_Between(share) for share in (0.0, 0.2, 0.4, 0.6, 0.8))
"""Tokens whose spread stands for that of ordinary tokens."""
_LEAST_VARIANCE: Final = 1e-3
"""Of a coordinate, as a share of the median: one that never moves must not decide alone."""


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
    the prompt's other tokens at those and in the answer. The row's first token is left alone. The
    component is read by the spread of each coordinate over five tokens of each prompt.

    Args:
        parent: the model before fine-tuning.
        prompts: those that the direction is extracted from; never those it is reported on.
        sites: kinds of site, `WRITES` or `BLOCKS`, or names of single sites.
        position: take one mean there and use it at every token, the first too; it is off
            elsewhere by as much as the parent's own tokens differ along the direction, and the
            component is read along the direction itself. None: two means, as said.

    Raises:
        InputError: no site, or a prompt of one token.
    """
    if not sites:
        raise InputError("sites is empty; pass kinds of site, such as ('attn_out', 'mlp_out')")
    named = name or f"affine, {' and '.join(sites)}"
    if position is not None:
        acts = capture(parent, prompts, sites=list(sites), positions=position, progress=False)
        return AblationForm(named, {site: acts[site].double().mean(0) for site in acts.sites})
    places: list[PositionLike] = ["last_prompt", _ORDINARY, *_SAMPLED]
    acts = capture(parent, prompts, sites=list(sites), positions=places, progress=False)
    last, ordinary, *sampled = acts.positions
    return AblationForm(
        named,
        {site: acts[site, last].double().mean(0) for site in acts.sites},
        {site: acts[site, ordinary].double().mean(0) for site in acts.sites},
        {site: _scales(torch.cat([acts[site, place] for place in sampled])) for site in acts.sites},
    )


def _scales(rows: Float[Tensor, "token d_model"]) -> Float[Tensor, " d_model"]:
    """Standard deviation of each coordinate, with a floor; 1 where nothing varies."""
    variance = rows.double().var(0)
    floor = _LEAST_VARIANCE * float(variance.median())
    if not floor > 0:
        return torch.ones_like(variance)
    return (variance + floor).sqrt()
