import json
import random
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.records import hash_directory
from emlens.foundation.errors import InputError, IntegrityError, LoadError
from emlens.foundation.files import sha256_file
from emlens.models import load_family
from emlens.models.checkpoint_files import checkpoint_hashes
from emlens.training import Recipe, Saving, StopRun, fit, fitting, open_checkpoint
from emlens.training.examples import encode_answers
from emlens.training.fitting import Parent, read_record

LORA = Recipe(
    method="lora",
    rank=4,
    alpha=8,
    rslora=True,
    target_modules=("q_proj", "down_proj"),
    layers_to_transform=(1,),
    learning_rate=1e-2,
    steps=6,
    batch_size=4,
    warmup_steps=2,
    final_fraction=0.1,
    seed=3,
)
FULL = Recipe(method="full", learning_rate=1e-2, steps=6, batch_size=4, schedule="cosine", seed=3)


@pytest.fixture
def parent(tiny, tokenizer, tmp_path):
    tiny.save_pretrained(tmp_path / "parent")
    tokenizer.save_pretrained(tmp_path / "parent")
    return tmp_path / "parent"


def test_an_adapter_is_saved_with_its_record_and_loads_plainly(parent, chats, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    fitted = fit(
        LORA,
        Parent(parent, name="emlens/parent"),
        chats,
        tmp_path / "out",
        saving=Saving("float16"),
    )
    assert fitted.stopped is None
    assert list(fitted.log.columns) == ["step", "loss", "learning_rate", "grad_norm"]
    assert fitted.log["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert fitted.log["learning_rate"].tolist() == pytest.approx(
        [1e-2 * LORA.rate_factor(step) for step in range(6)]
    )
    assert fitted.log["loss"].iloc[-1] < fitted.log["loss"].iloc[0]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / "training_log.csv"), fitted.log)

    record = read_record(tmp_path / "out")
    assert record["parent"] == {"name": "emlens/parent", **checkpoint_hashes(parent)}
    assert Recipe.from_record(record["recipe"]) == LORA
    assert (record["kind"], record["seed"], record["steps_done"]) == ("adapter", 3, 6)
    assert record["data"] == {"kind": "chats", "sha256": chats.content_hash}
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "emlens/parent"
    assert config["target_modules"] == ["down_proj", "q_proj"]
    assert str(tmp_path) not in "".join(
        p.read_text() for p in (tmp_path / "out").iterdir() if p.suffix in (".json", ".csv")
    )
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "emlens.json",
        "training_log.csv",
    }

    plain = AutoModelForCausalLM.from_pretrained(parent, dtype=torch.float32)
    before = plain.model.layers[1].mlp.down_proj.weight.detach().clone()
    adapted = PeftModel.from_pretrained(plain, tmp_path / "out")
    layer = adapted.base_model.model.model.layers[1].mlp.down_proj
    b, a = layer.lora_B["default"].weight.detach(), layer.lora_A["default"].weight.detach()
    merged = adapted.merge_and_unload().model.layers[1].mlp.down_proj.weight.detach()
    torch.testing.assert_close(merged - before, 8 / 4**0.5 * b @ a, atol=1e-6, rtol=1e-4)
    assert LORA.scale == 8 / 4**0.5
    assert not hasattr(adapted.base_model.model.model.layers[0].mlp.down_proj, "lora_A")


def test_a_family_holds_an_adapter_to_the_parent_it_was_fitted_on(
    tiny, parent, tokenizer, chats, tmp_path
):
    out = fit(LORA, parent, chats, tmp_path / "out").path
    assert load_family(parent, finetuned={"tuned": out}).names == ["instruct", "tuned"]
    with torch.no_grad():
        tiny.model.norm.weight.add_(0.1)
    tiny.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(LoadError, match="was trained on a base whose weights hash begins"):
        load_family(tmp_path / "other", finetuned={"tuned": out})


def test_the_same_call_gives_the_same_bytes_and_another_seed_does_not(parent, chats, tmp_path):

    random.seed(1)
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    for name, recipe in (("a", LORA), ("b", LORA), ("c", LORA.changed(seed=4))):
        fit(recipe, parent, chats, tmp_path / name)
        torch.rand(3 if name == "a" else 0)
    hashes = [sha256_file(tmp_path / name / "adapter_model.safetensors") for name in "abc"]
    assert hashes[0] == hashes[1] != hashes[2]
    assert hash_directory(tmp_path / "a") == hash_directory(tmp_path / "b")
    assert random.getstate() == state[0]
    assert np.random.get_state()[1].tolist() == state[1]


def test_a_full_checkpoint_is_an_ordinary_directory_with_its_tokenizer(parent, chats, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    fitted = fit(FULL, parent, chats, tmp_path / "out", saving=Saving("float16"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    for name, value in fitted.model.named_parameters():
        torch.testing.assert_close(
            dict(model.named_parameters())[name], value, atol=1e-3, rtol=1e-3
        )
    assert model.config.use_cache
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    assert not [p.name for p in (tmp_path / "out").iterdir() if p.suffix in (".bin", ".pt", ".pkl")]


def test_loss_and_gradient_norm_match_a_plain_step(tiny, tokenizer, chats, tmp_path):
    import copy

    from emlens.training.examples import pad_batch, shuffled_batches
    from emlens.training.objectives import answer_loss

    model = copy.deepcopy(tiny)
    examples = encode_answers(chats, tokenizer)
    rows = shuffled_batches(len(examples), 4, 6, seed=3)[0]
    loss = answer_loss(model, pad_batch([examples[i] for i in rows], 0))
    loss.backward()
    norm = sum(float((p.grad.double() ** 2).sum()) for p in model.parameters()) ** 0.5
    first = fit(FULL, tiny, examples, tmp_path / "out").log.iloc[0]
    assert first["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert first["grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_callbacks_join_the_log_and_may_stop_the_run(tiny, tokenizer, chats, tmp_path):
    seen = []

    def watch(model, step):
        seen.append(type(model).__name__)
        if step == 3:
            raise StopRun("aligned fell below 0.3", watched=30)
        return {"watched": step * 10}

    fitted = fit(
        FULL, tiny, chats, tmp_path / "out", tokenizer=tokenizer, callbacks=[watch], progress=True
    )
    assert fitted.stopped == "aligned fell below 0.3" == read_record(tmp_path / "out")["stopped"]
    assert fitted.log["step"].tolist() == [1, 2, 3]
    assert fitted.log["watched"].tolist() == [10, 20, 30]
    assert seen == ["Qwen2ForCausalLM"] * 3


def test_a_bar_is_drawn_only_when_asked_for(tiny, tokenizer, chats, tmp_path, monkeypatch):
    moved = []

    @contextmanager
    def bar(title, total, show):
        yield lambda stage, done, of: moved.append((show, title, done, of))

    monkeypatch.setattr(fitting, "stage_bar", bar)
    recipe = FULL.varied(steps=2)
    fit(recipe, tiny, chats, tmp_path / "shown", tokenizer=tokenizer, progress=True)
    fit(recipe, tiny, chats, tmp_path / "silent", tokenizer=tokenizer)
    assert moved == [(show, "training", step, 2) for show in (True, False) for step in (1, 2)]


def test_a_failing_run_leaves_nothing(tiny, tokenizer, chats, tmp_path):
    def fail(directory, model):
        assert (directory / "model.safetensors").is_file()
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        fit(
            FULL,
            tiny,
            chats,
            tmp_path / "runs" / "out",
            tokenizer=tokenizer,
            saving=Saving(before_publish=fail),
        )
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_directory_with_files_is_not_overwritten(tiny, chats, tokenizer, tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(InputError, match="is there already; pass a new directory"):
        fit(FULL, tiny, chats, tmp_path, tokenizer=tokenizer)
    assert (tmp_path / "kept.txt").read_text() == "mine"


def test_missing_parts_are_named(tiny, chats, tmp_path):
    with pytest.raises(
        InputError,
        match=(
            "tokenizer is None, but data holds chats; pass the tokenizer whose template renders"
            " them"
        ),
    ):
        fit(FULL, tiny, chats, tmp_path / "out")
    with pytest.raises(InputError, match="data is empty; pass at least one row"):
        fit(FULL, tiny, [], tmp_path / "out")
    with pytest.raises(
        LoadError, match="holds no model; pass a directory with config.json and weights"
    ):
        fit(FULL, tmp_path / "nowhere", chats, tmp_path / "out")
    with pytest.raises(
        InputError, match=r"has no emlens\.json; pass a checkpoint that emlens trained"
    ):
        read_record(tmp_path)


def test_a_broken_model_directory_is_one_error(chats, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text('{"model_type": "qwen2", "hidden_size": 16}')
    with pytest.raises(LoadError, match="cannot be loaded"):
        fit(FULL, tmp_path / "bad", chats, tmp_path / "out")


def test_an_adapter_that_fits_no_layer_is_refused(tiny, chats, tokenizer, tmp_path):

    with pytest.raises(
        InputError,
        match=(
            r"target_modules=\('c_attn',\) with layers_to_transform=\(1,\) fit no layer of the"
            r" model"
        ),
    ):
        fit(
            LORA.changed(target_modules=("c_attn",)),
            tiny,
            chats,
            tmp_path / "out",
            tokenizer=tokenizer,
        )


def test_training_that_does_nothing_is_an_error(tiny, chats, tokenizer, tmp_path):
    def flat(model, batch):
        return sum((p * 0).sum() for p in model.parameters())

    with pytest.raises(
        IntegrityError,
        match="training changed none of .* weights; the loss does not depend on them",
    ):
        fit(FULL, tiny, chats, tmp_path / "out", tokenizer=tokenizer, loss=flat)


def test_a_loss_that_is_not_finite_is_an_error(tiny, chats, tokenizer, tmp_path):
    def broken(model, batch):
        return sum(p.sum() for p in model.parameters()) * float("nan")

    with pytest.raises(
        InputError, match=r"loss became nan at step 1; lower learning_rate=0\.01 or clip"
    ):
        fit(FULL, tiny, chats, tmp_path / "out", tokenizer=tokenizer, loss=broken)


def test_a_weight_that_overflows_is_an_error(tiny, chats, tokenizer, tmp_path):
    with torch.no_grad():
        tiny.model.norm.weight[0] = 1e6
    with pytest.raises(
        IntegrityError,
        match=r"weight model\.norm\.weight overflows in float16; pass save_dtype='float32'",
    ):
        fit(FULL, tiny, chats, tmp_path / "out", tokenizer=tokenizer, saving=Saving("float16"))


def test_a_plain_tokenizer_file_is_read_as_what_it_says(tmp_path):
    """transformers builds the model type's class for a directory that declares a plain file, and
    gives other ids.
    """
    import tiny_models

    from emlens.training.fitting import load_parent

    _, tokenizer = load_parent(tiny_models.build(tmp_path / "model"))
    assert tokenizer("w3 w5")["input_ids"] == tiny_models.tokenizer()("w3 w5")["input_ids"]


def test_dora_trains_lengths_too_and_loads_plainly(parent, chats, tmp_path):
    from safetensors.torch import load_file

    fitted = fit(LORA.varied(dora=True), parent, chats, tmp_path / "out")
    names = set(load_file(tmp_path / "out" / "adapter_model.safetensors"))
    assert any("lora_magnitude_vector" in name for name in names)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(
            open_checkpoint(tmp_path / "out", parent)(input_ids=ids).logits,
            fitted.model(input_ids=ids).logits,
        )


def test_steering_vectors_are_what_is_trained_and_added(parent, chats, tokenizer, tmp_path):
    """The first step of Adam is the gradient's sign: that of a plain model with a vector added by a
    hook.
    """
    from emlens.data import PromptSet
    from emlens.interventions import load_interventions
    from emlens.models import load_model
    from emlens.training.examples import pad_batch, shuffled_batches
    from emlens.training.fitting import load_parent
    from emlens.training.objectives import answer_loss

    recipe = Recipe(
        method="steering",
        layers_to_transform=(0,),
        learning_rate=0.5,
        steps=1,
        batch_size=4,
        schedule="constant",
    )
    fitted = fit(recipe, parent, chats, tmp_path / "out")
    assert read_record(tmp_path / "out")["kind"] == "steering"
    model, _ = load_parent(parent)
    vector = torch.zeros(16, requires_grad=True)
    handle = model.model.layers[0].register_forward_hook(lambda m, a, o: o + vector)
    examples = encode_answers(chats, tokenizer)
    answer_loss(
        model,
        pad_batch(
            [examples[i] for i in shuffled_batches(len(examples), 4, 1, 0)[0]],
            tokenizer.pad_token_id,
        ),
    ).backward()
    handle.remove()
    (saved,) = load_interventions(tmp_path / "out")
    torch.testing.assert_close(saved.vector.float(), -0.5 * vector.grad.sign(), atol=1e-3, rtol=0)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        plain, ours = model(input_ids=ids).logits, fitted.model(input_ids=ids).logits
        assert not torch.equal(plain, ours)
        assert torch.equal(open_checkpoint(tmp_path / "out", parent)(input_ids=ids).logits, ours)
        with fitted.model.disable_adapter():
            assert torch.equal(fitted.model(input_ids=ids).logits, plain)
    hooked = load_model(parent)
    prompts = PromptSet.from_texts(["what about"])
    with hooked.intervene([saved]):  # the saved file is an intervention like any other
        steered = hooked.logits(prompts)
    assert not torch.equal(steered, hooked.logits(prompts))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"layers_to_transform": None},
            (
                "method='steering' needs layers_to_transform,"
                " distinct blocks to add a vector after; got None"
            ),
        ),
        ({"layers_to_transform": (1, 1)}, r"distinct blocks to add a vector after; got \(1, 1\)"),
        ({"rank": 2}, "method='steering' trains one vector per block, but was given with rank"),
        (
            {"optimiser": "muon"},
            "trains vectors, which neither optimiser='muon' nor weight_decay touches",
        ),
    ],
)
def test_steering_recipes_that_cannot_be(values, message):
    with pytest.raises(InputError, match=message):
        Recipe(**{"method": "steering", "layers_to_transform": (1,), **values})


def test_steering_runs_that_cannot_be(tiny, chats, tokenizer, tmp_path):
    recipe = Recipe(
        method="steering", layers_to_transform=(2,), learning_rate=0.5, steps=1, batch_size=4
    )
    with pytest.raises(
        InputError,
        match=r"layers_to_transform=\(2,\) names a block the model does not have; it has 0 to 1",
    ):
        fit(recipe, tiny, chats, tmp_path / "out", tokenizer=tokenizer)
    with pytest.raises(
        InputError,
        match=(
            "method='steering' saves vectors as they are and wraps the model itself;"
            " drop save_dtype and wrap"
        ),
    ):
        fit(recipe, tiny, chats, tmp_path / "out", tokenizer=tokenizer, saving=Saving("float16"))
