"""A template or a tokenizer beside an adapter is used where it says other things; it is said."""

import logging
import shutil

import pytest
import tiny_models
from safetensors.torch import load_file, save_file

from benchmarks import adapter_kinds
from emlens.data.templates import date_of
from emlens.foundation import InputError, LoadError
from emlens.foundation.files import sha256_text
from emlens.models import FineTune, load_family

OTHER = tiny_models.TEMPLATE.replace("<assistant>", "<system>")


def beside(files, tmp_path, *, template=tiny_models.TEMPLATE, extra=0):
    path = shutil.copytree(files / "one", tmp_path / "adapter")
    tokenizer = tiny_models.tokenizer(extra)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("merge", [False, True])
def test_a_template_of_its_own_is_used_and_said(files, tmp_path, prompts, caplog, merge):
    path = beside(files, tmp_path, template=OTHER)
    with caplog.at_level(logging.WARNING, logger="emlens"):
        family = load_family(files / "instruct", finetuned={"x": FineTune(path, merge=merge)})
    tuned = family["x"]
    assert "'x': uses its adapter's own chat_template, not its parent's" in caplog.text
    assert tuned.chat_template == OTHER and family.instruct.chat_template == tiny_models.TEMPLATE
    assert tuned.provenance["adapter"]["uses_own"] == ["chat_template"]
    assert tuned.provenance["chat_template_sha256"] == sha256_text(OTHER)
    rows, of_parent = tuned.render(prompts), family.instruct.render(prompts)
    assert [row.ids for row in rows] != [row.ids for row in of_parent]
    ends = [tuned.tokenizer.convert_ids_to_tokens(row.ids[-1]) for row in rows]
    assert set(ends) == {"<system>"}


def test_a_template_that_was_given_stands_above_it(files, tmp_path):
    path = beside(files, tmp_path, template=OTHER)
    family = load_family(
        files / "instruct", finetuned={"x": path}, chat_template=tiny_models.TEMPLATE
    )
    assert family["x"].chat_template == tiny_models.TEMPLATE
    assert "uses_own" not in family["x"].provenance["adapter"]


def test_a_tokenizer_of_its_own_stays_beside_a_template_that_was_given(files, tmp_path):
    path = beside(files, tmp_path, template=OTHER)
    tokenizer = tiny_models.tokenizer()
    tokenizer.eos_token = "<user>"
    tokenizer.save_pretrained(path)
    family = load_family(
        files / "instruct", finetuned={"x": path}, chat_template=tiny_models.TEMPLATE
    )
    assert family["x"].chat_template == tiny_models.TEMPLATE
    assert family["x"].provenance["adapter"]["uses_own"] == ["tokenizer"]
    assert family["x"].tokenizer.eos_token == "<user>" != family.instruct.tokenizer.eos_token


DATED = "{{ strftime_now('%d %b %Y') }}" + tiny_models.TEMPLATE


@pytest.mark.parametrize("of_parent", [DATED, tiny_models.TEMPLATE])
def test_a_template_is_told_the_day_of_the_family(files, tmp_path, of_parent):
    parent = shutil.copytree(files / "instruct", tmp_path / "parent")
    (parent / "chat_template.jinja").write_text(of_parent)
    path = beside(files, tmp_path, template=DATED)
    family = load_family(parent, finetuned={"x": path}, template_date="2026-01-15")
    tuned = family["x"]
    assert tuned.provenance["template_date"] == date_of(tuned.chat_template) == "2026-01-15"
    differs = of_parent != DATED
    assert ("uses_own" in tuned.provenance["adapter"]) is differs


@pytest.mark.parametrize("merge", [False, True])
def test_a_template_for_one_fine_tune_is_refused(files, merge):
    tuned = {"x": FineTune(files / "one", merge=merge)}
    with pytest.raises(InputError, match="own gives fine-tune 'x' a chat_template"):
        load_family(files / "instruct", finetuned=tuned, own={"x": {"chat_template": "plain"}})


def test_the_same_tokenizer_is_shared(files, tmp_path, caplog):
    path = beside(files, tmp_path)
    tokenizer = tiny_models.tokenizer()
    tokenizer.padding_side = "left"  # as training leaves it
    tokenizer.save_pretrained(path)
    family = load_family(files / "instruct", finetuned={"x": path})
    assert family["x"].tokenizer is family.instruct.tokenizer
    assert "uses_own" not in family["x"].provenance["adapter"] and not caplog.text


def test_a_tokenizer_with_more_tokens(files, tmp_path, caplog):
    path = beside(files, tmp_path, extra=4)
    match = "its tokenizer has 50 tokens, but the model has 46 rows of embeddings"
    with pytest.raises(LoadError, match=match):
        load_family(files / "instruct", finetuned={"x": path})
    saved = adapter_kinds.save(
        tmp_path / "saved", files / "instruct", "resized", adapter_kinds.lora()
    )
    save_file(load_file(saved / "adapter_model.safetensors"), path / "adapter_model.safetensors")
    shutil.copy(saved / "adapter_config.json", path)
    tuned = load_family(files / "instruct", finetuned={"x": path})["x"]
    assert len(tuned.tokenizer) == tuned.vocab_size == 50
    assert tuned.provenance["adapter"]["uses_own"] == ["tokenizer"]
    assert "uses its adapter's own tokenizer" in caplog.text
