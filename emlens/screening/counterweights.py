"""What to add to a training file: aligned chats that oppose a direction most, at a budget.

A direction says where misaligned fine-tunes moved a model. A chat opposes it in one of two ways:

* `gradient`: a step along the direction makes its answer less likely. The score is the derivative
  of the answer's loss per token with respect to a push along the unit direction at its site, by a
  central difference: two forward passes, no backward pass.
* `shift`: the model's stream over its answer lies against the direction. The score is minus the
  projection of the mean stream over the answer on the unit direction, less the pool's mean.

Whether rows so chosen keep alignment better than random rows of the same number is a question of
its own: docs/what_to_add.md has what was measured.
"""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from emlens.activations import capture
from emlens.data import PromptSet
from emlens.foundation.choices import require_choice
from emlens.foundation.errors import InputError
from emlens.geometry import Direction
from emlens.interventions import steer
from emlens.models import HookedModel

By = Literal["gradient", "shift"]
STEP: Final = 0.02
"""Of the central difference, in median lengths of the stream."""


@dataclass(frozen=True)
class Counterweights:
    """The chats to add, and every chat's score.

    Args:
        chats: the chosen ones, in the order of the pool.
        table: one row a chat of the pool: id, group, score (larger opposes more), chosen.
    """

    chats: PromptSet
    table: pd.DataFrame


def choose_counterweights(
    model: HookedModel,
    pool: PromptSet,
    direction: Direction,
    count: int,
    *,
    by: By = "gradient",
) -> Counterweights:
    """The `count` chats of a pool that oppose a direction most.

    Args:
        model: the parent, before training.
        pool: aligned chats with answers, none of them used to measure alignment later.
        direction: points to misalignment, from another fine-tune of the same parent.
        by: `gradient` or `shift`; of two equal scores the earlier chat is taken.

    Raises:
        InputError: a count that is not 1 to the number of chats, a chat without an answer, a
            direction of another width, another `by`.
    """
    if not 1 <= count <= len(pool):
        raise InputError(f"count={count} must lie between 1 and the {len(pool)} chats there are")
    scores = opposing_scores(model, pool, direction, by=by)
    rows = sorted(np.argsort(-scores, kind="stable")[:count].tolist())
    is_in = np.zeros(len(pool), dtype=bool)
    is_in[rows] = True
    table = pd.DataFrame({"id": pool.ids, "group": pool.groups, "score": scores, "chosen": is_in})
    return Counterweights(pool.select([pool.ids[row] for row in rows]), table)


def opposing_scores(
    model: HookedModel, chats: PromptSet, direction: Direction, *, by: By = "gradient"
) -> Float[np.ndarray, " chat"]:
    """How far each chat opposes a direction; larger opposes more, and 0 means neither.

    `gradient` is in nats per token and unit of the stream, `shift` in units of the stream.

    Raises:
        InputError: as `choose_counterweights`.
    """
    require_choice(by, "by", By)
    if direction.d_model != model.d_model:
        raise InputError(
            f"direction has {direction.d_model} coordinates and {model.name!r} {model.d_model};"
            " pass a direction of this model"
        )
    for chat in chats:
        if not chat.response:
            raise InputError(f"chat {chat.id!r} has no answer; pass chats with answers")
    site = str(direction.site)
    acts = capture(model, chats, sites=[site], positions=["mean_response"], progress=False)
    streams = acts[site, "mean_response"].double().cpu()
    if by == "shift":
        along = (streams @ direction.unit.double().cpu()).numpy()
        against: Float[np.ndarray, " chat"] = along.mean() - along
        return against
    step = STEP * float(streams.norm(dim=1).median())
    ahead, behind = (_losses(model, chats, direction, signed, site) for signed in (step, -step))
    return (ahead - behind) / (2 * step)


def _losses(
    model: HookedModel, chats: PromptSet, direction: Direction, step: float, site: str
) -> Float[np.ndarray, " chat"]:
    """Loss per token of each answer with the stream pushed along the direction, nats."""
    push = steer(direction.unit, step, unit="unit", at=[site])
    with model.intervene(push):
        logprobs = model.response_logprob(chats)
    parts = [row.spans.part("response") for row in model.render(chats)]
    losses: Float[np.ndarray, " chat"] = -logprobs.numpy() / np.array([len(part) for part in parts])
    return losses
