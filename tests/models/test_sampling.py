import pytest
import torch
from scipy import stats

from emlens.data import PromptSet
from emlens.models.sampling import GumbelRows, clean_tokens

_DRAWS = 4000
_LEVEL = 1e-3  # of the tests below; seeds are fixed, so a pass stays a pass


def draws(temperature, scores, rows=_DRAWS):
    sampler = GumbelRows(0, [f"r{i}" for i in range(rows)], temperature)
    return sampler(torch.zeros(rows, 1, dtype=torch.long), scores.expand(rows, -1)).argmax(-1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature):
    scores = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5])
    counts = torch.bincount(draws(temperature, scores), minlength=5)
    expected = (scores.double() / temperature).softmax(-1) * _DRAWS
    assert stats.chisquare(counts.numpy(), expected.numpy()).pvalue > _LEVEL
    other = (scores.double() / (1.3 * temperature)).softmax(-1) * _DRAWS  # the test has the power to see a wrong temperature
    assert stats.chisquare(counts.numpy(), other.numpy()).pvalue < _LEVEL


def test_one_row_draws_afresh_at_every_step():
    sampler = GumbelRows(0, ["a"], 1.0)
    scores = torch.zeros(1, 4)
    found = torch.stack([sampler(torch.zeros(1, 1, dtype=torch.long), scores).argmax(-1)[0] for _ in range(_DRAWS)])
    assert stats.chisquare(torch.bincount(found, minlength=4).numpy()).pvalue > _LEVEL
    pairs = torch.bincount(4 * found[:-1:2] + found[1::2], minlength=16)
    assert stats.chisquare(pairs.numpy()).pvalue > _LEVEL


def test_impossible_tokens_are_never_drawn():
    assert set(draws(1.0, torch.tensor([0.0, -torch.inf, 0.0])).tolist()) == {0, 2}


def test_noise_belongs_to_the_row():
    scores = torch.randn(3, 6)
    together = GumbelRows(5, ["a", "b", "c"], 1.0)(torch.zeros(3, 1), scores)
    alone = GumbelRows(5, ["b"], 1.0)(torch.zeros(1, 1), scores[1:2])
    assert torch.equal(alone[0], together[1])
    assert not torch.equal(GumbelRows(6, ["b"], 1.0)(torch.zeros(1, 1), scores[1:2]), alone)


def test_answers_do_not_depend_on_batch_mates(model):
    prompts = PromptSet.from_texts(["w1", "w2 w3 w4 w5 w6", "w7 w8", "w9 w10 w11"])
    together = model.generate(prompts, max_new_tokens=8, seed=4)
    assert together == model.generate(prompts, max_new_tokens=8, seed=4, batch_tokens=1)
    assert together[2:3] == model.generate(prompts[2:3], max_new_tokens=8, seed=4)
    turned = model.generate(prompts.select(prompts.ids[::-1]), max_new_tokens=8, seed=4)
    assert turned == together[::-1]
    assert together != model.generate(prompts, max_new_tokens=8, seed=5)


def test_first_tokens_follow_the_model(model):
    """Sampled through the whole model: the first token's distribution is the softmax of its logits."""
    prompts = PromptSet.from_texts(["w1 w2"] * 600)
    probabilities = model.logits(prompts[:1])[0].double().softmax(-1)
    answers = model.generate(prompts, max_new_tokens=1, seed=0)
    ids = torch.tensor([model.tokenizer.convert_tokens_to_ids(answer) for answer in answers if answer])
    likely = [t for t in probabilities.argsort(descending=True)[:6].tolist() if t not in model.stop_ids]
    counts = torch.tensor([int((ids == t).sum()) for t in likely])
    observed = [*counts.tolist(), 600 - int(counts.sum())]
    shares = [*probabilities[likely].tolist(), 1 - float(probabilities[likely].sum())]
    assert stats.chisquare(observed, [600 * share for share in shares]).pvalue > _LEVEL


def test_tokens_end_at_the_first_stop():
    assert clean_tokens([5, 6, 1, 7], {1, 0}) == [5, 6]
    assert clean_tokens([5, 0, 0], {1, 0}) == [5]
    assert clean_tokens([1, 5], {1}) == []
    assert clean_tokens([5, 6], set()) == [5, 6]
