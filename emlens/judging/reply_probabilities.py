"""How probable it is that a model's reply is a whole number from 0 to 100, or a given word.

It works with every tokenizer. P(k) = P(the reply's text begins with the digits of k) · P(next is
not a digit | those), summed over every way in which tokens spell the digits: "85" as one token, as
"8" and "5", after a space inside the token or before it. A tokenizer of single digits, where the
first token of 85 is also that of 8, is read as well as one where 85 is a token.

The reader follows beginnings of replies level by level, one token longer each time. A beginning
less probable than `floor` is not followed, and the probability left out in this way is summed. A
leading token of spaces alone is followed where it has 1 % probability. Leading zeros and signs make
no number.

Cost: a text is run once, and what texts begin with (one answer, judged on several metrics; the
judge's template) once for all of them. Then one token is run per number that is as probable as
`floor`, at most some 110 (`emlens.models.continuation_tree`). A judge that cannot keep its texts so
runs the whole text again for each of these; the log says why.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, cast

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.data.rendering import Rendered
from emlens.judging.readouts import NUMBER, ReplyDistribution
from emlens.models.continuation_tree import ContinuationTree, trees_of, why_no_tree
from emlens.models.finite import first_unusable
from emlens.models.hooked import DEFAULT_BATCH_TOKENS, HookedModel
from emlens.models.likelihoods import last_tokens, rows_widened
from emlens.models.transformers_backend import TransformersModel

FLOOR: Final = 1e-6
_SPACES: Final = 0.01
_DIGITS: Final = re.compile("[0-9]+")
LONGEST_REPLY: Final = 16
"""Tokens of a reply that the judge's context must have room for."""
_log = logging.getLogger("emlens")


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


_Probabilities = Callable[[Sequence[_Beginning]], list[list[float]]]
"""Probabilities of the tokens that matter after each beginning of one level."""


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

    def distributions(
        self, rows: Sequence[Rendered], batch_tokens: int = DEFAULT_BATCH_TOKENS
    ) -> list[ReplyDistribution]:
        """Of the reply after each row."""
        found = dict(self.each(rows, batch_tokens))
        return [found[i] for i in range(len(rows))]

    def each(
        self, rows: Sequence[Rendered], batch_tokens: int = DEFAULT_BATCH_TOKENS
    ) -> Iterator[tuple[int, ReplyDistribution]]:
        """Number of a row and its distribution, batch by batch."""
        why = why_no_tree(self.model, max(len(row.ids) for row in rows) + LONGEST_REPLY)
        if why is not None:
            _log.info("judge %s runs whole texts for every reply: %s", self.model.name, why)
            numbers: Sequence[int] = range(len(rows))
            whole_rows = partial(self._of_whole_rows, rows, batch_tokens)
            yield from zip(numbers, self._read(len(rows), whole_rows), strict=True)
            return
        model = cast(TransformersModel, self.model)
        for numbers, tree in trees_of(model, rows, model.logit_tokens(batch_tokens)):
            in_tree = partial(self._of_tree, tree)
            yield from zip(numbers, self._read(len(numbers), in_tree), strict=True)

    def _read(self, n_rows: int, probabilities_of: _Probabilities) -> list[ReplyDistribution]:
        """The distribution of each row, level by level."""
        tallies = [_Tally(dict.fromkeys(self.categories, 0.0)) for _ in range(n_rows)]
        level = [_Beginning(i, "", (), 1.0) for i in range(n_rows)]
        while level:
            longer: list[_Beginning] = []
            for beginning, next_token in zip(level, probabilities_of(level), strict=True):
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

    def _of_tree(self, tree: ContinuationTree, level: Sequence[_Beginning]) -> list[list[float]]:
        """Probabilities of the tokens that matter after each beginning, from kept texts."""
        prompts = [tree.prompts[beginning.row] for beginning in level]
        if not level[0].ids:
            return self._that_matter(tree.prompt_scores(), prompts)
        probabilities: list[list[float]] = [[]] * len(level)
        asked = [(beginning.row, beginning.ids) for beginning in level]
        for numbers, scores in tree.scores(asked):
            values = self._that_matter(scores, [prompts[number] for number in numbers])
            for number, of_one in zip(numbers, values, strict=True):
                probabilities[number] = of_one
            del scores  # before the next pass
        return probabilities

    @torch.no_grad()
    def _of_whole_rows(
        self, rows: Sequence[Rendered], batch_tokens: int, level: Sequence[_Beginning]
    ) -> list[list[float]]:
        """The same from passes over text and beginning."""
        model = self.model
        full = [rows[beginning.row].with_continuation(beginning.ids) for beginning in level]
        probabilities: list[list[float]] = [[]] * len(full)
        for batch in model.batches(full, model.logit_tokens(batch_tokens)):
            last = model.logits_at(batch, last_tokens(batch))
            for i, values in zip(batch.index, self._that_matter(last, batch.rows), strict=True):
                probabilities[i] = values
        return probabilities

    def _that_matter(
        self, scores: Float[Tensor, "row vocab"], rows: Sequence[Rendered]
    ) -> list[list[float]]:
        """Probabilities of the tokens that matter; in float64: a number is a product of several,
        and small ones are summed.
        """
        row = first_unusable(scores)
        if row is not None:
            self.model.refuse_not_finite(rows[row], "its logits")
        tokens = self._tokens.to(scores.device)
        values: list[list[float]] = []
        for some in scores.split(rows_widened(scores)):
            # the softmax is over all tokens; only then are those that matter taken
            values += some.double().softmax(-1)[:, tokens].tolist()
        return values


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
