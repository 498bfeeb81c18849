"""Which answers are drawn side by side: fixed groups, so that a resumed run draws as a whole one.

A real model's logits differ in their last digits with the rows beside them, which now and then
turns a draw. So the answers of a call are cut into groups that depend on the call alone: its
answers in order, the rows in the model at once and the kind of device. A group is drawn from its
first token, whatever was drawn before. An unfinished group begins anew; a finished one stays.

A kill costs at most one group. Inside it, rows that end make room for others, and at its end the
model runs with fewer and fewer rows. A processor hardly minds that, an accelerator does, so its
groups are longer.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

from emlens.data.answers import Answer
from emlens.data.prompts import Prompt
from emlens.data.rendering import Rendered
from emlens.foundation.provenance import hash_json
from emlens.models.answering import rows_at_once
from emlens.models.hooked import HookedModel

_RULE: Final = "groups 1"
"""Another way to cut groups is another rule: what an earlier one left unfinished is kept."""
_TURNS: Final = {"cpu": 2}
_TURNS_OF_ACCELERATORS: Final = 8
"""How often the rows at once fit into a group."""


def call_key(model: HookedModel, blanks: Mapping[str, Answer], batch_tokens: int) -> str:
    """A name of the call, by which a file knows its own answers from those of other calls.

    Args:
        blanks: all answers that are asked for, by id.
    """
    return hash_json([_RULE, list(blanks), batch_tokens, model.device.type])[:16]


def prompt_of(blank: Answer) -> Prompt:
    """What the model reads for an answer."""
    return Prompt(blank.id, blank.messages[-1].content, blank.group, blank.messages)


def cut_groups(
    model: HookedModel, blanks: Sequence[Answer], max_new_tokens: int, batch_tokens: int
) -> list[list[str]]:
    """Ids of the answers of each group, in order; groups differ by one answer in size at most.

    Args:
        blanks: the answers that this call draws, in order.
    """
    if not blanks:
        return []
    rows = model.render([prompt_of(blank) for blank in blanks])
    edges = group_edges(model, rows, max_new_tokens, batch_tokens)
    return [[blank.id for blank in blanks[begin:end]] for begin, end in edges]


def group_edges(
    model: HookedModel, rows: Sequence[Rendered], max_new_tokens: int, batch_tokens: int
) -> list[tuple[int, int]]:
    """The first row of each group, and the row after its last."""
    turns = _TURNS.get(model.device.type, _TURNS_OF_ACCELERATORS)
    most = turns * rows_at_once(model, rows, max_new_tokens, batch_tokens)
    count = math.ceil(len(rows) / most)
    edges = [len(rows) * i // count for i in range(count + 1)]
    return list(pairwise(edges))
