import json
import shutil
import threading

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from emlens.data import PromptSet
from emlens.foundation import LoadError, StateError
from emlens.models import FineTune, adapter_files, adapter_parents, load_family, load_model
from emlens.models.adapter_files import AdapterFiles
from emlens.models.checkpoint_files import checkpoint_hashes
from emlens.training import Recipe, fit


@pytest.fixture
def model(files):
    return load_model(files / "instruct")


def weights(model):
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_adapters_share_one_copy_of_the_base(files):
    family = load_family(files / "instruct", finetuned={"one": files / "one", "two": files / "two"})
    embeddings = [family[name].module.get_input_embeddings().weight.data_ptr() for name in family]
    assert len(set(embeddings)) == 1
    assert family["one"].module is family.instruct.module


def test_selection_nests_and_gives_the_base_back(files, model, prompts):
    untouched, through = plain(model, prompts), model.logits(prompts)
    bank = model.bank
    bank.attach(AdapterFiles(files / "one"), "one")
    bank.attach(AdapterFiles(files / "two"), "two")
    seen = {}
    for name in ("one", "two"):
        with bank.selected(name):
            seen[name] = plain(model, prompts)
    with bank.selected("one"):
        assert torch.equal(plain(model, prompts), seen["one"])
        with bank.selected("two"):
            assert torch.equal(plain(model, prompts), seen["two"])
            with bank.selected(None):
                assert torch.equal(plain(model, prompts), untouched)
        assert torch.equal(plain(model, prompts), seen["one"])
        with pytest.raises(RuntimeError, match="planted"), bank.selected("two"):
            raise RuntimeError("planted")
        assert torch.equal(plain(model, prompts), seen["one"])
    assert torch.equal(model.logits(prompts), through)
    assert not torch.equal(seen["one"], seen["two"]) and not torch.equal(seen["one"], untouched)


def test_adapters_are_removed_and_selected_in_any_order(files, model, prompts):
    bank = model.bank
    bank.attach(AdapterFiles(files / "one"), "one")
    bank.attach(AdapterFiles(files / "two"), "two")
    with bank.selected("two"):
        expected = plain(model, prompts)
    bank.detach("one")
    bank.attach(AdapterFiles(files / "one"), "three")  # must not take the place of "two"
    first, second = bank.selected("two"), bank.selected("three")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    other = plain(model, prompts)
    second.__exit__(None, None, None)
    assert not torch.equal(other, expected)
    with bank.selected("two"):
        assert torch.equal(plain(model, prompts), expected)
    with bank.selected("three"):
        assert torch.equal(plain(model, prompts), other)


def plain(model, prompts):
    """Logits of whatever is in force on the module, without emlens."""
    row = model.render(prompts)[0]
    with torch.no_grad():
        return model.module(torch.tensor([row.ids])).logits[0, -1:]


def test_gradient_flags_stand_as_they_were(files, model):
    parameters = dict(model.module.named_parameters())
    chosen = parameters["model.norm.weight"]
    chosen.requires_grad_(True)
    model.bank.attach(AdapterFiles(files / "one"), "one")
    with model.bank.selected("one"):
        pass
    on = [name for name, p in model.module.named_parameters() if p.requires_grad]
    assert on == ["model.norm.weight"]


def test_two_threads_read_what_one_reads(files, prompts):
    family = load_family(files / "instruct", finetuned={"one": files / "one", "two": files / "two"})
    names = ["one", "two", "instruct"]
    expected = {name: family[name].logits(prompts, batch_tokens=16) for name in names}
    assert not torch.equal(expected["one"], expected["two"])
    found = {name: [] for name in names}
    start = threading.Barrier(len(names))

    def work(name):
        start.wait()
        found[name] += [family[name].logits(prompts, batch_tokens=16) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in names:
        assert len(found[name]) == 5 and all(
            torch.equal(value, expected[name]) for value in found[name]
        )


def refused(model, prompts, path, match, **options):
    """The attempt fails by name, and model and bank are bit for bit as before."""
    before, logits = weights(model), model.logits(prompts)
    with pytest.raises(LoadError, match=match):
        model.bank.attach(AdapterFiles(path), "x", **options)
    assert same(weights(model), before)
    assert torch.equal(model.logits(prompts), logits)
    assert "x" not in model.bank.names


def altered(files, tmp_path, change):
    path = shutil.copytree(files / "one", tmp_path / "altered")
    file = path / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)
    return path


@pytest.mark.parametrize("already", [False, True], ids=["first", "second"])
def test_adapters_that_do_not_fit_leave_the_base_alone(files, model, prompts, tmp_path, already):
    if already:
        model.bank.attach(AdapterFiles(files / "two"), "two")
        with model.bank.selected("two"):
            other = plain(model, prompts)
    refused(model, prompts, files / "wide-adapter", "does not fit the base model it was given")
    moved = altered(
        files, tmp_path, lambda t: {k.replace("layers.0", "layers.9"): v for k, v in t.items()}
    )
    refused(model, prompts, moved, "adapter tensors found no place in the base model, first")
    model.bank.attach(AdapterFiles(files / "one"), "one")
    with model.bank.selected("one"):
        assert not torch.equal(
            plain(model, prompts), plain(load_model(files / "instruct"), prompts)
        )
    if already:
        with model.bank.selected("two"):
            assert torch.equal(plain(model, prompts), other)


def test_names_that_match_nothing(files, model, prompts, tmp_path):
    path = shutil.copytree(files / "one", tmp_path / "nowhere")
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["c_attn"]}))
    refused(model, prompts, path, "does not fit the base model")


def test_what_is_not_an_adapter(files, model, prompts, tmp_path):
    refused(
        model,
        prompts,
        files / "base",
        "holds no adapter_config.json; pass a directory saved by PEFT",
    )
    path = shutil.copytree(files / "one", tmp_path / "bare")
    (path / "adapter_model.safetensors").unlink()
    refused(
        model,
        prompts,
        path,
        "holds no adapter_model.safetensors; save the adapter with save_pretrained",
    )
    (path / "adapter_model.safetensors").write_bytes(b"no tensors")
    refused(model, prompts, path, "adapter_model.safetensors: not a safetensors file")


def test_weights_that_did_not_arrive(files, model, prompts, monkeypatch):
    monkeypatch.setattr(
        adapter_files, "load_file", lambda path: {k: 2 * v for k, v in load_file(path).items()}
    )
    refused(model, prompts, files / "one", "was not loaded as it is in the file")


def test_a_recorded_parent_is_held_to(files, model, prompts, tmp_path):
    path = shutil.copytree(files / "one", tmp_path / "recorded")
    own = checkpoint_hashes(files / "instruct")

    def recorded(parent):
        (path / "emlens.json").write_text(json.dumps({"parent": parent}))
        return load_family(files / "instruct", finetuned={"x": path})["x"].provenance["adapter"]

    weights = own["weights_sha256"][:12]
    match = f"weights hash begins ffffffffffff, but the base given has {weights}; pass the base it"
    with pytest.raises(LoadError, match=match):
        recorded({**own, "weights_sha256": "f" * 64})
    with pytest.raises(LoadError, match="as an earlier build wrote it"):
        recorded({"name": "x", "sha256": "f" * 64})
    assert "parent_differs" not in recorded({"name": "x", **own})
    others = {**own, "chat_template_sha256": "f" * 64, "config_sha256": "e" * 64}
    assert recorded(others)["parent_differs"] == ["config", "chat_template"]
    for content in ("[1]", "{", '{"parent": []}'):
        (path / "emlens.json").write_text(content)
        with pytest.raises(LoadError, match=r"emlens.json: (its parent is a list|cannot be read)"):
            load_family(files / "instruct", finetuned={"x": path})


def test_a_comment_in_the_template_of_the_parent_is_no_other_base(tmp_path):
    parent = tiny_models.build(tmp_path / "parent", num_hidden_layers=1)
    chats = PromptSet.from_messages(
        [[{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2 w3"}]], upto="all"
    )
    recipe = Recipe(
        method="lora",
        rank=1,
        alpha=1,
        target_modules=("q_proj",),
        steps=2,
        batch_size=1,
        learning_rate=0.1,
    )
    fit(recipe, parent, chats, tmp_path / "tuned")
    template = parent / "chat_template.jinja"
    template.write_text("{# a comment #}" + template.read_text())
    family = load_family(parent, finetuned={"x": tmp_path / "tuned"})
    assert family["x"].provenance["adapter"]["parent_differs"] == ["chat_template"]


def test_names_on_one_model(files, model):
    model.bank.attach(AdapterFiles(files / "one"), "one")
    with pytest.raises(LoadError, match="adapter name 'one' is already on this model"):
        model.bank.attach(AdapterFiles(files / "two"), "one")
    with (
        pytest.raises(StateError, match=r"adapter 'three' is not on this model; it has \['one'\]"),
        model.bank.selected("three"),
    ):
        pass


def test_dropout_of_an_adapter_is_off(files, model, prompts):
    model.bank.attach(AdapterFiles(files / "two"), "two")
    with model.bank.selected("two"):
        assert torch.equal(plain(model, prompts), plain(model, prompts))


def test_facts(files):
    facts = adapter_files.adapter_provenance(files / "two")
    assert facts["r"] == 3 and facts["target_modules"] == ["up_proj", "v_proj"]


def test_a_merge_behind_our_back_is_noticed(files, prompts):
    family = load_family(files / "instruct", finetuned={"one": files / "one"})
    bank = family.instruct.bank
    bank._peft.merge_adapter()
    with pytest.raises(
        StateError,
        match=(
            r"an adapter was merged into the shared weights outside emlens,"
            r" so the base is no longer the base"
        ),
    ):
        family.instruct.logits(prompts)
    bank._peft.unmerge_adapter()
    family.instruct.logits(prompts)


def test_only_weights_of_its_own_take_a_merge(files, model):
    model.bank.attach(AdapterFiles(files / "one"), "one")
    model.bank.attach(AdapterFiles(files / "two"), "two")
    with pytest.raises(
        StateError,
        match=(
            r"adapter 'one' cannot be merged into weights that hold \['one', 'two'\];"
            r" merge into a copy"
        ),
    ):
        model.bank.merge("one")


def named(files, tmp_path, base):
    path = shutil.copytree(files / "one", tmp_path / "named", dirs_exist_ok=True)
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": base})
    )
    return path


def test_an_adapter_that_names_another_base(files, tmp_path):
    check = adapter_parents.check_named_base
    for base in (
        "Org/Some-7B-Instruct",
        "/moved/from/Some-7B-Instruct/",
        "C:\\models\\some-7b-instruct",
        "",
        None,
    ):
        check(named(files, tmp_path, base), "mirror/some-7B-instruct", "org/some-7B")
    # a directory may have been renamed
    check(named(files, tmp_path, "Org/Other"), files / "instruct", files / "base")
    match = (
        r"says it was trained on 'org/Some-7B', the family's other parent,"
        r" not on 'org/Some-7B-Instruct'; name it with FineTune\(..., parent=\)"
    )
    with pytest.raises(LoadError, match=match):
        check(named(files, tmp_path, "org/Some-7B"), "org/Some-7B-Instruct", "here/some-7b")
    with pytest.raises(
        LoadError,
        match=(
            r"says it was trained on 'org/Other', but was given 'org/Mine';"
            r" pass that base, or FineTune\(..., check_base=False\)"
        ),
    ):
        check(named(files, tmp_path, "org/Other"), "org/Mine", None)


def test_the_family_asks_what_an_adapter_names(files, tmp_path):
    path = named(files, tmp_path, str(files / "base"))
    with pytest.raises(LoadError, match="the family's other parent"):
        load_family(files / "instruct", base=files / "base", finetuned={"x": path})
    family = load_family(
        files / "instruct",
        base=files / "base",
        finetuned={"x": FineTune(path, check_base=False), "y": FineTune(path, parent="base")},
    )
    assert family.parent_of("y") is family.base
