"""Class means, covariances and strongest directions without keeping a row: prompts stream through,
sums stay.

What `capture(positions="all")` would need terabytes for takes d² numbers here per class, site and
position (with a covariance), or d times the columns of a sketch. Everything is summed in float64 on
the model's device. Batches are those of `capture`, so the rows that are summed are the rows it
would have kept. It refuses to start where the sums alone are too large, and it is not resumable:
nothing is on disk until the caller writes it.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from emlens.activations.batch_layout import BatchLayout
from emlens.activations.batch_reading import read_cutting, read_rows
from emlens.activations.capture_plan import LARGE_BYTES, CapturePlan
from emlens.activations.capture_provenance import capture_provenance, with_layout
from emlens.activations.capture_spec import CaptureSpec
from emlens.activations.memory import Key
from emlens.activations.shared_trunk import SharedTrunk
from emlens.activations.sketching import MomentSketch
from emlens.activations.streamed_moments import Cell, SecondMoment, StreamedMoments
from emlens.data.prompt_inputs import PromptsLike, as_prompts
from emlens.data.prompts import PromptSet
from emlens.foundation.errors import InputError
from emlens.models.hooked import HookedModel
from emlens.models.widening import computing_in
from emlens.runs.progress import progress_bar
from emlens.stats.moments import StreamingMoments

LabelsLike = Literal["group"] | Mapping[str, str] | Sequence[str] | None


@torch.no_grad()
def stream_moments(
    model: HookedModel,
    prompts: PromptsLike,
    spec: CaptureSpec | None = None,
    *,
    by: LabelsLike = "group",
    minus: HookedModel | None = None,
    second: SecondMoment = "covariance",
    sketch: int = 128,
    seed: int = 0,
    progress: bool = True,
) -> StreamedMoments:
    """Count, mean and second moment of residual streams by class, in float64, without keeping them.

    Args:
        spec: what is read and how; at "all" every token is a row. `large` allows sums of more than
            8 GiB.
        by: the class of each prompt: its group, a mapping from id, one label per prompt, or None
            for one class.
        minus: sum activation deltas `model` − `minus` instead, both run on identical batches.
        second: the full covariance (d² numbers per class, site and position), a sketch (d·sketch),
            or variances (d).
        sketch: columns of a sketch, several times the number of directions that are wanted of it;
            at most the model's width is used.
        seed: of the sketch's random directions.

    Raises:
        InputError: what `capture` refuses; a prompt without a label; sums of more than 8 GiB
            without `CaptureSpec(large=True)`.
    """
    spec = spec or CaptureSpec()
    prompt_set = as_prompts(prompts)
    if second not in get_args(SecondMoment):
        raise InputError(
            f"second={second!r} is unknown; pass 'covariance', 'sketch' or 'variance'",
            name=second,
            known=("covariance", "sketch", "variance"),
        )
    if isinstance(sketch, bool) or not isinstance(sketch, int) or sketch < 1:
        raise InputError(f"sketch={sketch!r} must be a count of 1 or more columns")
    models = {"model": model}
    if minus is not None:
        models["minus"] = minus
    plan = CapturePlan.make(models, list(prompt_set), spec)
    labels = _labels(prompt_set, by)
    columns = min(sketch, model.d_model) if second == "sketch" else 0
    if not spec.large:
        _check_size(plan, len(set(labels)), model.d_model, second, columns)

    sums = _Sums(plan, labels, model.d_model, second, columns, seed)
    layout = plan.layout
    trunk = None
    if minus is not None and plan.share_trunk:
        trunk = SharedTrunk.of({"before": minus, "after": model})
    title = f"stream {len(prompt_set)} prompts"
    with (
        computing_in(models.values(), plan.compute_dtype),
        progress_bar(title, len(layout.sizes), progress) as advance,
    ):
        for batch in range(len(layout.sizes)):
            pieces, layout = read_cutting(
                plan, layout, batch, lambda rows: _read(models, plan, rows, trunk)
            )
            for rows, values in pieces:
                sums.add(rows, values)
            advance()
    return StreamedMoments(
        tuple(sums.classes),
        tuple(str(site) for site in plan.sites),
        tuple(position.name for position in plan.positions),
        second,
        _provenance(models, plan, prompt_set.content_hash, layout, trunk),
        sums.moments,
        sums.sketches,
    )


def _check_size(
    plan: CapturePlan, classes: int, d: int, second: SecondMoment, columns: int
) -> None:
    """Refuse sums of more than `LARGE_BYTES`, before any of them is allocated."""
    numbers = d * d if second == "covariance" else d * (1 + columns)
    size = classes * len(plan.keys) * numbers * 8
    if size > LARGE_BYTES:
        raise InputError(
            f"the sums take {size / 1e9:.1f} GB"
            f" ({classes} classes × {len(plan.keys)} sites and positions, second={second!r}),"
            f" more than {LARGE_BYTES / 1e9:.1f} GB;"
            " pass large=True in a CaptureSpec, fewer layers or classes, or second='sketch'"
        )


class _Sums:
    """Running sums per class, site and position.

    Args:
        labels: class of each row of the plan.
        columns: of the sketches; 0 for none.
    """

    def __init__(
        self,
        plan: CapturePlan,
        labels: Sequence[str],
        d: int,
        second: SecondMoment,
        columns: int,
        seed: int,
    ):
        self._plan = plan
        self._labels = labels
        self.classes = sorted(set(labels))
        self.moments: dict[Cell, StreamingMoments] = {}
        self.sketches: dict[Cell, MomentSketch] = {}
        for label, (site, position) in product(self.classes, plan.keys):
            cell = (label, site, position)
            self.moments[cell] = StreamingMoments(d, covariance=second == "covariance")
            if columns:
                self.sketches[cell] = MomentSketch(d, columns, seed=seed)

    def add(self, rows: Sequence[int], values: Mapping[Key, Tensor]) -> None:
        """Add what was read of these rows of the plan."""
        for (site, position), value in values.items():
            for label, class_rows in self._by_label(rows, position, value):
                cell = (label, site, position)
                self.moments[cell].update(class_rows)
                if cell in self.sketches:
                    self.sketches[cell].update(class_rows)

    def _by_label(
        self, rows: Sequence[int], position: str, value: Tensor
    ) -> Iterator[tuple[str, Tensor]]:
        """The vectors of each class in the batch."""
        labels = [self._labels[row] for row in rows]
        vectors = torch.ones(len(rows), dtype=torch.long)
        if position == "all":
            vectors = torch.tensor([self._plan.rows.lengths[row] for row in rows])
        for label in sorted(set(labels)):
            of_class = torch.tensor([name == label for name in labels])
            mask = of_class.repeat_interleave(vectors)
            if bool(mask.all()):  # no copy where the whole batch is of one class
                yield label, value
            else:
                yield label, value[mask.to(value.device)]


def _read(
    models: Mapping[str, HookedModel],
    plan: CapturePlan,
    rows: Sequence[int],
    trunk: SharedTrunk | None,
) -> dict[Key, Tensor]:
    """Values of `model`, or the difference `model` − `minus` in float64."""
    if "minus" not in models:
        return read_rows(models["model"], plan, rows, on_device=True)
    before = after = None
    if trunk is not None:
        trunk.clear()
        before, after = trunk.of_model("before"), trunk.of_model("after")
    subtracted = read_rows(models["minus"], plan, rows, on_device=True, trunk=before)
    values = read_rows(models["model"], plan, rows, on_device=True, trunk=after)
    differences = {}
    for key, value in values.items():
        # the two models may lie on different devices
        differences[key] = value.double() - subtracted[key].to(value.device).double()
    return differences


def _provenance(
    models: Mapping[str, HookedModel],
    plan: CapturePlan,
    prompts_sha256: str,
    layout: BatchLayout,
    trunk: SharedTrunk | None,
) -> dict[str, Any]:
    records = {}
    for name, model in models.items():
        of_trunk = None
        if trunk is not None and name == "model":
            of_trunk = trunk.record("after")
        provenance = capture_provenance(model, plan, prompts_sha256, of_trunk)
        records[name] = with_layout(provenance, layout)
    if "minus" not in models:
        return records["model"]
    return {"delta": True, "before": records["minus"], "after": records["model"]}


def _labels(prompts: PromptSet, by: LabelsLike) -> list[str]:
    """The class of each prompt."""
    if by is None:
        return [""] * len(prompts)
    if isinstance(by, str):
        if by != "group":
            raise InputError(
                f"by={by!r} is unknown; pass 'group', a mapping from id to label,"
                " one label per prompt, or None"
            )
        return list(prompts.groups)
    if isinstance(by, Mapping):
        missing = [name for name in prompts.ids if name not in by]
        if missing:
            raise InputError(
                f"by has no label for prompt {missing[0]!r}"
                f" ({len(missing)} of {len(prompts)} are missing)"
            )
        return [str(by[name]) for name in prompts.ids]
    if len(by) != len(prompts):
        raise InputError(f"by has {len(by)} labels for {len(prompts)} prompts; pass one for each")
    return [str(label) for label in by]
