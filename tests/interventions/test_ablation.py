import pytest
import torch
from tiny_models import D_MODEL, close

from emlens.activations import CaptureSpec, capture
from emlens.data import PromptSet
from emlens.foundation import InputError, Intervention, Site
from emlens.geometry import Direction, Subspace, top_k_subspace
from emlens.interventions import ablate, steer

POSTS = [f"resid_post.{i}" for i in range(3)]
MASK = torch.ones(2, 5, dtype=torch.bool)


@pytest.fixture
def vector():
    return torch.randn(D_MODEL, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def stream():
    return torch.randn(2, 5, D_MODEL, generator=torch.Generator().manual_seed(3))


def values(model, prompts, site, **options):
    spec = CaptureSpec(site, positions="all", **options)
    return capture(model, prompts, spec=spec, progress=False).tokens(site).values


# ---- the arithmetic alone


def test_ablation_leaves_nothing_along_the_direction(vector, stream):
    unit = vector / vector.norm()
    out = ablate(vector).apply(stream, MASK)
    assert (stream.double() @ unit).abs().max() > 1
    assert (out.double() @ unit).abs().max() < 1e-6
    across = stream.double() - (stream.double() @ unit)[..., None] * unit
    assert close(out, across.float(), 1e-6)
    assert close(ablate(vector).apply(out, MASK), out, 1e-6)
    assert torch.equal(ablate(-7 * vector).apply(stream, MASK), out) or close(
        ablate(-7 * vector).apply(stream, MASK), out, 1e-6
    )


def test_only_the_affine_form_leaves_its_baseline_alone(vector, stream):
    mean = torch.randn(D_MODEL, dtype=torch.float64) + 2 * vector
    affine, plain = ablate(vector, baseline=mean), ablate(vector)
    at_mean = mean.float().expand(2, 5, -1)
    assert close(affine.apply(at_mean, MASK), at_mean, 1e-6)
    assert not close(plain.apply(at_mean, MASK), at_mean, 0.1)
    unit = vector / vector.norm()
    along = affine.apply(stream, MASK).double() @ unit
    assert torch.allclose(along, (mean @ unit).expand_as(along), atol=1e-5)
    twice = affine.apply(affine.apply(stream, MASK), MASK)
    assert close(twice, affine.apply(stream, MASK), 1e-6)


def test_scales_read_coordinates_in_their_units_and_remove_all_that_was_added(vector, stream):
    """Against the explicit oblique projector."""
    sizes = torch.ones(D_MODEL, dtype=torch.float64)
    sizes[3] = 1000.0
    loud = stream.double().clone()
    loud[..., 3] *= 1000
    unit = vector / vector.norm()
    q = unit / sizes
    q /= q @ unit
    scaled = ablate(vector, baseline=torch.zeros(D_MODEL), scales=sizes)
    out = scaled.apply(loud, MASK)
    assert close(out, loud - (loud @ q)[..., None] * unit, 1e-6)
    # what is added along the direction goes whole, and twice is once
    assert close(scaled.apply(loud + 5 * unit, MASK), out, 1e-6)
    assert close(scaled.apply(out, MASK), out, 1e-6)
    # the loud coordinate no longer decides what is written into the others
    quiet = [i for i in range(D_MODEL) if i != 3]
    moved, by_plain = (
        (x - loud)[..., quiet].norm() for x in (out, ablate(vector).apply(loud, MASK))
    )
    assert moved < by_plain / 10
    both = ablate(top_k_subspace(stream[0].double(), k=2, center=False), scales=sizes)
    assert close(both.apply(both.apply(loud, MASK), MASK), both.apply(loud, MASK), 1e-6)
    with pytest.raises(InputError, match="scales hold 0; pass numbers above 0"):
        ablate(vector, scales=torch.zeros(D_MODEL))
    with pytest.raises(InputError, match="scales has shape"):
        ablate(vector, scales=torch.ones(3))


def test_a_subspace_goes_as_a_whole(stream):
    space = top_k_subspace(torch.randn(20, D_MODEL).double(), k=3, center=False)
    out = ablate(space).apply(stream, MASK)
    assert (stream.double() @ space.basis).abs().max() > 1
    assert (out.double() @ space.basis).abs().max() < 1e-5
    one_by_one = stream
    for column in space.basis.T:
        one_by_one = ablate(column).apply(one_by_one, MASK)
    assert close(out, one_by_one, 1e-5)


@pytest.mark.parametrize("unit", ["vector", "unit", "resid_norm"])
def test_steering_adds_exactly_what_it_says(vector, stream, unit):
    out = steer(vector, -1.5, unit=unit, at=["resid_post.0"]).apply(stream, MASK)
    length = {
        "vector": vector.norm(),
        "unit": 1.0,
        "resid_norm": stream.double().norm(dim=-1, keepdim=True),
    }[unit]
    expected = stream.double() - 1.5 * length * vector / vector.norm()
    assert close(out.double(), expected, 1e-6)
    assert torch.equal(
        steer(vector, 0.0, unit=unit, at=["resid_post.0"]).apply(stream, MASK), stream
    )


@pytest.mark.parametrize("make", [ablate, lambda v: steer(v, 1.0, at=["resid_post.0"])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_masks_and_dtypes(vector, stream, make, dtype):
    mask = MASK.clone()
    mask[0, :2] = mask[1, 4] = False
    given = stream.to(dtype)
    kept = given.clone()
    out = make(vector).apply(given, mask)
    assert torch.equal(given, kept)  # the input is never written to
    assert out.dtype == dtype and torch.equal(out[~mask], given[~mask])
    assert (out[mask] != given[mask]).any(-1).all()


def test_protocol_and_record(vector):
    direction = Direction(vector, Site("resid_post", 1))
    import json

    for made in (
        ablate(direction),
        ablate(vector, baseline=vector),
        steer(direction, 2.0),
        steer(vector, 1.0, at=[Site("final_norm")]),
    ):
        assert isinstance(made, Intervention)
        json.dumps(made.describe())
    assert ablate(direction).describe()["own_site"] == "resid_post.1"
    assert (
        ablate(vector).describe()["sha256"] != ablate(vector, baseline=vector).describe()["sha256"]
    )
    assert (
        ablate(vector).describe()["form"],
        ablate(vector, baseline=vector).describe()["form"],
    ) == ("plain", "affine")


# ---- where


def test_sites(model, vector):
    direction = Direction(vector, Site("attn_out", 1))
    assert [str(site) for site in ablate(direction).targets(model.sites)] == POSTS
    assert (
        ablate(direction, at="own_site").targets(model.sites)
        == [Site("attn_out", 1)]
        == steer(direction, 1.0).targets(model.sites)
    )
    assert ablate(vector, at=["resid_post.-1", "final_norm", Site("resid_pre", 0)]).targets(
        model.sites
    ) == [
        Site("resid_pre", 0),
        Site("resid_post", 2),
        Site("final_norm"),
    ]


def test_a_site_named_twice_is_steered_once(model, prompts, vector):
    before = values(model, prompts, "resid_post.2")
    with model.intervene(
        [steer(vector, 1.0, at=["resid_post.2", "resid_post.-1", "blocks.2.hook_resid_post"])]
    ):
        assert close(values(model, prompts, "resid_post.2"), before + vector.float())


def test_sites_that_do_not_exist(model, vector):
    def refused(intervention, match):
        with pytest.raises(InputError, match=match), model.intervene([intervention]):
            pass

    refused(ablate(vector, at="own_site"), "at='own_site' needs a Direction that knows its site")
    refused(ablate(vector, at=["resid_post.3"]), "names block 3, but the model has blocks 0 to 2")
    refused(ablate(vector, at=[]), "at is an empty list; pass at least one site")
    refused(ablate(vector, at=["layers.3"]), "site 'layers.3' is not a site name")
    with pytest.raises(
        InputError,
        match=(
            "site final_norm matches nothing in this model, which has no final_norm;"
            " it has resid_pre, attn_out, resid_mid, mlp_out, resid_post"
        ),
    ):
        ablate(vector, at=["final_norm"]).targets(model.sites[:-1])


def test_arguments_that_do_not_fit(vector, unchecked):
    def refused(match, make=ablate, **options):
        with pytest.raises(InputError, match=match):
            make(**{"direction": vector, **options})

    refused(
        "at='everywhere' is unknown; pass 'all_layers', 'own_site',"
        " 'inputs_and_writes' or a list of sites",
        at="everywhere",
    )
    refused(
        r"at=Site\(.*\) is unknown; pass 'all_layers', 'own_site',"
        r" 'inputs_and_writes' or a list of sites",
        at=Site("final_norm"),
    )
    unknown = (
        r"is unknown; pass one of all, prompt, response, last_prompt, last, Index\(...\),"
        r" Span\(...\) or a callable"
    )
    refused(f"positions='mean_prompt' {unknown}", positions="mean_prompt")
    refused(f"positions=3 {unknown}", positions=3)
    refused(
        r"direction has shape \(32,\) and norm 0; pass a non-zero vector",
        direction=torch.zeros(D_MODEL),
    )
    refused(r"direction has shape \(2, 3\) and norm", direction=torch.ones(2, 3))
    refused("direction holds 1 values that are NaN", direction=torch.tensor([1.0, float("nan")]))
    refused("direction is a list; pass a torch tensor", direction=[1.0])
    refused(r"baseline has shape \(3,\); pass a vector of shape \(32,\)", baseline=torch.ones(3))
    batch = top_k_subspace(torch.randn(2, 20, 4), k=2, center=False)
    refused(r"direction holds a batch of subspaces, basis of shape \(2, 4, 2\)", direction=batch)
    assert isinstance(batch, Subspace)
    refused(
        "unit='norm' is unknown; pass 'vector', 'unit' or 'resid_norm'",
        steer,
        coefficient=1.0,
        unit="norm",
    )
    refused("coefficient=inf is not a finite number", steer, coefficient=float("inf"))
    refused("coefficient=nan is not a finite number", steer, coefficient=float("nan"))
    with pytest.raises(
        InputError, match="direction has 32 coordinates, but the model's stream has 5"
    ):
        ablate(vector).apply(torch.zeros(1, 1, 5), torch.ones(1, 1, dtype=torch.bool))


# ---- inside a model


def test_ablation_everywhere(model, prompts, vector):
    unit = vector / vector.norm()
    for site in POSTS:
        assert (values(model, prompts, site).double() @ unit).abs().max() > 0.5
    with model.intervene([ablate(vector)]):
        for site in [*POSTS, "resid_pre.1", "resid_pre.2"]:
            assert (values(model, prompts, site).double() @ unit).abs().max() < 1e-5
        # embeddings are not touched
        assert (values(model, prompts, "resid_pre.0").double() @ unit).abs().max() > 0.1
        once = values(model, prompts, "resid_post.2")
        with model.intervene([ablate(vector)]):
            assert close(values(model, prompts, "resid_post.2"), once)


def test_reads_inside_come_after_the_edit(model, prompts, vector):
    for site in ("resid_pre.0", "attn_out.1", "mlp_out.1", "resid_post.1", "final_norm"):
        before = values(model, prompts, site)
        with model.intervene([steer(vector, 1.0, at=[site])]):
            assert close(values(model, prompts, site), before + vector.float())


def test_no_module_reads_or_writes_the_direction_at_inputs_and_writes(model, prompts, vector):
    """After every block alone, attention still writes it and the MLP behind still reads it."""
    unit = vector / vector.norm()
    inside = ["resid_mid.0", "resid_mid.2", "attn_out.1", "mlp_out.1"]
    everywhere = [*inside, "resid_pre.0", *POSTS]
    with model.intervene([ablate(vector, at="inputs_and_writes")]):
        assert all(
            (values(model, prompts, site).double() @ unit).abs().max() < 1e-5 for site in everywhere
        )
    with model.intervene([ablate(vector)]):
        assert all(
            (values(model, prompts, site).double() @ unit).abs().max() > 0.1 for site in inside
        )
    targets = ablate(vector, at="inputs_and_writes").targets(model.sites)
    assert {site.kind for site in targets} == {"resid_pre", "attn_out", "mlp_out"} and len(
        targets
    ) == 9


def test_what_steering_one_site_does_downstream(model, prompts, vector):
    mid, post = values(model, prompts, "resid_mid.1"), values(model, prompts, "resid_post.1")
    with model.intervene([steer(vector, 1.0, at=["attn_out.1"])]):
        assert close(values(model, prompts, "resid_mid.1"), mid + vector.float())
        moved = values(model, prompts, "resid_mid.1") + values(model, prompts, "mlp_out.1")
        assert close(values(model, prompts, "resid_post.1"), moved) and not close(moved, post)
    with model.intervene([steer(vector, 1.0, at=["mlp_out.1"])]):
        assert close(values(model, prompts, "resid_post.1"), post + vector.float())
        assert close(values(model, prompts, "resid_pre.2"), post + vector.float())


def test_nested_blocks_apply_outer_first(model, prompts, vector):
    away, push = ablate(vector, at=["resid_post.2"]), steer(vector, 1.0, at=["resid_post.2"])
    site, unit = "resid_post.2", vector / vector.norm()
    with model.intervene([away]), model.intervene([push]):
        along = values(model, prompts, site).double() @ unit
        assert torch.allclose(along, vector.norm().expand_as(along), atol=1e-4)
        assert model.interventions == (away, push)
    with model.intervene([push]), model.intervene([away]):
        assert (values(model, prompts, site).double() @ unit).abs().max() < 1e-5
    with model.intervene([away, push]):
        along = values(model, prompts, site).double() @ unit
        assert torch.allclose(along, vector.norm().expand_as(along), atol=1e-4)


def test_undone_also_after_an_error(model, prompts, vector):
    before = model.logits(prompts)
    with (
        pytest.raises(KeyError, match="planted"),
        model.intervene([steer(vector, 1.0, at=["resid_post.0"])]),
    ):
        assert not torch.equal(model.logits(prompts), before)
        raise KeyError("planted")
    assert model.interventions == () and torch.equal(model.logits(prompts), before)


@pytest.mark.parametrize("scope", ["all", "prompt", "response"])
@pytest.mark.parametrize("budget", [1, 40, 8192])
def test_scopes_touch_their_tokens_and_no_other(model, prompts, vector, scope, budget):
    before = values(model, prompts, "resid_post.0", batch_tokens=budget)
    with model.intervene([steer(vector, 1.0, at=["resid_post.0"], positions=scope)]):
        after = values(model, prompts, "resid_post.0", batch_tokens=budget)
    rows = model.render(prompts)
    inside = torch.cat([torch.arange(len(row.ids)) < row.prompt_end for row in rows])
    touched = {"all": torch.ones_like(inside), "prompt": inside, "response": ~inside}[scope]
    assert torch.equal(after[~touched], before[~touched])
    assert close(after[touched], before[touched] + vector.float())
    assert 0 < inside.sum() < len(inside)


def by_hand(model, ids, n, vector, scope):
    """Greedy decoding without a cache, with the vector added after block 1 by a raw hook."""
    start, new = len(ids), []

    def add(_module, _args, out):
        out = out.clone()
        part = {"all": slice(None), "prompt": slice(0, start), "response": slice(start, None)}[
            scope
        ]
        out[:, part] += vector.float()
        return out

    for _ in range(n):
        handle = model.module.model.layers[1].register_forward_hook(add)
        with torch.no_grad():
            token = int(
                model.module(torch.tensor([[*ids, *new]]), use_cache=False).logits[0, -1].argmax()
            )
        handle.remove()
        if token in model.stops.ids:
            break
        new.append(token)
    return model.tokenizer.decode(new, skip_special_tokens=True).strip()


@pytest.mark.parametrize("scope", ["all", "prompt", "response"])
def test_generation_under_an_intervention_against_a_loop_without_cache(model, vector, scope):
    prompts = PromptSet.from_texts(["w1 w2 w3 w4", "w5", "w6 w7", "w8 w9 w10", "w11 w12"])
    plain = model.generate(prompts, max_new_tokens=8, temperature=0)
    with model.intervene([steer(vector, 1.0, at=["resid_post.1"], positions=scope)]):
        found = model.generate(prompts, max_new_tokens=8, temperature=0)
        alone = model.generate(prompts, max_new_tokens=8, temperature=0, batch_tokens=1)
    assert (
        found
        == alone
        == [by_hand(model, row.ids, 8, vector, scope) for row in model.render(prompts)]
    )
    assert found != plain
    assert model.generate(prompts, max_new_tokens=8, temperature=0) == plain


def test_a_response_scope_leaves_the_first_generated_token_alone(model, vector):
    prompts = PromptSet.from_texts(["w1 w2 w3 w4", "w5"])
    first = model.generate(prompts, max_new_tokens=1, temperature=0)
    with model.intervene([steer(vector, 50.0, at=["resid_post.1"], positions="response")]):
        assert model.generate(prompts, max_new_tokens=1, temperature=0) == first
