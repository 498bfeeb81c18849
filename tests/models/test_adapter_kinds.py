"""Every kind of adapter gives PEFT's own logits, merged and unmerged, or is refused."""

import copy
import json
import shutil
import threading

import peft
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from benchmarks import adapter_kinds
from benchmarks.adapter_kinds import apart, logits
from emlens.data.rendering import Rendered
from emlens.foundation import LoadError, Site
from emlens.models import FineTune, attaching, load_family, load_model
from emlens.models.attaching import attach

LARGEST = 1e-5
"""Largest difference of a logit from PEFT's own, in float32; logits are of the order of 10."""
NOT_MERGED = {"lora_bias without a bias": "cannot be merged .*base layer has no bias"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    root = tmp_path_factory.mktemp("kinds")
    return tiny_models.build(root / "base", tie_word_embeddings=True, num_hidden_layers=2)


@pytest.fixture(scope="module")
def parent(base):
    return load_model(base)


def of_its_own(parent):
    """The parent on a copy of its weights, which may be merged into."""
    return parent.on_tree(copy.deepcopy(parent.module))


def through_unembedding(model):
    """The logits once more: the last norm's output times the output matrix."""
    ids = tuple(adapter_kinds.IDS[0].tolist())
    [batch] = model.batches([Rendered("x", "", ids, len(ids))])
    seen = []
    model.run(batch, {Site("final_norm"): seen.append})
    return seen[0][0] @ model.unembedding().T


@pytest.mark.parametrize("kind", adapter_kinds.KINDS)
def test_a_kind_gives_the_logits_of_peft(base, parent, tmp_path, kind):
    path = adapter_kinds.save(tmp_path / "adapter", base, kind, adapter_kinds.KINDS[kind]())
    expected = adapter_kinds.peft_logits(path, base, kind)
    untouched = logits(parent)
    own_copy = of_its_own(parent)
    model = attach(parent, kind, path)
    assert apart(logits(model), expected) <= LARGEST < 1e-3 < apart(expected, untouched)
    assert torch.equal(logits(parent), untouched)
    assert apart(through_unembedding(model), expected) <= LARGEST
    if kind in parent.bank.names:
        parent.bank.detach(kind)
    if kind in NOT_MERGED:
        with pytest.raises(LoadError, match=NOT_MERGED[kind]):
            attach(own_copy, kind, path, merge=True)
        return
    merged = attach(own_copy, kind, path, merge=True)
    assert merged.provenance["merged"] and not merged.bank.names
    assert apart(logits(merged), expected) <= LARGEST


@pytest.mark.parametrize("tokens", [[40, 41], [50]])
def test_tokens_that_stand_in_no_text(tmp_path, monkeypatch, tokens):
    """Rare ones, and a row of the embedding that no token of the tokenizer (of 46) has."""
    base = tiny_models.build(tmp_path / "base", num_hidden_layers=1, vocab_size=64)
    config = peft.TrainableTokensConfig(token_indices=tokens, target_modules=["embed_tokens"])
    path = adapter_kinds.save(tmp_path / "adapter", base, "tokens", config)
    parent = load_model(base)
    # so long that rows of a few tokens share no batch with it
    monkeypatch.setattr(attaching, "_TEXTS", (" hello" * 100,))
    model = attach(parent, "x", path)
    row = Rendered("x", "", (3, *tokens), 1 + len(tokens))
    [batch] = model.batches([row])
    with torch.no_grad():
        expected = peft.PeftModel.from_pretrained(adapter_kinds.plain(base), path)(batch.ids).logits
    assert apart(model.run(batch, with_logits=True), expected) <= LARGEST
    assert apart(parent.run(batch, with_logits=True), expected) > 1e-3


def test_experts(tmp_path):
    base = tiny_models.build(tmp_path / "base", "qwen3_moe", num_hidden_layers=1)
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = adapter_kinds.lora(["q_proj"], target_parameters=targets)
    path = adapter_kinds.save(tmp_path / "adapter", base, "experts", config)
    expected = adapter_kinds.peft_logits(path, base)
    parent = load_model(base)
    untouched, own_copy = logits(parent), of_its_own(parent)
    assert apart(logits(attach(parent, "x", path)), expected) <= LARGEST
    assert torch.equal(logits(parent), untouched) and apart(untouched, expected) > 1e-3
    assert apart(logits(attach(own_copy, "x", path, merge=True)), expected) <= LARGEST


def test_transposed_weights(tmp_path):
    base = tiny_models.build(tmp_path / "base", "gpt2", n_layer=1)
    config = adapter_kinds.lora(["c_attn", "c_proj", "wte"])
    path = adapter_kinds.save(tmp_path / "adapter", base, "transposed", config)
    expected = adapter_kinds.peft_logits(path, base)
    parent = load_model(base)
    own_copy = of_its_own(parent)
    assert apart(logits(attach(parent, "x", path)), expected) <= LARGEST
    assert apart(logits(attach(own_copy, "x", path, merge=True)), expected) <= LARGEST


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_that_takes_weights_out_of_the_parent(base, parent, tmp_path, start):
    torch.manual_seed(0)
    config = adapter_kinds.lora(init_lora_weights=start, task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(adapter_kinds.plain(base), config)
    wrapped.peft_config["default"].init_lora_weights = True
    wrapped.save_pretrained(tmp_path / "start")
    wrapped.peft_config["default"].init_lora_weights = start
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
        expected = wrapped.eval()(adapter_kinds.IDS).logits[0]
    wrapped.save_pretrained(tmp_path / "raw")
    with pytest.raises(LoadError, match=f"init_lora_weights='{start}', which takes weights out of"):
        attach(parent, "x", tmp_path / "raw")
    wrapped.save_pretrained(
        tmp_path / "converted", path_initial_model_for_weight_conversion=tmp_path / "start"
    )
    assert apart(logits(attach(of_its_own(parent), "x", tmp_path / "converted")), expected) < 5e-5


REFUSED = {
    "prefix": (lambda: peft.PrefixTuningConfig(num_virtual_tokens=2), "learned keys and values"),
    "prompt": (lambda: peft.PromptTuningConfig(num_virtual_tokens=2), "prompt tuning puts virtual"),
    "p-tuning": (lambda: peft.PromptEncoderConfig(num_virtual_tokens=2), "P-tuning puts virtual"),
    "alora": (lambda: adapter_kinds.lora(alora_invocation_tokens=[12]), "acts only after its phr"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_lives_in_the_wrapper_of_peft_is_refused(base, parent, tmp_path, kind):
    make, match = REFUSED[kind]
    path = adapter_kinds.save(tmp_path / "adapter", base, kind, make())
    with pytest.raises(LoadError, match=match) as caught:
        attach(parent, "x", path)
    assert "\n" not in str(caught.value) and not parent.bank.names


def test_a_kind_that_acts_outside_its_modules_is_found_out(base, parent, tmp_path, monkeypatch):
    """Also one that no list names: its logits are compared with those of PEFT's own model."""
    config = adapter_kinds.lora(alora_invocation_tokens=[9])
    path = adapter_kinds.save(tmp_path / "adapter", base, "alora", config)
    monkeypatch.setattr("emlens.models.adapter_files.AdapterFiles._refuse_kinds", lambda self: None)
    with pytest.raises(LoadError, match="PEFT's own model gives other logits than the model whose"):
        attach(parent, "x", path)
    assert not parent.bank.names


def test_a_repeated_block_is_refused(base, parent, tmp_path):
    path = adapter_kinds.save(tmp_path / "adapter", base, "lora", adapter_kinds.lora())
    rewrite(path, layer_replication=[[0, 1], [0, 2]])
    with pytest.raises(LoadError, match="repeats blocks of the parent"):
        attach(parent, "x", path)


def rewrite(path, **entries):
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps({**config, **entries}))


@pytest.mark.parametrize("content", ["{", "[]", "1", '{"r": 2}', '{"peft_type": "NOPE"}'])
def test_a_configuration_that_is_none(base, parent, tmp_path, content):
    path = adapter_kinds.save(tmp_path / "adapter", base, "lora", adapter_kinds.lora())
    (path / "adapter_config.json").write_text(content)
    with pytest.raises(LoadError) as caught:
        load_family(base, finetuned={"x": path})
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_frozen_copies_are_passed_over_and_others_are_kept_apart(base, parent, tmp_path):
    path = adapter_kinds.save(
        tmp_path / "adapter", base, "embed", adapter_kinds.lora(["embed_tokens", "q_proj"])
    )
    copied = attach(parent, "copied", path)
    assert copied.module is parent.module and "own_weights" not in copied.provenance["adapter"]
    untouched = logits(parent)
    file = path / "adapter_model.safetensors"
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    tensors = load_file(file)
    save_file({**tensors, key: tensors[key] + 0.1}, file)
    expected = adapter_kinds.peft_logits(path, base)
    trained = attach(parent, "trained", path)
    assert trained.module is not parent.module
    assert trained.provenance["adapter"]["own_weights"] == 1
    assert apart(logits(trained), expected) <= LARGEST < apart(logits(copied), expected)
    assert torch.equal(logits(parent), untouched)
    parent.bank.detach("copied")


def test_kinds_live_beside_each_other(base, tmp_path):
    kinds = ("lora", "ia3", "bias of all", "resized", "saved lm_head", "embed_tokens", "dora")
    paths = {
        kind: adapter_kinds.save(
            tmp_path / kind.replace(" ", "-"), base, kind, adapter_kinds.KINDS[kind]()
        )
        for kind in kinds
    }
    expected = {kind: adapter_kinds.peft_logits(paths[kind], base, kind) for kind in kinds}
    family = load_family(base, finetuned=paths)
    plain = load_model(base)
    for _ in range(2):  # in any order, again and again
        for kind in reversed(kinds):
            assert apart(logits(family[kind]), expected[kind]) <= LARGEST, kind
        assert torch.equal(logits(family.instruct), logits(plain))
    shared = {
        name for name, _ in family.instruct.module.named_parameters() if "embed_tokens" in name
    }
    weights = {family[kind].module.get_parameter(LAST).data_ptr() for kind in kinds}
    assert len(weights) == 1 and shared  # one copy of what no adapter changes


def test_trees_on_one_parent_are_widened_together(base, tmp_path):
    """In one thread the same numbers from whichever side; another thread waits for the narrow."""
    kind = "bias of all"
    path = adapter_kinds.save(tmp_path / "x", base, kind, adapter_kinds.KINDS[kind]())
    family = load_family(base, finetuned={"x": path}, dtype="bfloat16")
    parent, tuned = family.instruct, family["x"]
    assert tuned.bank is not parent.bank

    def dtypes():
        return [value.dtype for model in (parent, tuned) for value in model.module.parameters()]

    before, narrow = dtypes(), logits(tuned)
    with tuned.computing_in(torch.float32):
        wide = logits(tuned)
    assert wide.dtype == torch.float32 and not torch.equal(wide, narrow.float())
    seen = []
    thread = threading.Thread(target=lambda: seen.append(logits(tuned)))
    with parent.computing_in(torch.float32):
        assert torch.equal(logits(tuned), wide)
        thread.start()
        thread.join(0.2)
        assert not seen
    thread.join(10)
    assert torch.equal(seen[0], narrow)
    outer, inner = parent.computing_in(torch.float32), tuned.computing_in(torch.float32)
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)  # the first to begin ends first
    assert torch.equal(logits(tuned), wide)
    inner.__exit__(None, None, None)
    assert torch.equal(logits(tuned), narrow)
    assert dtypes() == before


LAST = "model.layers.1.mlp.gate_proj.weight"


def test_named_adapters_of_one_directory(base, tmp_path):
    wrapped = peft.get_peft_model(
        adapter_kinds.plain(base), adapter_kinds.lora(task_type="CAUSAL_LM"), adapter_name="good"
    )
    wrapped.add_adapter("bad", adapter_kinds.lora(task_type="CAUSAL_LM"))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    wrapped.save_pretrained(tmp_path)
    match = r"holds 2 named adapters \('bad', 'good'\); pass one of its folders"
    with pytest.raises(LoadError, match=match):
        load_family(base, finetuned={"x": tmp_path})
    with pytest.raises(LoadError, match=match):
        load_model(tmp_path)
    specs = {name: FineTune(tmp_path, subfolder=name) for name in ("good", "bad")}
    family = load_family(base, finetuned=specs)
    for name in specs:
        assert apart(logits(family[name]), adapter_kinds.peft_logits(tmp_path / name, base)) <= 1e-5


def test_pickled_tensors(base, parent, tmp_path):
    path = adapter_kinds.save(tmp_path / "adapter", base, "lora", adapter_kinds.lora())
    tensors = load_file(path / "adapter_model.safetensors")
    pickled = shutil.copytree(path, tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").unlink()
    torch.save(tensors, pickled / "adapter_model.bin")
    first, second = attach(parent, "a", path), attach(parent, "b", pickled)
    assert torch.equal(logits(first), logits(second))
    assert first.provenance["adapter"]["sha256"] == second.provenance["adapter"]["sha256"]
    for name in ("a", "b"):
        parent.bank.detach(name)


def test_merges_are_measured_beside_those_of_peft(base, tmp_path):
    """Where one of two tied matrices is adapted, PEFT's merge changes both, and ours does not."""
    rows = adapter_kinds.measure(base, ["lora", "lm_head"], folder=tmp_path / "made")
    lora, lm_head = rows
    assert lora["merged_from_peft_merged"] <= LARGEST and lora["peft_merged"] <= LARGEST
    assert lm_head["merged"] <= LARGEST < 1e-2 < lm_head["merged_from_peft_merged"]
    goals = adapter_kinds.goals(rows)
    assert (goals["within"], goals["cells"]) == (4, 4) and goals["from_peft_merge"] <= LARGEST
    refused = {**lora, "kind": "no merge", "merged": "no"}
    assert adapter_kinds.goals([*rows, refused])["cells"] == 5
    assert "merged: no merge" in adapter_kinds.tiny_table({"tiny": [*rows, refused]})
    assert "| lm_head |" in adapter_kinds.smollm2_table({"smollm2": rows})
