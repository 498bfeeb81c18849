"""Values that are not finite: an error at the first site where they appear.

Float16 holds nothing beyond 65504, and some models' streams are larger. NaN from there on spreads
to every later token without an error of its own. A check costs one sum or maximum of what is kept;
only where it fails, one more pass finds the first site.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from emlens.data.rendering import Rendered
from emlens.foundation.errors import LoadError, NotFiniteError
from emlens.foundation.files import one_line
from emlens.foundation.sites import Site
from emlens.models.batches import pad
from emlens.models.passes import Reader

if TYPE_CHECKING:
    from emlens.models.hooked import HookedModel


_WITH_SUMS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Dtypes of weights that are looked at; quantised ones hold whole numbers."""


class NotFiniteScores(Exception):
    """Next-token scores of a row that is being generated; caught inside this package.

    Args:
        row: number of the row.
        tokens: its answer so far.
    """

    def __init__(self, row: int, tokens: Sequence[int]):
        self.row, self.tokens = row, list(tokens)


def is_finite(value: Tensor) -> bool:
    """Whether no entry is NaN or infinite."""
    # NaN and infinity stay in a sum, which reads memory once; a sum that overflows is looked at
    # again
    wide = torch.float64 if value.dtype == torch.float64 else torch.float32
    return bool(value.sum(dtype=wide).isfinite()) or bool(value.isfinite().all())


def unusable_scores(scores: Tensor) -> Tensor:
    """Which rows of next-token scores hold NaN or +inf, or nothing but −inf.

    A single −inf is a token that the model excludes.
    """
    return ~scores.amax(-1).isfinite()


def first_unusable(scores: Tensor) -> int | None:
    """Number of the first row of next-token scores that is unusable; None where all can be used."""
    unusable = unusable_scores(scores)
    if not bool(unusable.any()):
        return None
    return int(unusable.int().argmax())


def require_finite_weights(module: nn.Module, source: str) -> None:
    """Refuse a model whose weights or settings cannot give finite numbers.

    Raises:
        LoadError: names the tensor, or the setting of the configuration that is NaN.
    """
    setting = _nan_setting(module.config.to_dict())  # type: ignore[operator, union-attr]
    if setting is not None:
        raise LoadError(f"{source}: its configuration gives {setting} as NaN; correct config.json")
    for name, weight in module.named_parameters():
        if weight.is_meta or weight.dtype not in _WITH_SUMS or is_finite(weight.detach()):
            continue
        remedy = "take another copy of the checkpoint"
        if weight.dtype == torch.float16:
            remedy = "float16 holds no value beyond 65504: pass dtype='bfloat16'"
        raise LoadError(f"{source}: tensor {one_line(name)!r} holds NaN or infinity; {remedy}")


def _nan_setting(value: Any, path: str = "") -> str | None:
    """Path of the first NaN in a configuration; infinity is a limit in some."""
    if isinstance(value, float) and math.isnan(value):
        return path
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for key, inner in items:
        found = _nan_setting(inner, f"{path}.{one_line(str(key), 60)}".lstrip("."))
        if found is not None:
            return found
    return None


def refuse_not_finite(
    model: "HookedModel", row: Rendered, seen_at: str, *, kept: torch.dtype | None = None
) -> NoReturn:
    """Say at which site a row first becomes NaN or infinite.

    Args:
        seen_at: where it was noticed.
        kept: the dtype in which values were to be kept, where it is not the model's.

    Raises:
        NotFiniteError: names the prompt, the site, and what to do.
    """
    site = _first_site(model, row)
    start = f"prompt {one_line(row.id, 60)!r}: {one_line(model.name, 60)!r}"
    if site is None and kept is not None:
        raise NotFiniteError(
            f"{start} computes values at {seen_at} that do not fit"
            f" {str(kept).removeprefix('torch.')}, in which they are to be kept;"
            " pass CaptureSpec(dtype=torch.float32), or bfloat16"
        )
    raise NotFiniteError(
        f"{start} computes values that are not finite, first at {site or seen_at}; {_remedy(model)}"
    )


def _first_site(model: "HookedModel", row: Rendered) -> Site | None:
    """The first site of a pass over this row alone that holds NaN or an infinite value."""
    sites: list[Site] = []

    def reader(site: Site) -> Reader:
        def look(stream: Tensor) -> None:
            if not is_finite(stream):
                sites.append(site)

        return look

    batch = pad([row], [0], model.pad_id, "right", model.device)
    model.run(batch, {site: reader(site) for site in model.sites})
    return min(sites, default=None)


def _remedy(model: "HookedModel") -> str:
    dtype = model.provenance.get("dtype")
    if dtype == "float16":
        return "float16 holds no value beyond 65504: load the model with dtype='bfloat16'"
    if model.edit_records():
        return "take the edits away that are active on the model, or weaken them"
    return f"its weights ({dtype}) hold such values, or its configuration does not fit them"
