"""`StreamedMoments`: counts, means, covariances and directions of rows that were not kept.

Everything is in float64. `stream_moments` makes it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.activations.sketching import MomentSketch
from emlens.foundation.errors import InputError, UnknownNameError
from emlens.foundation.sites import Site
from emlens.geometry.linear import sign_fixed
from emlens.geometry.subspaces import Subspace
from emlens.stats.moments import StreamingMoments

SecondMoment = Literal["covariance", "sketch", "variance"]
Cell = tuple[str, str, str]
"""(label, site name, position name)."""


@dataclass(frozen=True, eq=False)
class StreamedMoments:
    """Sums over the rows of each class at each site and position; float64.

    Args:
        labels: the classes, sorted.
        second: what was kept beside the mean.
        provenance: as of a capture.

    A prompt is one row at a pooled position; at "all" every token is a row.
    """

    labels: tuple[str, ...]
    sites: tuple[str, ...]
    positions: tuple[str, ...]
    second: SecondMoment
    provenance: Mapping[str, Any]
    _moments: Mapping[Cell, StreamingMoments] = field(repr=False)
    _sketches: Mapping[Cell, MomentSketch] = field(repr=False)

    def moments(
        self, site: str | Site, label: str | None = None, position: str | None = None
    ) -> StreamingMoments:
        """Count, mean and second moment of a class, or of all classes together; a copy.

        Raises:
            UnknownNameError: a site, class or position that is not there; `position` is needed
                where there are several.
        """
        cells = self._cells(site, label, position)
        moments = StreamingMoments(
            self._moments[cells[0]].d, covariance=self.second == "covariance"
        )
        for cell in cells:
            moments.merge(self._moments[cell])
        return moments

    def n(self, site: str | Site, label: str | None = None, position: str | None = None) -> int:
        return self.moments(site, label, position).n

    def mean(
        self, site: str | Site, label: str | None = None, position: str | None = None
    ) -> Float[Tensor, " d_model"]:
        return self.moments(site, label, position).mean

    def covariance(
        self, site: str | Site, label: str | None = None, position: str | None = None
    ) -> Float[Tensor, "d_model d_model"]:
        """Sample covariance (n − 1) of a class, or of all rows about their common mean."""
        return self.moments(site, label, position).covariance

    def within_covariance(
        self, site: str | Site, position: str | None = None
    ) -> Float[Tensor, "d_model d_model"]:
        """Covariance about the mean of each class, pooled: Σ scatter / Σ (n − 1) over classes.

        Classes of one row are left out.

        Raises:
            InputError: no class has 2 rows.
        """
        classes = [self.moments(site, label, position) for label in self.labels]
        classes = [moments for moments in classes if moments.n > 1]
        if not classes:
            raise InputError(
                "no class has 2 rows, so there is no covariance within classes; pass other labels"
            )
        scatters = [moments.covariance * (moments.n - 1) for moments in classes]
        degrees = sum(moments.n - 1 for moments in classes)
        return torch.stack(scatters).sum(0) / degrees

    def subspace(
        self,
        site: str | Site,
        k: int,
        *,
        center: bool,
        label: str | None = None,
        position: str | None = None,
    ) -> Subspace:
        """The k strongest directions of a class, or of all rows.

        Args:
            center: take the mean out, or not; as in `top_k_subspace` there is no default.

        Method: eigenvectors of the exact second moment where covariances were kept; otherwise the
        sketch (`emlens.activations.sketching`), whose `singular_values` are at most the true ones
        and as many as it has columns.

        Raises:
            InputError: only variances were kept, or k is above the rank that can be distinguished
                from rounding.
        """
        if self.second == "variance":
            raise InputError(
                "only variances were kept; pass second='covariance' or 'sketch' to stream_moments"
            )
        moments = self.moments(site, label, position)
        if self.second == "covariance":
            axes, singular, total = _axes_of_covariance(moments, center)
        else:
            sketch = self._sketch(self._cells(site, label, position))
            axes, singular = sketch.axes(centred=center)
            total = sketch.total(centred=center)
        rank = _numerical_rank(singular, moments.d)
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= rank:
            raise InputError(
                f"k={k!r} must be a count of 1 to {rank}, the rank of {moments.n} rows as far as"
                " squares in float64 tell"
            )
        return Subspace(
            basis=sign_fixed(axes[:, :k]),
            singular_values=singular,
            explained_variance_ratio=singular[:k] ** 2 / total,
            mean=moments.mean if center else torch.zeros_like(moments.mean),
            n=moments.n,
            rank=rank,
            center="mean" if center else "none",
        )

    def _sketch(self, cells: Sequence[Cell]) -> MomentSketch:
        first = self._sketches[cells[0]]
        sketch = MomentSketch(first.d, first.size, seed=first.seed)
        for cell in cells:
            sketch.merge(self._sketches[cell])
        return sketch

    def _cells(self, site: str | Site, label: str | None, position: str | None) -> list[Cell]:
        """The cells of one class, or of all, at one site and position."""
        site_name = str(Site.parse(site))
        if position is None:
            if len(self.positions) > 1:
                raise UnknownNameError(
                    f"there are several positions, {', '.join(self.positions)}; pass position="
                )
            position = self.positions[0]
        _check_streamed("site", site_name, self.sites)
        _check_streamed("position", position, self.positions)
        if label is None:
            return [(name, site_name, position) for name in self.labels]
        _check_streamed("label", label, self.labels)
        return [(label, site_name, position)]


def _check_streamed(kind: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        raise UnknownNameError(
            f"{kind} {name!r} was not streamed; these were: {', '.join(names)}",
            name=name,
            known=names,
        )


def _axes_of_covariance(
    moments: StreamingMoments, center: bool
) -> tuple[Float[Tensor, "d d"], Float[Tensor, " d"], float]:
    """Principal axes in columns, strongest first; singular values of the rows; sum of squares."""
    # Σ (x − mean)(x − mean)ᵀ, and Σ x xᵀ = the same + n · mean meanᵀ
    second_moment = moments.covariance * (moments.n - 1)
    if not center:
        second_moment = second_moment + moments.n * torch.outer(moments.mean, moments.mean)
    values, axes = torch.linalg.eigh(second_moment)  # ascending
    # rounding can make an eigenvalue that is zero slightly negative
    values, axes = values.flip(0).clamp(min=0), axes.flip(1)
    return axes, values.sqrt(), float(values.sum())


def _numerical_rank(singular: Float[Tensor, " s"], d: int) -> int:
    """Singular values above rounding.

    They are roots of eigenvalues, whose rounding error is d·ε of the largest: hence its root here.
    """
    largest = float(singular.max())
    if not largest:
        return 0
    rounding = (d * torch.finfo(torch.float64).eps) ** 0.5
    return int((singular > singular.max() * rounding).sum())
