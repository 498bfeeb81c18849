import json

import pytest
import torch
from tiny_models import D_MODEL

from emlens.activations import capture
from emlens.foundation import Index, InputError, IntegrityError, Site, Span
from emlens.foundation.intervention import Edit
from emlens.geometry import Direction, top_k_subspace
from emlens.interventions import (
    ablate,
    load_interventions,
    mean_ablate,
    resample_ablate,
    save_interventions,
    steer,
    swap,
)
from emlens.interventions.saving import intervention_from_record, intervention_to_record


@pytest.fixture
def every(model, prompts):
    u, v = torch.randn(2, D_MODEL, generator=torch.Generator().manual_seed(0))
    run = capture(model, prompts, ["attn_out.1", "resid_post.1"], progress=False)
    means = {site: run[site].mean(0) for site in run.sites}
    return [
        ablate(Direction(u, Site("resid_post", 1))),
        ablate(
            top_k_subspace(torch.randn(9, D_MODEL), k=2, center=False),
            at="inputs_and_writes",
            positions="prompt",
        ),
        ablate(u, at=["resid_post.-1", Site("final_norm")], baseline=v),
        ablate(u, at=list(means), baseline=means),
        steer(u, -1.5, unit="resid_norm", at="all_layers", positions=Index(-1, of="prompt")),
        steer(
            Direction(v, Site("attn_out", 0)),
            2.0,
            positions=Span(1, None, of="prompt", skip_first=1),
        ),
        mean_ablate(means, positions="response"),
        mean_ablate(
            {site: x.bfloat16() for site, x in means.items()}, at=["resid_post.1"], direction=u
        ),
        resample_ablate({site: run[site] for site in run.sites}, seed=5, per="prompt"),
        swap(run, source=dict.fromkeys(prompts.ids, prompts.ids[0])),
    ]


def test_what_is_read_back_is_what_was_written(model, prompts, every, tmp_path):
    save_interventions(tmp_path / "a", every)
    back = load_interventions(tmp_path / "a")
    assert [made.describe() for made in back] == json.loads(
        json.dumps([made.describe() for made in every])
    )
    for one, two in zip(every, back, strict=True):
        assert type(one) is type(two) and one.targets(model.sites) == two.targets(model.sites)
        with model.intervene([one]):
            expected = model.logits(prompts)
        with model.intervene([two]):
            assert torch.equal(model.logits(prompts), expected)
    save_interventions(tmp_path / "b", back)
    assert all(
        (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        for name in ("interventions.json", "interventions.safetensors")
    )


def test_through_plain_json(every):
    for one in every:
        record, tensors = intervention_to_record(one)
        back = intervention_from_record(json.loads(json.dumps(record)), tensors)
        assert back.describe() == json.loads(json.dumps(one.describe()))


def test_every_tensor_is_in_the_record():
    u = torch.ones(4)
    made = (
        ablate(u),
        ablate(u, baseline=u),
        ablate(u, baseline=2 * u),
        ablate(u, at=[]),
        steer(u, 1.0, at=[]),
        steer(u, 2.0, at=[]),
    )
    seen = {json.dumps(one.describe()) for one in made}
    assert len(seen) == 6


def test_what_cannot_be_written_or_read(every, tmp_path, unchecked):
    class Own(Edit):
        positions = "all"

        def __call__(self, activation, mask):
            return activation

    with pytest.raises(
        InputError,
        match=(
            "cannot write down a Own; pass what ablate, steer, mean_ablate,"
            " resample_ablate or swap returned"
        ),
    ):
        intervention_to_record(Own())
    with pytest.raises(
        InputError,
        match=(
            r"position chosen\[<lambda>\] is a callable, which cannot be written down; pass Index"
        ),
    ):
        save_interventions(tmp_path, [ablate(torch.ones(4), positions=lambda ids, mask: mask)])
    record, tensors = intervention_to_record(every[0])
    with pytest.raises(
        InputError,
        match=(
            "record is of kind 'melt'; pass one of ablate, steer, mean_ablate, resample_ablate,"
            " swap"
        ),
    ):
        intervention_from_record({**record, "kind": "melt"}, tensors)
    with pytest.raises(
        InputError,
        match=(
            r"record of kind 'ablate' cannot be read \(TypeError: .*\); pass one that emlens wrote"
        ),
    ):
        intervention_from_record({**record, "positions": {"callable": "x"}}, tensors)
    with pytest.raises(
        InputError,
        match=(
            r"record of kind 'ablate' cannot be read \(KeyError: 'own_site'\);"
            r" pass one that emlens wrote"
        ),
    ):
        intervention_from_record(
            {name: value for name, value in record.items() if name != "own_site"}, tensors
        )
    with pytest.raises(
        IntegrityError,
        match=(
            "the tensors beside a record of kind 'ablate' are not those it describes; save it again"
        ),
    ):
        intervention_from_record(record, {"basis": 2 * tensors["basis"]})
    saved = save_interventions(tmp_path / "s", every[:1])
    weights = saved / "interventions.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-3])
    with pytest.raises(
        IntegrityError, match="not readable as safetensors .*; save the interventions again"
    ):
        load_interventions(saved)
    weights.unlink()
    with pytest.raises(InputError, match="interventions.safetensors: no such file"):
        load_interventions(saved)
    (saved / "interventions.json").write_text("{}")
    with pytest.raises(
        InputError,
        match=(
            "interventions.json: not interventions saved by emlens;"
            " pass a directory written by save_interventions"
        ),
    ):
        load_interventions(saved)
