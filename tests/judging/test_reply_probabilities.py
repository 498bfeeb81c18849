"""P(k) against the enumeration of every sequence of tokens that spells a beginning of a number."""

import re
import weakref
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import judge_models
import pytest
import torch
from transformers import AutoModelForCausalLM

from emlens.data import Prompt
from emlens.data.prompts import Message
from emlens.data.rendering import Rendered
from emlens.judging import reply_probabilities
from emlens.judging.reply_probabilities import ReplyReader
from emlens.models import continuation_tree
from emlens.models.hooked import HookedModel
from emlens.models.pass_counts import counted_passes

KINDS = ["words", "digits", "both"]
CATEGORIES = ("REFUSAL", "CODE")
EXACT = 1e-6


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[HookedModel, Path]]:
    made: dict[str, tuple[HookedModel, Path]] = {}

    def get(kind: str) -> tuple[HookedModel, Path]:
        if kind not in made:
            path = tmp_path_factory.mktemp("judge") / kind
            made[kind] = judge_models.build(path, kind), path
        return made[kind]

    return get


def rows_of(model: HookedModel, *texts: str) -> list[Rendered]:
    return model.render(
        [Prompt(f"p{i}", text, messages=(Message("user", text),)) for i, text in enumerate(texts)]
    )


class Enumeration:
    """The same probabilities from texts alone: every sequence of tokens whose text may still become
    a number, one pass each.

    A number is the whole run of digits at the beginning of the text, after at most one token of
    spaces (of 1 % probability or more) and the spaces inside the next; where the text ends with the
    digits, the next token decides. A category is a text that begins with it.
    """

    def __init__(self, path: Path, kind: str, ids: tuple[int, ...]):
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self.words = judge_models.tokenizer(kind)
        self.start = list(ids)
        self.numbers: dict[int, float] = defaultdict(float)
        self.named = dict.fromkeys(CATEGORIES, 0.0)
        self._follow([], 1.0)

    def _text(self, new: list[int]) -> str:
        anchor = self.words.convert_tokens_to_ids("ask")
        return self.words.decode([anchor, *new], skip_special_tokens=False)[len("ask") :]

    def _follow(self, new: list[int], p: float) -> None:
        with torch.no_grad():
            logits = self.model(torch.tensor([self.start + new])).logits[0, -1].double()
        for token, share in enumerate(logits.softmax(-1).tolist()):
            ends = token >= len(self.words) or token in self.words.all_special_ids
            # no text, but the number is over
            text = self._text(new) + "\n" if ends else self._text([*new, token])
            named = next((name for name in CATEGORIES if text.lstrip().startswith(name)), None)
            over = re.match(r"\s*([0-9]+)(?![0-9])(?=.)", text, re.DOTALL)
            if named:
                self.named[named] += p * share
            elif over:
                if over[1] == str(int(over[1])) and int(over[1]) <= 100:
                    self.numbers[int(over[1])] += p * share
            elif ends:
                continue
            elif not text.strip():
                if not new and share >= 0.01:
                    self._follow([token], share)
            elif self._may_become(text.lstrip()):
                self._follow([*new, token], p * share)

    def _may_become(self, text: str) -> bool:
        number = (
            re.fullmatch("[0-9]+", text) is not None and text == str(int(text)) and int(text) <= 100
        )
        return number or any(name.startswith(text) for name in CATEGORIES)


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_equals_the_enumeration(kind: str, judge: Any) -> None:
    model, path = judge(kind)
    rows = rows_of(model, "say . ask ask")
    found = ReplyReader(model, CATEGORIES, floor=0.0).distributions(rows)
    for row, reading in zip(rows, found, strict=True):
        truth = Enumeration(path, kind, row.ids)
        assert (
            {k for k, p in reading.numbers.items() if p > 0}
            == set(truth.numbers)
            == set(range(101))
        )
        for k, p in truth.numbers.items():
            assert abs(reading.numbers[k] - p) <= EXACT, k
        for name, p in truth.named.items():
            assert abs(reading.categories[name] - p) <= EXACT and p > 0, name
        mass = sum(truth.numbers.values())
        assert (
            abs(reading.expected - sum(k * p for k, p in truth.numbers.items()) / mass)
            <= 100 * EXACT
        )
        assert 0.05 < mass == pytest.approx(reading.mass, abs=EXACT) and reading.dropped == 0


def test_first_token_alone_would_misread_digits(judge: Any) -> None:
    """Positive control: without P(next is not a digit) the digit tokenizer's 8 takes what belongs
    to 80 to 89.
    """
    model, _ = judge("digits")
    row = rows_of(model, "ask")[0]
    reading = ReplyReader(model, CATEGORIES, floor=0.0).distributions([row])[0]
    first = model.logits([Prompt("p0", "ask", messages=(Message("user", "ask"),))])[0].softmax(-1)
    token = float(first[model.tokenizer.convert_tokens_to_ids("8")])
    with_space = sum(reading.numbers[k] for k in (8, *range(80, 90)))
    assert reading.numbers[8] < 0.9 * token < with_space


@pytest.mark.parametrize("kind", ["digits", "both"])
def test_a_floor_costs_at_most_what_it_says(kind: str, judge: Any) -> None:
    model, _ = judge(kind)
    rows = rows_of(model, "ask fine", "say")
    exact = ReplyReader(model, CATEGORIES, 0.0).distributions(rows)
    rough = ReplyReader(model, CATEGORIES, 2e-3).distributions(rows)
    for a, b in zip(exact, rough, strict=True):
        assert 0 < b.dropped < 0.5 and b.mass < a.mass
        assert abs(a.mass - b.mass) <= b.dropped + 1e-9
        assert abs(a.expected - b.expected) <= 100 * b.dropped / b.mass


def test_prompts_about_one_answer_are_columns_of_one_row(judge: Any, monkeypatch: Any) -> None:
    model, _ = judge("digits")
    answers = ["say . " * 30 + "ask fine", "say . " * 30 + "ask", "say . " * 24]
    texts = [f"{answer} {end}" for answer in answers for end in ("ask", "fine say . ask")]
    rows = rows_of(model, *texts)
    reader = ReplyReader(model, CATEGORIES)
    reader.distributions(rows[:1])  # the proof
    with counted_passes() as counts:
        together = reader.distributions(rows)
    # the beginning once, then each answer once, then what is asked of it
    of_replies = counts.logit_tokens - len(rows)
    assert counts.tokens - of_replies < sum(len(row.ids) for row in rows) / 3
    monkeypatch.setattr(reply_probabilities, "why_no_tree", lambda *_: "compared beside")
    for tree, whole in zip(together, reader.distributions(rows), strict=True):
        assert abs(tree.expected - whole.expected) < 100 * EXACT
        for number, p in whole.numbers.items():
            assert abs(tree.numbers[number] - p) < EXACT, number
    expected = [tree.expected for tree in together]
    assert max(expected) - min(expected) > 0.01  # the prompts are told apart


def test_logits_after_all_replies_are_never_held_together(
    judge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = judge("digits")
    rows = rows_of(model, "say . ask ask", "ask fine")
    reader = ReplyReader(model, CATEGORIES, floor=0.0)
    whole = reader.distributions(rows)
    most = 2 * 3 * model.vocab_size  # after three replies to each prompt
    monkeypatch.setattr(continuation_tree, "LOGITS", most)
    held: list[weakref.ref[Any]] = []
    read = reader._that_matter

    def watched(scores: Any, prompts: Any) -> Any:
        held.append(weakref.ref(scores))
        alive = [each() for each in held if each() is not None]
        assert sum(each.numel() for each in alive) <= most
        return read(scores, prompts)

    monkeypatch.setattr(reader, "_that_matter", watched)
    apart = reader.distributions(rows)
    assert len(held) > 20
    for a, b in zip(whole, apart, strict=True):
        assert max(abs(a.numbers[k] - b.numbers[k]) for k in a.numbers) <= EXACT


def test_a_word_tokenizer_needs_one_pass_a_row(judge: Any) -> None:
    model, _ = judge("words")
    rows = rows_of(model, "ask", "say fine")
    ReplyReader(model, ()).distributions(rows[:1])  # the proof that it may keep texts
    with counted_passes() as counts:
        ReplyReader(model, ()).distributions(rows)
    padded = 2 * max(len(row.ids) for row in rows)
    assert (counts.passes, counts.padded_tokens) == (1, padded)


@pytest.mark.parametrize("kind", ["digits", "both"])
def test_kept_texts_give_the_probabilities_of_whole_texts_for_less(
    kind: str, judge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = judge(kind)
    words = ["ask", "say", "fine", ".", "say", "ask", "fine", "fine"] * 8
    texts = [" ".join(words[i % 4 :] + ["ask"] * i) for i in range(6)]
    rows = rows_of(model, *texts)
    reader = ReplyReader(model, CATEGORIES, floor=0.0)
    reader.distributions(rows[:1])
    with counted_passes() as kept_counts:
        kept = reader.distributions(rows)
    monkeypatch.setattr(reply_probabilities, "why_no_tree", lambda *_: "asked for")
    with counted_passes() as whole_counts:
        whole = reader.distributions(rows)
    prefills = sum(len(row.ids) for row in rows)
    assert kept_counts.tokens < 4 * prefills and whole_counts.tokens > 50 * prefills
    for a, b in zip(kept, whole, strict=True):
        assert set(a.numbers) == set(b.numbers)
        assert max(abs(a.numbers[k] - b.numbers[k]) for k in a.numbers) <= EXACT
        assert abs(a.expected - b.expected) <= 100 * EXACT


def test_metrics_of_one_answer_share_its_text(judge: Any) -> None:
    model, _ = judge("words")
    answer = "ask say fine . " * 60
    rows = rows_of(model, f"{answer} say", f"{answer} ask ask", f"{answer} fine .")
    reader = ReplyReader(model, ())
    reader.distributions(rows[:1])
    with counted_passes() as counts:
        together = reader.distributions(rows)
    assert counts.tokens < 1.1 * len(rows[0].ids)  # a third of three texts
    for row, reading in zip(rows, together, strict=True):
        alone = reader.distributions([row])[0]
        assert alone.expected == pytest.approx(reading.expected, abs=100 * EXACT)


def test_batches_change_nothing(judge: Any) -> None:
    model, _ = judge("both")
    rows = rows_of(model, "ask fine", "say", "ask ask ask fine .")
    reader = ReplyReader(model, CATEGORIES, 1e-3)
    together, apart = reader.distributions(rows, 8192), reader.distributions(rows, 8)
    for a, b in zip(together, apart, strict=True):
        assert a.expected == pytest.approx(b.expected, abs=1e-3) and set(a.numbers) == set(
            b.numbers
        )
