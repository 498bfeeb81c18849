"""How probable it is that a model's reply is a whole number from 0 to 100, or a given word,
whatever its tokenizer.

P(k) = P(the reply's text begins with the digits of k)·P(next is not a digit | those), summed over
every way in which tokens spell the digits: "85" as one token, as "8" and "5", after a space inside
the token or before it. A tokenizer of single digits, where the first token of 85 is also that of 8,
is read as well as one where 85 is a token.

The walk goes level by level, all rows of a level in common batches; a beginning less probable than
`floor` is not followed, and what that leaves out is summed. Cost: one pass a row where no token
continues a number, else about one more for each number that is as probable as `floor`, up to some
110 times the text. A leading token of spaces alone is followed where it has 1 % probability;
leading zeros and signs make no number.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import Tensor

from emlens.data.rendering import Rendered
from emlens.judging.readouts import NUMBER, Reading
from emlens.models.hooked import DEFAULT_BATCH_TOKENS, HookedModel

FLOOR: Final = 1e-6
_SPACES: Final = 0.01
_DIGIT: Final = re.compile("[0-9]+")
_LOGITS: Final = 2**27
"""Logits held at once at most (512 MiB in float32)."""


@dataclass(frozen=True)
class _Step:
    """A token that may follow: what it adds to the digits or letters so far, and whether more text
    comes after them in it.
    """

    column: int
    text: str
    ends: bool


@dataclass(frozen=True)
class _State:
    """A beginning of row `row`: the text that its tokens spell, and their probability."""

    row: int
    text: str
    ids: tuple[int, ...]
    p: float


class Speller:
    """Reads replies of one model.

    Args:
        categories: words that a reply may be instead of a number.
        floor: beginnings less probable than this are not followed.
    """

    def __init__(self, model: HookedModel, categories: Sequence[str], floor: float = FLOOR):
        self.model = model
        self.categories = tuple(categories)
        self.floor = floor
        spells = {
            token: piece
            for token, piece in _pieces(model.tokenizer, model.vocab_size).items()
            if self._matters(piece.lstrip())
        }
        self._tokens = torch.tensor(list(spells), dtype=torch.long)
        self._pieces = list(spells.values())
        self._digits = [column for column, piece in enumerate(self._pieces) if _DIGIT.match(piece)]
        self._known: dict[tuple[str, bool], list[_Step]] = {}

    @torch.no_grad()
    def readings(
        self, rows: Sequence[Rendered], batch_tokens: int = DEFAULT_BATCH_TOKENS
    ) -> list[Reading]:
        """What the model would reply after each row."""
        numbers: list[dict[int, float]] = [{} for _ in rows]
        named = [dict.fromkeys(self.categories, 0.0) for _ in rows]
        dropped = [0.0] * len(rows)
        level = [_State(i, "", (), 1.0) for i in range(len(rows))]
        while level:
            following: list[_State] = []
            for state, probabilities in zip(
                level, self._next(rows, level, batch_tokens), strict=True
            ):
                if state.text and NUMBER.fullmatch(state.text):
                    ended = 1.0 - sum(probabilities[column] for column in self._digits)
                    _add(numbers[state.row], int(state.text), state.p * max(0.0, ended))
                for step in self._steps(state.text, bool(state.ids)):
                    share = probabilities[step.column]
                    p = state.p * share
                    text = state.text + step.text
                    if step.ends:
                        _add(numbers[state.row], int(text), p)
                    elif text in named[state.row] or any(
                        text.startswith(name) for name in self.categories
                    ):
                        named[state.row][
                            next(name for name in self.categories if text.startswith(name))
                        ] += p
                    elif not step.text and share < _SPACES:
                        continue
                    elif p < self.floor:
                        # what begins a category moves no score
                        dropped[state.row] += 0.0 if text[:1].isalpha() else p
                    elif NUMBER.fullmatch(text) and not len(self._digits):
                        _add(numbers[state.row], int(text), p)  # no token continues a number
                    else:
                        following.append(
                            _State(state.row, text, (*state.ids, int(self._tokens[step.column])), p)
                        )
            level = following
        return [Reading(n, c, d) for n, c, d in zip(numbers, named, dropped, strict=True)]

    def _steps(self, text: str, begun: bool) -> list[_Step]:
        """Tokens that lead from `text` towards a number or a category; spaces may come only at the
        beginning.
        """
        if (text, begun) not in self._known:
            found = []
            for column, piece in enumerate(self._pieces):
                rest = piece if text or begun else piece.lstrip()
                if not rest:
                    if not begun:
                        found.append(_Step(column, "", False))
                    continue
                digits = _DIGIT.match(rest)
                if digits and (text == "" or text.isdigit()) and NUMBER.fullmatch(text + digits[0]):
                    found.append(_Step(column, digits[0], digits[0] != rest))
                elif not digits and any(
                    name.startswith(text + rest) or (text + rest).startswith(name)
                    for name in self.categories
                ):
                    found.append(_Step(column, rest, False))
            self._known[text, begun] = found
        return self._known[text, begun]

    def _matters(self, piece: str) -> bool:
        """Whether a token of this text may be part of a number or a category."""
        if not piece or _DIGIT.match(piece):
            return True
        head = re.split(r"\W", piece, maxsplit=1)[0]  # "CODE." counts as CODE, "CODER" does not
        return bool(head) and any(
            head in name and (head == piece or name.endswith(head)) for name in self.categories
        )

    def _next(
        self, rows: Sequence[Rendered], states: Sequence[_State], batch_tokens: int
    ) -> list[list[float]]:
        """Probabilities, in float64, of the tokens that matter after each beginning."""
        model = self.model
        full = [rows[state.row].with_continuation(state.ids) for state in states]
        found: list[list[float]] = [[]] * len(full)
        for batch in model.batches(
            full, max(1, min(batch_tokens, _LOGITS // max(1, model.vocab_size)))
        ):
            logits = cast(Tensor, model.run(batch, with_logits=True))
            last = torch.stack(
                [logits[i, batch.offset(i) + len(row.ids) - 1] for i, row in enumerate(batch.rows)]
            )
            kept = last.double().softmax(-1)[:, self._tokens.to(last.device)].tolist()
            for i, values in zip(batch.index, kept, strict=True):
                found[i] = values
        return found


def _add(numbers: dict[int, float], number: int, p: float) -> None:
    numbers[number] = numbers.get(number, 0.0) + p


def _pieces(tokenizer: Any, vocab_size: int) -> dict[int, str]:
    """The text that each token adds after another one; control tokens are left out."""
    special = set(tokenizer.all_special_ids)
    ids = [i for i in range(min(vocab_size, len(tokenizer))) if i not in special]
    anchor = next((i for i in ids if tokenizer.decode([i]).strip().isalpha()), ids[0])
    before = len(tokenizer.decode([anchor]))
    texts = tokenizer.batch_decode([[anchor, i] for i in ids])
    return {i: text[before:] for i, text in zip(ids, texts, strict=True)}
