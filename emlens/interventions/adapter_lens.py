"""What an adapter writes: its spectrum, its directions, and the tokens that these make likelier.

A rank-r update adds B (s · A x) to a module's output; the columns of B tell in which direction the
adapter acts (Soligo et al. 2025, 2506.11618). The sign of one column is arbitrary: turning the
signs of A and B together changes nothing, so the largest coordinate of B is made positive. For
ranks above one the split into columns is arbitrary too (the gauge); the factors of the SVD are
used, strongest first, so that nothing depends on it. When it acts: `emlens.interventions.scalars`.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from emlens.foundation.errors import InputError
from emlens.geometry import Direction
from emlens.geometry.weight_updates import WeightUpdate, weight_update
from emlens.interventions.arguments import as_vector
from emlens.interventions.lora import LoraAdapter, LoraFactors, layer_of
from emlens.models.checkpoint import CheckpointModel
from emlens.models.hooked import HookedModel

_NO_SHARES = {"cosine": None, "share": None, "share_by_chance": None}
"""Of a module that does not write to the stream."""


def adapter_table(
    adapter: LoraAdapter, direction: Direction | Float[Tensor, " d_model"] | None = None
) -> pd.DataFrame:
    """One row per module: rank, norms, spectrum, and the share it writes along a direction.

    Columns: `norm_a`, `norm_b`, `norm_ba` (Frobenius, ΔW = s·BA); `singular_values`; `stable_rank`
    = ‖ΔW‖²/σ₁², in [1, r]; `effective_rank` = exp of the entropy of σ²/Σσ², in [1, r]: r for a flat
    spectrum, 1 for a single direction. With a direction, for modules that write to the stream:
    `cosine` of the strongest written direction with it (signless), `share` = ‖r̂ᵀΔW‖²/‖ΔW‖², and
    `share_by_chance` = 1/d, its mean over directions drawn at random.

    Args:
        adapter: of `LoraAdapter.load`.

    Raises:
        InputError: a module whose update is zero; no module as wide as the direction.
    """
    unit = None if direction is None else _written_unit(adapter, direction)
    rows = []
    for path, factors in adapter.modules.items():
        update = weight_update(factors.a, factors.b, factors.scale)
        row: dict[str, Any] = {
            "module": path,
            "layer": layer_of(path),
            "kind": path.rpartition(".")[2],
            **_spectrum(factors, update),
        }
        if unit is not None:
            writes = factors.writes_to_stream(path, len(unit))
            row.update(_shares_along(update, unit) if writes else _NO_SHARES)
        rows.append(row)
    return pd.DataFrame(rows)


def _written_unit(
    adapter: LoraAdapter, direction: Direction | Float[Tensor, " d_model"]
) -> Float[Tensor, " d_model"]:
    """The unit vector of a direction that some module of the adapter can write.

    Raises:
        InputError: no module as wide as the direction.
    """
    vector = as_vector(direction).double()
    unit = vector / vector.norm()
    for path, factors in adapter.modules.items():
        if factors.writes_to_stream(path, len(unit)):
            return unit
    raise InputError(
        f"direction has {len(unit)} coordinates,"
        " and no module of the adapter writes to a stream as wide"
    )


def _spectrum(factors: LoraFactors, update: WeightUpdate) -> dict[str, Any]:
    energy = update.singular_values.double() ** 2
    energy_share = energy / energy.sum()
    # xlogy(0, 0) = 0, so a singular value of zero adds nothing to the entropy
    entropy = -torch.special.xlogy(energy_share, energy_share).sum()
    return {
        "r": factors.r,
        "rank": update.rank,
        "scale": factors.scale,
        "norm_a": float(factors.a.double().norm()),
        "norm_b": float(factors.b.double().norm()),
        "norm_ba": float(update.norm),
        "singular_values": tuple(update.singular_values.tolist()),
        "stable_rank": float(energy.sum() / energy[0]),
        "effective_rank": float(torch.exp(entropy)),
    }


def _shares_along(update: WeightUpdate, unit: Float[Tensor, " d_model"]) -> dict[str, float | None]:
    """How much of what a module writes lies along a unit vector."""
    energy = update.singular_values.double() ** 2
    squared_cosines = (unit @ update.left.double()) ** 2
    return {
        "cosine": float(squared_cosines[0].sqrt()),
        # ‖r̂ᵀΔW‖²/‖ΔW‖² = Σ σᵢ² (r̂·uᵢ)² / Σ σᵢ²
        "share": float((squared_cosines * (energy / energy.sum())).sum()),
        # a random unit vector has a mean squared cosine of 1/d with any other
        "share_by_chance": 1 / len(unit),
    }


def written_directions(
    adapter: LoraAdapter, width: int, k: int = 1
) -> Iterator[tuple[str, Float[Tensor, "k d_model"]]]:
    """The k strongest unit vectors that each module writes to the stream, strongest first."""
    for path, factors in adapter.modules.items():
        if factors.writes_to_stream(path, width):
            update: WeightUpdate = weight_update(factors.a, factors.b, factors.scale)
            yield path, update.basis("output", min(k, update.rank)).T


def logit_lens(
    model: HookedModel, vectors: Mapping[str, Direction | Float[Tensor, " d_model"]], *, k: int = 10
) -> pd.DataFrame:
    """The tokens that a direction raises and lowers most.

    It is read through the gain γ of the final norm and the unembedding: logits = W_U (γ ⊙ v̂), with
    v̂ centred first where the final norm centres. Logits are centred over the vocabulary and given
    in units of their own standard deviation (column `z`); of n random numbers the largest is near
    √(2 ln n) (column `z_by_chance`). Only the direct path: what later blocks do with the direction
    is not in it.

    Args:
        vectors: name → direction.
        k: tokens on each side.

    Returns:
        name, side ("raised" or "lowered"), rank, token_id, token, z, z_by_chance.

    Raises:
        InputError: nothing to read, another width, a zero vector, or k outside the vocabulary.
    """
    matrix = model.unembedding().double()
    norm = _final_norm(model)
    if not vectors:
        raise InputError("vectors is empty; pass at least one direction")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= matrix.shape[0]:
        raise InputError(f"k={k!r} must be a count of 1 to {matrix.shape[0]}, the vocabulary")
    # the largest of n standard normal numbers lies near √(2 ln n)
    chance = float(torch.sqrt(2 * torch.log(torch.tensor(float(matrix.shape[0])))))
    rows = []
    for name, item in vectors.items():
        vector = as_vector(item).double().cpu()
        if vector.shape != (matrix.shape[1],) or float(vector.norm()) == 0:
            raise InputError(
                f"vector {name!r} has shape {tuple(vector.shape)} and norm"
                f" {float(vector.norm()):.3g}; pass one of {matrix.shape[1]} coordinates"
            )
        logits = matrix @ _through_norm(norm, vector)
        z = (logits - logits.mean()) / logits.std()
        for side, signed in (("raised", z), ("lowered", -z)):
            token_ids = signed.topk(k).indices.tolist()
            tokens = model.tokenizer.convert_ids_to_tokens(token_ids)
            for rank, (token_id, token) in enumerate(zip(token_ids, tokens, strict=True), start=1):
                rows.append(
                    {
                        "name": name,
                        "side": side,
                        "rank": rank,
                        "token_id": token_id,
                        "token": token,
                        "z": float(z[token_id]),
                        "z_by_chance": chance,
                    }
                )
    return pd.DataFrame(rows)


def _final_norm(model: HookedModel) -> nn.Module:
    """The norm before the unembedding, alone and in double precision."""
    if not isinstance(model, CheckpointModel):
        raise InputError(
            f"backend {model.backend!r} does not show its final norm;"
            " load with backend='transformers'"
        )
    path = model.architecture.final_norm
    if path is None:
        raise InputError(f"{model.name!r} has no final norm: {model.why_missing['final_norm']}")
    # copied while the adapter is on: some kinds change the norms
    with model.bank.selected(model.adapter):
        norm = copy.deepcopy(model.module.get_submodule(path))
    return norm.double()


def _through_norm(norm: nn.Module, vector: Tensor) -> Tensor:
    """γ ⊙ v̂, centred where the norm centres.

    Half of N(v) − N(−v): this drops a bias, and works however a norm keeps its gain (some keep
    γ − 1).
    """
    # a root mean square of 1, beside which the norm's epsilon is nothing
    long = vector / vector.norm() * len(vector) ** 0.5
    device = next(norm.parameters(), torch.empty(0)).device
    with torch.no_grad():
        plus, minus = norm(torch.stack([long, -long]).to(device)[None])[0].double().cpu()
    return (plus - minus) / 2
