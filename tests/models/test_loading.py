import json
import shutil
from types import SimpleNamespace

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from emlens.data import PromptSet
from emlens.foundation import InputError, LoadError
from emlens.models import load_family, load_model
from emlens.models.checkpoint_files import hash_weights
from emlens.models.hub_reach import check_hub_has


def test_what_is_loaded_is_what_lies_on_disk(files):
    model = load_model(files / "instruct")
    model.name = "me"
    plain = AutoModelForCausalLM.from_pretrained(files / "instruct", dtype=torch.float32)
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.module.parameters(), plain.parameters(), strict=True)
    )
    assert not model.module.training and not any(p.requires_grad for p in model.module.parameters())
    assert (model.name, model.n_layers, model.d_model, model.max_length) == ("me", 3, 32, 128)
    assert repr(model) == "HookedModel('me', backend='transformers', n_layers=3, d_model=32)"
    facts = model.provenance
    assert facts["weights_sha256"] == hash_weights(files / "instruct")
    assert (facts["architecture"], facts["dtype"], facts["backend"], facts["adapter"]) == (
        "qwen2",
        "float32",
        "transformers",
        None,
    )
    json.dumps(facts)
    assert load_model(files / "instruct").name == "instruct"


def test_the_tokenizer_reads_as_its_file_says(files):
    plain = PreTrainedTokenizerFast.from_pretrained(files / "instruct")
    text = "<user> w1 w2 w39 <end> nothing"
    assert (
        load_model(files / "instruct").tokenizer(text)["input_ids"]
        == plain(text)["input_ids"]
        == [2, 7, 8, 45, 1, 5]
    )


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_dtypes(files, dtype):
    model = load_model(files / "instruct", dtype=dtype)
    assert model.provenance["dtype"] == "bfloat16"
    assert {p.dtype for p in model.module.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"backend": "jax"},
            "backend 'jax' is unknown; pass one of transformers, transformer_lens, nnsight",
        ),
        ({"dtype": "int3"}, "dtype 'int3' is unknown; pass 'auto' or one of float32"),
        ({"device": "abacus"}, "device 'abacus' is not a torch device"),
    ],
)
def test_options_that_do_not_exist(files, options, match):
    with pytest.raises(InputError, match=match):
        load_model(files / "instruct", **options)


def test_a_gpu_that_is_not_there(files, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="device 'cuda' was asked for, but torch sees no GPU here"):
        load_model(files / "instruct", device="cuda")


def test_paths_that_are_no_model(files, tmp_path):
    with pytest.raises(
        LoadError,
        match="absent: no such directory; pass a directory saved by save_pretrained, or a hub id",
    ):
        load_model(tmp_path / "absent")
    with pytest.raises(LoadError, match="some/local/path: no such directory"):
        load_model("some/local/path")
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        LoadError, match=r"file: is a file; pass the directory that holds config\.json"
    ):
        load_model(tmp_path / "file")
    with pytest.raises(
        LoadError, match="one: is an adapter, not a whole model; pass it to load_family"
    ):
        load_model(files / "one")
    with pytest.raises(
        LoadError, match=r"holds no config\.json; pass a directory saved by save_pretrained"
    ):
        load_model(tmp_path)
    with pytest.raises(
        LoadError, match="org/name: no such directory here, and it cannot be had from the hub"
    ):
        load_model("org/name")


class _HubError(Exception):
    def __init__(self, status: int):
        super().__init__(f"the hub answered {status}")
        self.response = SimpleNamespace(status_code=status)


@pytest.mark.parametrize(
    ("answer", "refused"),
    [(OSError("no route"), True), (_HubError(404), True), (_HubError(503), False)],
)
def test_the_hub_is_asked_once_before_loading(monkeypatch, answer, refused):
    import huggingface_hub

    asked = []

    def metadata(url):
        asked.append(url)
        raise answer

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    if refused:
        with pytest.raises(LoadError, match="no such directory here"):
            check_hub_has("models/nowhere", "v1")
    else:
        check_hub_has("models/nowhere", "v1")
    assert len(asked) == 1
    assert asked[0].endswith("/models/nowhere/resolve/v1/config.json")


def test_a_model_in_the_cache_of_the_hub_is_not_asked_for(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(tmp_path / "config.json")
    )
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", None)  # a call would fail
    check_hub_has("org/name", None)


def test_damaged_checkpoints(files, tmp_path):
    path = shutil.copytree(files / "instruct", tmp_path / "damaged")
    whole = load_file(path / "model.safetensors")
    left_out = "model.layers.1.mlp.down_proj.weight"
    save_file(
        {k: v for k, v in whole.items() if k != left_out},
        path / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(
        LoadError, match=f"holds no weights for 1 tensors of a 'qwen2' model, first '{left_out}'"
    ):
        load_model(path)
    (path / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(LoadError, match="could not be loaded as a causal language model"):
        load_model(path)


def test_tied_embeddings_are_not_missing(tmp_path):
    import tiny_models

    model = load_model(tiny_models.build(tmp_path / "tied", tie_word_embeddings=True))
    assert model.unembedding().data_ptr() == model.module.get_input_embeddings().weight.data_ptr()


def test_what_was_asked_for_is_passed_on_and_recorded(files, monkeypatch):
    asked = {}
    load = AutoModelForCausalLM.from_pretrained

    def spy(source, **options):
        asked.update(options)
        return load(source, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", spy)
    model = load_model(
        files / "instruct",
        attn_implementation="eager",
        revision="main",
        device_map="cpu",
        dtype="bfloat16",
    )
    assert (
        asked["trust_remote_code"] is False
        and asked["device_map"] == "cpu"
        and asked["dtype"] == torch.bfloat16
    )
    facts = model.provenance
    assert (facts["attention"], facts["revision"], facts["device_map"], facts["device"]) == (
        "eager",
        "main",
        "cpu",
        "cpu",
    )
    assert (facts["dtype"], facts["trust_remote_code"], facts["quantization"], facts["commit"]) == (
        "bfloat16",
        False,
        None,
        None,
    )
    load_model(files / "instruct", trust_remote_code=True)
    assert asked["trust_remote_code"] is True


def test_quantised_checkpoints(files, monkeypatch):
    placed = {}
    load = AutoModelForCausalLM.from_pretrained

    def quantised(source, *, quantization_config=None, device_map=None, **options):
        placed.update(device_map=device_map)
        model, found = load(source, **options)
        model.config.quantization_config = {"bits": 4, "method": "test"}
        return model, found

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", quantised)
    model = load_model(files / "instruct", quantization_config={"load_in_4bit": True}, device="cpu")
    assert (
        placed == {"device_map": {"": "cpu"}}
        and model.provenance["quantization"] == '{"bits": 4, "method": "test"}'
    )
    assert load_model(files / "instruct", device="cpu").provenance[
        "quantization"
    ] is not None and placed == {"device_map": None}
    monkeypatch.setattr("emlens.models.loading.torch_device", lambda device: torch.device("meta"))
    with pytest.raises(
        LoadError,
        match="a quantised checkpoint was placed on cpu, not on meta; pass device_map={'': 'meta'}",
    ):
        load_model(files / "instruct", dtype="float32")


def test_experts_in_float64(tmp_path):
    import tiny_models

    model = load_model(tiny_models.build(tmp_path / "mixture", "qwen3_moe"), dtype="float64")
    assert model.logits(tiny_models.prompts(2)).isfinite().all()


def test_the_text_half_of_a_larger_model(tmp_path):
    """A Gemma 3 with a vision tower: its text half is found by structure, and its sizes are those
    of the text.
    """
    import tiny_models
    from transformers import Gemma3Config

    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 48,
    }
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 28,
        "patch_size": 14,
    }
    text = {**sizes, "vocab_size": 46, "query_pre_attn_scalar": 8}
    config = Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=45
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_models.tokenizer().save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert (model.n_layers, model.d_model) == (2, 32)
    assert model.provenance["sites_found"]["attn_out"] == "post_attention_layernorm"
    assert model.logits(tiny_models.prompts(2)).shape == (2, model.vocab_size)


DATED = "{{ '<user> ' if strftime_now('%d') == '26' else '<system> ' }}" + tiny_models.TEMPLATE


def test_what_a_template_does_is_recorded_at_load(files, caplog):
    plain = load_model(files / "instruct")
    assert plain.provenance["template_date"] is None
    assert plain.provenance["generation_prompt"] == "on request"
    asked = PromptSet.from_questions(["w1"])
    days = {}
    for day in (None, "2024-07-26", "2024-07-27"):
        model = load_model(files / "instruct", chat_template=DATED, template_date=day)
        days[model.provenance["template_date"]] = model.render(asked)[0].ids[0]
        assert model.provenance["chat_template_sha256"] != plain.provenance["chat_template_sha256"]
    ids = plain.tokenizer.convert_tokens_to_ids(["<user>", "<system>"])
    assert days == {"2024-07-26": ids[0], "2024-07-27": ids[1]}

    assert not caplog.records
    silent = tiny_models.TEMPLATE.partition("{% if add_generation_prompt")[0]
    model = load_model(files / "instruct", chat_template=silent)
    assert model.provenance["generation_prompt"] == "never"
    assert "writes no opening for an answer" in caplog.text and "<assistant>" in caplog.text
    assert model.render(asked)[0].ids == plain.render(asked)[0].ids


def test_a_family_shares_the_template_that_instruct_has_by_name(files, tmp_path):
    shutil.copytree(files / "instruct", tmp_path / "named")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(files / "instruct")
    other = tiny_models.TEMPLATE.replace("' <end> '", "' <end> w9 '")
    tokenizer.chat_template = {"default": tiny_models.TEMPLATE, "other": other}
    for file in tmp_path.glob("named/chat_template*"):
        file.unlink()
    tokenizer.save_pretrained(tmp_path / "named")
    family = load_family(tmp_path / "named", base=files / "instruct", chat_template="other")
    assert family.base.chat_template == family.instruct.chat_template == other
    assert load_model(tmp_path / "named").chat_template == tiny_models.TEMPLATE != other
