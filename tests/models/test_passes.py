import pytest
import torch
from torch import nn

from emlens.foundation import Site, StateError
from emlens.interventions import ablate, steer
from emlens.models import load_model
from emlens.models.batches import pad
from emlens.models.passes import Pass

AT = Site("attn_out", 1)


@pytest.fixture
def batch(model, prompts):
    rows = model.render(prompts)[:2]
    return pad(rows, range(len(rows)), 0, "right", torch.device("cpu"))


def test_edits_come_before_readers_and_outer_before_inner(batch):
    stream, up = torch.randn(*batch.ids.shape, 4), torch.eye(4)[0]
    seen = []
    passing = Pass(
        batch.padded_rows(),
        {AT: [ablate(up), steer(up, 3.0)]},
        {AT: lambda x: seen.append(x.clone())},
    )
    value = passing.at(AT, stream)
    assert torch.equal(seen[0], value)
    ahead = value[batch.mask][:, 0]
    torch.testing.assert_close(ahead, torch.full_like(ahead, 3.0))  # to rounding of the product
    assert torch.equal(value[~batch.mask], stream[~batch.mask])
    other = Pass(batch.padded_rows(), {AT: [steer(up, 3.0), ablate(up)]}, {}).at(AT, stream)
    assert (other[batch.mask][:, 0].abs() < 1e-6).all()


def test_nothing_edited_is_the_same_tensor(batch):
    stream = torch.randn(*batch.ids.shape, 4)
    assert (
        Pass(batch.padded_rows(), {}, {AT: lambda x: None}, multiplier=0.5).at(AT, stream) is stream
    )


def test_a_multiplier_belongs_to_what_is_added(batch):
    """A model adds multiplier × output: readers see the product, and a steering vector arrives in
    the stream unscaled.
    """
    stream, up = torch.randn(*batch.ids.shape, 4), torch.eye(4)[0]
    seen = []
    Pass(batch.padded_rows(), {}, {AT: lambda x: seen.append(x)}, multiplier=0.25).at(AT, stream)
    assert torch.equal(seen[0], 0.25 * stream)
    changed = Pass(batch.padded_rows(), {AT: [steer(up, 1.0)]}, {}, multiplier=0.25).at(AT, stream)
    assert torch.allclose(0.25 * changed[batch.mask], 0.25 * stream[batch.mask] + up)
    post = Site("resid_post", 1)
    Pass(batch.padded_rows(), {}, {post: lambda x: seen.append(x)}, multiplier=0.25).at(
        post, stream
    )
    assert torch.equal(seen[1], stream)


def test_later_steps_of_a_generation_hold_new_tokens_only(batch):
    up, batch = torch.eye(4)[0], pad(batch.rows, range(2), 0, "left", torch.device("cpu"))
    for scope, expected in (("all", 1.0), ("prompt", 0.0), ("response", 1.0)):
        passing = Pass(batch.padded_rows(2), {AT: [steer(up, 1.0, positions=scope)]}, {})
        passing.at(AT, torch.zeros(*batch.ids.shape, 4))
        assert (passing.at(AT, torch.zeros(2, 1, 4))[..., 0] == expected).all()


def test_a_generation_without_memory_is_refused(batch):
    passing = Pass(batch.padded_rows(2), {AT: [steer(torch.eye(4)[0], 1.0)]}, {})
    passing.at(AT, torch.zeros(*batch.ids.shape, 4))
    with pytest.raises(
        StateError,
        match=(
            r"site attn_out.1 saw 22 tokens where 13 were to come;"
            r" the model does not keep its past while it generates"
        ),
    ):
        passing.at(AT, torch.zeros(*batch.ids.shape, 4))


def test_tokens_that_are_not_touched_keep_their_bits_under_a_multiplier(batch):
    stream, up = torch.randn(*batch.ids.shape, 4), torch.eye(4)[0]
    passing = Pass(
        batch.padded_rows(), {AT: [steer(up, 1.0, positions="last_prompt")]}, {}, multiplier=0.3
    )
    assert (passing.at(AT, stream) != stream).any(-1).sum(1).tolist() == [1, 1]


def test_edits_on_the_same_tokens_become_one(batch):
    up, calls = torch.eye(4)[0], []
    same = Pass(batch.padded_rows(), {AT: [ablate(up), steer(up, 3.0), ablate(-up)]}, {})
    apart = Pass(
        batch.padded_rows(), {AT: [ablate(up), steer(up, 3.0, positions="prompt"), ablate(-up)]}, {}
    )
    for passing in (same, apart):
        calls.append(len(passing._edits[AT]))
        stream = torch.randn(*batch.ids.shape, 4)
        assert (passing.at(AT, stream)[batch.mask][:, 0].abs() < 1e-6).all()
    assert calls == [1, 3]


def test_a_site_reached_twice_in_one_pass_is_refused(files, prompts):
    model = load_model(files / "instruct")

    class Twice(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x) + self.inner(x)

    model.module.model.layers[1].mlp = Twice(model.module.model.layers[1].mlp)
    model._place = lambda site, found=model._place: (
        ("model.layers.1.mlp.inner", False) if site == Site("mlp_out", 1) else found(site)
    )
    batch = next(model.batches(model.render(prompts)))
    with pytest.raises(
        StateError,
        match=r"site mlp_out.1 was reached twice in one pass; the module there runs more than once",
    ):
        model.run(
            batch, {Site("mlp_out", 1): lambda x: None, Site("resid_post", 1): lambda x: None}
        )


def test_where_a_pass_may_stop(batch):
    deep, deeper = Site("resid_post", 0), Site("resid_post", 2)
    passing = Pass(
        batch.padded_rows(),
        {AT: [], deeper: []},
        {deep: lambda x: None, AT: lambda x: None},
        stop_early=True,
    )
    assert passing.sites == (deep, AT) and passing.ends_at(AT) and not passing.ends_at(deep)
    whole = Pass(batch.padded_rows(), {deeper: []}, {deep: lambda x: None})
    assert whole.sites == (deep, deeper) and not whole.ends_at(deeper)
