import pytest
import torch
from tiny_models import D_MODEL, close

from emlens.activations import CaptureSpec, capture
from emlens.data import PromptSet
from emlens.foundation import InputError, Intervention, Site
from emlens.foundation.intervention import PaddedRows
from emlens.foundation.positions import RowSpans
from emlens.interventions import ablate, mean_ablate, resample_ablate, steer

SITE = "resid_post.1"


@pytest.fixture
def vector():
    return torch.randn(D_MODEL, generator=torch.Generator().manual_seed(2))


def tokens(model, prompts, site=SITE, **options):
    spec = CaptureSpec(site, positions="all", **options)
    return capture(model, prompts, spec=spec, progress=False).tokens(site)


def test_a_mean_stands_at_every_touched_token(model, prompts, vector):
    before = tokens(model, prompts).values
    assert before.std(0).max() > 0.1
    with model.intervene([mean_ablate({SITE: vector})]):
        assert torch.equal(tokens(model, prompts).values, vector.expand_as(before))
        left = model.logits(prompts)
    assert not torch.equal(left, model.logits(prompts))
    # nothing of the prompt gets past a mean at every token, only its length would
    assert close(left[0], left[-1])


def test_a_mean_along_a_direction_is_affine_ablation(model, prompts, vector):
    mean = tokens(model, prompts).values.mean(0)
    with model.intervene([mean_ablate({SITE: mean}, direction=vector)]):
        one = tokens(model, prompts).values
    with model.intervene([ablate(vector, at=[SITE], baseline=mean)]):
        two = tokens(model, prompts).values
    assert close(one, two) and not close(one, tokens(model, prompts).values, 1e-3)


def test_resampled_rows_are_donors_drawn_alike_in_any_batch(model, prompts):
    donors = {"resid_post.0": torch.randn(7, D_MODEL), SITE: torch.randn(7, D_MODEL)}
    found = []
    for budget in (1, 40, 8192):
        with model.intervene([resample_ablate(donors, seed=3, positions="response")]):
            found.append(
                {site: tokens(model, prompts, site, batch_tokens=budget) for site in donors}
            )
    rows = model.render(prompts)
    inside = torch.cat([torch.arange(len(row.ids)) >= row.prompt_end for row in rows])
    which = {}
    for site, pool in donors.items():
        placed = found[0][site].values[inside]
        assert all(torch.equal(other[site].values[inside], placed) for other in found)
        same = (placed[:, None] == pool).all(-1)
        assert (same.sum(1) == 1).all()
        which[site] = same.int().argmax(1)
    # one donor serves all sites
    assert torch.equal(which["resid_post.0"], which[SITE]) and len(set(which[SITE].tolist())) > 3
    with model.intervene([resample_ablate(donors, seed=4, positions="response")]):
        assert not torch.equal(tokens(model, prompts).values[inside], found[0][SITE].values[inside])


def test_one_donor_a_prompt(model, prompts):
    pool = torch.randn(50, D_MODEL)
    with model.intervene([resample_ablate({SITE: pool}, seed=0, per="prompt")]):
        found = tokens(model, prompts)
    rows = [found.values[a:b] for a, b in zip(found.offsets[:-1], found.offsets[1:], strict=True)]
    assert (
        all((row == row[0]).all() for row in rows)
        and len({tuple(row[0].tolist()) for row in rows}) > 3
    )


def test_a_longer_row_draws_the_same_and_goes_on():
    edit = resample_ablate({SITE: torch.randn(1000, 4)}, seed=0)
    long = edit.donor_rows("a", 700, 1000)
    assert all((edit.donor_rows("a", n, 1000) == long[:n]).all() for n in (1, 2, 3, 16, 17, 699))
    assert (edit.donor_rows("b", 700, 1000) != long).mean() > 0.9


def test_samples_of_one_prompt_take_donors_of_their_own(model):
    """Rows of equal tokens may not share a first pass where the edit depends on the id."""
    asked = PromptSet.from_texts(["w1 w2 w3"] * 6)
    strong = resample_ablate(
        {SITE: 9 * torch.randn(40, D_MODEL)}, seed=1, per="prompt", positions="last_prompt"
    )
    with model.intervene([strong]):
        together = model.generate(asked, max_new_tokens=4, temperature=0)
        alone = model.generate(asked, max_new_tokens=4, temperature=0, batch_tokens=1)
    assert together == alone and len(set(together)) > 1
    assert len(set(model.generate(asked, max_new_tokens=4, temperature=0))) == 1


def test_generated_tokens_are_replaced_too(model, vector):
    asked = PromptSet.from_texts(["w1 w2 w3", "w4"])
    donors = {SITE: 9 * torch.randn(40, D_MODEL)}
    with model.intervene([resample_ablate(donors, seed=1, positions="response")]):
        found = model.generate(asked, max_new_tokens=6, temperature=0)
        assert found == model.generate(asked, max_new_tokens=6, temperature=0, batch_tokens=1)
        assert model.generate(asked, max_new_tokens=1, temperature=0) == [
            answer.split()[0] if answer else "" for answer in found
        ]
    assert found != model.generate(asked, max_new_tokens=6, temperature=0)


def test_records_and_protocol(vector):
    rows = PaddedRows(("a",), ((1, 2),), (RowSpans(2, 2),), (0,), 2)
    for made in (mean_ablate({SITE: vector}), resample_ablate({SITE: vector[None]}, seed=0)):
        assert isinstance(made, Intervention) and made.d_model == D_MODEL
        assert torch.equal(
            made.bind(Site.parse(SITE), rows)(torch.zeros(1, 2, D_MODEL), None),
            vector.expand(1, 2, -1),
        )
    assert (
        mean_ablate({SITE: vector}).by_prompt,
        resample_ablate({SITE: vector[None]}, seed=0).by_prompt,
    ) == (False, True)


def test_what_does_not_fit(model, vector, unchecked):
    def refused(match, make, *arguments, **options):
        with pytest.raises(InputError, match=match):
            make(*arguments, **options)

    refused("means is empty; pass a mapping from sites to tensors", mean_ablate, {})
    refused("means is a Tensor; pass a mapping from sites to tensors", mean_ablate, vector)
    refused(
        r"means\['resid_post.1'\] has shape \(1, 32\); pass one vector of shape \(d_model,\)",
        mean_ablate,
        {SITE: vector[None]},
    )
    refused(
        "means names site resid_post.1 twice; pass it once",
        mean_ablate,
        {SITE: vector, "blocks.1.hook_resid_post": vector},
    )
    refused(
        r"means holds vectors of \[3, 32\] coordinates; pass vectors of one residual stream",
        mean_ablate,
        {SITE: vector, "resid_post.0": vector[:3]},
    )
    refused(
        "direction has 3 coordinates, but the values have 32",
        mean_ablate,
        {SITE: vector},
        direction=vector[:3],
    )
    refused(
        r"donors\['resid_post.1'\] has shape \(32,\); pass rows of activations",
        resample_ablate,
        {SITE: vector},
        seed=0,
    )
    refused(
        r"donors have \[1, 2\] rows at different sites",
        resample_ablate,
        {SITE: vector[None], "resid_post.0": torch.ones(2, 32)},
        seed=0,
    )
    refused(
        "per='row' is unknown; pass 'token' or 'prompt'",
        resample_ablate,
        {SITE: vector[None]},
        seed=0,
        per="row",
    )
    refused(
        "seed=-1 must be an integer of 0 or more", resample_ablate, {SITE: vector[None]}, seed=-1
    )
    match = "mean_ablate holds nothing for site resid_post.0; it has resid_post.1"
    with (
        pytest.raises(InputError, match=match),
        model.intervene([mean_ablate({SITE: vector}, at="all_layers")]),
    ):
        pass
    wide = "interventions holds one whose vectors have 3 coordinates, but the model's stream has 32"
    with pytest.raises(InputError, match=wide), model.intervene([mean_ablate({SITE: vector[:3]})]):
        pass


def test_a_baseline_for_each_site(model, prompts, vector):
    unit = vector.double() / vector.double().norm()
    means = {
        f"resid_post.{i}": tokens(model, prompts, f"resid_post.{i}").values.mean(0)
        for i in range(3)
    }
    with model.intervene([ablate(vector, baseline=means)]):
        for site, mean in means.items():
            along = tokens(model, prompts, site).values.double() @ unit
            assert torch.allclose(along, (mean.double() @ unit).expand_as(along), atol=1e-4)
    edit = ablate(vector, baseline=means)
    at_mean = means[SITE].expand(1, 2, -1)
    assert close(edit.apply(at_mean, site=SITE), at_mean, 1e-6)
    with pytest.raises(InputError, match="baseline differs by site; pass site="):
        edit.apply(at_mean)
    with pytest.raises(
        InputError,
        match=(
            "baseline holds nothing for site attn_out.0;"
            " it has resid_post.0, resid_post.1, resid_post.2"
        ),
    ):
        ablate(vector, at=["attn_out.0"], baseline=means).targets(model.sites)
    with pytest.raises(
        InputError, match="baseline is one vector, but at names the stream and what is added to it"
    ):
        ablate(vector, at="inputs_and_writes", baseline=means[SITE]).targets(model.sites)


def test_steering_a_single_token(model, prompts, vector):
    before = tokens(model, prompts)
    with model.intervene([steer(vector, 1.0, at=[SITE], positions="last_prompt")]):
        after = tokens(model, prompts)
    moved = (after.values != before.values).any(-1).nonzero().flatten()
    rows = model.render(prompts)
    assert moved.tolist() == [
        int(a) + row.prompt_end - 1 for a, row in zip(before.offsets, rows, strict=False)
    ]
    assert close(after.values[moved], before.values[moved] + vector)
