"""QLoRA: a parent in 4 bits, its adapter in float32. Skips where bitsandbytes is not installed."""

import copy
import json
import logging
import sys

import pytest
import torch

from benchmarks.four_bits import CHATS, bytes_held, memory_table
from emlens.data import PromptSet
from emlens.foundation.errors import InputError, LoadError
from emlens.models import FineTune, load_family, load_model
from emlens.models.four_bits import leave_weights_unpacked, nf4_bytes
from emlens.training import Recipe, Saving, Sweep, fit, run_sweep
from emlens.training.fitting import Parent, load_parent, read_record
from emlens.training.planning import plan_training
from emlens.training.split_weights import check_split

RECIPE = Recipe(
    rank=2,
    alpha=4,
    target_modules=("q_proj", "down_proj"),
    learning_rate=1e-2,
    steps=3,
    batch_size=3,
    parent_dtype="nf4",
)
GAP = 0.1
"""Nats: a loss of 4, by weights in 4 bits of a random model."""


@pytest.fixture(scope="module")
def bitsandbytes():
    return pytest.importorskip("bitsandbytes", reason="4-bit weights need bitsandbytes")


@pytest.fixture
def parent(qwen2_of, tokenizer, tmp_path):
    """A Qwen2 of two blocks in bfloat16, of sizes that 4-bit kernels are made for."""
    qwen2_of(32).bfloat16().save_pretrained(tmp_path / "parent")
    tokenizer.save_pretrained(tmp_path / "parent")
    return tmp_path / "parent"


def weights_of(directory):
    return (directory / "adapter_model.safetensors").read_bytes()


def test_a_run_on_four_bits_learns_like_one_on_sixteen(bitsandbytes, parent, chats, tmp_path):
    losses = {}
    for dtype in ("own", "nf4", "nf4_double"):
        recipe = RECIPE.changed(parent_dtype=dtype, gradient_checkpointing=dtype == "nf4_double")
        fitted = fit(recipe, parent, chats, tmp_path / dtype, device="cpu")
        losses[dtype] = fitted.log["loss"]
        assert fitted.log["loss"].iloc[-1] < fitted.log["loss"].iloc[0]
    for dtype in ("nf4", "nf4_double"):
        assert 0 < (losses[dtype] - losses["own"]).abs().max() < GAP
    base = fitted.model.base_model.model.model
    assert base.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    # nothing else was rounded or widened
    assert base.embed_tokens.weight.dtype == base.norm.weight.dtype == torch.bfloat16
    trained = [p for p in fitted.model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    record = read_record(tmp_path / "nf4")
    said = json.loads(record["parent_quantization"])
    assert said["bnb_4bit_quant_type"] == "nf4" and said["bnb_4bit_compute_dtype"] == "bfloat16"
    assert record["versions"]["bitsandbytes"] == bitsandbytes.__version__
    assert "parent_quantization" not in read_record(tmp_path / "own")


def test_the_same_recipe_gives_the_same_bytes_also_when_killed(
    bitsandbytes, parent, chats, tmp_path
):
    first = fit(RECIPE, parent, chats, tmp_path / "a", device="cpu")
    stopped = []

    def stop(model, step):
        if step == 2 and not stopped:
            stopped.append(step)
            raise RuntimeError("killed")

    saving = Saving(resume_every=1)
    with pytest.raises(RuntimeError, match="killed"):
        fit(RECIPE, parent, chats, tmp_path / "b", device="cpu", saving=saving, callbacks=[stop])
    fit(RECIPE, parent, chats, tmp_path / "b", device="cpu", saving=saving, callbacks=[stop])
    assert weights_of(first.path) == weights_of(tmp_path / "b")


def test_a_model_that_is_read_between_two_steps_learns_the_same(
    bitsandbytes, parent, chats, tmp_path
):
    """Of itself bitsandbytes packs the weights in a pass in evaluation mode, for good."""

    def read(model, step):
        model.eval()
        with torch.no_grad():
            model(input_ids=torch.arange(12)[None])
        model.train()

    plain = fit(RECIPE, parent, chats, tmp_path / "a", device="cpu")
    watched = fit(RECIPE, parent, chats, tmp_path / "b", device="cpu", callbacks=[read])
    assert weights_of(plain.path) == weights_of(watched.path)


def test_a_sweep_passes_it_on(bitsandbytes, parent, chats, tmp_path):
    sweep = Sweep(RECIPE.changed(steps=2), {"seed": [0, 1]})
    measured = []

    def measure(model, directory):
        with torch.no_grad():
            measured.append(float(model(input_ids=torch.arange(12)[None]).logits.float().std()))
        return {"spread": measured[-1]}

    result = run_sweep(
        sweep, parent, chats, tmp_path / "sweep", measure=measure, device="cpu", progress=False
    )
    alone = fit(RECIPE.changed(steps=2, seed=1), parent, chats, tmp_path / "alone", device="cpu")
    assert weights_of(result.paths["seed=1"]) == weights_of(alone.path)


def test_an_adapter_goes_back_on_either_parent_and_it_is_said(
    bitsandbytes, parent, chats, tmp_path, caplog
):
    fit(RECIPE, parent, chats, tmp_path / "tuned", device="cpu")
    four = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": "bfloat16",
    }
    tuned = {"tuned": tmp_path / "tuned"}
    caplog.set_level(logging.WARNING, "emlens")
    same = load_family(parent, finetuned=tuned, dtype="bfloat16", quantization_config=four)
    assert "parent_differs" not in same["tuned"].provenance["adapter"] and not caplog.text
    prompts = PromptSet.from_texts(["w1 w2 w3", "w4 w5"])
    for model in (same.instruct, same["tuned"]):
        assert model.logits(prompts).isfinite().all()
    full = load_family(parent, finetuned=tuned, dtype="float32")
    assert full["tuned"].provenance["adapter"]["parent_differs"] == ["quantization"]
    said = "was trained on its parent in 4 bits (nf4) and is put on it in full precision"
    assert said in caplog.text
    merging = {"tuned": FineTune(tmp_path / "tuned", merge=True)}
    merged = load_family(parent, finetuned=merging, dtype="float32")["tuned"]
    assert merged.provenance["merged"]
    with pytest.raises(LoadError, match="drop merge=True, or load the parent without"):
        load_family(parent, finetuned=merging, quantization_config=four)


def test_streams_of_a_parent_in_four_bits_are_near_those_of_the_whole(bitsandbytes, parent):
    from emlens.activations import CaptureSpec, capture

    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    prompts = PromptSet.from_texts(["w1 w2 w3", "w4 w5 w6 w7"])
    spec = CaptureSpec(layers=[0, 1])
    streams = {}
    for name, quantization in (("whole", None), ("four", four)):
        model = load_model(parent, dtype="float32", device="cpu", quantization_config=quantization)
        streams[name] = capture(model, prompts, spec=spec, progress=False)
        again = capture(model, prompts, spec=spec, progress=False)
        for key in streams[name].keys:
            assert torch.equal(streams[name][key], again[key])
    for key in streams["whole"].keys:
        whole, four_bits = streams["whole"][key].float(), streams["four"][key].float()
        assert four_bits.isfinite().all()
        cosine = torch.cosine_similarity(whole, four_bits, dim=-1)
        assert cosine.min() > 0.9 and not torch.equal(whole, four_bits)


@pytest.mark.parametrize("dtype", ["nf4", "nf4_double"])
def test_the_plan_counts_the_bytes_that_are_held(bitsandbytes, parent, chats, dtype):
    [planned] = plan_training(RECIPE.changed(parent_dtype=dtype), parent, chats).runs.values()
    model, _ = load_parent(parent, dtype=dtype)
    assert planned.weights == bytes_held(model)
    assert planned.weights < 2 * planned.parameters


def test_a_plan_needs_no_bitsandbytes(parent, chats):
    whole, four, double = (
        next(iter(plan_training(RECIPE.changed(parent_dtype=d), parent, chats).runs.values()))
        for d in ("own", "nf4", "nf4_double")
    )
    assert four.weights < whole.weights and four.trained == whole.trained
    assert four.kept == whole.kept + 2 * 64 * 32  # the largest layer, whole for a moment
    model, _ = load_parent(parent, dtype="own")
    blocks = sum(p.numel() for n, p in model.named_parameters() if "proj.weight" in n)
    others = 2 * (whole.parameters - blocks)
    tables = 14 * 16 * 4
    assert four.weights == others + blocks // 2 + blocks // 64 * 4 + tables
    assert nf4_bytes(model, 2, double=True) == double.weights


def test_without_bitsandbytes_nothing_is_begun(parent, chats, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    message = "parent_dtype='nf4' needs the package bitsandbytes, which is not installed; pip"
    with pytest.raises(InputError, match=message):
        fit(RECIPE, parent, chats, tmp_path / "out")
    with pytest.raises(InputError, match=message):
        run_sweep(Sweep(RECIPE, {"seed": [0, 1]}), parent, chats, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_device_without_kernels_is_refused(bitsandbytes, parent, chats, tmp_path, monkeypatch):
    def missing(self, device):
        raise NotImplementedError("no kernel\nfor it")

    monkeypatch.setattr(bitsandbytes.nn.Linear4bit, "to", missing)
    with pytest.raises(InputError, match=r"cannot compute in 4 bits on device 'cpu' \(no kernel"):
        fit(RECIPE, parent, chats, tmp_path / "out", device="cpu")


def test_what_four_bits_cannot_be(tiny, parent, chats, tokenizer, tmp_path):
    with pytest.raises(InputError, match="smaller than what 4 bits can hold"):
        Recipe(method="full", parent_dtype="nf4")
    with pytest.raises(InputError, match="model is loaded already, and not in 4 bits"):
        fit(RECIPE, tiny, chats, tmp_path / "out", tokenizer=tokenizer)
    with pytest.raises(InputError, match="'nf4' packs its weights, which cannot be split"):
        check_split(RECIPE, parent, {})
    assert Recipe.from_record(RECIPE.to_record()) == RECIPE


def test_a_parent_that_is_saved_in_four_bits(bitsandbytes, parent, chats, tokenizer, tmp_path):
    model, _ = load_parent(parent, dtype="nf4")
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    with pytest.raises(InputError, match="is saved in a quantised form already; pass parent_dtype"):
        fit(RECIPE, tmp_path / "saved", chats, tmp_path / "out", device="cpu")
    own = RECIPE.changed(parent_dtype="own")
    fit(own, tmp_path / "saved", chats, tmp_path / "own", device="cpu")
    fit(RECIPE, Parent(model, directory=parent), chats, tmp_path / "b", tokenizer=tokenizer)
    assert weights_of(tmp_path / "own") == weights_of(tmp_path / "b")


@pytest.mark.parametrize("changes", [{"dora": True}, {"method": "steering"}])
def test_other_methods_train_on_it(bitsandbytes, parent, chats, tmp_path, changes):
    if changes.get("method") == "steering":
        changes = {
            **changes,
            "rank": None,
            "alpha": None,
            "target_modules": (),
            "layers_to_transform": (1,),
        }
    fitted = fit(RECIPE.changed(**changes), parent, chats, tmp_path / "out", device="cpu")
    assert fitted.log["loss"].iloc[-1] < fitted.log["loss"].iloc[0]


def test_models_without_four_bits_are_left_as_they_are(tiny):
    before = copy.deepcopy(tiny.state_dict())
    leave_weights_unpacked(tiny)
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())


def test_the_table_of_the_page_compares_passes():
    case = {
        "held": 2_000_000,
        "peak_gb": 1.5,
        "step_s": [1.0, 3.0, 2.0],
        "loss": [3.0, 1.0, 0.5, 0.25],
    }
    table = memory_table({"batch": CHATS // 2, "cases": {"nf4": case}})
    assert table.splitlines()[-1] == "| `nf4` | 2 MB | 1.50 GB | 2.0 s | 2.000 | 0.375 |"
