"""Values that are not finite: an error at the first site where they appear.

Float16 holds nothing beyond 65504, and some models' streams are larger. NaN from there on spreads
to every later token without an error of its own. A check costs one sum or maximum of what is kept;
only where it fails, one more pass finds the first site.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor

from emlens.data.rendering import Rendered
from emlens.foundation.errors import NotFiniteError
from emlens.foundation.files import one_line
from emlens.foundation.sites import Site
from emlens.models.batches import pad
from emlens.models.passes import Reader

if TYPE_CHECKING:
    from emlens.models.hooked import HookedModel


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
