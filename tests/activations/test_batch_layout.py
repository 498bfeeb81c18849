"""A layout is a partition of the rows, however batches are cut."""

import random

import pytest

from emlens.activations import batch_layout as module
from emlens.activations.batch_layout import BatchLayout

LENGTHS = [random.Random(0).randint(1, 60) for _ in range(50)]


@pytest.fixture
def layout():
    return BatchLayout.plan(LENGTHS, 128, row_bytes=8, token_bytes=0)


def flat(found):
    return [
        row for batch in range(len(found.sizes)) for piece in found.pieces(batch) for row in piece
    ]


def test_batches_and_shards_partition_the_rows_longest_first(layout, monkeypatch):
    assert sorted(layout.order) == list(range(50)) and flat(layout) == list(layout.order)
    assert [LENGTHS[i] for i in layout.order] == sorted(LENGTHS, reverse=True)
    for rows, size in ((7, 10**9), (10**9, 100), (10**9, 10**9)):
        monkeypatch.setattr(module, "SHARD_ROWS", rows)
        monkeypatch.setattr(module, "SHARD_BYTES", size)
        cut = BatchLayout.plan(LENGTHS, 128, row_bytes=8, token_bytes=0)
        kept = [cut.rows_of(shard) for shard in range(len(cut.shards))]
        assert all(list(rows) == sorted(rows) for rows in kept) and sorted(
            row for rows in kept for row in rows
        ) == list(range(50))
        assert [set(rows) for rows in kept] == [
            {r for b in cut.batches_of(n) for p in cut.pieces(b) for r in p}
            for n in range(len(kept))
        ]
        assert (len(cut.shards) > 1) == (min(rows, size) < 10**9)
    monkeypatch.setattr(module, "SHARD_BYTES", 1000)
    # what is kept of a token bounds a shard, too
    tokens = BatchLayout.plan(LENGTHS, 128, row_bytes=0, token_bytes=4)
    kept = [
        4 * sum(LENGTHS[i] for i in tokens.rows_of(shard)) for shard in range(len(tokens.shards))
    ]
    assert len(kept) > 3 and max(kept) < 1000 + 4 * 128


def test_cuts_halve_a_batch_and_leave_the_order(layout):
    batch = max(range(len(layout.sizes)), key=lambda b: layout.sizes[b])
    cut = layout
    while cut.can_cut(batch):
        finer = cut.with_cut(batch)
        assert len(finer.pieces(batch)) == min(2 * len(cut.pieces(batch)), layout.sizes[batch])
        sizes = [len(piece) for piece in finer.pieces(batch)]
        assert max(sizes) - min(sizes) <= 1 and flat(finer) == list(layout.order)
        assert finer.sha256 != cut.sha256
        cut = finer
    assert all(len(piece) == 1 for piece in cut.pieces(batch))
    assert cut.to_record() == {
        "replanned": {str(batch): cut.cuts[batch]}
    } and layout.to_record() == {"replanned": {}}


def test_merging_takes_the_finer_of_both(layout):
    a, b = layout.with_cuts({0: 2, 3: 4}), layout.with_cuts({0: 4, 1: 2})
    assert a.with_cuts(b.cuts).cuts == b.with_cuts(a.cuts).cuts == {0: 4, 1: 2, 3: 4}
    assert a.with_cuts(b.cuts).sha256 == b.with_cuts(a.cuts).sha256
    assert a.cuts_of(0) == {
        batch: n for batch, n in a.cuts.items() if batch in layout.batches_of(0)
    }
