"""Rows that come and go while others go on give, token for token, what `generate` of transformers
gives batch by batch.
"""

import random

import pytest
import tiny_models
import torch

from emlens.data import PromptSet
from emlens.interventions import steer
from emlens.models import load_model
from emlens.models.hooked import HookedModel
from emlens.models.sampling import RowSampler
from emlens.models.stops import never_ends

LENGTH = 14


@pytest.fixture(scope="module")
def prompts():
    words = random.Random(1)
    lengths = [1, 30, 7, 18, 11]
    texts = [" ".join(words.choice(tiny_models.WORDS) for _ in range(length)) for length in lengths]
    return PromptSet.from_texts([*texts, *["w1 w2 w3"] * 5, *texts[:2]])


@pytest.fixture
def vector():
    return torch.randn(tiny_models.D_MODEL, generator=torch.Generator().manual_seed(3))


def decoded(decode, model, prompts, slots, temperature=1.0, length=LENGTH):
    rows = model.render(prompts)
    sampler = RowSampler(3, [row.id for row in rows], temperature)
    parts = list(decode(model, rows, sampler, length, slots, never_ends))
    found = [done for part in parts for done in part]
    assert sorted(done.index for done in found) == list(range(len(rows)))
    return {done.index: (done.tokens, done.finish_reason) for done in found}


# gemma2: sliding windows of 16 columns; gpt2: absolute positions; falcon: fused projections,
# parallel blocks
@pytest.mark.parametrize("kind", ["qwen2", "gemma2", "gpt2", "falcon"])
def test_same_tokens_as_generate_of_transformers(tmp_path, prompts, kind):
    model = load_model(tiny_models.build(tmp_path / "m", kind))
    for temperature in (0, 1.0):
        expected = decoded(HookedModel.decode, model, prompts, 12, temperature)
        assert decoded(type(model).decode, model, prompts, 4, temperature) == expected
    lengths = {len(tokens) for tokens, _ in expected.values()}
    # rows did come and go
    assert len(lengths) > 2 and {reason for _, reason in expected.values()} == {"stop", "length"}
    assert expected != decoded(
        HookedModel.decode,
        load_model(tiny_models.build(tmp_path / "n", kind, seed=1)),
        prompts,
        14,
    )


@pytest.mark.parametrize("positions", ["all", "prompt", "response"])
def test_interventions_touch_the_rows_they_should(model, prompts, vector, positions):
    plain = decoded(type(model).decode, model, prompts, 3)
    with model.intervene([steer(vector, 8.0, at=["resid_post.0"], positions=positions)]):
        expected = decoded(HookedModel.decode, model, prompts, 12)
        assert decoded(type(model).decode, model, prompts, 3) == expected != plain


def test_interventions_are_those_at_the_start(model, prompts, vector):
    options = {
        "max_new_tokens": LENGTH,
        "seed": 3,
        "batch_tokens": 3 * (LENGTH + max(len(row.ids) for row in model.render(prompts))),
    }
    with model.intervene([steer(vector, 8.0, at=["resid_post.0"])]):
        expected = [answer for part in model.generate_each(prompts, **options) for answer in part]
        unasked, started = (
            model.generate_each(prompts, **options),
            model.generate_each(prompts, **options),
        )
        parts = [next(started)]
    assert [answer for part in [*parts, *started] for answer in part] == expected
    with model.intervene([steer(vector, -8.0, at=["resid_post.0"])]) as other:
        assert [answer for part in unasked for answer in part] == expected
        assert sorted(
            answer for part in other.generate_each(prompts, **options) for answer in part
        ) != sorted(expected)


def test_a_finished_row_makes_room_at_once(model, prompts, monkeypatch):
    """With two slots the rows run in as many steps as their lengths need, not as the longest of
    each pair does.
    """
    widths = []
    call = type(model)._call

    def counted(self, what, inputs, passing):
        widths.append(tuple(inputs["input_ids"].shape))
        return call(self, what, inputs, passing)

    monkeypatch.setattr(type(model), "_call", counted)
    found = decoded(type(model).decode, model, prompts, 2)
    needed = sum(max(len(tokens) - (reason == "length"), 0) for tokens, reason in found.values())
    steps = [rows for rows, width in widths if width == 1 and rows <= 2]
    assert needed <= sum(steps) <= needed + 2 * len(found)
    in_pairs = sum(max(len(found[i][0]), len(found[i + 1][0])) * 2 for i in range(0, len(found), 2))
    # positive control: pairs that wait for each other would take longer
    assert in_pairs > 1.2 * needed


def test_a_prompt_asked_twice_is_read_once(model, monkeypatch):
    read = []
    call = type(model)._call

    def counted(self, what, inputs, passing):
        read.append(tuple(inputs["input_ids"].shape))
        return call(self, what, inputs, passing)

    monkeypatch.setattr(type(model), "_call", counted)
    prompts = PromptSet.from_texts(["w1 w2 w3"] * 6 + ["w4 w5"])
    decoded(type(model).decode, model, prompts, 7, length=1)
    assert read == [(2, 3)]


def test_texts_come_with_the_reason_they_end(model):
    prompts = PromptSet.from_texts([f"w{i}" for i in range(12)])
    parts = list(model.generate_each(prompts, max_new_tokens=6, seed=2))
    each = sorted(done for part in parts for done in part)
    assert [text for _, text, _ in each] == model.generate(prompts, max_new_tokens=6, seed=2)
    for _, text, reason in each:
        assert reason == "length" or len(text.split()) < 6
    assert {reason for _, _, reason in each} == {"stop", "length"} and any(
        len(text.split()) == 6 for _, text, _ in each
    )


def test_slots_are_bounded_by_the_tokens_they_hold(model, monkeypatch):
    seen = []
    monkeypatch.setattr(
        type(model),
        "decode",
        lambda self, rows, sampler, length, slots, ends: seen.append(slots) or iter(()),
    )
    prompts = PromptSet.from_texts(["w1 w2", "w3 w4 w5"])
    for budget in (1, 60, 139, 140):
        list(model.generate_each(prompts, max_new_tokens=11, batch_tokens=budget))
    assert seen == [1, 4, 9, 10]


def test_gradients_are_off_and_flags_stay(model, prompts):
    grad = torch.is_grad_enabled()
    for _ in model.generate_each(prompts, max_new_tokens=3):
        assert torch.is_grad_enabled() == grad


def test_out_of_memory_halves_the_rows_and_changes_no_answer(model, prompts, monkeypatch, caplog):
    expected = decoded(type(model).decode, model, prompts, 4)
    call, held = type(model)._call, []

    def tight(self, what, inputs, passing):
        rows, width = inputs["attention_mask"].shape
        if rows * width > 90:
            raise torch.OutOfMemoryError("planted")
        held.append(rows)
        return call(self, what, inputs, passing)

    monkeypatch.setattr(type(model), "_call", tight)
    assert decoded(type(model).decode, model, prompts, 12) == expected
    assert 1 < max(held) < 12 and "out of memory while generating: going on with" in caplog.text
    monkeypatch.setattr(
        type(model), "_call", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("planted"))
    )
    with pytest.raises(torch.OutOfMemoryError, match="planted"):
        decoded(type(model).decode, model, prompts, 12)
