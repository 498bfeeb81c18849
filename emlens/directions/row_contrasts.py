"""Two sets of rows, read by one or two models, streamed into block sums: the contrast of their
means at every site and position.

No row is kept: what stays is 2 · blocks · d numbers a site and position (and d² with a covariance).
Rows are weighted by example or by token, and grouped by unit (the question), which is what the
error bars resample. Batches depend on the rows alone, so two models that read the same texts run
the same padded batches.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.activations.batch_reading import read_cutting, read_rows
from emlens.activations.capture_plan import LARGE_BYTES, CapturePlan
from emlens.activations.capture_provenance import capture_provenance, with_layout
from emlens.activations.capture_spec import CaptureSpec
from emlens.activations.capturing import PromptsLike, as_prompts
from emlens.activations.memory import Key
from emlens.data.prompts import Prompt
from emlens.foundation.errors import InputError, UnknownNameError
from emlens.foundation.positions import PositionLike
from emlens.foundation.sites import Site
from emlens.geometry.contrast_sums import BLOCKS, ContrastSums, deal_blocks
from emlens.geometry.contrasts import along, means_agree
from emlens.geometry.directions import Direction
from emlens.geometry.shrinkage import Shrinkage, whiten_by_covariance
from emlens.models.hooked import DEFAULT_BATCH_TOKENS, HookedModel
from emlens.runs.progress import progress_bar
from emlens.stats.moments import StreamingMoments

Weighting = Literal["example", "token"]
WEIGHTINGS: Final = ("example", "token")
Side = tuple[HookedModel, PromptsLike]
"""A model and what it reads: answers by teacher forcing, prompts as they are."""


@dataclass(frozen=True, eq=False)
class Contrasts:
    """Means of a positive and a negative class at several sites and positions, as block sums.

    Args:
        ids: ids of the rows of each class.
        provenance: of the two sides, weighting, blocks and whatever chose the rows; copied into
            every direction.
    """

    sites: tuple[str, ...]
    positions: tuple[str, ...]
    ids: Mapping[str, Sequence[str]]
    provenance: Mapping[str, Any]
    _sums: Mapping[Key, ContrastSums] = field(repr=False)
    _moments: Mapping[Key, tuple[StreamingMoments, StreamingMoments]] = field(repr=False)

    def sums(self, site: str | Site, position: str | None = None) -> ContrastSums:
        """What `emlens.geometry` computes reliability, cones and comparisons from.

        Raises:
            UnknownNameError: a site or position that was not read; `position` is needed where there
                are several.
        """
        return self._sums[self._key(site, position)]

    def direction(self, site: str | Site, position: str | None = None) -> Direction:
        """Positive mean minus negative mean; the baseline is the latter.

        Raises:
            UnknownNameError: as `sums`. InputError: the two means agree to rounding.
        """
        key = self._key(site, position)
        return self._sums[key].direction(*key, self.ids, self.provenance)

    def directions(self, position: str | None = None) -> dict[str, Direction]:
        """Site name → direction, in the order a forward pass reaches the sites.

        Sites at which the two means agree to rounding are left out: below the first block that an
        adapter touches, two models on the same text do not differ.

        Raises:
            UnknownNameError: as `sums`. InputError: the means agree at every site.
        """
        found = {}
        for site in self.sites:
            sums = self.sums(site, position)
            up, down = sums.positive_mean, sums.negative_mean
            if not means_agree(up, down):
                found[site] = self.direction(site, position)
        if not found:
            raise InputError(
                "the two sides have the same means at every site, so there is no direction;"
                " pass sides that differ"
            )
        return found

    def whitened(
        self, site: str | Site, position: str | None = None, *, shrinkage: Shrinkage = "oas"
    ) -> Direction:
        """The direction with the covariance within classes divided out, as
        `emlens.geometry.whitened_direction`.

        Raises:
            UnknownNameError: as `sums`. InputError: no covariance was kept, or what
                `whitened_direction` refuses.
        """
        key = self._key(site, position)
        if key not in self._moments:
            raise InputError("no covariance was kept; pass covariance=True to the extraction")
        plain = self.direction(*key)
        up, down = self._moments[key]
        freedom = up.n + down.n - 2
        pooled = (up.covariance * (up.n - 1) + down.covariance * (down.n - 1)) / freedom
        found, rho = whiten_by_covariance(pooled, plain.vector, freedom, shrinkage)
        facts = {**self.provenance, "shrinkage": rho}
        return Direction(
            along(found, plain.vector), plain.site, plain.position, plain.baseline, self.ids, facts
        )

    def _key(self, site: str | Site, position: str | None) -> Key:
        name = str(Site.parse(site))
        if position is None and len(self.positions) > 1:
            raise UnknownNameError(
                f"there are several positions, {', '.join(self.positions)}; pass position="
            )
        where = self.positions[0] if position is None else position
        if (name, where) not in self._sums:
            raise UnknownNameError(
                f"{name!r} at {where!r} was not read; there are sites {', '.join(self.sites)} at"
                f" {', '.join(self.positions)}"
            )
        return name, where


@torch.no_grad()
def contrast(
    positive: Side,
    negative: Side,
    *,
    names: tuple[str, str] = ("positive", "negative"),
    sites: str | Site | Sequence[str | Site] = "resid_post",
    layers: Sequence[int] | None = None,
    positions: PositionLike | Sequence[PositionLike] = "mean_response",
    weighting: Weighting = "example",
    units: Callable[[Prompt], str] | None = None,
    universe: Sequence[str] = (),
    blocks: int = BLOCKS,
    covariance: bool = False,
    provenance: Mapping[str, Any] | None = None,
    seed: int = 0,
    skip_first: int = 0,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    progress: bool = True,
) -> Contrasts:
    """The contrast of two sides: (model, rows) against (model, rows).

    Two models on the same prompts give the mean activation delta; one model on two sets of answers
    the mean difference within it.

    Args:
        names: what the two classes are called in `ids`.
        positions: one or several pooled positions.
        weighting: `"example"`: every row counts the same; `"token"`: as many times as the position
            has tokens in it.
        units: row → what is resampled with it; the question of an answer by default, else the row
            itself.
        universe: all units there are, also those without a row: contrasts that shall be compared
            need the same blocks.
        blocks: blocks of units at most.
        covariance: keep the covariance within classes, for `whitened` (d² numbers a class, site and
            position; example weighting only).
        provenance: added to that of every direction.
        sites, layers, skip_first, batch_tokens: as `capture`.

    Raises:
        InputError: an unknown weighting, position "all", what `capture` refuses, rows of a class in
            fewer than 2 blocks, sums of more than 8 GiB.
    """
    if weighting not in WEIGHTINGS:
        raise InputError(f"weighting={weighting!r} is unknown; pass 'example' or 'token'")
    if covariance and weighting != "example":
        raise InputError(
            "covariance=True came with weighting='token', whose rows have no covariance of their"
            " own; pass weighting='example'"
        )
    sides = [(model, as_prompts(rows)) for model, rows in (positive, negative)]
    models = {"positive": sides[0][0], "negative": sides[1][0]}
    spec = CaptureSpec(sites, layers, positions, skip_first, batch_tokens)
    readings = [CapturePlan.make(models, list(prompts), spec) for _, prompts in sides]
    if any(not position.pooled for position in readings[0].positions):
        raise InputError(
            "position 'all' keeps every token apart; pass pooled positions such as 'mean_response',"
            " and weighting='token' to count tokens"
        )
    unit_of = units or _question
    labels = [[unit_of(prompt) for prompt in prompts] for _, prompts in sides]
    dealt = deal_blocks([*universe, *labels[0], *labels[1]], blocks, seed)
    count, d = max(dealt.values()) + 1, models["positive"].d_model
    size = 2 * len(readings[0].keys) * d * (count + d * covariance) * 8
    if size > LARGE_BYTES:
        raise InputError(
            f"the sums take {size / 1e9:.1f} GB, more than {LARGE_BYTES / 1e9:.1f} GB;"
            " pass fewer layers, positions or blocks, or no covariance"
        )
    found = []
    title = f"contrast {len(sides[0][1])} and {len(sides[1][1])} rows"
    with progress_bar(
        title, sum(len(reading.layout.sizes) for reading in readings), progress
    ) as advance:
        for (model, prompts), reading, label in zip(sides, readings, labels, strict=True):
            index = torch.tensor([dealt[unit] for unit in label])
            found.append(
                _Streamed.of(
                    model,
                    reading,
                    index,
                    count,
                    weighting,
                    covariance,
                    prompts.content_hash,
                    advance,
                )
            )
    up, down = found
    keys = readings[0].keys
    return Contrasts(
        tuple(str(site) for site in readings[0].sites),
        tuple(position.name for position in readings[0].positions),
        {name: tuple(prompts.ids) for name, (_, prompts) in zip(names, sides, strict=True)},
        {
            **(provenance or {}),
            "weighting": weighting,
            "blocks": count,
            "seed": seed,
            "model": models["positive"].provenance,
            names[0]: up.facts,
            names[1]: down.facts,
        },
        {
            key: ContrastSums(up.weights[key], up.sums[key], down.weights[key], down.sums[key])
            for key in keys
        },
        {key: (up.moments[key], down.moments[key]) for key in keys} if covariance else {},
    )


@dataclass(frozen=True)
class _Streamed:
    """Block sums of one side, by site and position."""

    weights: Mapping[Key, Tensor]
    sums: Mapping[Key, Tensor]
    moments: Mapping[Key, StreamingMoments]
    facts: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        model: HookedModel,
        reading: CapturePlan,
        index: Tensor,
        count: int,
        weighting: Weighting,
        covariance: bool,
        prompts_sha256: str,
        advance: Callable[[], Any],
    ) -> "_Streamed":
        keys, d = reading.keys, model.d_model
        sums = {key: torch.zeros(count, d, dtype=torch.float64) for key in keys}
        moments = {key: StreamingMoments(d) for key in keys} if covariance else {}
        weight = {
            position.name: torch.ones(len(reading.rows), dtype=torch.float64)
            for position in reading.positions
        }
        if weighting == "token":
            for position in reading.positions:
                lengths = [
                    len(reading.rows.indices(position, row)) for row in range(len(reading.rows))
                ]
                weight[position.name] = torch.tensor(lengths, dtype=torch.float64)
        layout = reading.layout
        for batch in range(len(layout.sizes)):
            parts, layout = read_cutting(
                reading, layout, batch, lambda rows: read_rows(model, reading, rows, on_device=True)
            )
            for rows, values in parts:
                picked = torch.tensor(list(rows))
                for key, value in values.items():
                    _add(sums[key], value, index[picked], weight[key[1]][picked])
                    if covariance:
                        moments[key].update(value)
            advance()
        totals = {
            name: torch.zeros(count, dtype=torch.float64).index_add_(0, index, each)
            for name, each in weight.items()
        }
        facts = with_layout(capture_provenance(model, reading, prompts_sha256), layout)
        return cls({key: totals[key[1]] for key in keys}, sums, moments, facts)


def _add(
    sums: Float[Tensor, "block d"], value: Float[Tensor, "row d"], index: Tensor, weight: Tensor
) -> None:
    """sums[index] += weight · value, as one product with a fixed order of summation on every
    device.
    """
    assignment = torch.zeros(len(sums), len(index), dtype=torch.float64)
    assignment[index, torch.arange(len(index))] = weight
    sums += (assignment.to(value.device) @ value.double()).cpu()


def _question(prompt: Prompt) -> str:
    return str(prompt.meta.get("question", prompt.id))
