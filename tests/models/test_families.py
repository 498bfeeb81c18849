import json
import shutil
from itertools import count

import pytest
import tiny_models
import torch

from emlens.data import PromptSet
from emlens.data.templates import PLAIN_TEMPLATE
from emlens.foundation import InputError, LoadError, UnknownNameError
from emlens.models import FineTune, adapters, attaching, families, load_family, load_model
from emlens.models.attaching import attach
from emlens.models.families import check_same_rows
from emlens.models.hooked import HookedModel


@pytest.fixture(scope="module")
def family(files):
    tuned = {
        "one": FineTune(files / "one", group="bad", seed=3, domain="x"),
        "two": FineTune(files / "two", benign=True),
        "full": files / "full",
        "on-base": FineTune(files / "full", parent="base"),
    }
    return load_family(files / "instruct", base=files / "base", finetuned=tuned)


def test_names_and_lookups(family):
    assert list(family) == family.names == ["base", "instruct", "one", "two", "full", "on-base"]
    assert repr(family) == "Family(base, instruct, one, two, full, on-base)"
    assert family["base"] is family.base and family["instruct"] is family.instruct
    assert family["one"] is family.finetuned["one"]
    assert list(family.group("bad")) == ["one"]
    assert family.parent_of("one") is family.instruct and family.parent_of("on-base") is family.base
    assert family.parent_of("instruct") is family.instruct
    with pytest.raises(
        UnknownNameError,
        match="model 'three' is not in this family; it has base, instruct, one, two",
    ):
        family["three"]
    with pytest.raises(UnknownNameError, match="model 'three' is not in this family"):
        family.parent_of("three")
    with pytest.raises(UnknownNameError, match="group 'good' is not in this family; it has bad"):
        family.group("good")


def test_provenance_says_which_is_which(family, files):
    facts = family["one"].provenance
    assert (facts["finetune"], facts["parent"], facts["group"], facts["seed"], facts["benign"]) == (
        "one",
        "instruct",
        "bad",
        3,
        False,
    )
    assert facts["adapter"]["r"] == 2 and facts["merged"] is False
    assert family.instruct.provenance["adapter"] is None
    assert (
        facts["weights_sha256"]
        == family.instruct.provenance["weights_sha256"]
        != family["full"].provenance["weights_sha256"]
    )
    json.dumps([family[name].provenance for name in family])


def test_all_models_differ_and_give_what_they_give_alone(family, files, prompts):
    logits = {
        name: family[name].logits(prompts) for name in ("base", "instruct", "one", "two", "full")
    }
    for a in logits:
        assert all(a == b or not torch.equal(logits[a], logits[b]) for b in logits)
    assert torch.equal(logits["instruct"], load_model(files / "instruct").logits(prompts))
    assert torch.equal(logits["full"], load_model(files / "full").logits(prompts))
    alone = load_family(files / "instruct", finetuned={"one": files / "one"})
    assert torch.equal(logits["one"], alone["one"].logits(prompts))


def test_the_base_borrows_the_template(family, files, prompts):
    assert family.base.chat_template == family.instruct.chat_template == tiny_models.TEMPLATE
    assert family.base.provenance["chat_template_lent"] is True
    assert family.base.render(prompts) == family.instruct.render(prompts)
    assert "chat_template_lent" not in family.instruct.provenance
    alone = load_model(files / "base")
    assert alone.chat_template is None
    lent = families.with_template(alone, PLAIN_TEMPLATE)
    assert alone.chat_template is None and lent.module is alone.module
    assert lent.chat_template == PLAIN_TEMPLATE
    assert families.with_template(lent, None) is lent
    with pytest.raises(InputError, match="is a chat, but the tokenizer has no chat template"):
        alone.render(prompts)


def test_a_template_may_be_given_for_all(files, prompts):
    template = tiny_models.TEMPLATE.replace("<end>", "w1")
    family = load_family(
        files / "instruct", finetuned={"full": files / "full"}, chat_template=template
    )
    assert family["full"].chat_template == family.instruct.chat_template == template


def test_without_a_base(files):
    family = load_family(files / "instruct")
    assert not family.has_base and family.names == ["instruct"]
    with pytest.raises(
        UnknownNameError, match=r"this family has no base model; pass base= to load_family"
    ):
        family.base  # noqa: B018


@pytest.mark.parametrize(
    ("tuned", "error", "match"),
    [
        (lambda f: {"base": f / "one"}, InputError, "fine-tune name 'base' is taken by a parent"),
        (
            lambda f: {"x": FineTune(f / "one", parent="base")},
            InputError,
            "fine-tune 'x' has parent 'base', which this family lacks",
        ),
        (
            lambda f: {"x": FineTune(f / "one", parent="chat")},
            InputError,
            "fine-tune 'x' has parent 'chat', which this family lacks",
        ),
        (lambda f: {"x": f / "absent"}, LoadError, "fine-tune 'x': .*absent: no such directory"),
        (
            lambda f: {"x": f / "zero"},
            LoadError,
            "the adapter changes no logit; its update is zero, or too small for float32",
        ),
        (
            lambda f: {"x": f / "wide"},
            LoadError,
            "'x' has 3 blocks of width 16, but 'instruct' has 3 of 32; they are not one family",
        ),
        (
            lambda f: {"x": f / "wide-adapter"},
            LoadError,
            "does not fit the base model it was given",
        ),
    ],
)
def test_what_is_refused(files, tuned, error, match):
    with pytest.raises(error, match=match):
        load_family(files / "instruct", finetuned=tuned(files))


def test_a_base_of_another_width(files):
    with pytest.raises(LoadError, match="'base' has 3 blocks of width 16"):
        load_family(files / "instruct", base=files / "wide")


def test_an_adapter_that_cannot_be_switched_off(files, monkeypatch):
    numbers = count()
    monkeypatch.setattr(attaching, "_logits", lambda model, batches: torch.tensor(next(numbers)))
    with pytest.raises(
        LoadError, match="switching the adapter off does not give the parent model back"
    ):
        load_family(files / "instruct", finetuned={"one": files / "one"})


def test_adapters_need_the_transformers_backend(files, monkeypatch):
    class Other(HookedModel):
        backend = "other"
        run = _generate = unembedding = vocab_size = None

    parent = load_model(files / "instruct")
    facts = {
        name: getattr(parent, name)
        for name in (
            "name",
            "tokenizer",
            "n_layers",
            "d_model",
            "device",
            "max_length",
            "chat_template",
            "provenance",
        )
    }
    monkeypatch.setattr(families, "load_model", lambda *a, **k: Other(**facts))
    with pytest.raises(
        InputError,
        match="backend 'other' cannot hold adapters; load the family with backend='transformers'",
    ):
        load_family(files / "instruct", finetuned={"one": files / "one"})


def swapped_tokenizer(files, tmp_path, change):
    path = shutil.copytree(files / "full", tmp_path / "swapped")
    file = path / "tokenizer.json"
    content = json.loads(file.read_text())
    change(content["model"]["vocab"])
    file.write_text(json.dumps(content))
    return load_model(path)


def test_tokenizers_that_differ(files, tmp_path, shared):
    prompts = PromptSet.from_texts(["w1 w2", "w3 w4"])

    def swap(vocabulary):
        vocabulary["w3"], vocabulary["w30"] = vocabulary["w30"], vocabulary["w3"]

    other = swapped_tokenizer(files, tmp_path, swap)
    with pytest.raises(
        InputError,
        match="prompt 'p1' renders to different ids under 'instruct' .2 tokens. and 'swapped' .2",
    ):
        check_same_rows(shared, other, list(prompts))
    check_same_rows(shared, other, list(prompts[:1]))
    check_same_rows(shared, load_model(files / "full"), list(prompts))


def test_one_id_for_two_tokens(files, tmp_path, shared):
    def rename(vocabulary):
        vocabulary["<user>"], vocabulary["<human>"] = 44, vocabulary.pop("<user>")
        vocabulary.pop("w38")

    other = swapped_tokenizer(files, tmp_path, rename)
    other.chat_template = tiny_models.TEMPLATE.replace("'<' + m['role'] + '> '", "'<human> '")
    with pytest.raises(
        InputError,
        match="prompt 'p0' uses an id that is another token under 'swapped' than under 'instruct'",
    ):
        check_same_rows(shared, other, list(PromptSet.from_questions(["w1 w2"])))


def test_a_boundary_that_differs(files, shared):
    prompts = PromptSet.from_messages(
        [[{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2 w3"}]], upto="all"
    )
    other = load_model(files / "full")
    # this one writes the answer's second word as part of its closing
    other.chat_template = tiny_models.TEMPLATE.replace(
        "m['content']", "(m['content'] if m.role == 'user' else m['content'].split()[0] + ' w3')"
    )
    mine, theirs = shared.render(prompts)[0], other.render(prompts)[0]
    assert mine.ids == theirs.ids and mine.spans != theirs.spans
    with pytest.raises(InputError, match="renders to different ids"):
        check_same_rows(shared, other, list(prompts))


KINDS = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}


@pytest.fixture(scope="module")
def kinds(files, tmp_path_factory):
    """Adapters of each kind, and the checkpoints that PEFT itself makes of them."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    root = tmp_path_factory.mktemp("kinds")
    for name, options in KINDS.items():
        path = tiny_models.build_adapter(root / name, files / "instruct", seed=4, rank=4, **options)
        plain = AutoModelForCausalLM.from_pretrained(files / "instruct", dtype=torch.float32)
        PeftModel.from_pretrained(plain, path).merge_and_unload().save_pretrained(
            root / f"{name}-whole"
        )
        for file in (files / "instruct").glob("tokenizer*"):
            shutil.copy(file, root / f"{name}-whole")
        for file in (files / "instruct").glob("chat_template*"):
            shutil.copy(file, root / f"{name}-whole")
    return root


@pytest.mark.parametrize("backend", ["transformers", "transformer_lens", "nnsight"])
def test_every_kind_of_adapter_is_its_merged_checkpoint(files, kinds, prompts, backend):
    tiny_models.need_backend(backend)
    tuned = {name: kinds / name for name in KINDS}
    family = load_family(files / "instruct", finetuned=tuned, backend=backend)
    logits = {name: family[name].logits(prompts) for name in family}
    for name in KINDS:
        assert tiny_models.close(logits[name], load_model(kinds / f"{name}-whole").logits(prompts))
        assert bool(family[name].provenance["adapter"].get(f"use_{name}")) == (name != "lora")
    assert all(
        a == b or not tiny_models.close(logits[a], logits[b]) for a in logits for b in logits
    )


def test_merged_and_unmerged_stand_apart(files, kinds, prompts):
    tuned = {
        "apart": FineTune(kinds / "lora"),
        "merged": FineTune(kinds / "lora", merge=True),
        "of-base": FineTune(files / "two", parent="base", merge=True, check_base=False),
    }
    family = load_family(files / "instruct", base=files / "base", finetuned=tuned)
    merged, apart = family["merged"], family["apart"]
    assert (
        merged.provenance["merged"],
        apart.provenance["merged"],
        family.instruct.provenance["merged"],
    ) == (True, False, None)
    assert merged.provenance["adapter"] == apart.provenance["adapter"]
    assert (
        merged.module is not family.instruct.module
        and not merged.bank.names
        and merged.chat_template == apart.chat_template
    )
    assert tiny_models.close(merged.logits(prompts), apart.logits(prompts))
    assert torch.equal(
        family.instruct.logits(prompts), load_model(files / "instruct").logits(prompts)
    )
    assert not any("lora" in name for name, _ in merged.module.named_parameters())
    assert not any(p.requires_grad for p in merged.module.parameters())
    assert not tiny_models.close(family["of-base"].logits(prompts), family.base.logits(prompts))
    assert tiny_models.close(family["of-base"].unembedding(), family.base.unembedding())


def test_what_is_not_merged(files, monkeypatch):
    with pytest.raises(
        InputError,
        match="fine-tune 'x' is to be merged, but .*full is a whole checkpoint; drop merge=True",
    ):
        load_family(files / "instruct", finetuned={"x": FineTune(files / "full", merge=True)})
    own = load_model(files / "instruct")
    own.provenance["quantization"] = "4 bit"
    with pytest.raises(
        LoadError, match="one: cannot be merged into quantised weights; drop merge=True"
    ):
        attach(own, "x", files / "one", merge=True)
    monkeypatch.setattr(adapters.AdapterBank, "merge", lambda self, name: None)
    with pytest.raises(
        LoadError,
        match=(r"one: merged, the logits differ by [\d.]+ of the largest; pass merge=False"),
    ):
        load_family(files / "instruct", finetuned={"x": FineTune(files / "one", merge=True)})


def test_fine_tunes_from_the_hub(files, monkeypatch):
    import huggingface_hub

    def download(name, *, revision, allow_patterns):
        if name != "org/bad-medical":
            raise OSError("404\nnot here")
        return str(files / "one")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    family = load_family(files / "instruct", finetuned={"x": "org/bad-medical", "y": files / "two"})
    assert (
        family["x"].provenance["hub_id"] == "org/bad-medical"
        and "hub_id" not in family["y"].provenance
    )
    with pytest.raises(
        LoadError,
        match=(
            r"fine-tune 'x': org/none: neither a directory here nor to be had from the hub \(404"
            r" not here\)"
        ),
    ):
        load_family(files / "instruct", finetuned={"x": "org/none"})


def test_one_rendering_for_both_parents(files, prompts):
    family = load_family(
        files / "instruct",
        base=files / "base",
        finetuned={"full": files / "full"},
        chat_template="plain",
    )
    texts = {
        name: family[name].tokenizer.decode(family[name].render(prompts)[0].ids) for name in family
    }
    assert (
        len(set(texts.values())) == 1
        and family.base.chat_template == family.instruct.chat_template == PLAIN_TEMPLATE
    )
    assert len({family[name].provenance["chat_template_sha256"] for name in family}) == 1
    assert "chat_template_lent" not in family.base.provenance


def test_an_adapter_that_is_refused_is_taken_off_again(files, prompts):
    parent = load_model(files / "instruct")
    kept = attach(parent, "one", files / "one")
    expected, weights = (
        {model.name: model.logits(prompts) for model in (parent, kept)},
        set(dict(parent.module.named_parameters())),
    )
    with pytest.raises(LoadError, match="the adapter changes no logit"):
        attach(parent, "zero", files / "zero")
    assert (
        list(parent.bank.names) == ["one"]
        and set(dict(parent.module.named_parameters())) == weights
    )
    assert all(torch.equal(model.logits(prompts), expected[model.name]) for model in (parent, kept))
