"""NaN and infinite values are an error at the first site, wherever a model is read."""

import json
import shutil

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from emlens.activations import CaptureSpec, capture, stream_moments
from emlens.data import PromptSet
from emlens.foundation.errors import LoadError, NotFiniteError
from emlens.interventions import steer
from emlens.judging.reply_probabilities import ReplyReader
from emlens.models import load_model
from emlens.models.finite import is_finite, unusable_scores

ASKED = PromptSet.from_texts(["w1 w2", "w3 w4 w5"])
NAN, INF = float("nan"), float("inf")


def damaged(files, backend="transformers", dtype="float32", value=NAN):
    """A model whose second MLP writes values that are not finite."""
    model = load_model(files / "instruct", backend=backend, dtype=dtype)
    model.module.model.layers[1].mlp.down_proj.weight.data.fill_(value)
    return model


WAYS = {
    "logits": lambda model: model.logits(ASKED),
    "token_logprobs": lambda model: model.token_logprobs(ASKED),
    "sequence_logprob": lambda model: model.sequence_logprob(ASKED, ["w1", "w2"]),
    "greedy": lambda model: model.generate(ASKED, max_new_tokens=2, temperature=0),
    "sampled": lambda model: model.generate(ASKED, max_new_tokens=2, temperature=1),
    "capture": lambda model: capture(model, ASKED, "resid_post.2", progress=False),
    "every token": lambda model: capture(model, ASKED, "final_norm", positions="all"),
    "moments": lambda model: stream_moments(model, ASKED, CaptureSpec("mlp_out.1")),
    "judge": lambda model: ReplyReader(model, ()).distributions(model.render(ASKED)),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_read_a_model_names_the_first_site(files, way):
    model = damaged(files)
    with pytest.raises(NotFiniteError, match=r"^prompt 'p[01]': 'instruct' .* first at mlp_out.1;"):
        WAYS[way](model)


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
@pytest.mark.parametrize("way", ["logits", "greedy", "sampled", "capture"])
def test_other_backends_do_too(files, backend, way):
    model = damaged(files, tiny_models.need_backend(backend))
    with pytest.raises(NotFiniteError, match=r"'p[01]': .* not finite, first at mlp_out.1; its"):
        WAYS[way](model)


@pytest.mark.parametrize("way", WAYS)
def test_float16_says_to_use_bfloat16(files, way):
    with pytest.raises(NotFiniteError, match="load the model with dtype='bfloat16'"):
        WAYS[way](damaged(files, dtype="float16", value=6e4))


def test_nothing_of_it_is_stored(files, tmp_path):
    with pytest.raises(NotFiniteError):
        capture(damaged(files), ASKED, store=tmp_path / "store", progress=False)
    assert not list((tmp_path / "store").glob("shard-*"))


def test_the_row_that_holds_it_is_named(files):
    model = load_model(files / "instruct")
    # the second prompt alone has w5
    token = model.tokenizer("w5", add_special_tokens=False)["input_ids"][0]
    model.module.get_input_embeddings().weight.data[token] = INF
    for positions in ("mean_prompt", "all"):
        with pytest.raises(NotFiniteError, match=r"prompt 'p1': .* first at resid_pre.0; its"):
            capture(model, ASKED, "resid_pre.1", positions=positions, progress=False)
    expected = capture(model, ASKED.select(["p0"]), "resid_pre.1", progress=False)
    assert expected["resid_pre.1"].isfinite().all()


def test_an_edit_or_the_kept_dtype_may_be_the_cause(files):
    model = load_model(files / "instruct")
    edit = steer(torch.full((32,), 1e30), 1e30, at=["resid_post.1"])
    with (
        model.intervene([edit]),
        pytest.raises(NotFiniteError, match=r"first at resid_post.1; take the edits away"),
    ):
        model.logits(ASKED)
    spec = CaptureSpec("resid_post.1", dtype=torch.float16)
    with (
        model.intervene([steer(torch.full((32,), 1.0), 1e6, at=["resid_post.1"])]),
        pytest.raises(NotFiniteError, match=r"resid_post.1 at last_prompt that do not fit float16"),
    ):
        capture(model, ASKED, spec=spec, progress=False)


def test_what_counts_as_finite():
    assert is_finite(torch.full((9,), 3e38)) and not is_finite(torch.tensor([1.0, -INF, INF]))
    assert is_finite(torch.full((9,), 6e4, dtype=torch.float16))
    scores = torch.tensor([[0, -INF], [0, INF], [0, NAN], [-INF, -INF]])
    assert unusable_scores(scores).tolist() == [False, True, True, True]


def resaved(files, path, change):
    """A copy of the tiny checkpoint with its weights or its configuration changed."""
    shutil.copytree(files / "instruct", path)
    change(path)
    return path


def test_nan_in_weights_or_settings_is_refused_at_load(files, tmp_path):
    def damage_weights(path):
        tensors = load_file(path / "model.safetensors")
        tensors["model.layers.1.mlp.down_proj.weight"][3, 2] = NAN
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})

    def damage_settings(path):
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, "rms_norm_eps": NAN}))

    with pytest.raises(LoadError, match=r"'model.layers.1.mlp.down_proj.weight' holds NaN"):
        load_model(resaved(files, tmp_path / "weights", damage_weights))
    with pytest.raises(LoadError, match="its configuration gives rms_norm_eps as NaN; correct"):
        load_model(resaved(files, tmp_path / "settings", damage_settings))


def test_weights_beyond_float16(files, tmp_path):
    def enlarge(path):
        tensors = load_file(path / "model.safetensors")
        tensors["model.norm.weight"][0] = 1e5
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})

    path = resaved(files, tmp_path / "large", enlarge)
    assert load_model(path).logits(ASKED).isfinite().all()
    with pytest.raises(LoadError, match=r"'model.norm.weight' holds .*pass dtype='bfloat16'"):
        load_model(path, dtype="float16")


GEMMA = {
    **{name: way for name, way in WAYS.items() if name not in ("every token", "moments")},
    "capture": lambda model: capture(model, ASKED, "resid_post", progress=False),
    "moments": lambda model: stream_moments(model, ASKED, CaptureSpec("mlp_out")),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", GEMMA)
def test_gemma_in_float16(gemma_float16, way):
    with pytest.raises(NotFiniteError, match="load the model with dtype='bfloat16'"):
        GEMMA[way](gemma_float16)


@pytest.fixture(scope="module")
def gemma_float16(real_models):
    if not (real_models / "gemma3-270m").is_dir():
        pytest.skip("EMLENS_REAL_MODELS holds no gemma3-270m")
    return load_model(real_models / "gemma3-270m", dtype="float16", chat_template="plain")
