"""Class means, covariances and strongest directions without keeping a row: prompts stream through,
sums stay.

What `capture(positions="all")` would need terabytes for takes d² numbers here for each class, site
and position (with a covariance), or d times the sketch. Everything is summed in float64 on the
model's device. Batches are those of `capture`, so the rows that are summed are the rows it would
have kept. It refuses to start where the sums alone are too large, and it is not resumable: nothing
is on disk until the caller writes it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.activations.capture_facts import capture_facts, with_layout
from emlens.activations.capturing import PromptsLike, as_prompts
from emlens.activations.reading import (
    BATCH_TOKENS,
    LARGE_BYTES,
    Reading,
    cutting,
    plan_reading,
    read_rows,
)
from emlens.activations.record import Key
from emlens.activations.sketching import MomentSketch
from emlens.data.prompts import PromptSet
from emlens.foundation.errors import InputError, UnknownNameError
from emlens.foundation.positions import PositionLike
from emlens.foundation.sites import Site
from emlens.geometry.linear import sign_fixed
from emlens.geometry.subspaces import Subspace
from emlens.models.hooked import HookedModel
from emlens.runs.progress import progress_bar
from emlens.stats.moments import StreamingMoments

SecondMoment = Literal["covariance", "sketch", "variance"]


@dataclass(frozen=True, eq=False)
class StreamedMoments:
    """Sums over the rows of each class at each site and position; float64.

    Args:
        labels: the classes, sorted.
        rows: rows summed of each class, at a pooled position; at "all" every token is a row.
        second: what was kept beside the mean.
        provenance: as of a capture.
    """

    labels: tuple[str, ...]
    sites: tuple[str, ...]
    positions: tuple[str, ...]
    second: SecondMoment
    provenance: Mapping[str, Any]
    _moments: Mapping[tuple[str, str, str], StreamingMoments] = field(repr=False)
    _sketches: Mapping[tuple[str, str, str], MomentSketch] = field(repr=False)

    def moments(
        self, site: str | Site, label: str | None = None, position: str | None = None
    ) -> StreamingMoments:
        """Count, mean and second moment of a class, or of all classes together; a copy.

        Raises:
            UnknownNameError: a site, class or position that is not there; `position` is needed
                where there are several.
        """
        keys = self._keys(site, label, position)
        whole = StreamingMoments(self._moments[keys[0]].d, covariance=self.second == "covariance")
        for key in keys:
            whole.merge(self._moments[key])
        return whole

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
        """Covariance about the mean of each class, pooled over classes: Σ scatter / (n −
        classes).
        """
        each = [self.moments(site, label, position) for label in self.labels]
        each = [one for one in each if one.n > 1]
        if not each:
            raise InputError(
                "no class has 2 rows, so there is no covariance within classes; pass other labels"
            )
        scatter = torch.stack([one.covariance * (one.n - 1) for one in each]).sum(0)
        return scatter / sum(one.n - 1 for one in each)

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
            InputError: only variances were kept, or k is above the rank that can be told from
                rounding.
        """
        if self.second == "variance":
            raise InputError(
                "only variances were kept; pass second='covariance' or 'sketch' to stream_moments"
            )
        moments = self.moments(site, label, position)
        if self.second == "covariance":
            outer = (
                torch.zeros(()) if center else moments.n * torch.outer(moments.mean, moments.mean)
            )
            values, axes = torch.linalg.eigh(moments.covariance * (moments.n - 1) + outer)
            values, axes = values.flip(0).clamp(min=0), axes.flip(1)
            singular, total = values.sqrt(), float(values.sum())
        else:
            sketch = self._sketch(self._keys(site, label, position))
            axes, singular = sketch.axes(centred=center)
            total = sketch.total(centred=center)
        # of an eigenvalue d·ε of the largest; its root here
        rounding = (moments.d * torch.finfo(torch.float64).eps) ** 0.5
        rank = int((singular > singular.max() * rounding).sum()) if float(singular.max()) else 0
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

    def _sketch(self, keys: Sequence[tuple[str, str, str]]) -> MomentSketch:
        first = self._sketches[keys[0]]
        whole = MomentSketch(first.d, first.size, seed=first.seed)
        for key in keys:
            whole.merge(self._sketches[key])
        return whole

    def _keys(
        self, site: str | Site, label: str | None, position: str | None
    ) -> list[tuple[str, str, str]]:
        name = str(Site.parse(site))
        if position is None and len(self.positions) > 1:
            raise UnknownNameError(
                f"there are several positions, {', '.join(self.positions)}; pass position="
            )
        where = self.positions[0] if position is None else position
        for what, asked, known in (
            ("site", name, self.sites),
            ("position", where, self.positions),
            ("label", label, self.labels),
        ):
            if asked is not None and asked not in known:
                raise UnknownNameError(
                    f"{what} {asked!r} was not streamed; these were: {', '.join(known)}"
                )
        return [(one, name, where) for one in (self.labels if label is None else (label,))]


@torch.no_grad()
def stream_moments(
    model: HookedModel,
    prompts: PromptsLike,
    *,
    by: Literal["group"] | Mapping[str, str] | Sequence[str] | None = "group",
    minus: HookedModel | None = None,
    second: SecondMoment = "covariance",
    sketch: int = 128,
    seed: int = 0,
    sites: str | Site | Iterable[str | Site] = "resid_post",
    layers: Sequence[int] | None = None,
    positions: PositionLike | Sequence[PositionLike] = "last_prompt",
    skip_first: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    large: bool = False,
    progress: bool = True,
) -> StreamedMoments:
    """Count, mean and second moment of residual streams by class, in float64, without keeping them.

    Args:
        by: the class of each prompt: its group, a mapping from id, one label a prompt, or None for
            one class.
        minus: sum activation deltas `model` − `minus` instead, both run on identical batches.
        second: the full covariance (d² numbers a class, site and position), a sketch (d·sketch), or
            variances (d).
        sketch: columns of a sketch; several times the directions wanted of it. Capped at the
            model's width.
        seed: of the sketch's random directions.
        sites, layers, positions, skip_first, batch_tokens: as `capture`; at "all" every token is a
            row.
        large: needed where the sums take more than 8 GiB.

    Raises:
        InputError: what `capture` refuses; a prompt without a label; sums of more than 8 GiB
            without `large`.
    """
    asked = as_prompts(prompts)
    models = {"model": model} if minus is None else {"model": model, "minus": minus}
    if second not in ("covariance", "sketch", "variance"):
        raise InputError(f"second={second!r} is unknown; pass 'covariance', 'sketch' or 'variance'")
    if isinstance(sketch, bool) or not isinstance(sketch, int) or sketch < 1:
        raise InputError(f"sketch={sketch!r} must be a count of 1 or more columns")
    reading = plan_reading(
        models,
        list(asked),
        sites=sites,
        layers=layers,
        positions=positions,
        skip_first=skip_first,
        batch_tokens=batch_tokens,
        dtype=None,
    )
    labels = _labels(asked, by)
    classes = sorted(set(labels))
    d = model.d_model
    columns = min(sketch, d) if second == "sketch" else 0
    size = (
        len(classes)
        * len(reading.keys)
        * (d * d if second == "covariance" else d * (1 + columns))
        * 8
    )
    if size > LARGE_BYTES and not large:
        raise InputError(
            f"the sums take {size / 1e9:.1f} GB ({len(classes)} classes × {len(reading.keys)} sites"
            f" and positions, second={second!r}), more than {LARGE_BYTES / 1e9:.1f} GB;"
            " pass large=True, fewer layers or classes, or second='sketch'"
        )
    cells = [(label, *key) for label in classes for key in reading.keys]
    moments = {cell: StreamingMoments(d, covariance=second == "covariance") for cell in cells}
    sketches = {cell: MomentSketch(d, columns, seed=seed) for cell in cells if columns}
    layout = reading.layout
    with progress_bar(f"stream {len(asked)} prompts", len(layout.sizes), progress) as advance:
        for batch in range(len(layout.sizes)):
            parts, layout = cutting(
                reading, layout, batch, lambda rows: _read(models, reading, rows)
            )
            for rows, values in parts:
                for key, value in values.items():
                    for label, chosen in _by_label(
                        reading, rows, [labels[i] for i in rows], key[1], value
                    ):
                        moments[label, *key].update(chosen)
                        if columns:
                            sketches[label, *key].update(chosen)
            advance()
    facts = {
        name: with_layout(capture_facts(one, reading, asked.content_hash), layout)
        for name, one in models.items()
    }
    provenance = (
        facts["model"]
        if minus is None
        else {"delta": True, "before": facts["minus"], "after": facts["model"]}
    )
    return StreamedMoments(
        tuple(classes),
        tuple(str(site) for site in reading.sites),
        tuple(position.name for position in reading.positions),
        second,
        provenance,
        moments,
        sketches,
    )


def _read(
    models: Mapping[str, HookedModel], reading: Reading, rows: Sequence[int]
) -> dict[Key, Tensor]:
    values = read_rows(models["model"], reading, rows, on_device=True)
    if "minus" not in models:
        return values
    other = read_rows(models["minus"], reading, rows, on_device=True)
    return {
        key: value.double() - other[key].to(value.device).double() for key, value in values.items()
    }


def _by_label(
    reading: Reading, rows: Sequence[int], labels: Sequence[str], position: str, value: Tensor
) -> list[tuple[str, Tensor]]:
    repeats = [reading.rows.lengths[i] if position == "all" else 1 for i in rows]
    found = []
    for label in sorted(set(labels)):
        mask = torch.tensor([one == label for one in labels]).repeat_interleave(
            torch.tensor(repeats)
        )
        found.append((label, value if bool(mask.all()) else value[mask.to(value.device)]))
    return found


def _labels(
    prompts: PromptSet, by: Literal["group"] | Mapping[str, str] | Sequence[str] | None
) -> list[str]:
    if by is None:
        return [""] * len(prompts)
    if isinstance(by, str):
        if by != "group":
            raise InputError(
                f"by={by!r} is unknown; pass 'group', a mapping from id to label,"
                " one label a prompt, or None"
            )
        return list(prompts.groups)
    if isinstance(by, Mapping):
        missing = [name for name in prompts.ids if name not in by]
        if missing:
            raise InputError(
                f"by has no label for prompt {missing[0]!r} ({len(missing)} of {len(prompts)} are"
                " missing)"
            )
        return [str(by[name]) for name in prompts.ids]
    if len(by) != len(prompts):
        raise InputError(f"by has {len(by)} labels for {len(prompts)} prompts; pass one for each")
    return [str(label) for label in by]
