import random

import pytest
import torch
from hypothesis import given, strategies as st

from emlens.foundation import InputError, Site
from emlens.foundation.sites import SITE_KINDS, resolve_sites

LAYERED = [kind for kind in SITE_KINDS if kind != "final_norm"]


@given(kind=st.sampled_from(LAYERED), layer=st.integers(0, 99))
def test_names_parse_back_and_lens_names_mean_the_same(kind: str, layer: int) -> None:
    site = Site(kind, layer)
    assert Site.parse(str(site)) == site == Site.parse(site)
    assert Site.parse(f"blocks.{layer}.hook_{kind}") == site
    assert Site.parse(f"{kind}.{layer - 100}", n_layers=100) == site


def test_final_norm_has_no_layer() -> None:
    assert str(Site.parse("final_norm", 4)) == "final_norm" == str(Site.parse("ln_final.hook_out"))


def test_sites_sort_in_the_order_of_a_forward_pass() -> None:
    ordered = [Site(kind, layer) for layer in range(11) for kind in LAYERED] + [Site("final_norm")]
    shuffled = random.Random(0).sample(ordered, len(ordered))
    assert shuffled != ordered and sorted(shuffled) == ordered


def test_hf_indices_are_those_of_a_real_decoder() -> None:
    """hidden_states of a stack that adds 1 a block: entry i has seen i blocks, the last has also
    been normalised.
    """
    n_layers = 3
    stream = torch.zeros(1)
    hidden_states, after_block = [stream], {}
    for layer in range(n_layers):
        stream = stream + 1
        after_block[Site("resid_post", layer)] = stream
        hidden_states.append(stream)
    hidden_states[-1] = -stream  # the "norm"
    assert Site.from_hf_index(0, n_layers) == Site("resid_pre", 0)
    for index in range(1, n_layers):
        assert torch.equal(after_block[Site.from_hf_index(index, n_layers)], hidden_states[index])
    assert Site.from_hf_index(n_layers, n_layers) == Site("final_norm")
    reached = {Site.from_hf_index(index, n_layers) for index in range(n_layers + 1)}
    assert Site("resid_post", n_layers - 1) not in reached  # no entry holds it


def test_resolving_expands_kinds_sorts_and_drops_repeats() -> None:
    assert resolve_sites("resid_post", 3) == [Site("resid_post", layer) for layer in range(3)]
    assert resolve_sites("resid_post", 3, layers=[-1, 0, 2]) == [
        Site("resid_post", 0),
        Site("resid_post", 2),
    ]
    mixed = resolve_sites(["final_norm", "mlp_out.1", "resid_pre.0", "mlp_out.-1"], 2)
    assert [str(site) for site in mixed] == ["resid_pre.0", "mlp_out.1", "final_norm"]
    assert resolve_sites(["resid_post", "final_norm"], 2, layers=[0]) == [
        Site("resid_post", 0),
        Site("final_norm"),
    ]
    assert resolve_sites(Site("attn_out", 1), 2) == [Site("attn_out", 1)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Site("resid", 0), "site kind 'resid' is unknown; pass one of resid_pre"),
        (
            lambda: Site("resid_post"),
            "site kind 'resid_post' was given with layer None; only final_norm has no layer",
        ),
        (lambda: Site("final_norm", 3), "site kind 'final_norm' was given with layer 3"),
        (
            lambda: Site.parse("layer 3"),
            "site 'layer 3' is not a site name; pass a kind and a block index",
        ),
        (lambda: Site.parse("resid_post.3\n"), "is not a site name"),
        (lambda: Site.parse(3), "site 3 is not a site name"),  # type: ignore[arg-type]
        (
            lambda: Site.parse("resid_post.-1"),
            "counts from the end, which needs the model's number of layers",
        ),
        (
            lambda: Site.parse("resid_post.4", 4),
            "site 'resid_post.4' names block 4, but the model has blocks 0 to 3",
        ),
        (lambda: Site.parse("resid_post.-5", 4), "names block -5, but the model has blocks 0 to 3"),
        (
            lambda: Site.from_hf_index(5, 4),
            "hidden_states index 5 does not exist; a model of 4 blocks has 0 to 4",
        ),
        (lambda: Site.from_hf_index(-1, 4), "hidden_states index -1 does not exist"),
        (
            lambda: resolve_sites([], 4),
            "sites is empty; pass at least one site such as 'resid_post'",
        ),
        (
            lambda: resolve_sites("resid_post", 4, layers=[]),
            "layers is empty; pass block indices, or None for every layer",
        ),
        (
            lambda: resolve_sites("resid_post", 4, layers=1.5),
            r"layers=1.5 is not a list; pass block indices such as \[0, -1\]",
        ),
        (
            lambda: resolve_sites("resid_post", 4, layers="all"),
            "layers='all' is not a list; pass block indices",
        ),
        (
            lambda: resolve_sites("resid_post.1", 4, layers=[1]),
            r"layers=\[1\] was given beside site 'resid_post.1', which names",
        ),
        (
            lambda: resolve_sites("resid_post", 4, layers=[4]),
            "names block 4, but the model has blocks 0 to 3",
        ),
    ],
)
def test_sites_that_do_not_exist_are_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        make()
