"""`CapturePlan`: what a capture reads, worked out before the first pass.

It holds the rows, sites, positions, batches and kept dtype, and knows what the capture will keep in
bytes. It is the same for every model that the capture runs on.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from emlens.activations.batch_layout import BatchLayout
from emlens.activations.capture_spec import CaptureSpec
from emlens.activations.memory import Key
from emlens.activations.token_rows import TokenRows
from emlens.data.prompts import Prompt
from emlens.foundation.errors import InputError
from emlens.foundation.positions import Position
from emlens.foundation.sites import Site, resolve_sites
from emlens.models.hooked import HookedModel
from emlens.models.passes import check_readers

logger = logging.getLogger("emlens")
LARGE_BYTES = 2**33
"""A capture that keeps more than this (8 GiB) runs only with `CaptureSpec(large=True)`."""


@dataclass(frozen=True)
class CapturePlan:
    """One capture, planned."""

    rows: TokenRows
    sites: tuple[Site, ...]
    positions: tuple[Position, ...]
    layout: BatchLayout
    batch_tokens: int
    dtype: torch.dtype | None
    value_bytes: int
    """Bytes of one kept vector."""
    compute_dtype: torch.dtype | None = None
    """That passes run in; None: each model's own."""
    share_trunk: bool = False
    """Whether blocks that models have in common are run once, where one process runs them all."""

    @classmethod
    def make(
        cls, models: Mapping[str, HookedModel], prompts: Sequence[Prompt], spec: CaptureSpec
    ) -> "CapturePlan":
        """Plan one capture for several models that must read the same ids.

        Raises:
            InputError: no model; a site or layer that does not exist; a prompt that cannot be
                rendered, lacks a position, or has other ids under another model.
        """
        if not models:
            raise InputError("models is empty; pass at least one")
        reference = next(iter(models.values()))
        spec = spec.filled()
        compute_dtype = cast(torch.dtype | None, spec.compute_dtype)
        positions = spec.parsed_positions
        sites = resolve_sites(cast(Any, spec.sites), reference.n_layers, spec.layers)
        for model in models.values():
            check_readers(sites, model.sites, model.name, model.n_layers, model.why_missing)
            model.require_computable_in(compute_dtype)
        rows = TokenRows.render(reference, prompts)
        for model in models.values():
            rows.check_same_ids(reference, model, prompts)
        rows.resolve_positions(positions)

        value_bytes = reference.d_model * (spec.dtype or compute_dtype or reference.dtype).itemsize
        pooled = sum(position.pooled for position in positions)
        layout = BatchLayout.plan(
            rows.lengths,
            cast(int, spec.batch_tokens),
            threshold=reference.threshold,
            row_bytes=pooled * len(sites) * value_bytes,
            token_bytes=(len(positions) - pooled) * len(sites) * value_bytes,
            rows=rows.token_ids() if spec.shared_prefixes and _all_share(models) else None,
        )
        return cls(
            rows,
            tuple(sites),
            positions,
            layout,
            cast(int, spec.batch_tokens),
            spec.dtype,
            value_bytes,
            compute_dtype,
            spec.shared_trunk,
        )

    @property
    def shared_tokens(self) -> int:
        """Tokens that are not run because another row of their batch has run them."""
        layout = self.layout
        per_batch = zip(layout.shared, layout.sizes, strict=True) if layout.shared else ()
        return sum(shared * (size - 1) for shared, size in per_batch)

    @property
    def keys(self) -> list[Key]:
        return [(str(site), position.name) for site in self.sites for position in self.positions]

    def vector_count(self, position: str, rows: Sequence[int]) -> int:
        """Vectors kept of these rows at one position: one per row, or at "all" one per token."""
        if position == "all":
            return sum(self.rows.lengths[i] for i in rows)
        return len(rows)

    @property
    def bytes_by_position(self) -> dict[str, int]:
        """Bytes kept at each position over all sites, for one model."""
        every_row = range(len(self.rows))
        vector_bytes = len(self.sites) * self.value_bytes
        return {
            position.name: self.vector_count(position.name, every_row) * vector_bytes
            for position in self.positions
        }


def _all_share(models: Mapping[str, HookedModel]) -> bool:
    """Whether every model can run shared first tokens once; said where one cannot."""
    for model in models.values():
        if model.no_sharing is not None:
            logger.info("shared prefixes are off: %s, as %s", model.name, model.no_sharing)
            return False
    return True
