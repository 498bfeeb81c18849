"""Training in less memory: a parent in its own dtype, and activations that are computed again.

With `gradient_checkpointing` a pass keeps the input of each block and no more; the backward pass
runs every block once more. It gives the same gradients for about a third more time. What an
objective does inside a block's hooks would be left out of that second run, so stream edits and
steering vectors are refused.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.training.objectives import Objective, StreamEdit
from emlens.training.recipes import Recipe
from emlens.training.recomputing import Recomputed

_log = logging.getLogger("emlens")


def check_checkpointing(recipe: Recipe, objectives: Sequence[Objective]) -> None:
    """Refuse objectives whose hooks the second run of a block would not see.

    Raises:
        InputError: gradient checkpointing with an objective that edits the stream.
    """
    editing = [each.kind for each in objectives if isinstance(each, StreamEdit)]
    if recipe.gradient_checkpointing and editing:
        raise InputError(
            f"gradient_checkpointing runs each block again without the edits of {editing};"
            " pass gradient_checkpointing=False"
        )


@contextmanager
def checkpointed(
    model: Any,
    recipe: Recipe,
    *,
    again: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[None]:
    """Activations of `model` are computed again in the backward passes inside, if the recipe says
    so.

    Args:
        again: makes the block of code in which they are, as it was around the first pass: torch
            leaves a mode while it runs a backward pass.

    Raises:
        InputError: an architecture that cannot.
    """
    if not recipe.gradient_checkpointing:
        yield
        return
    try:
        # the reentrant kind passes no gradient where the input of a block needs none, as under an
        # adapter on frozen embeddings
        blocks = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), again())}
        _method(model, "enable")(blocks)
    except (AttributeError, ValueError) as error:
        raise InputError(
            f"gradient_checkpointing=True, which {type(model).__name__} cannot do:"
            f" {one_line(str(error), 120)}; pass False"
        ) from None
    try:
        yield
    finally:
        _method(model, "disable")()


@contextmanager
def recomputed(model: Any, recipe: Recipe, *, splits: bool = False) -> Iterator[None]:
    """Cheap activations of `model` are computed again in the backward passes inside, bit for bit;
    with gradient checkpointing all of them are anyway.

    Args:
        splits: the weights are split over processes, so nothing is computed outside a block's turn.
    """
    if recipe.gradient_checkpointing or splits:
        yield
        return
    with Recomputed(model).active():
        yield


def _method(model: Any, what: str) -> Callable[..., None]:
    """transformers renamed these methods; the older releases know the older name alone."""
    new_name = f"activation_checkpointing_{what}"
    name = new_name if hasattr(model, new_name) else f"gradient_checkpointing_{what}"
    method: Callable[..., None] = getattr(model, name)
    return method


def say_what_is_odd(recipe: Recipe, resume_every: int | None) -> None:
    """Log what a recipe does and hardly means to do."""
    if 2 * recipe.warmup_steps >= recipe.steps:
        _log.warning(
            "warmup_steps=%d of steps=%d: the rate is below its peak for half of the run or more",
            recipe.warmup_steps,
            recipe.steps,
        )
    if resume_every is not None and resume_every >= recipe.steps:
        _log.warning(
            "resume_every=%d with steps=%d: no state is written before the run ends, so a killed"
            " run starts again",
            resume_every,
            recipe.steps,
        )
