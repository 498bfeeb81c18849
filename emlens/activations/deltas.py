"""Activation deltas: after − before, paired by id, refused where the two sides did not read the
same thing in the same way.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from emlens.activations.capture_facts import MUST_MATCH, fact
from emlens.activations.record import Activations, Key
from emlens.foundation.errors import InputError, IntegrityError


def activation_deltas(
    before: Activations, after: Activations, *, allow: Sequence[str] = ()
) -> Activations:
    """δ = after − before for every site, position and row; same interface as `Activations`.

    The difference is taken in float64 and kept in the inputs' dtype.

    Args:
        allow: facts of provenance that may differ, by name (`"threads"`, `"versions.torch"`, …);
            recorded in the result.

    Raises:
        InputError: `allow` names no fact that is compared.
        IntegrityError: ids, sites or positions differ, or a fact of provenance does that is not in
            `allow` (rendered prompts,
            batch layout, dtypes, attention, backend, device, threads, library versions:
                `facts.MUST_MATCH`): such a
            difference would mix fine-tuning with numerical noise.
    """
    unknown = [name for name in allow if name not in MUST_MATCH]
    if unknown:
        raise InputError(
            f"allow names {unknown[0]!r}, which is not compared; these facts are:"
            f" {', '.join(MUST_MATCH)}"
        )
    if before.ids != after.ids:
        raise IntegrityError(
            f"before has {len(before)} rows and after {len(after)},"
            " and their ids are not the same in order; capture both on one set"
        )
    for name, ours, others in (
        ("sites", before.sites, after.sites),
        ("positions", before.positions, after.positions),
    ):
        if ours != others:
            raise IntegrityError(
                f"before and after differ in {name} ({ours} and {others});"
                f" capture both with the same {name}"
            )
    for name, what in MUST_MATCH.items():
        mine, theirs = fact(before.provenance, name), fact(after.provenance, name)
        if mine != theirs and name not in allow:
            raise IntegrityError(
                f"before and after differ in {name} ({mine!r} and {theirs!r}): {what};"
                " use capture_pair, which runs identical batches in one process,"
                f" or pass allow=[{name!r}] to accept the noise"
            )
    offsets = token_ids = None
    if "all" in before.positions:
        held, other = before.tokens(before.sites[0]), after.tokens(after.sites[0])
        offsets, token_ids = held.offsets, held.token_ids
        if not (torch.equal(offsets, other.offsets) and torch.equal(token_ids, other.token_ids)):
            raise IntegrityError(
                "before and after hold different tokens; capture both on one set with one tokenizer"
            )
    values: dict[Key, Tensor] = {}
    for site in before.sites:
        for position in before.pooled_positions:
            values[site, position] = _difference(
                before[site, position], after[site, position], site
            )
        if "all" in before.positions:
            values[site, "all"] = _difference(
                before.tokens(site).values, after.tokens(site).values, site
            )
    provenance: dict[str, Any] = {
        "delta": True,
        "before": before.provenance,
        "after": after.provenance,
        "allowed": sorted(allow),
    }
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
            f"before and after differ at {site}: {before.dtype} of shape {tuple(before.shape)} and"
            f" {after.dtype} of shape {tuple(after.shape)};"
            " capture both at one width and in one dtype"
        )
    return (after.double() - before.double()).to(before.dtype)
