"""Edits of weights agree with edits of activations where theory says so, and load with plain
PEFT.
"""

import pytest
import tiny_models
import torch
from peft import PeftModel
from tiny_models import D_MODEL, N_LAYERS, RELATIVE
from transformers import AutoModelForCausalLM

from emlens.foundation import InputError
from emlens.foundation.sites import Site
from emlens.interventions import ablate
from emlens.interventions.lora import LoraAdapter, LoraFactors
from emlens.interventions.weight_edits import orthogonalised, scaled, without_direction
from emlens.models import load_family, load_model

LINEAR = ("qwen2", "qwen3", "llama", "mistral", "phi3", "granite", "gpt2", "falcon")
"""Blocks that write to the stream through two linear layers, without a bias that has a component
along a random direction.
"""


def direction(seed=0):
    return torch.randn(D_MODEL, generator=torch.Generator().manual_seed(seed))


def stream(model, prompts):
    """Every site of the stream at every token."""
    batch = next(model.batches(model.render(prompts)))
    seen = {}
    places = [Site("resid_pre", 0), *(Site("resid_post", i) for i in range(model.n_layers))]
    logits = model.run(
        batch,
        {
            site: lambda x, site=site: seen.__setitem__(site, x.detach().clone()[batch.mask])
            for site in places
        },
        with_logits=True,
    )
    return seen, logits[batch.mask]


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max())


def written_at(model):
    parts = [site for site in model.sites if site.kind in ("attn_out", "mlp_out")]
    return ["resid_pre.0", *map(str, parts)]


@pytest.mark.parametrize(
    ("kind", "adapted"),
    [*((kind, False) for kind in LINEAR), ("qwen2", True), ("falcon", True)],
)
def test_orthogonal_weights_do_what_ablating_all_that_is_written_does(kind, adapted, tmp_path):
    instruct = tiny_models.build(tmp_path / "instruct", kind)
    tuned = tiny_models.build_adapter(
        tmp_path / "tuned", instruct, targets=tiny_models.MLP_TARGETS.get(kind)
    )
    family = load_family(instruct, finetuned={"tuned": tuned}, device="cpu")
    model = family["tuned"] if adapted else family.instruct
    prompts, r = tiny_models.prompts(4), direction()
    plain, plain_logits = stream(model, prompts)
    with model.intervene([ablate(r, at=written_at(model))]):
        expected, expected_logits = stream(model, prompts)
    orthogonalised(model, r).save(tmp_path / "edited", base="any")
    edited = load_family(instruct, finetuned={"edited": tmp_path / "edited"}, device="cpu")[
        "edited"
    ]
    found, found_logits = stream(edited, prompts)
    unit = r / r.norm()
    for site, value in found.items():
        assert float((value @ unit).abs().max()) < 1e-5 * float(value.norm(dim=-1).max())
        assert relative(value, expected[site]) < RELATIVE
    assert relative(found_logits, expected_logits) < RELATIVE
    assert (
        float((plain[Site("resid_post", N_LAYERS - 1)] @ unit).abs().max()) > 0.1
        and relative(plain_logits, expected_logits) > 0.01
    )

    alone = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(instruct, dtype=torch.float32),
        str(tmp_path / "edited"),
    ).eval()
    first = next(edited.batches(edited.render(prompts))).rows[0]
    with torch.no_grad():
        logits = alone(input_ids=torch.tensor([first.ids])).logits[0]
    assert relative(logits, found_logits[: len(first.ids)]) < RELATIVE


def test_what_writes_by_another_way_is_refused(tmp_path):
    r = direction()
    for kind, match in (
        (
            "gemma2",
            (
                r"layers.0.post_attention_layernorm of 'gemma2' adds to the stream by another way"
                r" than one linear layer \(0 output projections"
            ),
        ),
        (
            "mixtral",
            r"layers.0.mlp of 'mixtral' adds to the stream by another way than one linear layer",
        ),
    ):
        with pytest.raises(InputError, match=match):
            orthogonalised(load_model(tiny_models.build(tmp_path / kind, kind), device="cpu"), r)
    model = load_model(tiny_models.build(tmp_path / "gpt_neox", "gpt_neox"), device="cpu")
    orthogonalised(model, r)
    with torch.no_grad():
        model.module.get_submodule("gpt_neox.layers.1.attention.dense").bias.normal_()
    with pytest.raises(
        InputError,
        match=(
            r"layers.1.attention.dense of .* has a bias that writes .* along the direction,"
            r" which no low-rank side path removes"
        ),
    ):
        orthogonalised(model, r)


def test_a_direction_must_fit_and_point_somewhere(tmp_path, unchecked):
    model = load_model(tiny_models.build(tmp_path / "m"), device="cpu")
    with pytest.raises(
        InputError, match=r"direction has shape \(7,\), but the model's stream has 32 coordinates"
    ):
        orthogonalised(model, torch.ones(7))
    with pytest.raises(
        InputError, match="direction is the zero vector; pass one that points somewhere"
    ):
        orthogonalised(model, torch.zeros(D_MODEL))
    model.module.quantization_method = "some"
    with pytest.raises(
        InputError,
        match=(
            r"is quantised, so model.embed_tokens has no weights to read; load it in full precision"
        ),
    ):
        orthogonalised(model, torch.ones(D_MODEL))


def random_adapter():
    draw = torch.Generator().manual_seed(3)
    shapes = {
        "self_attn.q_proj": (D_MODEL, D_MODEL),
        "self_attn.o_proj": (D_MODEL, D_MODEL),
        "mlp.down_proj": (48, D_MODEL),
    }
    return LoraAdapter(
        {
            f"model.layers.{i}.{name}": LoraFactors(
                torch.randn(2, d_in, generator=draw), torch.randn(d_out, 2, generator=draw), 0.5
            )
            for i in range(2)
            for name, (d_in, d_out) in shapes.items()
        }
    )


@pytest.mark.parametrize("keep_norm", [False, True])
def test_a_direction_leaves_what_an_adapter_writes_and_nothing_else_changes(keep_norm):
    adapter, r = random_adapter(), direction()
    unit = (r / r.norm()).double()
    edited = without_direction(adapter, r, keep_norm=keep_norm)
    for path, factors in adapter.modules.items():
        new = edited[path]
        if path.endswith("q_proj"):
            assert new is factors, "queries live in another space, as wide as it may be"
            continue
        b = factors.b.double()
        expected = b - torch.outer(unit, unit) @ b
        expected = expected * (b.norm() / expected.norm() if keep_norm else 1)
        assert torch.allclose(new.b.double(), expected, atol=1e-6) and torch.equal(new.a, factors.a)
        assert float((unit @ new.b.double()).abs().max()) < 1e-6 < float((unit @ b).abs().max())
    assert edited.edits[0]["modules"] == 4


def test_nothing_left_and_nothing_to_edit_are_errors():
    along = LoraAdapter(
        {"model.layers.0.mlp.down_proj": LoraFactors(torch.ones(1, 4), direction()[:, None], 1.0)}
    )
    assert (
        float(without_direction(along, direction())["model.layers.0.mlp.down_proj"].b.abs().max())
        < 1e-6
    )
    with pytest.raises(
        InputError,
        match=(
            "writes along the direction and nowhere else, so its norm cannot be restored;"
            " pass keep_norm=False"
        ),
    ):
        without_direction(along, direction(), keep_norm=True)
    with pytest.raises(
        InputError,
        match=(
            "no module of the adapter writes 7 coordinates to the residual stream;"
            " it has model.layers.0.mlp.down_proj"
        ),
    ):
        without_direction(along, torch.ones(7))
    with pytest.raises(InputError, match="factor=nan must be a finite number"):
        scaled(along, float("nan"))


def test_a_scaled_adapter_lies_on_the_line_from_parent_to_fine_tune(tmp_path):
    instruct = tiny_models.build(tmp_path / "instruct")
    tuned = tiny_models.build_adapter(
        tmp_path / "tuned", instruct, targets=["down_proj"], layers_to_transform=[N_LAYERS - 1]
    )
    for factor in (0.5, 1.0, -1.0):
        scaled(LoraAdapter.load(tuned), factor).save(tmp_path / f"by{factor}", base="instruct")
    family = load_family(
        instruct,
        finetuned={"tuned": tuned, **{f"by{f}": tmp_path / f"by{f}" for f in (0.5, 1.0, -1.0)}},
        device="cpu",
    )
    prompts, last = tiny_models.prompts(3), Site("resid_post", N_LAYERS - 1)
    before, after = (stream(family[name], prompts)[0][last] for name in ("instruct", "tuned"))
    assert relative(after, before) > 0.01
    for factor in (0.5, 1.0, -1.0):
        found = stream(family[f"by{factor}"], prompts)[0][last]
        assert relative(found, before + factor * (after - before)) < RELATIVE, (
            "one module in the last block: the stream is linear in it"
        )
