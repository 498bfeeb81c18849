import pytest
import torch

from emlens.activations import Activations
from emlens.foundation import InputError, Site, UnknownNameError


def build(positions=("last",), sites=("resid_post.0", "resid_post.1"), **changes):
    lengths = [2, 1, 3]
    total = sum(lengths)
    values = {
        (site, p): torch.arange(float((total if p == "all" else 3) * 4)).view(-1, 4) + 100 * i
        for i, site in enumerate(sites)
        for p in positions
    }
    every = "all" in positions
    facts = {
        "ids": ["a", "b", "c"],
        "groups": ["x", "y", "x"],
        "sites": list(sites),
        "positions": list(positions),
        "provenance": {},
        "offsets": torch.tensor([0, 2, 3, 6]) if every else None,
        "token_ids": torch.arange(6) if every else None,
        **changes,
    }
    return Activations(facts.pop("values", values), **facts)


def test_lookups():
    acts = build()
    assert torch.equal(acts["resid_post.1"], acts["resid_post.1", "last"])
    assert torch.equal(acts[Site("resid_post", 1)], acts["blocks.1.hook_resid_post"])
    assert (
        len(acts) == 3
        and repr(acts) == "Activations(3 rows, sites=resid_post.0…resid_post.1, positions=['last'])"
    )
    assert torch.equal(acts.stacked(), torch.stack([acts["resid_post.0"], acts["resid_post.1"]]))


def test_lookups_that_are_not_clear_name_what_there_is():
    acts = build(("last", "mean_prompt"))
    with pytest.raises(
        UnknownNameError,
        match=r"hold positions \['last', 'mean_prompt'\]; pass acts\['resid_post.1', position\]",
    ):
        acts["resid_post.1"]
    with pytest.raises(
        UnknownNameError,
        match="site 'resid_post.5' was not captured; these were: resid_post.0, resid_post.1",
    ):
        acts["resid_post.5", "last"]
    with pytest.raises(
        UnknownNameError, match="position 'first' was not captured; these were: last, mean_prompt"
    ):
        acts["resid_post.1", "first"]
    with pytest.raises(
        UnknownNameError,
        match="tokens at 'resid_post.1' were not captured; capture with positions='all'",
    ):
        acts.tokens("resid_post.1")
    with pytest.raises(UnknownNameError, match=r"or acts\.tokens\('resid_post.1'\)"):
        build(("all",))["resid_post.1"]
    with pytest.raises(
        UnknownNameError,
        match=(
            r"position 'all' keeps every token apart; read it with acts\.tokens\('resid_post.1'\)"
        ),
    ):
        build(("all", "last"))["resid_post.1", "all"]


def test_stacking_needs_one_kind():
    mixed = build(sites=("attn_out.0", "resid_post.0", "resid_post.1"))
    with pytest.raises(
        UnknownNameError, match="several kinds of site: attn_out, resid_post; pass kind="
    ):
        mixed.stacked()
    assert torch.equal(
        mixed.stacked(kind="resid_post"),
        torch.stack([mixed["resid_post.0"], mixed["resid_post.1"]]),
    )
    with pytest.raises(
        UnknownNameError, match="kind 'mlp_out' was not captured; these were: attn_out, resid_post"
    ):
        mixed.stacked(kind="mlp_out")


def test_selection():
    acts = build(("last", "all"))
    chosen = acts.select(["c", "a"])
    assert chosen.ids == ["c", "a"] and chosen.groups == ["x", "x"]
    assert torch.equal(chosen["resid_post.1"], acts["resid_post.1"][[2, 0]])
    held, whole = chosen.tokens("resid_post.1"), acts.tokens("resid_post.1")
    assert held.offsets.tolist() == [0, 3, 5] and held.token_ids.tolist() == [3, 4, 5, 0, 1]
    assert torch.equal(held.values, whole.values[[3, 4, 5, 0, 1]])
    with pytest.raises(UnknownNameError, match="id 'z' is not among the 3 rows"):
        acts.select(["z"])
    with pytest.raises(InputError, match="activations hold an id twice; ids must be unique"):
        acts.select(["a", "a"])


def test_parts_that_do_not_fit():
    with pytest.raises(
        InputError, match="activations have 3 ids and 2 groups; pass one group for each id"
    ):
        build(groups=["x", "y"])
    short = {
        ("resid_post.0", "last"): torch.zeros(2, 4),
        ("resid_post.1", "last"): torch.zeros(3, 4),
    }
    with pytest.raises(
        InputError,
        match=r"activations at 'resid_post.0', 'last' have shape \(2, 4\); pass 3 rows of vectors",
    ):
        build(values=short)
    with pytest.raises(
        InputError,
        match="activations at 'resid_post.0', 'last' have nothing; pass 3 rows of vectors",
    ):
        build(values={})
    with pytest.raises(
        InputError, match="activations hold every token but no offsets; pass offsets and token_ids"
    ):
        build(("all",), offsets=None)
