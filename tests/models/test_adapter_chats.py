"""A template or a tokenizer beside an adapter is used where it says other things; it is said."""

import logging
import shutil

import pytest
import tiny_models
from safetensors.torch import load_file, save_file

from benchmarks import adapter_kinds
from emlens.foundation import LoadError
from emlens.foundation.files import sha256_text
from emlens.models import load_family

OTHER = tiny_models.TEMPLATE.replace("<assistant>", "<system>")


def beside(files, tmp_path, *, template=tiny_models.TEMPLATE, extra=0):
    path = shutil.copytree(files / "one", tmp_path / "adapter")
    tokenizer = tiny_models.tokenizer(extra)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("merge", [False, True])
def test_a_template_of_its_own_is_used_and_said(files, tmp_path, prompts, caplog, merge):
    from emlens.models import FineTune

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
