"""Damage on neutral text, against torch and against passes made one by one."""

from typing import Any

import numpy as np
import pytest
import torch

from emlens.data import Prompt, PromptSet
from emlens.evaluation import text_damage
from emlens.evaluation.damage import summed_kl, token_damage, unedited_logprobs
from emlens.foundation.errors import InputError
from emlens.interventions import steer
from emlens.models import Family, likelihoods, pass_memory

NEUTRAL = PromptSet([Prompt("n1", "w1 w2 w3"), Prompt("n2", "w20"), Prompt("n3", "w4 w5 w6 w7 w8")])


@pytest.mark.parametrize("at_once", [2**19, 20])
def test_summed_kl_equals_torch(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihoods, "_CACHED", at_once)  # 20: a token at a time
    a, b = (torch.randn(2, 5, 11).log_softmax(-1) for _ in range(2))
    expected = torch.nn.functional.kl_div(
        b.double().flatten(0, 1), a.double().flatten(0, 1), log_target=True, reduction="sum"
    )
    assert summed_kl(list(a), list(b)) == pytest.approx(float(expected), rel=1e-12)
    assert summed_kl(list(a), list(a)) == 0.0
    ragged = summed_kl([a[0], a[1, :1]], [b[0], b[1, :1]])
    both = torch.nn.functional.kl_div(
        torch.cat([b[0], b[1, :1]]).double(),
        torch.cat([a[0], a[1, :1]]).double(),
        log_target=True,
        reduction="sum",
    )
    assert ragged == pytest.approx(float(both), rel=1e-12)
    certain = torch.tensor([[0.0, -torch.inf]])
    assert summed_kl([certain], [torch.tensor([[0.5, 0.5]]).log()]) == pytest.approx(
        np.log(2), rel=1e-6
    )


@pytest.fixture(scope="module")
def edit() -> Any:
    return steer(
        2 * torch.randn(32, generator=torch.Generator().manual_seed(3)), 1.0, at=["resid_post.1"]
    )


def test_damage_of_each_prompt_is_that_of_passes_made_one_by_one(
    family: Family, edit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = family.instruct
    found = token_damage(model, NEUTRAL, [edit])
    assert list(found.index) == ["n1", "n2", "n3"]
    for prompt in NEUTRAL:
        [ids] = [row.ids for row in model.render([prompt])]
        [plain] = model.token_logprobs([prompt])
        with model.intervene([edit]):
            [edited] = model.token_logprobs([prompt])
        row = found.loc[prompt.id]
        kl = torch.nn.functional.kl_div(
            edited.double(), plain.double(), log_target=True, reduction="sum"
        )
        assert row["tokens"] == len(ids) and row["predicted"] == len(ids) - 1
        assert row["kl"] == pytest.approx(float(kl), rel=1e-4) and row["kl"] > 1e-3
        for name, logprobs in (("plain", plain), ("edited", edited)):
            losses = torch.nn.functional.nll_loss(
                logprobs[:-1].double(), torch.tensor(ids[1:], dtype=torch.long), reduction="sum"
            )
            assert row[name] == pytest.approx(float(losses), rel=1e-4, abs=1e-6)
    monkeypatch.setattr(pass_memory, "TEXT_LOGITS", 1)  # one prompt at a time
    np.testing.assert_allclose(
        token_damage(model, NEUTRAL, [edit]).to_numpy(), found.to_numpy(), rtol=1e-4, atol=1e-5
    )


def test_an_unedited_pass_is_spared_only_where_it_fits(
    family: Family, edit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = family.instruct
    whole = token_damage(model, NEUTRAL, [edit])
    held = unedited_logprobs(model, NEUTRAL)
    assert held is not None and len(held) == 3
    np.testing.assert_array_equal(
        token_damage(model, NEUTRAL, [edit], held).to_numpy(), whole.to_numpy()
    )
    assert (token_damage(model, NEUTRAL, [], held)["kl"] == 0).all()
    monkeypatch.setattr(pass_memory, "TEXT_LOGITS", 1)
    assert unedited_logprobs(model, NEUTRAL) is None


def test_what_changes_nothing_costs_exactly_nothing(family: Family, edit: Any) -> None:
    nothing = text_damage(token_damage(family.instruct, NEUTRAL, []))
    assert (nothing.kl.value, nothing.kl.low, nothing.kl.high, nothing.cross_entropy.value) == (
        0.0,
        0.0,
        0.0,
        0.0,
    )
    assert text_damage(token_damage(family.instruct, NEUTRAL, [edit])).kl.low > 0


def test_damage_is_a_mean_over_tokens_and_over_draws(family: Family, edit: Any) -> None:
    model = family.instruct
    one, two = token_damage(model, NEUTRAL, [edit]), token_damage(model, NEUTRAL, [])
    plain = model.token_logprobs(NEUTRAL)
    with model.intervene([edit]):
        edited = model.token_logprobs(NEUTRAL)
    whole = text_damage(one)
    assert (
        whole.kl.value == pytest.approx(summed_kl(plain, edited) / sum(map(len, plain)), rel=1e-9)
        and whole.kl.n == 3
    )
    assert whole.cross_entropy.value == pytest.approx(
        (one["edited"] - one["plain"]).sum() / one["predicted"].sum(), rel=1e-9
    )
    assert text_damage([one, two]).kl.value == pytest.approx(whole.kl.value / 2, rel=1e-9)
    single = text_damage(token_damage(model, NEUTRAL[:1], [edit]))
    assert single.kl.value > 0 and np.isnan(single.kl.low) and single.kl.n == 1


def test_damage_that_cannot_be_averaged_is_refused(family: Family, edit: Any) -> None:
    one, other = (
        token_damage(family.instruct, part, [edit]) for part in (NEUTRAL[:2], NEUTRAL[1:])
    )
    with pytest.raises(
        InputError, match="tables holds 2 tables; pass at least one, all of the same prompts"
    ):
        text_damage([one, other])
    with pytest.raises(
        InputError,
        match="every neutral prompt has one token, so none is predicted; pass longer prompts",
    ):
        text_damage(token_damage(family.instruct, NEUTRAL, [edit]).loc[["n2"]])
    with pytest.raises(
        InputError,
        match=r"rows have shapes \(2, 3\) and \(2, 4\); pass log-probabilities of the same prompts",
    ):
        summed_kl([torch.zeros(2, 3)], [torch.zeros(2, 4)])
