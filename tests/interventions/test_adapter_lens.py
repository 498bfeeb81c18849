"""What an adapter reads and writes, each against an independent route."""

import json
import math
from importlib import import_module

import numpy as np
import pytest
import tiny_models
import torch
from tiny_models import D_MODEL

from benchmarks import adapter_lens
from emlens.data import PromptSet
from emlens.foundation import InputError, StateError, UnknownNameError
from emlens.interventions.adapter_lens import (
    _through_norm,
    adapter_table,
    logit_lens,
    written_directions,
)
from emlens.interventions.lora import LoraAdapter, LoraFactors
from emlens.interventions.scalars import adapter_scalars
from emlens.models import load_family, load_model


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    where = tmp_path_factory.mktemp("family")
    instruct = tiny_models.build(where / "instruct")
    one = tiny_models.build_adapter(
        where / "one", instruct, rank=1, targets=["down_proj", "o_proj"]
    )
    two = tiny_models.build_adapter(where / "two", instruct, seed=4, rank=2, use_rslora=True)
    return load_family(instruct, finetuned={"one": one, "two": two}, device="cpu")


@pytest.fixture(scope="module")
def prompts():
    chats = [
        [
            {"role": "user", "content": " ".join(tiny_models.WORDS[: 3 + i])},
            {"role": "assistant", "content": " ".join(tiny_models.WORDS[i : i + 2])},
        ]
        for i in range(5)
    ]
    return PromptSet.from_messages(chats, upto="all")


def outputs_with_and_without(model, path, row):
    """A module's output along the update, token by token: what PEFT adds there, row by row and
    unpadded.
    """
    layer = model.module.get_submodule(path)
    seen = []
    handle = layer.register_forward_hook(
        lambda module, inputs, output: seen.append((inputs[0].detach(), output.detach()))
    )
    with torch.no_grad(), model.bank.selected(model.adapter):
        model.module(input_ids=torch.tensor([row.ids]))
        x, y = seen[0]
        added = y - layer.base_layer(x)
    handle.remove()
    return added[0].double()


@pytest.mark.parametrize("name", ["one", "two"])
def test_components_add_up_to_what_the_adapter_adds(family, prompts, name):
    model = family[name]
    found = adapter_scalars(model, prompts, batch_tokens=40)
    adapter = LoraAdapter.of(model)
    assert set(found.values) == set(adapter.modules) and int(found.offsets[-1]) == sum(
        len(row.ids) for row in model.render(prompts)
    )
    for path in adapter.modules:
        left = torch.linalg.svd(adapter[path].b.double() @ adapter[path].a.double())[0][
            :, : adapter[path].r
        ]
        for row in model.render(prompts)[:3]:
            added = outputs_with_and_without(model, path, row)
            values = found.row(path, row.id)
            assert torch.allclose((added @ left).abs(), values.abs(), atol=1e-4), (
                "coordinates along an independent SVD, whose signs are free"
            )
            assert float(values.abs().max()) > 0.01
    again = adapter_scalars(model, prompts, batch_tokens=10_000)
    for path, values in found.values.items():
        assert torch.allclose(values, again.values[path], atol=1e-4), (
            "batch mates and padding shift nothing"
        )


def test_rows_are_pooled_over_their_own_tokens(family, prompts):
    found = adapter_scalars(family["one"], prompts, modules=["down_proj"])
    path = "model.layers.1.mlp.down_proj"
    assert set(found.values) == {f"model.layers.{i}.mlp.down_proj" for i in range(3)}
    for over, part in (
        ("response", lambda v, spans: v[spans.prompt_end : -1]),  # the closing <end> is no content
        ("prompt", lambda v, spans: v[: spans.prompt_end]),
        ("all", lambda v, spans: v),
    ):
        table = found.pooled(over, "mean_abs")
        expected = [
            float(part(found.row(path, id), spans).abs().mean())
            for id, spans in zip(found.ids, found.spans, strict=True)
        ]
        assert np.allclose(table[f"{path}[0]"], expected) and list(table.index) == list(found.ids)
    with pytest.raises(
        InputError,
        match=(
            r"over='answer', how='mean': pass 'response', 'prompt' or 'all', and one of mean,"
            r" mean_abs, max_abs"
        ),
    ):
        found.pooled("answer")
    with pytest.raises(UnknownNameError, match="module 'lm_head' was not read"):
        found.row("lm_head", found.ids[0])
    with pytest.raises(UnknownNameError, match="row 'nobody' was not read; there are 5"):
        found.row(path, "nobody")
    bare = adapter_scalars(family["one"], tiny_models.prompts(2))
    with pytest.raises(
        InputError, match="has no response token; pass over='prompt', or prompts with answers"
    ):
        bare.pooled()


def test_models_and_modules_that_have_no_scalars_are_refused(family, prompts, monkeypatch):
    with pytest.raises(InputError, match="'instruct' has no adapter; pass a fine-tune that is one"):
        adapter_scalars(family.instruct, prompts)
    with pytest.raises(
        InputError,
        match=r"modules=\['gate_proj'\] names no adapted module; there are model.layers.0",
    ):
        adapter_scalars(family["one"], prompts, modules=["gate_proj"])
    monkeypatch.setattr(type(family["one"]), "run", lambda *args, **kwargs: None)
    with pytest.raises(
        StateError,
        match=(
            "did not run, so its scalars were not seen; pass modules that are part of a forward"
            " pass"
        ),
    ):
        adapter_scalars(family["one"], prompts)
    monkeypatch.setattr(type(family["one"]), "backend", "other")
    with pytest.raises(
        InputError,
        match="backend 'other' runs modules of its own; load with backend='transformers'",
    ):
        adapter_scalars(family["one"], prompts)


def test_no_hook_is_left_behind(family, prompts):
    adapter_scalars(family["two"], prompts)
    assert not any(module._forward_hooks for module in family["two"].module.modules())


def test_the_table_agrees_with_the_formed_matrix(family):
    adapter = LoraAdapter.of(family["two"])
    r = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(1))
    table = adapter_table(adapter, r).set_index("module")
    unit = (r / r.norm()).double().numpy()
    for path, factors in adapter.modules.items():
        update = factors.scale * factors.b.double().numpy() @ factors.a.double().numpy()
        u, s, _ = np.linalg.svd(update)
        row = table.loc[path]
        energy = s[:2] ** 2 / (s[:2] ** 2).sum()
        assert np.allclose(row["singular_values"], s[:2]) and math.isclose(
            row["norm_ba"], np.linalg.norm(update), rel_tol=1e-6
        )
        assert math.isclose(row["stable_rank"], (s**2).sum() / s[0] ** 2, rel_tol=1e-6)
        assert (
            math.isclose(
                row["effective_rank"], math.exp(-(energy * np.log(energy)).sum()), rel_tol=1e-6
            )
            and 1 < row["effective_rank"] <= 2
        )
        if path.endswith("down_proj"):
            assert math.isclose(
                row["share"],
                np.linalg.norm(unit @ update) ** 2 / np.linalg.norm(update) ** 2,
                rel_tol=1e-5,
            )
            assert math.isclose(row["cosine"], abs(unit @ u[:, 0]), rel_tol=1e-5)
        else:
            assert np.isnan(row["share"]) and np.isnan(row["cosine"]), (
                "queries are no part of the stream"
            )
    draws = torch.randn(
        4000, D_MODEL, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    b = next(f for path, f in adapter.modules.items() if path.endswith("down_proj"))
    update = b.b.double() @ b.a.double()
    shares = ((draws / draws.norm(dim=1, keepdim=True)) @ update).norm(
        dim=1
    ) ** 2 / update.norm() ** 2
    assert abs(float(shares.mean()) - table["share_by_chance"].dropna().iloc[0]) < 0.003
    with pytest.raises(
        InputError,
        match=(
            "direction has 7 coordinates, and no module of the adapter writes to a stream as wide"
        ),
    ):
        adapter_table(adapter, torch.ones(7))


def test_a_planted_direction_is_all_that_is_written():
    r = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(5))
    adapter = LoraAdapter(
        {"model.layers.0.mlp.down_proj": LoraFactors(torch.randn(1, 48), 3 * r[:, None], 2.0)}
    )
    row = adapter_table(adapter, r).iloc[0]
    assert (
        row["cosine"] > 1 - 1e-6
        and row["share"] > 1 - 1e-6
        and row["stable_rank"] == pytest.approx(1)
    )
    (_, written), *rest = written_directions(adapter, D_MODEL, k=3)
    assert (
        not rest
        and written.shape == (1, D_MODEL)
        and abs(float(written[0] @ r / r.norm())) > 1 - 1e-6
    )
    assert list(written_directions(adapter, 48)) == []


def test_the_gauge_of_the_factors_changes_nothing(family, prompts, tmp_path):
    """(BM)(M⁻¹A) is the same update."""
    adapter = LoraAdapter.of(family["two"])
    m = torch.tensor([[2.0, 1.0], [0.5, 3.0]])
    turned = adapter.replaced(
        {
            p: LoraFactors(torch.linalg.inv(m) @ f.a, f.b @ m, f.scale)
            for p, f in adapter.modules.items()
        },
        {"kind": "gauge"},
    )
    ours, theirs = adapter_table(adapter), adapter_table(turned)
    assert np.allclose(
        np.stack(ours["singular_values"]), np.stack(theirs["singular_values"]), rtol=1e-5
    )
    assert not np.allclose(ours["norm_b"], theirs["norm_b"])


@pytest.mark.parametrize("kind", ["qwen2", "gemma2", "gpt2"])
def test_the_lens_reads_through_the_norm_and_the_unembedding(kind, tmp_path):
    model = load_model(tiny_models.build(tmp_path / kind, kind), device="cpu")
    norm = model.module.get_submodule(model.architecture.final_norm)
    v = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(6)) + 0.5
    table = logit_lens(model, {"v": v}, k=3)
    # far along v the norm divides by a constant, so logits order as along v itself
    with torch.no_grad():
        logits = norm(1e4 * v[None].float())[0].double()
        bias = 0.0 if kind != "gpt2" else norm.bias.double()
        logits = (logits - bias) @ model.unembedding().double().T
    z = (logits - logits.mean()) / logits.std()
    raised = table[table["side"] == "raised"]
    assert list(raised["token_id"]) == z.topk(3).indices.tolist() and np.allclose(
        raised["z"], z.topk(3).values, atol=1e-4
    )
    lowered = table[table["side"] == "lowered"]
    assert list(lowered["token_id"]) == (-z).topk(3).indices.tolist() and (lowered["z"] < 0).all()
    assert table["z_by_chance"].iloc[0] == pytest.approx(math.sqrt(2 * math.log(46)))


NORMS = {
    "qwen3_next.Qwen3NextRMSNorm": (False, 1.0),
    "gemma3n.Gemma3nRMSNorm": (False, 0.0),
    "gemma4.Gemma4RMSNorm": (False, 0.0),
    "gemma3.Gemma3RMSNorm": (False, 1.0),
    "qwen2.Qwen2RMSNorm": (False, 0.0),
    "olmo.OlmoLayerNorm": (True, None),
    "cohere.CohereLayerNorm": (True, 0.0),
    "nemotron.NemotronLayerNorm1P": (True, 1.0),
}
"""Final norms of transformers: whether they centre, and what is added to the weight they keep (None
where they keep none).
"""


@pytest.mark.parametrize("named", NORMS)
def test_every_way_of_keeping_a_gain_is_read(named):
    """γ by definition, from the weight, beside what is read off the norm by running it."""
    centres, added = NORMS[named]
    family, _, kind = named.partition(".")
    norm = getattr(import_module(f"transformers.models.{family}.modeling_{family}"), kind)(D_MODEL)
    generator = torch.Generator().manual_seed(7)
    for parameter in norm.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    v = torch.randn(D_MODEL, generator=generator, dtype=torch.float64) + 0.5
    gain = 1.0 if added is None else norm.weight.detach().double() + added
    expected = gain * (v - v.mean() if centres else v)
    found = _through_norm(norm.double(), v)
    assert torch.allclose(found / found.norm(), expected / expected.norm(), atol=1e-6)


def test_what_the_lens_cannot_read(family, unchecked):
    with pytest.raises(InputError, match="vectors is empty; pass at least one direction"):
        logit_lens(family.instruct, {})
    with pytest.raises(InputError, match="k=0 must be a count of 1 to 46, the vocabulary"):
        logit_lens(family.instruct, {"v": torch.ones(D_MODEL)}, k=0)
    with pytest.raises(
        InputError, match=r"vector 'v' has shape \(7,\) and norm 2.65; pass one of 32 coordinates"
    ):
        logit_lens(family.instruct, {"v": torch.ones(7)})


def test_the_page_shows_what_was_measured(repository):
    found = json.loads((repository / "docs/evidence/adapter_lens.json").read_text())["values"]
    page = (repository / "docs/adapters.md").read_text()
    for row in found["adapters"]:
        shown = [
            f"{row[key]:.3f}".lstrip("0") for key in ("share", "share_by_chance", "largest_cosine")
        ]
        assert (
            f"| {row['fine-tune']} | {row['modules']} | {' | '.join(shown)} |"
            f" {row['effective_rank']:.2f} |" in page
        )
    again = adapter_lens.measure(("medicine-r1",))
    assert (
        again["adapters"][0]["share"] == pytest.approx(found["adapters"][0]["share"], rel=1e-6)
        and again["raised"] == found["raised"]
    )
    assert all(found["raised_are_harmful_words"])
