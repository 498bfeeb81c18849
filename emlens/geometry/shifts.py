"""How far and how consistently deltas move, and how that compares with noise.

A delta is δ = after − before of one prompt. Summaries take leading batch axes (layers × positions)
and return one number, or one number per row, for each entry. float64 inside; float64 out for
float64 in, else float32. A row without length has no direction and is an error that names it:
nothing is left out silently.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.foundation.errors import InputError
from emlens.foundation.notebooks import Brief, Picture
from emlens.foundation.shapes import as_float64, require_ndim
from emlens.geometry.components import ComponentCount, component_count
from emlens.geometry.linear import result_dtype, row_lengths, rows_of


def cosine_to_mean(
    deltas: Float[Tensor, "*batch row d"], reference: Float[Tensor, "*batch d"]
) -> Float[Tensor, "*batch row"]:
    """Cosine between each delta and a reference vector.

    In arXiv 2606.20814 the reference is the mean *training* delta. Range [-1, 1]; invariant to
    rotation, and to the length of either.

    Raises:
        InputError: another width, values that are not finite, a zero delta or a zero reference.
    """
    require_ndim(
        reference, 1, "reference", "a vector of shape (d,), such as the mean training delta"
    )
    rows = rows_of(deltas, "deltas", reference, "reference")
    mean = as_float64(reference, "reference")
    mean_length = torch.linalg.vector_norm(mean, dim=-1)
    if bool((mean_length == 0).any()):
        raise InputError(
            "reference is zero and so has no direction; pass the mean of training deltas"
        )
    scale = row_lengths(rows, "deltas", "is zero") * mean_length[..., None]
    cosines = (rows * mean[..., None, :]).sum(dim=-1) / scale
    # rounding can leave |cos| just above 1
    return cosines.clamp(-1.0, 1.0).to(result_dtype(deltas, reference))


def components_above_rounding(
    deltas: Float[Tensor, "row d"], before: Float[Tensor, "other d"]
) -> int:
    """How many centred components of deltas lie above the rounding of their activations.

    The floor is 4 ε‖before‖ (Frobenius), ε of the dtype of `before`, which must be the dtype that
    the activations were stored in. A rank-1 adapter shifts its own block by one component; whatever
    else the deltas hold there is rounding and must not be compared.

    Args:
        deltas: after − before (row, d).
        before: the activations (row, d), in the dtype they were stored in.

    Raises:
        InputError: another width, values that are not finite.
    """
    rows = rows_of(deltas, "deltas", before, "before")
    activations = rows_of(before, "before")
    # rounding of before and of after, each up to ε/2 per entry, with a margin of 4
    floor = 4 * torch.finfo(before.dtype).eps * float(torch.linalg.vector_norm(activations))
    return int((torch.linalg.svdvals(rows - rows.mean(dim=0)) > floor).sum())


def chosen_dimension(
    k: ComponentCount, deltas: Float[Tensor, "row d"], before: Float[Tensor, "other d"]
) -> int:
    """The dimension that `k` stands for at one place, chosen on these deltas alone.

    A count is itself. A share of variance and an elbow are read from the centred singular values
    above the rounding of the activations. Pass shifts on *training* prompts: then the k at which an
    overlap is measured does not depend on the prompts that it is measured on.

    Args:
        deltas, before: as `components_above_rounding`.

    Raises:
        InputError: an unusable `k`; with a share or an elbow, deltas that are rounding alone, fewer
            than 9 singular values for an elbow, or values that fall without one.
    """
    if isinstance(k, int):
        return component_count(k, torch.empty(0), k, len(deltas), "mean")
    components = components_above_rounding(deltas, before)
    rows = deltas.to(torch.float64)
    singular = torch.linalg.svdvals(rows - rows.mean(dim=0))
    return component_count(k, singular, components, len(rows), "mean")


@dataclass(frozen=True, eq=False, repr=False)
class DeltaSummary(Brief):
    """How far and how consistently one set of deltas moves.

    Every field but `n` has the batch axes of the deltas.

    Args:
        norms: length of each delta (..., row).
        cosines: cosine of each delta to the mean of the set (..., row); biased upwards, since each
            row is part of the mean.
        cosines_to_others: cosine of each delta to the mean of all other deltas (..., row); about 0
            if nothing is common. One row: nan.
        mean_norm: length of the mean delta.
        rms_norm: root mean square length; mean_norm² + spread² (n − 1)/n is its square.
        spread: root of the summed variances of the coordinates (n − 1): how far deltas lie from
            their mean. One row: nan.
        noise_norm: root mean square length of the floor's rows; None without a floor.
        n: number of deltas.
    """

    norms: Float[Tensor, "*batch row"]
    cosines: Float[Tensor, "*batch row"]
    cosines_to_others: Float[Tensor, "*batch row"]
    mean_norm: Float[Tensor, "*batch"]
    rms_norm: Float[Tensor, "*batch"]
    spread: Float[Tensor, "*batch"]
    noise_norm: Float[Tensor, "*batch"] | None
    n: int

    def plot(self) -> Picture:
        """Median length of a delta with its quartiles, the length of the mean, and the noise; of a
        batch one place an entry.
        """
        from emlens.geometry.pictures import picture_of_lengths

        return picture_of_lengths(self.norms, self.mean_norm, self.noise_norm)

    @property
    def common_share(self) -> Float[Tensor, "*batch"]:
        """Share of the mean squared length that the mean delta explains, in [0, 1].

        About 1/n if nothing is common.
        """
        return (self.mean_norm / self.rms_norm) ** 2

    @property
    def unbiased_common_share(self) -> Float[Tensor, "*batch"]:
        """Mean inner product of two different deltas over the mean squared length.

        The common share without its 1/n; in [-1/(n − 1), 1]. 0 on average where nothing is common,
        whatever n is. One delta: nan.
        """
        share = self.common_share
        if self.n < 2:
            return torch.full_like(share, torch.nan)
        # ‖Σδ‖² = Σ‖δ‖² + n(n − 1)·(mean inner product of different deltas)
        return (self.n * share - 1) / (self.n - 1)

    @property
    def signal_to_noise(self) -> Float[Tensor, "*batch"]:
        """rms_norm / noise_norm, an amplitude ratio in [0, ∞].

        1 where deltas are as long as batching noise alone. Infinite where the floor is exactly 0,
        which is what re-batching gives on one device in float32 at equal shapes.

        Raises:
            InputError: the summary was made without a floor.
        """
        if self.noise_norm is None:
            raise InputError("the summary was made without a floor; pass floor= to delta_summary")
        return self.rms_norm / self.noise_norm


def delta_summary(
    deltas: Float[Tensor, "*batch row d"], *, floor: Float[Tensor, "*batch other d"] | None = None
) -> DeltaSummary:
    """Lengths of deltas, how well they agree with each other, and how they compare with a floor.

    Invariant to rotation; lengths scale with the deltas; cosines, shares and the signal-to-noise
    ratio do not.

    Args:
        deltas: after − before (..., row, d).
        floor: differences that are noise by construction (..., row, d): the *same* model on the
            same prompts in other batches.

    Raises:
        InputError: no row, values that are not finite, a zero delta, a mean of zero, or a floor of
            another width or batch.
    """
    rows = rows_of(deltas, "deltas")
    norms = row_lengths(rows, "deltas", "is zero")
    mean = rows.mean(dim=-2)
    if bool((mean == 0).all(dim=-1).any()):
        raise InputError("deltas have mean zero, so no cosine to their mean exists")
    n = rows.shape[-2]
    out = result_dtype(deltas)
    noise = None
    if floor is not None:
        noise_rows = rows_of(floor, "floor", deltas, "deltas")
        if noise_rows.shape[:-2] != rows.shape[:-2]:
            raise InputError(
                f"floor has batch axes {tuple(noise_rows.shape[:-2])} and deltas"
                f" {tuple(rows.shape[:-2])}; pass one floor per batch entry"
            )
        noise = noise_rows.square().sum(dim=-1).mean(dim=-1).sqrt().to(out)
    squares = (rows - mean[..., None, :]).square().sum(dim=(-2, -1))
    variance = squares / (n - 1) if n > 1 else torch.full_like(squares, torch.nan)
    return DeltaSummary(
        norms=norms.to(out),
        cosines=cosine_to_mean(rows, mean).to(out),
        cosines_to_others=_cosines_to_others(rows, norms).to(out),
        mean_norm=torch.linalg.vector_norm(mean, dim=-1).to(out),
        rms_norm=norms.square().mean(dim=-1).sqrt().to(out),
        spread=variance.sqrt().to(out),
        noise_norm=noise,
        n=n,
    )


def _cosines_to_others(rows: Tensor, norms: Tensor) -> Tensor:
    """Cosine of each row to the sum of all other rows; nan where that is zero."""
    sums = rows.sum(dim=-2, keepdim=True) - rows
    lengths = torch.linalg.vector_norm(sums, dim=-1)
    cosines = (rows * sums).sum(dim=-1) / (norms * lengths)
    return torch.where(lengths > 0, cosines.clamp(-1.0, 1.0), torch.nan)
