"""Activation deltas: after − before, paired by id, refused where the two sides did not read the same thing."""

from typing import Any

import torch
from torch import Tensor

from emlens.activations.record import Activations, Key
from emlens.foundation.errors import IntegrityError

_MUST_MATCH = ("rendered_sha256", "chosen_sha256", "batch_tokens", "batches", "layout_sha256", "kept_dtype", "threads")


def activation_deltas(before: Activations, after: Activations) -> Activations:
    """δ = after − before for every site, position and row; same interface as `Activations`.

    The difference is taken in float64 and kept in the inputs' dtype.

    Raises:
        IntegrityError: ids, sites or positions differ, or the provenance shows other rendered prompts, another batch
            layout, dtype or thread count: such a difference would mix fine-tuning with batching noise.
    """
    if before.ids != after.ids:
        raise IntegrityError(f"before has {len(before)} rows and after {len(after)}, and their ids are not the same in order; capture both on one set")
    for name, ours, others in (("sites", before.sites, after.sites), ("positions", before.positions, after.positions)):
        if ours != others:
            raise IntegrityError(f"before and after differ in {name} ({ours} and {others}); capture both with the same {name}")
    for key in _MUST_MATCH:
        mine, theirs = before.provenance.get(key), after.provenance.get(key)
        if mine != theirs:
            raise IntegrityError(f"before and after differ in {key} ({mine!r} and {theirs!r}); use capture_pair, which runs identical batches")
    offsets = token_ids = None
    if "all" in before.positions:
        held, other = before.tokens(before.sites[0]), after.tokens(after.sites[0])
        offsets, token_ids = held.offsets, held.token_ids
        if not (torch.equal(offsets, other.offsets) and torch.equal(token_ids, other.token_ids)):
            raise IntegrityError("before and after hold different tokens; capture both on one set with one tokenizer")
    values: dict[Key, Tensor] = {}
    for site in before.sites:
        for position in before.pooled_positions:
            values[site, position] = _difference(before[site, position], after[site, position], site)
        if "all" in before.positions:
            values[site, "all"] = _difference(before.tokens(site).values, after.tokens(site).values, site)
    provenance: dict[str, Any] = {"delta": True, "before": before.provenance, "after": after.provenance}
    return Activations(
        values,
        ids=before.ids,
        groups=before.groups,
        sites=before.sites,
        positions=before.positions,
        provenance=provenance,
        offsets=offsets,
        token_ids=token_ids,
    )


def _difference(before: Tensor, after: Tensor, site: str) -> Tensor:
    if (before.dtype, before.shape) != (after.dtype, after.shape):
        raise IntegrityError(
            f"before and after differ at {site}: {before.dtype} of shape {tuple(before.shape)} and {after.dtype} of shape "
            f"{tuple(after.shape)}; capture both at one width and in one dtype"
        )
    return (after.double() - before.double()).to(before.dtype)
