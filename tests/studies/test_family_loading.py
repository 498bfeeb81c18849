"""`family` of a configuration: hub ids from a local cache, revisions, options of one model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub_cache
import pytest
import torch
import yaml
from hub_cache import commit_of

from emlens.foundation.errors import InputError, LoadError
from emlens.models import Family, load_family
from emlens.studies import read_config
from emlens.studies.family_loading import load_models

FIRST, SECOND = commit_of(1), commit_of(2)


@pytest.fixture(scope="module")
def hub(config_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`org/chat` has one revision; `org/loras` has two adapters, in folders, at two commits."""
    folder, models = tmp_path_factory.mktemp("hub"), config_path.parent
    hub_cache.add(folder, "org/chat", FIRST, models / "instruct", ref="main")
    hub_cache.add(folder, "org/start", FIRST, models / "base", ref="v2", below="final")
    hub_cache.add(folder, "org/loras", FIRST, models / "good", ref="old", below="runs/a")
    hub_cache.add(folder, "org/loras", SECOND, models / "bad", ref="main", below="runs/a")
    with pytest.MonkeyPatch.context() as patch:
        hub_cache.use(patch, folder)
        yield folder


def loaded(family: dict[str, Any]) -> Family:
    config = read_config({"family": family})
    return load_models(config, config.family)


def test_hub_ids_load_by_revision_and_subfolder(hub: Path, config_path: Path) -> None:
    family = loaded(
        {
            "instruct": "org/chat",
            "base": {"path": "org/start", "revision": "v2", "subfolder": "final"},
            "finetuned": {
                "new": {"path": "org/loras", "subfolder": "runs/a", "check_base": False},
                "old": {
                    "path": "org/loras",
                    "subfolder": "runs/a",
                    "revision": "old",
                    "check_base": False,
                },
                "merged": {
                    "path": "org/loras",
                    "subfolder": "runs/a",
                    "check_base": False,
                    "merge": True,
                },
            },
        }
    )
    # the same weights from directories, by the function that studies do not use
    here = config_path.parent
    plain = load_family(
        here / "instruct",
        base=here / "base",
        finetuned={"new": here / "bad", "old": here / "good"},
    )
    prompts = [*_prompts(config_path)]
    for name in plain:
        assert torch.equal(family[name].logits(prompts), plain[name].logits(prompts)), name
    torch.testing.assert_close(family["merged"].logits(prompts), plain["new"].logits(prompts))
    assert family.instruct.provenance["commit"] == FIRST
    record = family["old"].provenance
    assert record["hub_id"] == "org/loras" and record["subfolder"] == "runs/a"
    assert record["hub_revision"] == "old" and record["hub_commit"] == FIRST
    assert family["new"].provenance["hub_commit"] == SECOND


def _prompts(config_path: Path) -> Any:
    from emlens.data import QuestionSet

    return QuestionSet.from_file(config_path.parent / "questions.jsonl").prompts()[:3]


def test_what_the_hub_does_not_have_is_refused(hub: Path) -> None:
    lora = {"path": "org/loras", "subfolder": "runs/a", "check_base": False}
    for change, message in (
        ({"subfolder": "runs/b"}, "org/loras has no folder 'runs/b'"),
        ({"revision": "never"}, "org/loras: neither a directory here nor to be had from the hub"),
    ):
        with pytest.raises(LoadError, match=message):
            loaded({"instruct": "org/chat", "finetuned": {"a": {**lora, **change}}})
    nowhere = {"path": "org/chat", "subfolder": "final"}
    with pytest.raises(LoadError, match="^the instruct model: org/chat has no folder 'final'"):
        loaded({"instruct": nowhere, "finetuned": {"a": lora}})
    with pytest.raises(LoadError, match="org/chat: no such directory here"):
        loaded({"instruct": {"path": "org/chat", "revision": "never"}, "finetuned": {"a": lora}})


def test_a_model_may_differ_from_its_family(config_path: Path) -> None:
    here = config_path.parent
    family = loaded(
        {
            "instruct": str(here / "instruct"),
            "base": {"path": str(here / "base"), "attention": "eager"},
            "finetuned": {
                "lora": str(here / "bad"),
                "full": {"path": str(here), "subfolder": "full", "dtype": "bfloat16"},
                "own": {"path": str(here / "bad"), "merge": True, "device_map": "cpu"},
            },
            "dtype": "float64",
            "attention": "sdpa",
        }
    )
    said = {name: family[name].provenance for name in family}
    assert {name: record["dtype"] for name, record in said.items()} == {
        "instruct": "float64",
        "base": "float64",
        "lora": "float64",
        "full": "bfloat16",
        "own": "float64",
    }
    assert said["base"]["attention"] == "eager" and said["instruct"]["attention"] == "sdpa"
    assert said["own"]["device_map"] == "cpu" and said["instruct"]["device_map"] is None


def test_an_adapter_has_no_options_of_its_own(config_path: Path) -> None:
    here = config_path.parent
    with pytest.raises(
        InputError,
        match=(
            "fine-tune 'a' is an adapter, which runs on the weights of instruct;"
            r" give dtype for instruct, or merge the adapter into weights of its own"
        ),
    ):
        loaded(
            {
                "instruct": str(here / "instruct"),
                "finetuned": {"a": {"path": str(here / "bad"), "dtype": "bfloat16"}},
            }
        )
    with pytest.raises(InputError, match="own names 'b', which is not in this family; it has"):
        load_family(here / "instruct", own={"b": {"dtype": "float64"}})


def test_a_template_comes_by_file_or_name(config_path: Path, tmp_path: Path) -> None:
    here = config_path.parent
    file = tmp_path / "mine.jinja"
    template = "{% for m in messages %}{{ m['content'] + ' w1' }}{% endfor %}"
    file.write_text(template)
    for given, used in ((str(file), template), ("plain", None)):
        family = loaded(
            {
                "instruct": {"path": str(here / "instruct"), "chat_template": given},
                "finetuned": {"a": str(here / "bad")},
            }
        )
        assert family["a"].chat_template == family.instruct.chat_template
        assert family.instruct.chat_template == (used or family.instruct.chat_template)
    assert "Assistant:" in str(family.instruct.chat_template)


@pytest.mark.parametrize(
    ("place", "line", "message"),
    [
        ("instruct: {path: i, revison: main}", 3, "did you mean 'revision'"),
        ("instruct: i\n  atention: eager", 4, "did you mean 'attention'"),
        ("instruct: i\n  base:\n    path: b\n    sub_folder: x", 6, "did you mean 'subfolder'"),
        ("instruct: {path: i, benign: true}", 3, "no such field; known are"),
        (
            "instruct: i\n  quantization: {load_in_4bit: true,\n    bnb_4bit_quant_typ: nf4}",
            5,
            "did you mean 'bnb_4bit_quant_type'",
        ),
        ("instruct: i\n  quantization:\n    bits: 4", 4, "names no kind that transformers knows"),
        ("instruct: [i]", 3, "Input should be a valid dictionary"),
    ],
)
def test_a_field_that_does_not_exist_is_named_with_its_line(
    tmp_path: Path, place: str, line: int, message: str
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(f"study: profile\nfamily:\n  {place}\n  finetuned:\n    a: p\n")
    with pytest.raises(InputError, match=rf"study\.yaml:{line}: .*{message}"):
        config = read_config(path)
        load_models(config, config.family)


def test_an_unknown_field_of_a_fine_tune_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(
        yaml.safe_dump(
            {"family": {"instruct": "i", "finetuned": {"a": {"path": "p", "subfoler": "x"}}}}
        )
    )
    with pytest.raises(InputError, match=r"yaml:5: .*did you mean 'subfolder'"):
        read_config(path)


def test_a_quantization_reaches_transformers(
    config_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    passed: dict[str, Any] = {}

    def from_pretrained(*_: Any, **options: Any) -> Any:
        passed.update(options)
        raise OSError("no card here")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    with pytest.raises(LoadError, match="no card here"):
        loaded(
            {
                "instruct": str(config_path.parent / "instruct"),
                "finetuned": {"a": str(config_path.parent / "bad")},
                "quantization": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
            }
        )
    given = passed["quantization_config"]
    assert isinstance(given, BitsAndBytesConfig) and given.bnb_4bit_quant_type == "nf4"
    assert passed["device_map"] == {"": "cpu"}
