"""Token positions inside one unpadded row, and how a row is reduced to them.

Positions are counted within the row itself, so padding and batch mates never shift them. A row is a
prompt followed, where there is one, by what the assistant wrote: perhaps a thought, then the
response itself, then the template's closing of the turn. A position answers one question: which
token indices of this row? A pooled position is the mean over those tokens (one token: exactly its
value); `"all"` keeps every token apart.

| position | tokens |
|---|---|
| `last_prompt`, `mean_prompt` | of the prompt, with the template's opening of the answer |
| `mean_response` | of the answer itself: no thought, no closing |
| `last` | the answer's last token; without an answer, the prompt's |
| `end_of_turn` | the template's closing after the answer, in ChatML `<|im_end|>` and a line break |
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

import torch
from torch import Tensor

from emlens.foundation.errors import InputError

Part = Literal["prompt", "response", "end_of_turn", "sequence"]
"""The prompt, the answer itself, the template's closing after it, or the whole row."""
POSITION_NAMES: Final = (
    "last_prompt",
    "mean_prompt",
    "last",
    "mean_response",
    "end_of_turn",
    "all",
)


@dataclass(frozen=True)
class RowSpans:
    """Where prompt, answer and closing lie in one unpadded row.

    Args:
        prompt_end: the prompt is tokens [0, prompt_end).
        content_start, content_end: the answer itself is tokens [content_start, content_end); None:
            it begins after the prompt, and ends with the row. Between prompt and answer lies a
            thought, or white space of the template; the closing follows the answer.
    """

    n_tokens: int
    prompt_end: int
    content_start: int | None = None
    content_end: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.prompt_end <= self.n_tokens:
            raise InputError(
                f"prompt_end={self.prompt_end} must lie in 1 to n_tokens={self.n_tokens}"
            )
        start, end = self.content
        if not self.prompt_end <= start <= end <= self.n_tokens:
            raise InputError(
                f"content [{start}, {end}) must lie in prompt_end={self.prompt_end} to"
                f" n_tokens={self.n_tokens}"
            )

    @property
    def content(self) -> tuple[int, int]:
        """Start and end of the answer itself."""
        start = self.prompt_end if self.content_start is None else self.content_start
        return start, self.n_tokens if self.content_end is None else self.content_end

    def part(self, of: Part) -> range:
        _require_part(of)
        if of == "prompt":
            return range(self.prompt_end)
        if of == "response":
            return range(*self.content)
        if of == "end_of_turn":
            return range(self.content[1], self.n_tokens)
        return range(self.n_tokens)


class Position(ABC):
    """Which tokens of a row are read."""

    pooled: bool = True

    @property
    @abstractmethod
    def name(self) -> str:
        """Stable name, used as a key and in file names."""

    @abstractmethod
    def tokens(self, ids: Sequence[int], spans: RowSpans) -> list[int]:
        """Token indices of the row, ascending and not empty."""


def _require_part(of: str) -> None:
    if of not in get_args(Part):
        raise InputError(
            f"of={of!r} is not a part of a row; pass one of {', '.join(get_args(Part))}",
            name=of,
            known=get_args(Part),
        )


def _pick(row: range, start: int, stop: int, name: str, of: Part) -> list[int]:
    n = len(row)
    if not (-n <= start < n) or not (start % n < stop <= n):
        raise InputError(
            f"position {name} does not exist in a row whose {of} has {n} tokens;"
            " pass indices inside it"
        )
    return list(row[start % n : stop])


@dataclass(frozen=True)
class Index(Position):
    """One token, counted inside the prompt, the response or the whole sequence; negative counts
    from the end.

    Args:
        index: 0-based; -1 is the last token of the part.
        of: "prompt", "response", "end_of_turn" or "sequence".
    """

    index: int
    of: Part = "sequence"

    def __post_init__(self) -> None:
        _require_part(self.of)

    @property
    def name(self) -> str:
        if self.index == -1 and self.of == "prompt":
            return "last_prompt"
        return f"index[{self.index},{self.of}]"

    def tokens(self, ids: Sequence[int], spans: RowSpans) -> list[int]:
        row = spans.part(self.of)
        stop = 0
        if row:
            stop = self.index % len(row) + 1
        return _pick(row, self.index, stop, self.name, self.of)


@dataclass(frozen=True)
class Span(Position):
    """Mean over tokens `start` to `stop` (exclusive; None: to the end) of a part, after dropping
    `skip_first` tokens of the row.
    """

    start: int
    stop: int | None = None
    of: Part = "sequence"
    skip_first: int = 0

    def __post_init__(self) -> None:
        _require_part(self.of)

    @property
    def name(self) -> str:
        skip = f"skip_first={self.skip_first}" if self.skip_first else ""
        if (self.start, self.stop) == (0, None) and self.of != "sequence":
            whole = "end_of_turn" if self.of == "end_of_turn" else f"mean_{self.of}"
            return f"{whole}[{skip}]" if skip else whole
        stop = "" if self.stop is None else str(self.stop)
        parts = [str(self.start), stop, self.of]
        if skip:
            parts.append(skip)
        return f"span[{','.join(parts)}]"

    def tokens(self, ids: Sequence[int], spans: RowSpans) -> list[int]:
        row = spans.part(self.of)
        stop = len(row) if self.stop is None else self.stop
        if stop < 0:
            stop += len(row)
        span = _pick(row, self.start, stop, self.name, self.of)
        tokens = [i for i in span if i >= self.skip_first]
        if not tokens:
            raise InputError(
                f"position {self.name} leaves no token in a row of {spans.n_tokens};"
                " lower skip_first"
            )
        return tokens


@dataclass(frozen=True)
class Last(Position):
    """The last token of what is said: of the answer itself, or of a prompt that has none."""

    @property
    def name(self) -> str:
        return "last"

    def tokens(self, ids: Sequence[int], spans: RowSpans) -> list[int]:
        if spans.prompt_end == spans.n_tokens:
            return [spans.prompt_end - 1]
        response = spans.part("response")
        return _pick(response, -1, len(response), self.name, "response")


@dataclass(frozen=True)
class AllTokens(Position):
    """Every token of prompt, answer and closing, kept apart."""

    pooled = False

    @property
    def name(self) -> str:
        return "all"

    def tokens(self, ids: Sequence[int], spans: RowSpans) -> list[int]:
        return list(range(spans.n_tokens))


@dataclass(frozen=True)
class Chosen(Position):
    """Mean over the tokens a callable marks: `(ids, mask) -> boolean mask`, both of the row's
    length.
    """

    choose: Callable[[Tensor, Tensor], Tensor]
    label: str

    @property
    def name(self) -> str:
        return f"chosen[{self.label}]"

    def tokens(self, ids: Sequence[int], spans: RowSpans) -> list[int]:
        mask = self.choose(torch.tensor(list(ids)), torch.ones(len(ids), dtype=torch.bool))
        if not isinstance(mask, Tensor) or mask.shape != (len(ids),) or mask.dtype != torch.bool:
            returned = f"a {type(mask).__name__}"
            if isinstance(mask, Tensor):
                returned = f"{mask.dtype} of shape {tuple(mask.shape)}"
            raise InputError(
                f"position {self.name} returned {returned};"
                f" return a boolean mask of shape ({len(ids)},)"
            )
        tokens: list[int] = torch.nonzero(mask).flatten().tolist()
        if not tokens:
            raise InputError(f"position {self.name} marks no token in a row of {len(ids)}")
        return tokens


PositionLike = str | Position | Callable[[Tensor, Tensor], Tensor]

_NAMED: dict[str, Position] = {
    "last_prompt": Index(-1, of="prompt"),
    "mean_prompt": Span(0, None, of="prompt"),
    "last": Last(),
    "mean_response": Span(0, None, of="response"),
    "end_of_turn": Span(0, None, of="end_of_turn"),
    "all": AllTokens(),
}


def parse_position(position: PositionLike, skip_first: int = 0) -> Position:
    """A `Position` from its name, itself, or a callable.

    Args:
        skip_first: tokens at the start of the row that a mean leaves out (attention sinks have huge
            norms).

    Raises:
        InputError: an unknown name; `skip_first` negative.
    """
    if skip_first < 0:
        raise InputError(
            f"skip_first={skip_first} is negative;"
            " pass how many tokens at the start of a row a mean leaves out"
        )
    if isinstance(position, str):
        if position not in _NAMED:
            raise InputError(
                f"position {position!r} is unknown; pass one of {', '.join(POSITION_NAMES)},"
                " Index(...), Span(...) or a callable",
                name=position,
                known=POSITION_NAMES,
            )
        position = _NAMED[position]
    if isinstance(position, Span) and skip_first and not position.skip_first:
        return replace(position, skip_first=skip_first)
    if isinstance(position, Position):
        return position
    if callable(position):
        return Chosen(position, getattr(position, "__name__", "callable"))
    raise InputError(
        f"position {position!r} is a {type(position).__name__};"
        " pass a name, Index, Span or a callable"
    )
