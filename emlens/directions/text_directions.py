"""A direction between two lists of texts."""

from collections.abc import Sequence

from emlens.activations import CaptureSpec, capture
from emlens.data import PromptSet
from emlens.foundation.errors import InputError
from emlens.geometry import Direction, mean_difference_direction
from emlens.models.hooked import HookedModel


def direction_from_texts(
    model: HookedModel,
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    layer: int,
    position: str = "last_prompt",
    chat: bool = False,
    progress: bool = True,
) -> Direction:
    """Mean of the stream over `positive` texts minus over `negative` ones, after one block.

    Args:
        positive, negative: texts; the direction points to `positive`.
        layer: 0-based block whose output is read (`resid_post`); negative ones count from the end.
        position: one of `emlens.foundation.positions`.
        chat: ask each text as a user turn, through the chat template; else texts are tokenised as
            they are.

    Returns:
        A `Direction` with the mean of `negative` as baseline and the texts' numbers as ids.

    Raises:
        InputError: a string in place of a list, an empty list or text, a layer or position that
            does not exist, means that agree to rounding.

    Reference: mean difference, as Marks and Tegmark, 2310.06824.
    """
    found = directions_from_texts(
        model, positive, negative, layers=[layer], position=position, chat=chat, progress=progress
    )
    [direction] = found.values()
    return direction


def directions_from_texts(
    model: HookedModel,
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    position: str = "last_prompt",
    chat: bool = False,
    progress: bool = True,
) -> dict[str, Direction]:
    """`direction_from_texts` after several blocks, by site; all of them where `layers` is None."""
    sides = {"positive": positive, "negative": negative}
    for name, texts in sides.items():
        if isinstance(texts, str) or not len(texts):
            raise InputError(f"{name} must be a list of texts with at least one; pass ['...', ...]")
    spec = CaptureSpec("resid_post", layers, position)
    rows, ids = {}, {}
    for name, texts in sides.items():
        names = [f"{name} {number}" for number in range(len(texts))]
        make = PromptSet.from_questions if chat else PromptSet.from_texts
        prompts = make(list(texts), ids=names)
        rows[name] = capture(model, prompts, spec=spec, progress=progress)
        ids[name] = names
    directions = {}
    for site in rows["positive"].sites:
        directions[site] = mean_difference_direction(
            rows["positive"][site],
            rows["negative"][site],
            site=site,
            position=position,
            ids=ids,
            provenance={"model": model.name, "texts": {k: list(v) for k, v in sides.items()}},
        )
    return directions
