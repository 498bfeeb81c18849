"""Feature sets made from activations: projections, their squares, and how far a question lies from
the training prompts.

| made by | basis | fitted on | family-free |
|---|---|---|---|
| `random_projections` | random orthonormal directions | nothing | no |
| `training_projections` | principal components of training prompts | those prompts | no |
| `FoldProjections` | principal components of the questions | a fold's training questions | no |
| `training_distances` | distances, cosine and overlap with training prompts | those prompts | yes |

Training prompts are in no fold, so what is fitted on them cannot leak. The paper uses 150 random
directions and 5 seeds. `kind="squared"` gives squared coordinates (the paper's energies),
`"signed"` the coordinates, `"both"` both. All computed in float64 on the CPU.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from emlens.activations import Activations
from emlens.foundation.errors import InputError
from emlens.foundation.seeds import torch_rng
from emlens.foundation.shapes import require_same_width
from emlens.geometry import Subspace, mahalanobis_distance, prompt_overlap, top_k_subspace
from emlens.probes.features import Features, MatrixFeatures, Rows, pooled_cells
from emlens.probes.ridge import Array, standardise

Kind = Literal["squared", "signed", "both"]
COMPONENTS = 150


def random_projections(
    acts: Activations,
    k: int = COMPONENTS,
    *,
    seeds: Sequence[int] = range(5),
    kind: Kind = "squared",
    sites: Sequence[str] | None = None,
) -> list[MatrixFeatures]:
    """One set for each site, position and seed: coordinates along `k` random orthonormal
    directions.

    Nothing is fitted, so nothing can leak. With k as large as the width they span everything;
    squares still differ by seed.

    Args:
        seeds: one set of directions each.

    Raises:
        InputError: k outside 1 to the width, an unknown kind, no pooled position.
    """
    _require_kind(kind)
    sets = []
    for name, values in _cells(acts, sites):
        width = values.shape[1]
        if not 1 <= k <= width:
            raise InputError(f"k={k} must lie in 1 to the activations' width, {width}")
        for seed in seeds:
            rng = torch_rng(seed, "random projections", width)
            draws = torch.randn(width, k, dtype=torch.float64, generator=rng)
            # QR of normal draws: an orthonormal basis of a uniformly random subspace
            basis = torch.linalg.qr(draws)[0]
            coordinates = (values @ basis).numpy()
            sets.append(MatrixFeatures(f"random {seed}, {name}", _of_kind(coordinates, kind)))
    return sets


def training_projections(
    acts: Activations,
    training: Activations,
    k: int = COMPONENTS,
    *,
    kind: Kind = "squared",
    sites: Sequence[str] | None = None,
) -> list[MatrixFeatures]:
    """One set for each site and position: coordinates along the `k` strongest components of
    training prompts, about their mean.

    They are fitted on the training prompts' activations *before* fine-tuning, once: the questions
    that are forecast have no part in it.

    Args:
        training: activations of the fine-tune's training prompts, from the same parent.

    Raises:
        InputError: k above the training prompts' rank, another width, an unknown kind.
            UnknownNameError: a site they lack.
    """
    _require_kind(kind)
    sets = []
    for name, values in _cells(acts, sites):
        space = top_k_subspace(_training_rows(training, name, values), k, center=True)
        coordinates = space.coordinates(values).numpy()
        sets.append(MatrixFeatures(f"training PCA, {name}", _of_kind(coordinates, kind)))
    return sets


def training_distances(
    acts: Activations,
    training: Activations,
    k: int | float = 0.95,
    *,
    sites: Sequence[str] | None = None,
) -> list[MatrixFeatures]:
    """One set for each site and position: how far each question lies from the training prompts.

    The numbers mean the same in every model.

    Its columns: Mahalanobis distance over the root of the width, cosine to the mean training
    activation, and the share of the question's deviation from that mean that lies in the training
    prompts' `k` strongest components (`prompt_overlap`).

    Raises:
        InputError: as `training_projections`.
    """
    sets = []
    for name, values in _cells(acts, sites):
        rows = _training_rows(training, name, values)
        space: Subspace = top_k_subspace(rows, k, center=True)
        far = mahalanobis_distance(values, rows) / values.shape[1] ** 0.5
        cosine = torch.nn.functional.cosine_similarity(values, rows.mean(0, keepdim=True))
        columns = torch.stack([far, cosine, prompt_overlap(values, space)], dim=1)
        sets.append(MatrixFeatures(f"training distance, {name}", columns.numpy(), family_free=True))
    return sets


class FoldProjections(Features):
    """Coordinates along the `k` strongest components of the training rows, fitted in each fold.

    Components fitted on all questions would carry the test rows' directions into the fit.

    Args:
        values: (row, feature), such as one site's activations.
        k: fewer where the rank is lower.
    """

    near_centre = True

    def __init__(
        self,
        name: str,
        values: Array | Float[Tensor, "row feature"],
        k: int = COMPONENTS,
        kind: Kind = "squared",
    ):
        _require_kind(kind)
        if k < 1:
            raise InputError(f"k={k} must be 1 or more")
        self.name, self._k, self._kind = name, k, kind
        self._values = MatrixFeatures(name, values)

    def split(self, train: Rows, test: Rows) -> tuple[Array, Array]:
        values = self._values.values
        mean = values[train].mean(0)
        _, singular, axes = np.linalg.svd(values[train] - mean, full_matrices=False)
        # components below rounding are directions of noise: the numerical rank ends there
        floor = singular[0] * max(len(train), values.shape[1]) * np.finfo(np.float64).eps
        rank = max(1, int((singular > floor).sum()))
        basis = axes[: min(self._k, rank)].T
        train_x = _of_kind((values[train] - mean) @ basis, self._kind)
        test_x = _of_kind((values[test] - mean) @ basis, self._kind)
        return standardise(train_x, test_x)


def fold_projections(
    acts: Activations,
    k: int = COMPONENTS,
    *,
    kind: Kind = "squared",
    sites: Sequence[str] | None = None,
) -> list[FoldProjections]:
    """`FoldProjections` of every site and position."""
    return [
        FoldProjections(f"fold PCA, {name}", values, k, kind)
        for name, values in _cells(acts, sites)
    ]


def _cells(acts: Activations, sites: Sequence[str] | None) -> list[tuple[str, Tensor]]:
    """The pooled cells in float64."""
    return [(name, rows.double()) for name, rows in pooled_cells(acts, sites)]


def _training_rows(training: Activations, name: str, values: Tensor) -> Tensor:
    """The training prompts' activations at the place `name`."""
    site, position = name.rsplit("@", 1)
    rows = training[site, position].double()
    require_same_width(values, rows, "acts", "training")
    return rows


def _require_kind(kind: str) -> None:
    if kind not in get_args(Kind):
        raise InputError(
            f"kind={kind!r} is unknown; pass one of {', '.join(get_args(Kind))}",
            name=kind,
            known=get_args(Kind),
        )


def _of_kind(coordinates: Array, kind: Kind) -> Array:
    if kind == "signed":
        return coordinates
    if kind == "squared":
        return coordinates**2
    return np.hstack([coordinates, coordinates**2])
