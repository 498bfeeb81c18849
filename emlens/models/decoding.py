"""Token-by-token generation in which a finished row leaves at once and a waiting one takes its
place.

A plain batch runs until its longest answer is done, and answers of one question differ by a factor
of two and more. Here the cache is a set of rows: rows are dropped from it and joined to it while
others go on, always padded on the left, so that every row's own tokens stand together. Rows that
ask the same prompt (samples of one question) share its first pass.

Works for models whose memory of a row is its keys and values (every architecture this package
knows). Sliding windows are kept whole and masked. Cost: `slots` × (longest prompt + longest answer)
cached tokens at most, written in place.
"""

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from emlens.data.rendering import Rendered
from emlens.foundation.intervention import PaddedRows
from emlens.models.batches import pad, step_rows
from emlens.models.row_cache import RowCache
from emlens.models.sampling import Generated, RowSampler

_log = logging.getLogger("emlens")
_REFILL = 8
"""Dropping and joining rows copies the cache, so it waits until one in this many slots is free."""

Forward = Callable[[PaddedRows, dict[str, Any]], Float[Tensor, "row vocab"]]
"""Runs the model on inputs, whose rows interventions see as given, and returns the scores after the
last token of each row.
"""


@dataclass(frozen=True)
class _Part:
    """Some rows of a cache that go on: which, the columns each of all its rows has tokens in, the
    last token, the answer.
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


def decode(
    forward: Forward,
    rows: Sequence[Rendered],
    sampler: RowSampler,
    *,
    max_new_tokens: int,
    slots: int,
    stops: Collection[int],
    pad_id: int,
    device: torch.device,
    by_prompt: bool = False,
) -> Iterator[list[Generated]]:
    """Yield rows as they finish; those with the longest prompts go in first. Every row comes
    exactly once.

    Out of memory, the rows under way are begun anew with half the slots; their answers are the
    same, since none depends on its batch.

    Args:
        by_prompt: what is done to a row depends on its id, so that rows of equal tokens may not
            share a first pass.
    """
    first_like = {row.ids: i for i, row in reversed(list(enumerate(rows)))}
    waiting = deque(
        sorted(range(len(rows)), key=lambda i: (-len(rows[i].ids), first_like[rows[i].ids], i))
    )

    def fresh() -> _Running:
        return _Running(
            forward, sampler, max_new_tokens, frozenset(stops), pad_id, device, by_prompt
        )

    running = fresh()
    while waiting or running.alive:
        free = slots - running.alive
        under_way = running.indices
        try:
            if waiting and (not running.alive or free * _REFILL >= slots):
                entering = [waiting.popleft() for _ in range(min(free, len(waiting)))]
                under_way += entering
                finished = running.join(
                    [Generated(i) for i in entering], [rows[i] for i in entering]
                )
            else:
                finished = running.step()
        except torch.OutOfMemoryError:
            if len(under_way) == 1:
                raise
            waiting.extendleft(reversed(under_way))
            slots, running, finished = len(under_way) // 2, fresh(), []
            _log.warning("out of memory while generating: going on with %d rows at a time", slots)
        if finished:
            yield finished


class _Running:
    """The rows under way. Row i of the cache belongs to `answers[i]`, which is None once that
    answer has finished.
    """

    def __init__(
        self,
        forward: Forward,
        sampler: RowSampler,
        max_new_tokens: int,
        stops: frozenset[int],
        pad_id: int,
        device: torch.device,
        by_prompt: bool,
    ):
        self._forward, self._sampler, self._most, self._stops = (
            forward,
            sampler,
            max_new_tokens,
            stops,
        )
        self._pad_id, self._device, self._by_prompt = pad_id, device, by_prompt
        self._asked: dict[int, Rendered] = {}
        self._seen = step_rows([], [], max_new_tokens)
        self._answers: list[Generated | None] = []
        self._cache = RowCache()
        self._mask = torch.zeros(0, 0, dtype=torch.bool, device=device)
        self._last = torch.zeros(0, dtype=torch.long, device=device)

    @property
    def alive(self) -> int:
        return len(self._answers) - self._answers.count(None)

    @property
    def indices(self) -> list[int]:
        """Rows that go on, as the caller numbered them."""
        return [answer.index for answer in self._answers if answer is not None]

    def join(self, answers: list[Generated], rows: Sequence[Rendered]) -> list[Generated]:
        """Read prompts, each distinct one once, take the first token of each answer, and go on with
        those that go on.
        """
        self._asked |= {answer.index: row for answer, row in zip(answers, rows, strict=True)}
        place = {key: i for i, key in enumerate(dict.fromkeys(map(self._key, rows)))}
        distinct = list({self._key(row): row for row in rows}.values())
        batch = pad(distinct, range(len(distinct)), self._pad_id, "left", self._device)
        cache, mask = RowCache(), batch.mask.long()
        inputs = {
            "input_ids": batch.ids,
            "attention_mask": mask,
            "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
        }
        scores = self._forward(batch.padded_rows(self._most), {**inputs, "past_key_values": cache})
        which = self._index([place[self._key(row)] for row in rows])
        tokens, finished = self._extend(answers, scores[which])
        going = [i for i, answer in enumerate(answers) if answer not in finished]
        kept = self._index(going)
        self._rebuild(
            _Part(cache, which[kept], batch.mask, tokens[kept], [answers[i] for i in going])
        )
        return finished

    def step(self) -> list[Generated]:
        """One more token for every row; rows that finished leave, a few at a time."""
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=True)
        position = self._mask.sum(-1, keepdim=True) - 1
        inputs = {
            "input_ids": self._last[:, None],
            "attention_mask": self._mask.long(),
            "position_ids": position,
        }
        scores = self._forward(self._seen, {**inputs, "past_key_values": self._cache})
        self._seen = self._seen.later()
        rows = self._index([i for i, answer in enumerate(self._answers) if answer is not None])
        tokens, finished = self._extend(
            [answer for answer in self._answers if answer is not None], scores[rows]
        )
        self._last[rows] = tokens
        self._answers = [None if answer in finished else answer for answer in self._answers]
        if self._answers.count(None) * _REFILL >= len(self._answers):
            self._rebuild()
        return finished

    def _extend(
        self, answers: list[Generated], scores: Float[Tensor, "row vocab"]
    ) -> tuple[Int[Tensor, " row"], list[Generated]]:
        tokens = self._sampler.pick(
            scores, [answer.index for answer in answers], [len(answer.tokens) for answer in answers]
        )
        finished = []
        for answer, token in zip(answers, tokens.tolist(), strict=True):
            if token in self._stops:
                answer.finish_reason = "stop"
                finished.append(answer)
            else:
                answer.tokens.append(token)
                if len(answer.tokens) >= self._most:
                    finished.append(answer)
        return tokens, finished

    def _rebuild(self, *added: _Part) -> None:
        """Drop rows that finished and columns that only they used; put added rows below the
        rest.
        """
        answers = {i: answer for i, answer in enumerate(self._answers) if answer is not None}
        alive = self._index(list(answers))
        parts = [
            _Part(self._cache, alive, self._mask, self._last[alive], list(answers.values())),
            *added,
        ]
        parts = [part for part in parts if part.answers]
        self._answers = [answer for part in parts for answer in part.answers]
        if not parts:
            return
        width = max(part.mask.shape[1] - part.start for part in parts)
        self._cache = RowCache.of([(part.cache, part.rows, part.start) for part in parts], width)
        blocks = [part.mask[part.rows, part.start :] for part in parts]
        self._mask = torch.cat(
            [
                torch.nn.functional.pad(block, (width - block.shape[1], 0), value=False)
                for block in blocks
            ]
        )
        self._last = torch.cat([part.last for part in parts])
        going = [answer for part in parts for answer in part.answers]
        self._seen = step_rows(
            [self._asked[answer.index] for answer in going],
            [len(answer.tokens) - 1 for answer in going],
            self._most,
        )

    def _key(self, row: Rendered) -> tuple[tuple[int, ...], int, str]:
        """Rows of one key are the same to the model under the interventions."""
        return row.ids, row.prompt_end, row.id if self._by_prompt else ""

    def _index(self, rows: Sequence[int]) -> Int[Tensor, " row"]:
        return torch.tensor(rows, dtype=torch.long, device=self._device)
