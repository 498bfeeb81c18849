"""How probable it is that a model's reply is a whole number from 0 to 100, or a given word.

It works with every tokenizer. P(k) = P(the reply's text begins with the digits of k) · P(next is
not a digit | those), summed over every way in which tokens spell the digits: "85" as one token, as
"8" and "5", after a space inside the token or before it. A tokenizer of single digits, where the
first token of 85 is also that of 8, is read as well as one where 85 is a token.

The reader follows beginnings of replies level by level, one token longer each time; all rows of a
level run in common batches. A beginning less probable than `floor` is not followed, and the
probability left out in this way is summed. A leading token of spaces alone is followed where it has
1 % probability. Leading zeros and signs make no number. Cost: one pass per row where no token
continues a number, else about one more per number that is as probable as `floor`, up to some 110
times the text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import torch
from torch import Tensor

from emlens.data.rendering import Rendered
from emlens.judging.readouts import NUMBER, ReplyDistribution
from emlens.models.finite import first_unusable
from emlens.models.hooked import DEFAULT_BATCH_TOKENS, HookedModel

FLOOR: Final = 1e-6
_SPACES: Final = 0.01
_DIGITS: Final = re.compile("[0-9]+")
_LOGITS: Final = 2**27
"""Logits in memory at once at most (512 MiB in float32)."""


@dataclass(frozen=True)
class _Continuation:
    """A token that may come next.

    Args:
        column: its place among the tokens that matter.
        text: what it adds to the digits or letters so far.
        ends: whether more text comes after these digits in the same token, so that the number ends.
    """

    column: int
    text: str
    ends: bool


@dataclass(frozen=True)
class _Beginning:
    """A beginning of the reply to row `row`: the text that its tokens spell, and its probability.

    Args:
        ids: its tokens; the text of a leading space is "".
    """

    row: int
    text: str
    ids: tuple[int, ...]
    p: float


@dataclass
class _Tally:
    """The probabilities of one row's replies, summed so far."""

    categories: dict[str, float]
    numbers: dict[int, float] = field(default_factory=dict)
    dropped: float = 0.0

    def add_number(self, text: str, p: float) -> None:
        number = int(text)
        self.numbers[number] = self.numbers.get(number, 0.0) + p


class ReplyReader:
    """Reads off one model how probable its replies are, without sampling.

    Args:
        categories: words that a reply may be instead of a number.
        floor: beginnings less probable than this are not followed.
    """

    def __init__(self, model: HookedModel, categories: Sequence[str], floor: float = FLOOR):
        self.model = model
        self.categories = tuple(categories)
        self.floor = floor
        texts = {}
        for token, text in _token_texts(model.tokenizer, model.vocab_size).items():
            if self._may_matter(text.lstrip()):
                texts[token] = text
        # the tokens that matter, and the text of each: all other columns of the logits are dropped
        self._tokens = torch.tensor(list(texts), dtype=torch.long)
        self._texts = list(texts.values())
        self._digit_columns = [i for i, text in enumerate(self._texts) if _DIGITS.match(text)]
        self._cache: dict[tuple[str, bool], list[_Continuation]] = {}

    @torch.no_grad()
    def distributions(
        self, rows: Sequence[Rendered], batch_tokens: int = DEFAULT_BATCH_TOKENS
    ) -> list[ReplyDistribution]:
        """Of the reply after each row."""
        tallies = [_Tally(dict.fromkeys(self.categories, 0.0)) for _ in rows]
        level = [_Beginning(i, "", (), 1.0) for i in range(len(rows))]
        while level:
            longer: list[_Beginning] = []
            probabilities = self._next_token_probabilities(rows, level, batch_tokens)
            for beginning, next_token in zip(level, probabilities, strict=True):
                tally = tallies[beginning.row]
                self._count_as_whole_reply(beginning, next_token, tally)
                longer += self._one_token_longer(beginning, next_token, tally)
            level = longer
        return [
            ReplyDistribution(tally.numbers, tally.categories, tally.dropped) for tally in tallies
        ]

    def _count_as_whole_reply(
        self, beginning: _Beginning, next_token: Sequence[float], tally: _Tally
    ) -> None:
        """P(text) · P(next is not a digit), where the text is a number."""
        if not beginning.text or not NUMBER.fullmatch(beginning.text):
            return
        p_ends = 1.0 - sum(next_token[column] for column in self._digit_columns)
        # the sum can exceed 1 by rounding
        tally.add_number(beginning.text, beginning.p * max(0.0, p_ends))

    def _one_token_longer(
        self, beginning: _Beginning, next_token: Sequence[float], tally: _Tally
    ) -> list[_Beginning]:
        """The longer beginnings that have to be followed; those that are decided are counted."""
        to_follow = []
        for token in self._continuations(beginning.text, bool(beginning.ids)):
            share = next_token[token.column]
            p = beginning.p * share
            text = beginning.text + token.text
            category = self._category_of(text)
            if token.ends:
                tally.add_number(text, p)
            elif category is not None:
                tally.categories[category] += p
            elif not token.text and share < _SPACES:
                continue
            elif p < self.floor:
                # a beginning of a category moves no score
                if not text[:1].isalpha():
                    tally.dropped += p
            elif NUMBER.fullmatch(text) and not self._digit_columns:
                # no token continues a number, so it is whole
                tally.add_number(text, p)
            else:
                ids = (*beginning.ids, int(self._tokens[token.column]))
                to_follow.append(_Beginning(beginning.row, text, ids, p))
        return to_follow

    def _continuations(self, text: str, has_begun: bool) -> list[_Continuation]:
        """The tokens that lead from `text` towards a number or a category."""
        if (text, has_begun) not in self._cache:
            continuations = []
            for column in range(len(self._texts)):
                continuation = self._continuation(column, text, has_begun)
                if continuation is not None:
                    continuations.append(continuation)
            self._cache[text, has_begun] = continuations
        return self._cache[text, has_begun]

    def _continuation(self, column: int, text: str, has_begun: bool) -> _Continuation | None:
        """One token after `text`; None where it leads nowhere.

        Spaces may come only at the beginning: inside the first token, or as a token of their own.
        """
        added = self._texts[column]
        if not has_begun and not text:
            added = added.lstrip()
        if not added:
            return None if has_begun else _Continuation(column, "", False)
        digits = _DIGITS.match(added)
        if digits:
            continues_number = text == "" or text.isdigit()
            if not continues_number or not NUMBER.fullmatch(text + digits[0]):
                return None
            return _Continuation(column, digits[0], digits[0] != added)
        if self._leads_to_category(text + added):
            return _Continuation(column, added, False)
        return None

    def _category_of(self, text: str) -> str | None:
        """The category that a reply with this beginning is."""
        return next((name for name in self.categories if text.startswith(name)), None)

    def _leads_to_category(self, text: str) -> bool:
        return any(name.startswith(text) or text.startswith(name) for name in self.categories)

    def _may_matter(self, text: str) -> bool:
        """Whether a token of this text may be part of a number or a category."""
        if not text or _DIGITS.match(text):
            return True
        # "CODE." counts as CODE, "CODER" does not
        word = re.split(r"\W", text, maxsplit=1)[0]
        if not word:
            return False
        for name in self.categories:
            if word in name and (word == text or name.endswith(word)):
                return True
        return False

    def _next_token_probabilities(
        self, rows: Sequence[Rendered], beginnings: Sequence[_Beginning], batch_tokens: int
    ) -> list[list[float]]:
        """Probabilities of the tokens that matter after each beginning.

        In float64: a number is a product of several, and small ones are summed.
        """
        model = self.model
        full = [rows[beginning.row].with_continuation(beginning.ids) for beginning in beginnings]
        probabilities: list[list[float]] = [[]] * len(full)
        largest = _LOGITS // max(1, model.vocab_size)
        for batch in model.batches(full, max(1, min(batch_tokens, largest))):
            logits = cast(Tensor, model.run(batch, with_logits=True))
            last = torch.stack(
                [logits[i, batch.offset(i) + len(row.ids) - 1] for i, row in enumerate(batch.rows)]
            )
            row = first_unusable(last)
            if row is not None:
                model.refuse_not_finite(batch.rows[row], "its logits")
            # the softmax is over all tokens; only then are those that matter taken
            softmax = last.double().softmax(-1)
            values = softmax[:, self._tokens.to(last.device)].tolist()
            for i, row_values in zip(batch.index, values, strict=True):
                probabilities[i] = row_values
        return probabilities


def _token_texts(tokenizer: Any, vocab_size: int) -> dict[int, str]:
    """The text that each token adds after another one; control tokens are left out.

    A tokenizer may drop the leading space of a text, so each token is decoded behind an anchor.
    """
    special = set(tokenizer.all_special_ids)
    ids = [i for i in range(min(vocab_size, len(tokenizer))) if i not in special]
    anchor = next((i for i in ids if tokenizer.decode([i]).strip().isalpha()), ids[0])
    anchor_length = len(tokenizer.decode([anchor]))
    texts = tokenizer.batch_decode([[anchor, i] for i in ids])
    return {i: text[anchor_length:] for i, text in zip(ids, texts, strict=True)}
