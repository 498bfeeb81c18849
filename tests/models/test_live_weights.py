"""The fingerprint of weights in memory: the same for the same weights, another after any edit."""

import pytest
import torch

from emlens.models import load_family, load_model
from emlens.models.live_weights import row_sums

DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def model(files):
    return load_model(files / "instruct")


def test_two_loads_have_one(files, model):
    # another process and other ranks: tests/activations/test_executor_capture.py compares stores
    assert load_model(files / "instruct").weights_fingerprint() == model.weights_fingerprint()


EDITS = {
    "one entry": lambda w: w.data[3, 2].add_(1e-6),
    "one row to zero": lambda w: w.data[3].zero_(),
    "two rows change places": lambda w: w.data.copy_(w.data[[1, 0, *range(2, len(w))]]),
    "the sign": lambda w: w.data.neg_(),
    "one bit of one entry": lambda w: w.data.view(torch.int32)[0, 0].bitwise_xor_(1),
    "a rank-one edit": lambda w: w.data.addr_(w.data[:, 0].clone(), w.data[0].clone()),
}


@pytest.mark.parametrize("edit", EDITS)
def test_every_edit_changes_it_and_undoing_restores_it(model, edit):
    weight = model.module.get_parameter(DOWN)
    before, kept = model.weights_fingerprint(), weight.data.clone()
    EDITS[edit](weight)
    assert not torch.equal(weight.data, kept)
    assert model.weights_fingerprint() != before
    weight.data.copy_(kept)
    assert model.weights_fingerprint() == before


def test_adapters_beside_it_change_nothing_and_the_selected_one_does(files):
    bare = load_model(files / "instruct").weights_fingerprint()
    family = load_family(
        files / "instruct", finetuned={"one": files / "one", "two": files / "two"}, device="cpu"
    )
    alone = load_family(files / "instruct", finetuned={"two": files / "two"}, device="cpu")
    assert family.instruct.weights_fingerprint() == bare
    assert family["two"].weights_fingerprint() == alone["two"].weights_fingerprint()
    assert len({bare, *(family[name].weights_fingerprint() for name in ("one", "two"))}) == 3


def test_sums_do_not_depend_on_where_a_tensor_lies():
    whole = torch.randn(9, 7)
    for rows in (whole, whole[:, :6], whole[1:], whole.half(), whole.half()[1:, :4]):
        expected = row_sums(rows.clone())
        assert torch.equal(row_sums(rows), expected)
        assert torch.equal(row_sums(rows.T.contiguous().T), expected)
        words = rows.contiguous().view(tiny_words(rows)).tolist()
        keys = split_mix(len(words[0]))
        by_hand = [sum(map(int.__mul__, row, keys)) for row in words]
        assert [value % 2**64 for value in by_hand] == [
            value % 2**64 for value in expected.tolist()
        ]
    assert row_sums(torch.tensor(1.5)).shape == (1,) and len(row_sums(torch.ones(2, 3, 4))) == 6
    large = torch.randn(400, 200)
    by_hand = [sum(row) for row in large.view(torch.int64).tolist()]
    assert [v % 2**64 for v in by_hand] == [v % 2**64 for v in row_sums(large).tolist()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_no_change_of_signs_or_places_in_a_short_vector_is_missed(dtype):
    for seed in range(100):
        vector = torch.randn(8, generator=torch.Generator().manual_seed(seed)).to(dtype)
        edits = (-vector, vector.roll(4), vector * torch.tensor([1, -1] * 4))
        assert not any(torch.equal(row_sums(vector), row_sums(edit)) for edit in edits)


def tiny_words(rows):
    if rows.shape[-1] * rows.element_size() % 4 == 0:
        return torch.int32
    return torch.int16


def split_mix(n):
    """The first numbers of SplitMix64 from state 0 (Steele et al. 2014), made odd."""
    numbers, state = [], 0
    for _ in range(n):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        numbers.append((z ^ z >> 31) | 1)
    return numbers
