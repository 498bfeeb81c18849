"""Token-by-token generation in which a finished row leaves at once and a waiting one takes its
place.

A plain batch runs until its longest answer is finished, and answers to one question differ in
length by a factor of two and more. Here the cache is a set of rows: rows are dropped from it and
added to it while others go on, always padded on the left, so that every row's own tokens are
contiguous. Rows with the same prompt (samples of one question) share its first pass.

Works for models whose memory of a row is its keys and values; others decode in batches of equal
lengths (`emlens.models.batch_decoding`). Sliding windows are kept whole and masked. Cost: at most
`slots` × (longest prompt + longest answer) cached tokens, written in place.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from emlens.data.rendering import Rendered
from emlens.foundation.intervention import PaddedRows
from emlens.models.batches import pad, step_rows
from emlens.models.finite import NotFiniteScores, first_unusable
from emlens.models.row_cache import RowCache
from emlens.models.sampling import Generated, RowSampler
from emlens.models.stops import Ends

_log = logging.getLogger("emlens")
_REFILL = 8
"""Dropping and joining rows copies the cache, so it waits until one in this many slots is free."""

Forward = Callable[[PaddedRows, dict[str, Any]], Float[Tensor, "row vocab"]]
"""Runs the model on inputs and gives the scores after the last token of each row.

The first argument is how interventions see these rows.
"""


@dataclass(frozen=True)
class _CacheRows:
    """Some rows of a cache that go on, with their answers.

    Args:
        rows: their indices in the cache.
        mask: the columns in which each row of the cache, not only of these, has tokens.
        last: the last token of each.
    """

    cache: RowCache
    rows: Int[Tensor, " part"]
    mask: Bool[Tensor, "row column"]
    last: Int[Tensor, " part"]
    answers: Sequence[Generated]

    @property
    def start(self) -> int:
        """The first column that these rows use."""
        return int(self.mask[self.rows].any(0).int().argmax())

    def mask_of_width(self, width: int) -> Bool[Tensor, "part column"]:
        """The mask of these rows from their first column on, padded on the left."""
        mask = self.mask[self.rows, self.start :]
        return torch.nn.functional.pad(mask, (width - mask.shape[1], 0), value=False)


@dataclass(frozen=True)
class Decoding:
    """What does not change while answers are generated.

    Args:
        stops: tokens that end an answer.
        ends: whether the text of an answer's tokens ends it.
        by_prompt: what interventions do to a row depends on its id, so that rows of equal tokens
            may not share a first pass.
        threshold: a row that gets longer is another function of its tokens: it leaves the cache,
            is read again as a whole and goes on among longer rows.
    """

    forward: Forward
    sampler: RowSampler
    max_new_tokens: int
    stops: frozenset[int]
    ends: Ends
    pad_id: int
    device: torch.device
    by_prompt: bool = False
    threshold: int | None = None

    def next_tokens(
        self, answers: Sequence[Generated], scores: Float[Tensor, "row vocab"]
    ) -> Int[Tensor, " row"]:
        """The token that is sampled after each answer.

        Raises:
            NotFiniteScores: scores of which none can be taken.
        """
        row = first_unusable(scores)
        if row is not None:
            raise NotFiniteScores(answers[row].index, answers[row].tokens)
        steps = [len(answer.tokens) for answer in answers]
        return self.sampler.pick(scores, [answer.index for answer in answers], steps)

    def ended_by(self, answer: Generated, token: int) -> bool:
        """Add a token to an answer, unless it is a stop; whether the answer ended with it."""
        if token in self.stops:
            answer.finish_reason = "stop"
            return True
        answer.tokens.append(token)
        if self.ends(answer.index, answer.tokens):
            answer.finish_reason = "stop"
            return True
        return len(answer.tokens) >= self.max_new_tokens

    def has_crossed(self, row: Rendered, answer: Generated) -> bool:
        """Whether a row became longer than the threshold by the last of its new tokens."""
        if self.threshold is None:
            return False
        return len(row.ids) + len(answer.tokens) == self.threshold + 1

    def is_long(self, row: Rendered) -> bool:
        return self.threshold is not None and len(row.ids) > self.threshold


def decode(setting: Decoding, rows: Sequence[Rendered], slots: int) -> Iterator[list[Generated]]:
    """Yield rows as they finish; those with the longest prompts go in first.

    Every row comes exactly once. Out of memory, the rows in the cache are started again with half
    the slots; their answers are the same, since none depends on its batch.

    Args:
        slots: rows in the cache at most.
    """
    order = _in_order(rows)
    short = deque(Generated(i) for i in order if not setting.is_long(rows[i]))
    longer = deque(Generated(i) for i in order if setting.is_long(rows[i]))
    for chunk in _decode_together(setting, rows, short, slots):
        crossing = [answer for answer in chunk if _goes_on(setting, answer)]
        longer.extend(crossing)
        finished = [answer for answer in chunk if answer not in crossing]
        if finished:
            yield finished
    yield from _decode_together(setting, rows, longer, slots)


def _goes_on(setting: Decoding, answer: Generated) -> bool:
    """Whether an answer left the cache only because its row is now above the threshold."""
    return answer.finish_reason == "length" and len(answer.tokens) < setting.max_new_tokens


def _decode_together(
    setting: Decoding, rows: Sequence[Rendered], waiting: deque[Generated], slots: int
) -> Iterator[list[Generated]]:
    """Answers that may share a cache, as they finish or leave it."""
    active = _ActiveRows(setting)
    tokens_at_entry: dict[int, list[int]] = {}
    while waiting or active.count:
        free = slots - active.count
        indices = active.indices
        try:
            if waiting and (not active.count or free * _REFILL >= slots):
                entering = [waiting.popleft() for _ in range(min(free, len(waiting)))]
                indices += [answer.index for answer in entering]
                tokens_at_entry.update((answer.index, list(answer.tokens)) for answer in entering)
                finished = active.add(entering, [rows[answer.index] for answer in entering])
            else:
                finished = active.step()
        except torch.OutOfMemoryError:
            if len(indices) == 1:
                raise
            waiting.extendleft(Generated(i, list(tokens_at_entry[i])) for i in reversed(indices))
            slots, active, finished = len(indices) // 2, _ActiveRows(setting), []
            _log.warning("out of memory while generating: going on with %d rows at a time", slots)
        if finished:
            yield finished


def _with_tokens(row: Rendered, answer: Generated) -> Rendered:
    """A prompt and what was generated after it, as one row."""
    if not answer.tokens:
        return row
    return row.with_continuation(answer.tokens)


def _in_order(rows: Sequence[Rendered]) -> deque[int]:
    """Row numbers, longest prompt first; rows of equal tokens follow each other to share a pass."""
    first_of: dict[tuple[int, ...], int] = {}
    for i, row in enumerate(rows):
        first_of.setdefault(row.ids, i)
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i].ids), first_of[rows[i].ids], i))
    return deque(order)


class _ActiveRows:
    """The rows in the cache.

    Row i of the cache belongs to `answers[i]`, which is None once that answer has finished.
    """

    def __init__(self, setting: Decoding):
        self._setting = setting
        self._prompts: dict[int, Rendered] = {}
        self._rows = step_rows([], [], setting.max_new_tokens)
        self._answers: list[Generated | None] = []
        self._cache = RowCache()
        self._mask = torch.zeros(0, 0, dtype=torch.bool, device=setting.device)
        self._last = torch.zeros(0, dtype=torch.long, device=setting.device)

    @property
    def count(self) -> int:
        """Rows that go on."""
        return len(self._answers) - self._answers.count(None)

    @property
    def indices(self) -> list[int]:
        """Rows that go on, as the caller numbered them."""
        return [answer.index for answer in self._going]

    @property
    def _going(self) -> list[Generated]:
        return [answer for answer in self._answers if answer is not None]

    def add(self, answers: list[Generated], rows: Sequence[Rendered]) -> list[Generated]:
        """Read prompts, each distinct one once, and take the next token of each answer.

        An answer that has tokens already goes on after them.

        Returns:
            The answers that finished with it; the others go on.
        """
        for answer, row in zip(answers, rows, strict=True):
            self._prompts[answer.index] = row
        rows = [_with_tokens(row, answer) for answer, row in zip(answers, rows, strict=True)]
        distinct = {self._key(row): row for row in rows}
        place = {key: i for i, key in enumerate(distinct)}
        batch = pad(
            list(distinct.values()),
            range(len(distinct)),
            self._setting.pad_id,
            "left",
            self._setting.device,
        )
        cache = RowCache()
        mask = batch.mask.long()
        inputs = {
            "input_ids": batch.ids,
            "attention_mask": mask,
            # left padding: models number positions from the first column unless positions are given
            "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
            "past_key_values": cache,
        }
        padded_rows = batch.padded_rows(self._setting.max_new_tokens)
        scores = self._setting.forward(padded_rows, inputs)
        cache_rows = self._index([place[self._key(row)] for row in rows])
        tokens, finished = self._extend(answers, scores[cache_rows])
        going = [i for i, answer in enumerate(answers) if answer not in finished]
        index = self._index(going)
        added = _CacheRows(
            cache, cache_rows[index], batch.mask, tokens[index], [answers[i] for i in going]
        )
        self._rebuild([self._remaining(), added])
        return finished

    def step(self) -> list[Generated]:
        """One more token for every row; finished rows leave, several at a time."""
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=True)
        inputs = {
            "input_ids": self._last[:, None],
            "attention_mask": self._mask.long(),
            "position_ids": self._mask.sum(-1, keepdim=True) - 1,
            "past_key_values": self._cache,
        }
        scores = self._setting.forward(self._rows, inputs)
        self._rows = self._rows.later()
        rows = self._index([i for i, answer in enumerate(self._answers) if answer is not None])
        if len(rows) < len(scores):  # all of them, taken by number, would be copied
            scores = scores[rows]
        tokens, finished = self._extend(self._going, scores)
        self._last[rows] = tokens
        self._answers = [None if answer in finished else answer for answer in self._answers]
        leaving = self._answers.count(None)
        # a row above the threshold that stayed would change the positions of all others
        at_once = leaving > 0 and self._setting.threshold is not None
        if at_once or leaving * _REFILL >= len(self._answers):
            self._rebuild([self._remaining()])
        return finished

    def _extend(
        self, answers: list[Generated], scores: Float[Tensor, "row vocab"]
    ) -> tuple[Int[Tensor, " row"], list[Generated]]:
        """Sample a token for each answer; gives the tokens and the answers that finished."""
        tokens = self._setting.next_tokens(answers, scores)
        finished = []
        for answer, token in zip(answers, tokens.tolist(), strict=True):
            row = self._prompts[answer.index]
            if self._setting.ended_by(answer, token) or self._setting.has_crossed(row, answer):
                finished.append(answer)
        return tokens, finished

    def _remaining(self) -> _CacheRows:
        """The rows of the cache that go on."""
        rows = self._index([i for i, answer in enumerate(self._answers) if answer is not None])
        return _CacheRows(self._cache, rows, self._mask, self._last[rows], self._going)

    def _rebuild(self, blocks: list[_CacheRows]) -> None:
        """Make a cache of these rows, one block below the other, without columns nobody uses."""
        blocks = [block for block in blocks if block.answers]
        answers = list(chain.from_iterable(block.answers for block in blocks))
        self._answers = list(answers)
        if not blocks:
            return
        width = max(block.mask.shape[1] - block.start for block in blocks)
        self._cache = RowCache.join(
            [(block.cache, block.rows, block.start) for block in blocks], width
        )
        self._mask = torch.cat([block.mask_of_width(width) for block in blocks])
        self._last = torch.cat([block.last for block in blocks])
        self._rows = step_rows(
            [self._prompts[answer.index] for answer in answers],
            [len(answer.tokens) - 1 for answer in answers],
            self._setting.max_new_tokens,
        )

    def _key(self, row: Rendered) -> tuple[tuple[int, ...], int, str]:
        """Rows of one key are the same to the model under the interventions."""
        return row.ids, row.prompt_end, row.id if self._setting.by_prompt else ""

    def _index(self, rows: Sequence[int]) -> Int[Tensor, " row"]:
        return torch.tensor(rows, dtype=torch.long, device=self._setting.device)
