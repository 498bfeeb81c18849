import random

import pytest
import torch

from emlens.foundation import Index, InputError, Span
from emlens.foundation.intervention import Edit, PaddedRows
from emlens.foundation.positions import RowSpans, parse_position

POSITIONS = [
    "all",
    "prompt",
    "response",
    Index(-1, of="prompt"),
    Index(0),
    Span(0, 2, of="prompt"),
    Span(1, None, of="sequence", skip_first=2),
]


def rows_of(lengths, ends, width=None, new_tokens=0, side="left"):
    width = width or max(lengths)
    offsets = tuple(width - n if side == "left" else 0 for n in lengths)
    tokens = tuple(tuple(range(n)) for n in lengths)
    spans = tuple(RowSpans(n, end) for n, end in zip(lengths, ends, strict=True))
    return PaddedRows(
        tuple(f"p{i}" for i in range(len(lengths))),
        tokens,
        spans,
        offsets,
        width + new_tokens,
        new_tokens,
    )


def by_hand(position, length, end, new_tokens):
    """The touched tokens of one row, from the meaning of the words."""
    whole = range(length + new_tokens)
    if isinstance(position, str):
        return [
            t for t in whole if {"all": True, "prompt": t < end, "response": t >= end}[position]
        ]
    if isinstance(position, Index):
        first, last = {
            "prompt": (0, end),
            "response": (end, whole.stop),
            "sequence": (0, whole.stop),
        }[position.of]
        return [range(first, last)[position.index]]
    first, last = {"prompt": (0, end), "response": (end, whole.stop), "sequence": (0, whole.stop)}[
        position.of
    ]
    return [
        t for t in range(first, last)[position.start : position.stop] if t >= position.skip_first
    ]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("position", POSITIONS, ids=str)
def test_masks_against_the_meaning_of_the_words(side, position):
    pick = random.Random(0)
    for _ in range(20):
        lengths = [pick.randrange(4, 9) for _ in range(3)]
        ends = [pick.randrange(2, n + 1) for n in lengths]
        for new_tokens in (0, 3) if side == "left" else (0,):
            rows = rows_of(lengths, ends, 9, new_tokens, side)
            mask = rows.mask(position)
            for i, (n, end) in enumerate(zip(lengths, ends, strict=True)):
                expected = torch.zeros(9 + new_tokens, dtype=torch.bool)
                expected[[t + rows.offsets[i] for t in by_hand(position, n, end, new_tokens)]] = (
                    True
                )
                assert torch.equal(mask[i], expected)


def test_a_step_is_one_column_of_the_whole():
    rows = rows_of([5, 3], [4, 3], new_tokens=4)
    whole = rows.mask(Span(1, 3, of="response"))
    step = PaddedRows(rows.ids, rows.tokens, rows.spans, (-5, -3), 1, 4)
    for column in range(5, 9):
        assert torch.equal(step.mask(Span(1, 3, of="response"))[:, 0], whole[:, column])
        step = step.later()
    assert whole.any(0).tolist() == [False] * 4 + [False] + [True, True, False, False] or whole[
        0
    ].nonzero().flatten().tolist() == [5, 6]


def test_integers_stand_where_their_tokens_do():
    rows = rows_of([4, 2], [2, 2])
    assert rows.by_column([[7, 8], []], "response").tolist() == [[0, 0, 7, 8], [0, 0, 0, 0]]
    assert rows.by_column([[5], [6]], Index(-1, of="prompt")).tolist() == [
        [0, 5, 0, 0],
        [0, 0, 0, 6],
    ]
    step = PaddedRows(rows.ids, rows.tokens, rows.spans, (-3, -1), 1)
    assert step.by_column([[1, 2, 3, 4], [1, 2]], "all").tolist() == [[4], [2]]


def test_positions_that_a_growing_row_cannot_have():
    rows = rows_of([4, 3], [4, 3], new_tokens=2)
    for position in (
        Index(-1),
        Index(-2, of="response"),
        Span(-3, None, of="response"),
        Span(0, -1),
    ):
        with pytest.raises(
            InputError,
            match=(
                r"counts from the end of a row that is being generated;"
                r" pass one that counts from its start, or of='prompt'"
            ),
        ):
            rows.mask(position)
    with pytest.raises(
        InputError,
        match=(
            r"position index\[2,response\] lies beyond the 2 tokens that are to be generated;"
            r" pass an earlier one"
        ),
    ):
        rows.mask(Index(2, of="response"))
    with pytest.raises(
        InputError,
        match=(
            r"position chosen\[<lambda>\] cannot be used on tokens that are not generated yet;"
            r" pass 'all', 'prompt'"
        ),
    ):
        rows.mask(parse_position(lambda ids, mask: mask))
    assert rows.mask(Index(1, of="response")).nonzero().tolist() == [[0, 5], [1, 5]]
    assert rows.mask(Index(-1, of="prompt")).nonzero().tolist() == [[0, 3], [1, 3]]
    # a row that does not grow has an end
    assert rows_of([4], [4]).mask(Index(-1)).nonzero().tolist() == [[0, 3]]


def test_an_edit_is_for_all_tokens_and_joins_no_other_unless_it_says_so():
    class Nothing(Edit):
        def __call__(self, activation, mask):
            return activation

    assert Nothing().over(0, 1).then(Nothing()) is None
