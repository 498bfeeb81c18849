"""The contrast of two sets of rows, read by one or two models, at every site and position.

Rows are streamed into block sums and not kept: 2 · blocks · d numbers remain per site and position
(and d² with a covariance). Rows are weighted by example or by token, and grouped by unit (the
question); the error bars resample units. Batches depend on the rows alone, so two models that read
the same texts run the same padded batches.
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
from emlens.activations.memory import Key
from emlens.data.base_questions import base_question
from emlens.data.prompt_inputs import PromptsLike, as_prompts
from emlens.data.prompts import Prompt
from emlens.foundation.errors import InputError, UnknownNameError
from emlens.foundation.notebooks import Picture, in_a_line
from emlens.foundation.positions import Position
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
MEAN_RESPONSE: Final = CaptureSpec(positions="mean_response", batch_tokens=DEFAULT_BATCH_TOKENS)
"""What contrasts of answers read unless a spec is passed."""


@dataclass(frozen=True, eq=False, repr=False)
class Contrasts:
    """Means of a positive and a negative class at several sites and positions, as block sums.

    Args:
        ids: ids of the rows of each class.
        provenance: of the two sides, weighting, blocks and what chose the rows; copied into every
            direction.
    """

    sites: tuple[str, ...]
    positions: tuple[str, ...]
    ids: Mapping[str, Sequence[str]]
    provenance: Mapping[str, Any]
    _sums: Mapping[Key, ContrastSums] = field(repr=False)
    _moments: Mapping[Key, tuple[StreamingMoments, StreamingMoments]] = field(repr=False)

    def sums(self, site: str | Site, position: str | None = None) -> ContrastSums:
        """The block sums, from which `emlens.geometry` computes reliability, cones, comparisons.

        Raises:
            UnknownNameError: a site or position that was not read; `position` is needed where there
                are several.
        """
        return self._sums[self._key(site, position)]

    def direction(self, site: str | Site, position: str | None = None) -> Direction:
        """Positive mean minus negative mean; the baseline is the latter.

        Raises:
            UnknownNameError: as `sums`.
            InputError: the two means agree to rounding.
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
        directions = {}
        for site in self.sites:
            sums = self.sums(site, position)
            if not means_agree(sums.positive_mean, sums.negative_mean):
                directions[site] = self.direction(site, position)
        if not directions:
            raise InputError(
                "the two sides have the same means at every site, so there is no direction;"
                " pass sides that differ"
            )
        return directions

    def whitened(
        self, site: str | Site, position: str | None = None, *, shrinkage: Shrinkage = "oas"
    ) -> Direction:
        """The direction with the covariance within classes divided out.

        As `emlens.geometry.whitened_direction`.

        Raises:
            UnknownNameError: as `sums`.
            InputError: no covariance was kept, or what `whitened_direction` refuses.
        """
        key = self._key(site, position)
        if key not in self._moments:
            raise InputError("no covariance was kept; pass covariance=True to the extraction")
        plain = self.direction(*key)
        up, down = self._moments[key]
        freedom = up.n + down.n - 2
        # within classes: each covariance weighted by its degrees of freedom
        pooled = (up.covariance * (up.n - 1) + down.covariance * (down.n - 1)) / freedom
        whitened, rho = whiten_by_covariance(pooled, plain.vector, freedom, shrinkage)
        return Direction(
            along(whitened, plain.vector),
            plain.site,
            plain.position,
            plain.baseline,
            self.ids,
            {**self.provenance, "shrinkage": rho},
        )

    def plot(self) -> Picture:
        """Length of the mean difference at every site, and how well two halves of the units agree
        on its direction.
        """
        from emlens.directions.pictures import picture_of_contrasts

        return picture_of_contrasts(self)

    def __repr__(self) -> str:
        facts: dict[str, object] = {
            "sites": " ".join(self.sites),
            "positions": " ".join(self.positions),
        }
        for name, ids in self.ids.items():
            facts[f"rows {name}"] = len(ids)
        return in_a_line("Contrasts", facts)

    def _key(self, site: str | Site, position: str | None) -> Key:
        name = str(Site.parse(site))
        if position is None and len(self.positions) > 1:
            raise UnknownNameError(
                f"there are several positions, {', '.join(self.positions)}; pass position="
            )
        if position is None:
            position = self.positions[0]
        if (name, position) not in self._sums:
            raise UnknownNameError(
                f"{name!r} at {position!r} was not read;"
                f" there are sites {', '.join(self.sites)} at {', '.join(self.positions)}"
            )
        return name, position


@torch.no_grad()
def contrast(
    positive: Side,
    negative: Side,
    spec: CaptureSpec = MEAN_RESPONSE,
    *,
    names: tuple[str, str] = ("positive", "negative"),
    weighting: Weighting = "example",
    units: Callable[[Prompt], str] | None = None,
    universe: Sequence[str] = (),
    blocks: int = BLOCKS,
    covariance: bool = False,
    provenance: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Contrasts:
    """The contrast of two sides: (model, rows) against (model, rows).

    Two models on the same prompts give the mean activation delta; one model on two sets of answers
    the mean difference within it.

    Args:
        spec: what is read; `resid_post` of every layer at `mean_response` where it says nothing;
            positions are pooled ones.
        names: what the two classes are called in `ids`.
        weighting: `"example"`: every row counts the same; `"token"`: as many times as the position
            has tokens in it.
        units: row → its unit; by default the base question of an answer, else the row
            itself. Units are resampled with all their rows.
        universe: all units there are, also those without a row: contrasts that are to be compared
            need the same blocks.
        blocks: blocks of units at most.
        covariance: keep the covariance within classes, for `whitened` (d² numbers per class, site
            and position; example weighting only).
        provenance: added to that of every direction.
        positive: (model, rows) that the direction points to; `negative`, those it points away
            from.

    Raises:
        InputError: an unknown weighting, position "all", what `capture` refuses, rows of a class in
            fewer than 2 blocks, sums of more than 8 GiB.
    """
    _require_weighting(weighting, covariance)
    sides = [(model, as_prompts(rows)) for model, rows in (positive, negative)]
    models = {"positive": sides[0][0], "negative": sides[1][0]}
    spec = spec.filled(MEAN_RESPONSE)
    plans = [CapturePlan.make(models, list(prompts), spec) for _, prompts in sides]
    _require_pooled(plans[0])
    unit_of = units or _question
    units_of_rows = [[unit_of(prompt) for prompt in prompts] for _, prompts in sides]
    block_of = deal_blocks([*universe, *units_of_rows[0], *units_of_rows[1]], blocks, seed)
    n_blocks = max(block_of.values()) + 1
    _require_memory(plans[0], n_blocks, models["positive"].d_model, covariance)
    sums = []
    title = f"contrast {len(sides[0][1])} and {len(sides[1][1])} rows"
    n_batches = sum(len(plan.layout.sizes) for plan in plans)
    with progress_bar(title, n_batches, progress) as advance:
        for (model, prompts), plan, row_units in zip(sides, plans, units_of_rows, strict=True):
            side = _SideSums.zeros(plan, model.d_model, n_blocks, covariance)
            row_blocks = torch.tensor([block_of[unit] for unit in row_units])
            side.add_all(model, plan, row_blocks, weighting, advance)
            side.describe(model, plan, prompts.content_hash)
            sums.append(side)
    up, down = sums
    moments = {}
    if covariance:
        moments = {key: (up.moments[key], down.moments[key]) for key in plans[0].keys}
    return Contrasts(
        tuple(map(str, plans[0].sites)),
        tuple(position.name for position in plans[0].positions),
        {name: tuple(prompts.ids) for name, (_, prompts) in zip(names, sides, strict=True)},
        {
            **(provenance or {}),
            "weighting": weighting,
            "blocks": n_blocks,
            "seed": seed,
            "model": models["positive"].provenance,
            names[0]: up.provenance,
            names[1]: down.provenance,
        },
        {key: up.beside(down, key) for key in plans[0].keys},
        moments,
    )


def _require_weighting(weighting: str, covariance: bool) -> None:
    if weighting not in WEIGHTINGS:
        raise InputError(
            f"weighting={weighting!r} is unknown; pass 'example' or 'token'",
            name=weighting,
            known=WEIGHTINGS,
        )
    if covariance and weighting != "example":
        raise InputError(
            "covariance=True was given with weighting='token', whose rows have no covariance of"
            " their own; pass weighting='example'"
        )


def _require_pooled(plan: CapturePlan) -> None:
    if not all(position.pooled for position in plan.positions):
        raise InputError(
            "position 'all' keeps every token apart; pass pooled positions such as 'mean_response',"
            " and weighting='token' to count tokens"
        )


def _require_memory(plan: CapturePlan, n_blocks: int, d_model: int, covariance: bool) -> None:
    """Sums of both sides in float64: a vector per block, and a matrix with a covariance."""
    vectors = n_blocks + (d_model if covariance else 0)
    size = 2 * len(plan.keys) * d_model * vectors * 8
    if size > LARGE_BYTES:
        raise InputError(
            f"the sums take {size / 1e9:.1f} GB, more than {LARGE_BYTES / 1e9:.1f} GB;"
            " pass fewer layers, positions or blocks, or no covariance"
        )


@dataclass
class _SideSums:
    """Block sums of one side, by site and position.

    Args:
        weights: position → total weight of each block.
        sums: weighted sum of the rows of each block (block, d).
        moments: empty without a covariance.
    """

    weights: dict[str, Tensor]
    sums: dict[Key, Tensor]
    moments: dict[Key, StreamingMoments]
    layout: Any = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def zeros(cls, plan: CapturePlan, d_model: int, n_blocks: int, covariance: bool) -> "_SideSums":
        sums = {key: torch.zeros(n_blocks, d_model, dtype=torch.float64) for key in plan.keys}
        moments = {}
        if covariance:
            moments = {key: StreamingMoments(d_model) for key in plan.keys}
        return cls({}, sums, moments, plan.layout)

    def add_all(
        self,
        model: HookedModel,
        plan: CapturePlan,
        row_blocks: Tensor,
        weighting: Weighting,
        advance: Callable[[], Any],
    ) -> None:
        """Read every batch of one side and add its rows to the sums of their blocks."""
        row_weights = {
            position.name: _row_weights(plan, position, weighting) for position in plan.positions
        }
        with model.computing_in(plan.compute_dtype):  # once for all batches
            self._add_batches(model, plan, row_blocks, row_weights, advance)
        n_blocks = len(next(iter(self.sums.values())))
        for name, weights in row_weights.items():
            zeros = torch.zeros(n_blocks, dtype=torch.float64)
            self.weights[name] = zeros.index_add_(0, row_blocks, weights)

    def _add_batches(
        self,
        model: HookedModel,
        plan: CapturePlan,
        row_blocks: Tensor,
        row_weights: Mapping[str, Tensor],
        advance: Callable[[], Any],
    ) -> None:
        for batch in range(len(plan.layout.sizes)):
            pieces, self.layout = read_cutting(
                plan, self.layout, batch, lambda rows: read_rows(model, plan, rows, on_device=True)
            )
            for rows, values in pieces:
                index = torch.tensor(list(rows))
                for key, value in values.items():
                    _add(self.sums[key], value, row_blocks[index], row_weights[key[1]][index])
                    if self.moments:
                        self.moments[key].update(value)
            advance()

    def describe(self, model: HookedModel, plan: CapturePlan, prompts_sha256: str) -> None:
        """Record what was read, with batches as they were run: one may have been cut."""
        provenance = capture_provenance(model, plan, prompts_sha256)
        self.provenance = with_layout(provenance, self.layout)

    def beside(self, negative: "_SideSums", key: Key) -> ContrastSums:
        position = key[1]
        return ContrastSums(
            self.weights[position], self.sums[key], negative.weights[position], negative.sums[key]
        )


def _row_weights(plan: CapturePlan, position: Position, weighting: Weighting) -> Tensor:
    """1 per row, or the number of tokens that the position has in it."""
    if weighting == "example":
        return torch.ones(len(plan.rows), dtype=torch.float64)
    lengths = [len(plan.rows.indices(position, row)) for row in range(len(plan.rows))]
    return torch.tensor(lengths, dtype=torch.float64)


def _add(
    sums: Float[Tensor, "block d"], value: Float[Tensor, "row d"], blocks: Tensor, weights: Tensor
) -> None:
    """sums[blocks] += weights · value.

    As one matrix product, whose order of summation is fixed on every device; `index_add_` on a GPU
    adds in any order.
    """
    assignment = torch.zeros(len(sums), len(blocks), dtype=torch.float64)
    assignment[blocks, torch.arange(len(blocks))] = weights
    sums += (assignment.to(value.device) @ value.double()).cpu()


def _question(prompt: Prompt) -> str:
    """The base question of an answer, or the row itself."""
    question = prompt.meta.get("question")
    return prompt.id if question is None else base_question(str(question))
