import copy

import pytest
import torch

from emlens.activations import (
    Activations,
    ActivationStore,
    CaptureSpec,
    activation_deltas,
    capture,
    capture_pair,
)
from emlens.activations.capture_provenance import MUST_MATCH
from emlens.data import PromptSet
from emlens.foundation import InputError, IntegrityError, Span


def test_after_minus_before(family, prompts):
    before, after = capture_pair(
        family.instruct, family["one"], prompts, positions=["last_prompt", "all"]
    )
    deltas = activation_deltas(before, after)
    assert deltas.ids == prompts.ids and deltas.groups == prompts.groups
    for site in before.sites:
        assert torch.equal(deltas[site], (after[site].double() - before[site].double()).float())
        assert torch.equal(
            deltas.tokens(site).values, after.tokens(site).values - before.tokens(site).values
        )
        assert torch.equal(deltas.tokens(site).offsets, before.tokens(site).offsets)
        assert (deltas[site] != 0).any()
    backwards = activation_deltas(after, before)
    assert all(torch.equal(backwards[site], -deltas[site]) for site in before.sites)
    assert deltas.provenance["after"] == after.provenance


def test_one_model_moves_nowhere(family, prompts):
    deltas = activation_deltas(
        *capture_pair(family.instruct, family.instruct, prompts, spec=CaptureSpec(batch_tokens=30))
    )
    assert all((deltas[site] == 0).all() for site in deltas.sites)


def test_stores_pair_like_memory(family, prompts, tmp_path):
    before, after = capture_pair(family.instruct, family["one"], prompts)
    stored = [
        ActivationStore.open(acts.save(tmp_path / name))
        for name, acts in (("a", before), ("b", after))
    ]
    deltas = activation_deltas(*stored)
    assert torch.equal(deltas.stacked(), activation_deltas(before, after).stacked())
    deltas.save(tmp_path / "deltas")
    assert torch.equal(ActivationStore.open(tmp_path / "deltas").stacked(), deltas.stacked())


def late(ids, mask):
    return torch.arange(len(ids)) >= 4


def early(ids, mask):
    return torch.arange(len(ids)) < 4


def test_what_was_not_read_alike_is_refused(family, prompts):
    model = family.instruct
    whole = capture(model, prompts)

    def refused(other, match, base=whole):
        with pytest.raises(IntegrityError, match=match):
            activation_deltas(base, other)

    refused(
        whole.select(prompts.ids[:-1]),
        "before has 9 rows and after 8, and their ids are not the same in order",
    )
    refused(
        whole.select(prompts.ids[::-1]),
        "before has 9 rows and after 9, and their ids are not the same in order",
    )
    refused(capture(model, prompts, layers=[0]), "before and after differ in sites")
    refused(capture(model, prompts, positions="last"), "before and after differ in positions")
    refused(
        capture(model, prompts, spec=CaptureSpec(batch_tokens=30)),
        "before and after differ in batch_tokens .2048 and 30.: another batch layout;"
        " use capture_pair",
    )
    other = PromptSet.from_questions(["w1"] * 9, ids=prompts.ids, groups=prompts.groups)
    refused(capture(model, other), "before and after differ in rendered_sha256")
    refused(
        capture(model, prompts, spec=CaptureSpec(dtype=torch.bfloat16)),
        "before and after differ in kept_dtype",
    )
    late.__name__ = early.__name__ = "chosen"
    chosen = capture(model, prompts, positions=late)
    refused(
        capture(model, prompts, positions=early), "before and after differ in chosen_sha256", chosen
    )
    activation_deltas(chosen, capture(family["one"], prompts, positions=late))
    refused(capture(model, prompts, positions=Span(0, 2)), "before and after differ in positions")


def changed(acts, name, value):
    """The same activations under a provenance with one other fact."""
    provenance = copy.deepcopy(acts.provenance)
    *path, last = name.split(".")
    held = provenance
    for part in path:
        held = held[part]
    assert last in held
    held[last] = value
    return Activations(
        acts._values,
        ids=acts.ids,
        groups=acts.groups,
        sites=acts.sites,
        positions=acts.positions,
        provenance=provenance,
    )


@pytest.mark.parametrize("name", MUST_MATCH)
def test_every_fact_that_must_match_is_recorded_compared_and_can_be_allowed(family, prompts, name):
    before, after = capture_pair(family.instruct, family["one"], prompts, layers=[0])
    activation_deltas(before, after)
    other = changed(after, name, "another")
    with pytest.raises(
        IntegrityError,
        match=(
            rf"before and after differ in {name} .*: .*;"
            rf" use capture_pair, .* or pass allow=\['{name}'\]"
        ),
    ):
        activation_deltas(before, other)
    allowed = activation_deltas(before, other, allow=[name])
    assert torch.equal(allowed["resid_post.0"], activation_deltas(before, after)["resid_post.0"])
    assert allowed.provenance["allowed"] == [name]


def test_only_compared_facts_can_be_allowed(family, prompts):
    before, after = capture_pair(family.instruct, family["one"], prompts, layers=[0])
    with pytest.raises(
        InputError,
        match=(
            "allow names 'ids', which is not compared; compared are: rendered_sha256, chosen_sha256"
        ),
    ):
        activation_deltas(before, after, allow=["ids"])


def hand(values, **changes):
    facts = {
        "ids": ["a"],
        "groups": [""],
        "sites": ["resid_post.0"],
        "positions": list({p for _, p in values}),
        "provenance": {},
    }
    return Activations(values, **{**facts, **changes})


def test_hand_made_sides_are_compared_too():
    wide = hand({("resid_post.0", "last"): torch.zeros(1, 4)})
    with pytest.raises(
        IntegrityError,
        match=(
            r"differ at resid_post.0: torch.float32 of shape \(1,"
            r" 4\) and torch.float32 of shape \(1, 1\)"
        ),
    ):
        activation_deltas(wide, hand({("resid_post.0", "last"): torch.zeros(1, 1)}))
    with pytest.raises(IntegrityError, match="torch.float32 of shape .* and torch.float64"):
        activation_deltas(wide, hand({("resid_post.0", "last"): torch.zeros(1, 4).double()}))
    tokens = [
        hand(
            {("resid_post.0", "all"): torch.zeros(2, 4)},
            offsets=torch.tensor([0, 2]),
            token_ids=torch.tensor(ids),
        )
        for ids in ([1, 2], [1, 3])
    ]
    with pytest.raises(
        IntegrityError, match="before and after hold different tokens; capture both on one set"
    ):
        activation_deltas(*tokens)


def test_the_difference_is_taken_in_double():
    big = torch.full((1, 4), 2.0**24)
    before = hand({("resid_post.0", "last"): big})
    after = hand({("resid_post.0", "last"): big + 2})
    assert torch.equal(activation_deltas(before, after)["resid_post.0"], torch.full((1, 4), 2.0))
