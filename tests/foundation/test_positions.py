from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from emlens.foundation import Index, InputError, Span
from emlens.foundation.positions import (
    POSITION_NAMES,
    AllTokens,
    Chosen,
    Last,
    Position,
    RowSpans,
    parse_position,
)

ROW = RowSpans(n_tokens=7, prompt_end=4)
IDS = [5, 6, 7, 8, 9, 10, 11]


def even_ids(ids: Tensor, mask: Tensor) -> Tensor:
    return (ids % 2 == 0) & mask


def pick(
    position: Any, spans: RowSpans = ROW, ids: list[int] = IDS, skip_first: int = 0
) -> list[int]:
    return parse_position(position, skip_first).tokens(ids, spans)


def test_named_positions() -> None:
    assert pick("last_prompt") == [3]
    assert pick("mean_prompt") == [0, 1, 2, 3]
    assert pick("last") == [6]
    assert pick("mean_response") == [4, 5, 6]
    assert pick("all") == list(range(7))
    assert {name: parse_position(name).name for name in POSITION_NAMES} == {
        name: name for name in POSITION_NAMES
    }


def test_thought_and_closing_are_no_content() -> None:
    row = RowSpans(n_tokens=10, prompt_end=3, content_start=5, content_end=8)
    ids = list(range(10))
    assert pick("mean_prompt", row, ids) == [0, 1, 2] and pick("last_prompt", row, ids) == [2]
    assert pick("mean_response", row, ids) == [5, 6, 7] and pick("last", row, ids) == [7]
    assert pick("end_of_turn", row, ids) == [8, 9] and pick("all", row, ids) == ids
    assert pick(Index(0, of="end_of_turn"), row, ids) == [8] and pick(Index(-1), row, ids) == [9]
    assert pick(Index(0, of="response"), row, ids) == [5]
    assert pick("last", RowSpans(4, 4), IDS[:4]) == [3]  # no answer: the prompt's last


def test_indices_and_spans_count_within_their_part() -> None:
    assert (
        pick(Index(-2, of="prompt")) == [2]
        and pick(Index(0, of="response")) == [4]
        and pick(Index(-7)) == [0]
    )
    assert (
        pick(Span(1, 3, of="prompt")) == [1, 2]
        and pick(Span(-2, of="response")) == [5, 6]
        and pick(Span(0, -1)) == [*range(6)]
    )
    assert pick(even_ids) == [1, 3, 5]


def test_means_leave_out_leading_tokens_and_single_tokens_do_not() -> None:
    assert pick("mean_prompt", skip_first=2) == [2, 3]
    assert pick(Span(0, 3), skip_first=1) == [1, 2]
    assert pick(Span(0, 3, skip_first=2), skip_first=1) == [2]  # what the span says itself holds
    assert pick("mean_response", skip_first=2) == [4, 5, 6]  # counted from the start of the row
    assert pick("last_prompt", skip_first=4) == [3]


@given(
    n=st.integers(1, 12),
    prompt=st.integers(1, 12),
    left=st.integers(0, 5),
    right=st.integers(0, 5),
    index=st.integers(-3, -1),
    other=st.integers(1, 20),
)
def test_padding_and_batch_mates_never_shift_a_position(
    n: int, prompt: int, left: int, right: int, index: int, other: int
) -> None:
    """Tokens read from a padded batch at offset + position are those of the row alone, whatever
    lies around it.
    """
    prompt = min(prompt, n)
    spans = RowSpans(n, prompt)
    ids = list(range(100, 100 + n))
    padded = torch.full((2, max(left + n + right, other)), -1)
    padded[0, left : left + n] = torch.tensor(ids)
    padded[1, :other] = 7
    for position in ("last_prompt", "mean_prompt", "last", "all", Index(index), even_ids):
        try:
            tokens = pick(position, spans, ids)
        except InputError:
            continue  # the row is too short for it, in any batch
        read = padded[0, torch.tensor(tokens) + left].tolist()
        assert read == [ids[token] for token in tokens]
        assert -1 not in read
    assert padded[0, left + pick("last_prompt", spans, ids)[0]] == 100 + prompt - 1


@given(n=st.integers(1, 9), prompt=st.integers(1, 9))
def test_parts_tile_the_row(n: int, prompt: int) -> None:
    spans = RowSpans(n, min(prompt, n))
    assert (
        [*spans.part("prompt"), *spans.part("response")]
        == [*spans.part("sequence")]
        == pick("all", spans, [0] * n)
    )


def test_names_tell_positions_apart() -> None:
    positions: list[Position] = [
        Last(),
        Index(-1),
        Index(-1, of="prompt"),
        Index(-1, of="response"),
        Index(0),
        Span(0, 2),
        Span(0, None),
        Span(0, None, of="prompt"),
        Span(0, None, of="prompt", skip_first=1),
        Span(0, 2, skip_first=1),
        Span(0, None, of="response"),
        Span(0, None, of="end_of_turn"),
        AllTokens(),
        Chosen(even_ids, "even"),
    ]
    assert len({position.name for position in positions}) == len(positions)
    assert [position.pooled for position in positions].count(False) == 1
    assert parse_position(even_ids).name == "chosen[even_ids]"
    assert Span(0, None, of="prompt", skip_first=1).name == "mean_prompt[skip_first=1]"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RowSpans(3, 0), "prompt_end=0 must lie in 1 to n_tokens=3"),
        (lambda: RowSpans(3, 4), "prompt_end=4 must lie in 1 to n_tokens=3"),
        (
            lambda: RowSpans(5, 3, 2, 4),
            r"content \[2, 4\) must lie in prompt_end=3 to n_tokens=5",
        ),
        (lambda: RowSpans(5, 3, 3, 6), r"content \[3, 6\) must lie in prompt_end=3"),
        (
            lambda: pick("last", RowSpans(5, 3, 4, 4)),
            "position last does not exist in a row whose response has 0 tokens",
        ),
        (
            lambda: pick("end_of_turn"),
            "position end_of_turn does not exist in a row whose end_of_turn has 0",
        ),
        (
            lambda: ROW.part("promt"),
            "is not a part of a row; pass one of prompt, response, end_of_turn, sequence",
        ),  # type: ignore[arg-type]
        (lambda: Index(0, of="promt"), "of='promt' is not a part of a row"),  # type: ignore[arg-type]
        (lambda: Span(0, of="promt"), "of='promt' is not a part of a row"),  # type: ignore[arg-type]
        (
            lambda: pick(Index(4, of="prompt")),
            r"position index\[4,prompt\] does not exist in a row whose prompt has 4 tokens",
        ),
        (
            lambda: pick(Index(-5, of="prompt")),
            "does not exist in a row whose prompt has 4 tokens; pass indices inside it",
        ),
        (
            lambda: pick("mean_response", RowSpans(4, 4)),
            "position mean_response does not exist in a row whose response has 0",
        ),
        (
            lambda: pick(Index(-1, of="response"), RowSpans(4, 4)),
            "does not exist in a row whose response has 0 tokens",
        ),
        (lambda: pick(Span(2, 2)), r"position span\[2,2,sequence\] does not exist"),
        (lambda: pick(Span(0, 8)), "does not exist in a row whose sequence has 7 tokens"),
        (
            lambda: pick("mean_prompt", skip_first=4),
            "leaves no token in a row of 7; lower skip_first",
        ),
        (
            lambda: pick(lambda ids, mask: ids),
            r"returned torch.int64 of shape \(7,\); return a boolean mask of shape \(7,\)",
        ),
        (lambda: pick(lambda ids, mask: mask[1:]), r"returned torch.bool of shape \(6,\)"),
        (lambda: pick(lambda ids, mask: [True] * 7), "returned a list; return a boolean mask"),
        (
            lambda: pick(lambda ids, mask: ids > 99),
            r"position chosen\[<lambda>\] marks no token in a row of 7",
        ),
        (
            lambda: parse_position("first"),
            "position 'first' is unknown; pass one of last_prompt, mean_prompt",
        ),
        (
            lambda: parse_position("last", skip_first=-1),
            "skip_first=-1 is negative; pass how many tokens at the start",
        ),
        (lambda: parse_position(3), "position 3 is a int; pass a name, Index, Span or a callable"),  # type: ignore[arg-type]
    ],
)
def test_positions_that_do_not_exist_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
