import pytest
import torch
from scipy import stats

from emlens.data import PromptSet
from emlens.models.sampling import Generated, RowSampler
from emlens.models.stops import never_ends

_DRAWS = 4000
_LEVEL = 1e-3  # of the tests below; seeds are fixed, so a pass stays a pass


def draws(temperature, scores, rows=_DRAWS):
    sampler = RowSampler(0, [f"r{i}" for i in range(rows)], temperature)
    return sampler.pick(scores.expand(rows, -1), range(rows), [0] * rows)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature):
    scores = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5])
    counts = torch.bincount(draws(temperature, scores), minlength=5)
    expected = (scores.double() / temperature).softmax(-1) * _DRAWS
    assert stats.chisquare(counts.numpy(), expected.numpy()).pvalue > _LEVEL
    # the test has the power to see a wrong temperature
    other = (scores.double() / (1.3 * temperature)).softmax(-1) * _DRAWS
    assert stats.chisquare(counts.numpy(), other.numpy()).pvalue < _LEVEL


def test_one_row_draws_afresh_at_every_step():
    sampler = RowSampler(0, ["a"], 1.0)
    scores = torch.zeros(1, 4)
    found = torch.cat([sampler.pick(scores, [0], [step]) for step in range(_DRAWS)])
    assert stats.chisquare(torch.bincount(found, minlength=4).numpy()).pvalue > _LEVEL
    pairs = torch.bincount(4 * found[:-1:2] + found[1::2], minlength=16)
    assert stats.chisquare(pairs.numpy()).pvalue > _LEVEL


def test_impossible_tokens_are_never_drawn():
    assert set(draws(1.0, torch.tensor([0.0, -torch.inf, 0.0])).tolist()) == {0, 2}


def test_no_cumulative_sum_runs_past_the_last_possible_token(monkeypatch):
    sampler = RowSampler(0, ["a"], 1.0)
    # the largest draw there is
    monkeypatch.setattr(sampler, "_uniform", lambda row, step: 1 - 2.0**-53)
    scores = torch.cat([torch.randn(1, 1000), torch.full((1, 50), -torch.inf)], dim=1)
    assert sampler.pick(scores, [0], [0]).item() < 1000


def test_two_steps_find_the_token_of_one_sum_over_the_vocabulary():
    scores = 4 * torch.randn(300, 1000, generator=torch.Generator().manual_seed(0))
    sampler = RowSampler(0, [f"r{i}" for i in range(300)], 0.7)
    found = sampler.pick(scores, range(300), [0] * 300)
    drawn = torch.tensor([sampler._uniform(row, 0) for row in range(300)], dtype=torch.float64)
    sums = (scores.double() / 0.7).softmax(-1).cumsum(-1)
    # a draw within rounding of a border may fall on either side
    low = torch.nn.functional.pad(sums, (1, 0)).gather(-1, found[:, None])[:, 0]
    high = sums.gather(-1, found[:, None])[:, 0]
    assert bool((low - 1e-6 <= drawn).all()) and bool((drawn <= high + 1e-6).all())
    assert len(found.unique()) > 50


def test_the_draw_belongs_to_row_and_step():
    scores = torch.randn(3, 6)
    ids = ["a", "b", "c"]
    together = [
        RowSampler(5, ids, 1.0).pick(scores, [0, 1, 2], [step] * 3)[1] for step in range(100)
    ]
    alone = RowSampler(5, ["b"], 1.0)
    assert (
        together == [alone.pick(scores[1:2], [0], [step])[0] for step in reversed(range(100))][::-1]
    )
    turned = RowSampler(5, ids, 1.0)
    assert together == [
        turned.pick(scores[[2, 1]], [2, 1], [99 - step, step])[1] for step in range(100)
    ]
    assert together != [
        RowSampler(6, ["b"], 1.0).pick(scores[1:2], [0], [step])[0] for step in range(100)
    ]


def test_no_temperature_takes_the_likeliest():
    scores = torch.randn(3, 6)
    assert torch.equal(
        RowSampler(0, ["a", "b", "c"], 0).pick(scores, [0, 1, 2], [0, 0, 0]), scores.argmax(-1)
    )


def test_answers_do_not_depend_on_batch_mates(model):
    prompts = PromptSet.from_texts(["w1", "w2 w3 w4 w5 w6", "w7 w8", "w9 w10 w11"])
    together = model.generate(prompts, max_new_tokens=8, seed=4)
    assert together == model.generate(prompts, max_new_tokens=8, seed=4, batch_tokens=1)
    assert together[2:3] == model.generate(prompts[2:3], max_new_tokens=8, seed=4)
    turned = model.generate(prompts.select(prompts.ids[::-1]), max_new_tokens=8, seed=4)
    assert turned == together[::-1]
    assert together != model.generate(prompts, max_new_tokens=8, seed=5)


def test_first_tokens_follow_the_model(model):
    """Sampled through the whole model: the first token's distribution is the softmax of its
    logits.
    """
    prompts = PromptSet.from_texts(["w1 w2"] * 600)
    probabilities = model.logits(prompts[:1])[0].double().softmax(-1)
    answers = model.generate(prompts, max_new_tokens=1, seed=0)
    ids = torch.tensor(
        [model.tokenizer.convert_tokens_to_ids(answer) for answer in answers if answer]
    )
    likely = [
        t for t in probabilities.argsort(descending=True)[:6].tolist() if t not in model.stops.ids
    ]
    counts = torch.tensor([int((ids == t).sum()) for t in likely])
    observed = [*counts.tolist(), 600 - int(counts.sum())]
    shares = [*probabilities[likely].tolist(), 1 - float(probabilities[likely].sum())]
    assert stats.chisquare(observed, [600 * share for share in shares]).pvalue > _LEVEL


def test_tokens_end_at_the_first_stop():
    for tokens, stops, kept, reason in [
        ([5, 6, 1, 7], {1, 0}, [5, 6], "stop"),
        ([5, 0, 0], {1, 0}, [5], "stop"),
        ([1, 5], {1}, [], "stop"),
        ([5, 6], set(), [5, 6], "length"),
    ]:
        found = Generated.cut(3, tokens, stops, never_ends)
        assert (found.index, found.tokens, found.finish_reason) == (3, kept, reason)
