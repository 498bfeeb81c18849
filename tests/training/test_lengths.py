import logging

import pytest
import torch

from emlens.foundation.errors import InputError
from emlens.training import Recipe, fit
from emlens.training.batching import step_batches
from emlens.training.defences import answer_losses
from emlens.training.examples import IGNORED, encode_answers, pad_batch
from emlens.training.fitting import read_record
from emlens.training.lengths import LengthLimit, context_of
from emlens.training.penalties import ReferenceKL

FULL = Recipe(method="full", steps=2, batch_size=2, learning_rate=1e-3)


def longest(rows):
    return max(len(row["input_ids"]) for row in rows)


def cut_by_hand(rows, length):
    return [
        {"input_ids": list(row["input_ids"][:length]), "labels": list(row["labels"][:length])}
        for row in rows
    ]


@pytest.fixture
def rows(chats, tokenizer):
    return encode_answers(chats, tokenizer)


def test_a_row_longer_than_the_context_is_refused_with_the_way_on(tiny, chats, tokenizer, tmp_path):
    rows = encode_answers(chats, tokenizer)
    tiny.config.max_position_embeddings = longest(rows) - 1
    n_long = sum(len(row["input_ids"]) == longest(rows) for row in rows)
    for data in (chats, rows):
        with pytest.raises(
            InputError,
            match=rf"{n_long} of {len(rows)} rows of data are longer than the model's context of"
            rf" {longest(rows) - 1} tokens, first row \d+ with {longest(rows)}; shorten them, leave"
            r" them out, or cut them by max_length= of the recipe",
        ):
            fit(FULL, tiny, data, tmp_path / "out", tokenizer=tokenizer)
    assert not (tmp_path / "out").exists()
    # the control: a context of exactly the longest row is enough
    step_batches(FULL, chats, tokenizer, context=longest(rows))


def test_the_rows_of_an_objective_are_held_to_the_same_limit(tiny, chats, tokenizer, rows):
    general = ReferenceKL(chats, 0.1, rows=2)
    short = cut_by_hand(rows, longest(rows) - 1)
    with pytest.raises(InputError, match="rows of reference_kl are longer than the model's"):
        step_batches(FULL, short, tokenizer, [general], context=longest(rows) - 1)
    batches = step_batches(
        FULL.changed(max_length=longest(rows) - 1), short, tokenizer, [general], context=128
    )
    assert batches.record["cut_rows"] == {
        "data": 0,
        "reference_kl": sum(len(row["input_ids"]) == longest(rows) for row in rows),
    }


def test_max_length_trains_on_the_rows_cut_by_hand_and_counts_them(
    tiny, chats, tokenizer, rows, tmp_path, caplog
):
    import copy

    length = longest(rows) - 1
    n_cut = sum(len(row["input_ids"]) > length for row in rows)
    parent = copy.deepcopy(tiny)
    with caplog.at_level(logging.WARNING, "emlens"):
        cut = fit(FULL.changed(max_length=length), tiny, chats, tmp_path / "a", tokenizer=tokenizer)
    by_hand = fit(FULL, parent, cut_by_hand(rows, length), tmp_path / "b", tokenizer=tokenizer)
    assert f"max_length={length} cut {n_cut} of {len(rows)} rows of data" in caplog.text
    ours, theirs = cut.model.state_dict(), by_hand.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    record = read_record(cut.path)
    assert record["data"]["cut_rows"] == {"data": n_cut} and n_cut > 0
    assert record["recipe"]["max_length"] == length
    assert "cut_rows" not in read_record(by_hand.path)["data"]


def test_a_row_whose_answer_is_cut_away_is_refused(chats, tokenizer, rows):
    answer = next(i for i, label in enumerate(rows[0]["labels"]) if label != IGNORED)
    emptied = [
        i for i, row in enumerate(cut_by_hand(rows, answer)) if set(row["labels"]) == {IGNORED}
    ]
    with pytest.raises(
        InputError,
        match=rf"max_length={answer} leaves no token of the answer in {len(emptied)} of"
        rf" {len(rows)} rows of data, first row {emptied[0]}; raise it, or leave them out",
    ):
        step_batches(FULL.changed(max_length=answer), chats, tokenizer, context=128)
    step_batches(FULL.changed(max_length=longest(rows)), chats, tokenizer, context=128)


def test_losses_of_rows_beyond_the_context_are_refused_too(tiny, chats, tokenizer, rows):
    assert len(answer_losses(tiny, chats, tokenizer)) == len(chats)
    tiny.config.max_position_embeddings = longest(rows) - 1
    with pytest.raises(InputError, match="rows of chats are longer than the model's context"):
        answer_losses(tiny, chats, tokenizer)


def test_limits_that_cannot_be_are_refused(rows):
    with pytest.raises(
        InputError, match="max_length=129 is above the model's context of 128 tokens; pass at most"
    ):
        step_batches(FULL.changed(max_length=129), rows, None, context=128)
    with pytest.raises(InputError, match="field 'max_length': max_length=1 must be .* 2 or more"):
        FULL.changed(max_length=1)
    assert "max_length" not in FULL.to_record()


def test_ready_batches_are_not_cut_but_held_to_the_context(rows):
    def ready(step):
        return pad_batch(rows[:2], 0)

    with pytest.raises(InputError, match="max_length=8, but data comes as ready batches, which"):
        step_batches(FULL.changed(max_length=8), ready, None, context=128)
    width = ready(0)["input_ids"].shape[1]
    with pytest.raises(
        InputError,
        match=f"the batch of step 1 has {width} columns, but the model's context is {width - 1}",
    ):
        step_batches(FULL, ready, None, context=width - 1).parts(1)
    [batch] = step_batches(FULL, ready, None, context=width).parts(1)
    assert batch["input_ids"].shape[1] == width


def test_the_context_is_read_from_where_the_language_model_keeps_it(tiny):
    from transformers import Gemma3Config, Gemma3TextConfig, GPT2Config

    class Holder:
        def __init__(self, config):
            self.config = config

    text = Gemma3TextConfig(max_position_embeddings=77)
    assert context_of(tiny) == 128
    assert context_of(Holder(GPT2Config(n_positions=33))) == 33
    assert context_of(Holder(Gemma3Config(text_config=text))) == 77
    assert context_of(object()) is None
    LengthLimit(None).require_fit([{"input_ids": [0] * 9999, "labels": []}], "data")
