"""Activation deltas: after − before, paired by id.

Refused where before and after did not read the same rows in the same way.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from emlens.activations.capture_provenance import MUST_MATCH, provenance_differences
from emlens.activations.memory import Activations, Key, TokenValues
from emlens.activations.rounding import rounding_floor, warn_of_rounding
from emlens.foundation.errors import InputError, IntegrityError


def activation_deltas(
    before: Activations, after: Activations, *, allow: Sequence[str] = ()
) -> Activations:
    """δ = after − before for every site, position and row; same interface as `Activations`.

    The difference is taken in float64 and kept in the inputs' dtype. `rounding_floor` of the result
    says for each site and position how long rounding alone makes a δ (root mean square over rows,
    in the units of the stream; `emlens.activations.rounding` has the derivation). Where a shift is
    below three times its floor, one warning is logged: there, capture both sides with
    `CaptureSpec(compute_dtype="float32")`.

    Args:
        allow: entries of provenance that may differ, by name (`"threads"`, `"versions.torch"`, …);
            recorded in the result.

    Raises:
        InputError: `allow` names an entry that is not compared.
        IntegrityError: ids, sites or positions differ, or an entry of provenance that is not in
            `allow` (rendered prompts, batch layout, dtypes, attention, backend, device, threads,
            library versions: `capture_provenance.MUST_MATCH`). Such a difference would mix
            fine-tuning with numerical noise.
    """
    unknown = [name for name in allow if name not in MUST_MATCH]
    if unknown:
        raise InputError(
            f"allow names {unknown[0]!r}, which is not compared; compared are:"
            f" {', '.join(MUST_MATCH)}",
            name=unknown[0],
            known=MUST_MATCH,
        )
    _check_same_rows(before, after)
    _check_same_provenance(before, after, allow)
    offsets = token_ids = None
    if "all" in before.positions:
        tokens = _same_tokens(before, after)
        offsets, token_ids = tokens.offsets, tokens.token_ids
    values: dict[Key, Tensor] = {}
    floors: dict[Key, float] = {}
    shifts: dict[Key, float] = {}
    for key in before.keys:  # one at a time: a store need not be in memory as a whole
        value_before, value_after = before.value(key), after.value(key)
        values[key] = _difference(value_before, value_after, site=key[0])
        floors[key] = rounding_floor(value_before, value_after, key, before.provenance)
        shifts[key] = float(values[key].double().pow(2).sum(-1).mean().sqrt())
    if _are_two_models(before, after):
        warn_of_rounding(shifts, floors, value_before.dtype)
    provenance: dict[str, Any] = {
        "delta": True,
        "before": before.provenance,
        "after": after.provenance,
        "allowed": sorted(allow),
        "rounding_floor": _by_site(floors),
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


def _are_two_models(before: Activations, after: Activations) -> bool:
    """False for one model read twice, whose δ is rounding and nothing else."""
    return any(
        before.provenance.get(name) != after.provenance.get(name)
        for name in ("model", "interventions")
    )


def _by_site(floors: Mapping[Key, float]) -> dict[str, dict[str, float]]:
    """Site → position → floor: what JSON can hold."""
    by_site: dict[str, dict[str, float]] = {}
    for (site, position), floor in floors.items():
        by_site.setdefault(site, {})[position] = floor
    return by_site


def _check_same_rows(before: Activations, after: Activations) -> None:
    if before.ids != after.ids:
        raise IntegrityError(
            f"before has {len(before)} rows and after {len(after)},"
            " and their ids are not the same in order; capture both on one set"
        )
    for name in ("sites", "positions"):
        names_before, names_after = getattr(before, name), getattr(after, name)
        if names_before != names_after:
            raise IntegrityError(
                f"before and after differ in {name} ({names_before} and {names_after});"
                f" capture both with the same {name}"
            )


def _check_same_provenance(before: Activations, after: Activations, allow: Sequence[str]) -> None:
    for difference in provenance_differences(
        before.provenance, after.provenance, MUST_MATCH, allow
    ):
        raise IntegrityError(
            f"before and after differ in {difference};"
            " use capture_pair, which runs identical batches in one process,"
            f" or pass allow=[{difference.name!r}] to accept the noise"
        )


def _same_tokens(before: Activations, after: Activations) -> TokenValues:
    """The tokens of `before`, which must be those of `after`."""
    tokens_before, tokens_after = (acts.tokens(acts.sites[0]) for acts in (before, after))
    same_offsets = torch.equal(tokens_before.offsets, tokens_after.offsets)
    if not (same_offsets and torch.equal(tokens_before.token_ids, tokens_after.token_ids)):
        raise IntegrityError(
            "before and after hold different tokens; capture both on one set with one tokenizer"
        )
    return tokens_before


def _difference(before: Tensor, after: Tensor, *, site: str) -> Tensor:
    if (before.dtype, before.shape) != (after.dtype, after.shape):
        raise IntegrityError(
            f"before and after differ at {site}: {before.dtype} of shape {tuple(before.shape)}"
            f" and {after.dtype} of shape {tuple(after.shape)};"
            " capture both at one width and in one dtype"
        )
    return (after.double() - before.double()).to(before.dtype)
