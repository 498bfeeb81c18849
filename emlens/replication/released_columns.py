"""The columns of the released tables of arXiv 2606.20814, under their names, so that these tables
can be recomputed.

`emlens.geometry.projections` has the same quantities cleanly defined. What differs here, because
the released code does it so:

* `pca_projection_fraction` and `pca_projection_fraction_raw` are ‖P(δ − μ)‖/‖δ‖ with the mean taken
  out above and not below: no fraction of one vector; it can exceed 1.
* The released per-example files repeat the raw residual fraction under
  `pca_residual_fraction_centered`. Here that column is the centred one.
* Mahalanobis distances are taken inside the subspace, so a row far outside it can be near.
* `random_*` columns depend on the random basis; only their distribution can be compared.

float64 inside, float64 out for float64 in, else float32. Cost: a few (row, d) by (d, k) products.
"""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.seeds import torch_rng
from emlens.geometry.linear import result_dtype, row_lengths, rows_of
from emlens.geometry.projections import (
    explained_l2,
    projection_fraction,
    prompt_overlap,
    reconstruction_cosine,
    residual_fraction,
    subspace_mahalanobis,
)
from emlens.geometry.shifts import cosine_to_mean
from emlens.geometry.subspaces import Subspace, top_k_subspace


def _require_mean(space: Subspace) -> None:
    if space.center != "mean":
        raise InputError(
            f"the subspace was fitted with center={space.center!r};"
            " the released tables take the mean out: pass center=True"
        )


def delta_columns(
    deltas: Float[Tensor, "*batch row d"], space: Subspace
) -> dict[str, Float[Tensor, "*batch row"]]:
    """Every per-example column on shifts, one value per evaluation delta.

    Args:
        deltas: of evaluation prompts.
        space: `top_k_subspace(training_deltas, k, center=True)`; the files use k = 1, 2, 4 … 128
            and shares of .8, .9, .95.

    Raises:
        InputError: a subspace whose mean was not taken out, another width, a delta that is zero or
            equals the training mean.
    """
    _require_mean(space)
    rows = rows_of(deltas, "deltas", space.mean, "the subspace")
    lengths = row_lengths(rows, "deltas", "is zero")
    mean = space.mean.to(torch.float64)
    inside = torch.linalg.vector_norm(space.coordinates(rows).to(torch.float64), dim=-1)
    raw = residual_fraction(rows, space, centred=False)
    centred = residual_fraction(rows, space, centred=True)
    cosine = cosine_to_mean(rows, mean)
    distance = subspace_mahalanobis(rows, space)
    columns = {
        "pca_projection_norm": inside,
        "pca_residual_norm": raw * lengths,
        "pca_projection_fraction": inside / lengths,
        "pca_projection_fraction_raw": inside / lengths,
        "pca_projection_fraction_centered": projection_fraction(rows, space, centred=True),
        "pca_residual_fraction": raw,
        "pca_residual_fraction_raw": raw,
        "pca_residual_fraction_centered": centred,
        "pca_explained_l2_fraction_raw": explained_l2(rows, space, centred=False),
        "pca_explained_l2_fraction_centered": explained_l2(rows, space, centred=True),
        "pca_cosine_reconstructed_eval_delta": reconstruction_cosine(rows, space),
        "pca_mahalanobis_distance": distance,
        "pca_mahalanobis_distance_sq": distance**2,
        "mean_delta_cosine": cosine,
        "mean_delta_scalar_projection": cosine * lengths,
        "mean_delta_projection_fraction": cosine,
    }
    return _cast(columns, deltas, space)


def prompt_columns(
    before: Float[Tensor, "*batch row d"], space: Subspace, *, seed: int = 0
) -> dict[str, Float[Tensor, "*batch row"]]:
    """Every per-example column on prompts, with its random control; one value per prompt.

    Args:
        before: activations of evaluation prompts before fine-tuning.
        space: `top_k_subspace(training_before, 0.95, center=True)` of the training prompts' before
            activations.
        seed: of the random orthonormal basis of the same k, about the same mean.

    Raises:
        InputError: a subspace whose mean was not taken out, another width, a row that equals the
            training mean.
    """
    _require_mean(space)
    rows = rows_of(before, "before", space.mean, "the subspace")
    mean = space.mean.to(torch.float64)
    centred = rows - mean[..., None, :]
    lengths = row_lengths(centred, "before", "equals the mean of the subspace")
    fraction, residual = prompt_overlap(rows, space), residual_fraction(rows, space, centred=True)
    rng = torch_rng(seed, "random orthonormal basis", space.d_model, space.k)
    draws = torch.randn(space.d_model, space.k, dtype=torch.float64, generator=rng).to(rows.device)
    # QR of normal draws: an orthonormal basis of a uniformly random subspace
    random = torch.linalg.vector_norm(centred @ torch.linalg.qr(draws).Q, dim=-1) / lengths
    columns = {
        "prompt_pca_projection_norm": fraction * lengths,
        "prompt_pca_residual_norm": residual * lengths,
        "prompt_pca_projection_fraction": fraction,
        "prompt_pca_residual_fraction": residual,
        "prompt_pca_explained_l2_fraction": 1 - residual**2,
        "prompt_pca_mahalanobis_distance": subspace_mahalanobis(rows, space),
        "prompt_train_mean_cosine_similarity": cosine_to_mean(rows, mean),
        "random_projection_fraction": random,
        "random_residual_fraction": (1 - random**2).clamp(min=0.0).sqrt(),
        "random_explained_l2_fraction": random**2,
    }
    return _cast(columns, before, space)


def k_comparison(
    training_deltas: Float[Tensor, "row d"],
    evaluation_deltas: Float[Tensor, "other d"],
    ks: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128),
) -> pd.DataFrame:
    """The released table over numbers of components, under the released names.

    One row per k: means over evaluation prompts.

    `pca_vs_mean_cosine_gain` is what reconstruction adds to the cosine with the mean delta alone.
    Cost: one SVD.

    Raises:
        InputError: no k, a k above the rank of the centred training deltas, other widths, a zero
            delta.
    """
    if not ks:
        raise InputError("ks is empty; pass the numbers of components to compare")
    widest = top_k_subspace(training_deltas, max(ks), center=True)
    rows = []
    for k in ks:
        # components are nested: the first k of the widest fit are the fit of k
        shares = widest.explained_variance_ratio[..., :k]
        space = replace(widest, basis=widest.basis[..., :k], explained_variance_ratio=shares)
        columns = delta_columns(evaluation_deltas, space)
        mean = {name: float(column.mean()) for name, column in columns.items()}
        cosine, rebuilt = mean["mean_delta_cosine"], mean["pca_cosine_reconstructed_eval_delta"]
        rows.append(
            {
                "k": k,
                "mean_pca_projection_fraction": mean["pca_projection_fraction"],
                "mean_pca_residual_fraction": mean["pca_residual_fraction"],
                "mean_pca_explained_l2_fraction_raw": mean["pca_explained_l2_fraction_raw"],
                "mean_pca_cosine_reconstructed_eval_delta": rebuilt,
                "mean_cosine_eval_delta_train_mean_delta": cosine,
                "pca_vs_mean_cosine_gain": rebuilt - cosine,
                "pca_projection_minus_residual_fraction": (
                    mean["pca_projection_fraction"] - mean["pca_residual_fraction"]
                ),
            }
        )
    return pd.DataFrame(rows)


def _cast(columns: dict[str, Tensor], given: Tensor, space: Subspace) -> dict[str, Tensor]:
    out = result_dtype(given, space.basis)
    return {name: column.to(out) for name, column in columns.items()}
