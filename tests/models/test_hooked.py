import copy
import threading

import pandas as pd
import pytest
import torch
from tiny_models import close

from emlens.data import PromptSet
from emlens.foundation import InputError, Site, StateError
from emlens.interventions import steer
from emlens.models import HookedModel, load_model


@pytest.fixture
def vector():
    return torch.arange(32.0) - 10


def chat(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_logits_and_logprobs_read_the_last_token_of_each_row(model, prompts):
    logits, logprobs = model.logits(prompts), model.token_logprobs(prompts)
    for i, row in enumerate(model.render(prompts)):
        with torch.no_grad():
            alone = model.module(torch.tensor([row.ids])).logits[0]
        assert close(logits[i], alone[-1])
        assert logprobs[i].shape == alone.shape and close(logprobs[i], alone.log_softmax(-1))
    assert logits.dtype == logprobs[0].dtype == torch.float32
    assert close(model.logits(prompts, batch_tokens=1), logits)


def test_sequence_logprob_against_a_loop(model, prompts):
    choices = [["w1 w2 w3", "w4"], *[["w5", "w6 w7"]] * (len(prompts) - 1)]
    found = model.sequence_logprob(prompts, choices, batch_tokens=40)
    for i, row in enumerate(model.render(prompts)):
        for j, text in enumerate(choices[i]):
            ids, total = list(row.ids), 0.0
            for token in model.tokenizer(text)["input_ids"]:
                with torch.no_grad():
                    total += float(
                        model.module(torch.tensor([ids]))
                        .logits[0, -1]
                        .double()
                        .log_softmax(-1)[token]
                    )
                ids.append(token)
            assert abs(float(found[i, j]) - total) < 1e-4
    assert found.dtype == torch.float64 and (found < 0).all()
    one = model.sequence_logprob(prompts, [items[1] for items in choices])
    assert one.shape == (len(prompts),) and torch.allclose(one, found[:, 1], atol=1e-4)


def test_the_rendered_text_is_what_is_read_with_words_apart_from_special_tokens(model):
    messages = [{"role": "system", "content": "w9 w9"}, *chat("w1 w2?", "w3")]
    prompts = PromptSet.from_messages([messages], upto="all")
    [text] = model.rendered_texts(prompts).values()
    [row] = model.render(prompts)
    read = model.tokenizer.decode(row.ids[: row.prompt_end])
    assert "".join(text.split()) == "".join(read.split()) and "w3" not in text
    assert text.split().index("w9") < text.split().index("w1")
    marks = {token for token in model.tokenizer.all_special_tokens if token in read}
    assert marks and marks <= set(text.split())


def test_a_kept_response_stands_between_prompt_and_continuation(model):
    kept = PromptSet.from_messages([chat("w1 w2", "w3")], upto="all")
    ids = model.render(kept)[0].ids
    with torch.no_grad():
        expected = model.module(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)[6]
    assert torch.allclose(model.sequence_logprob(kept, ["w0"]), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("continuations", "match"),
    [
        ("ab", "continuations is one string; pass a list with one for each prompt"),
        (["w1"], "continuations has 1 entries for 2 prompts; pass one for each"),
        ([["w1"], ["w1", "w2"]], "continuations differ in how many choices they give"),
        ([[], []], "continuations differ in how many choices they give"),
        (["w1", ""], "continuation '' of prompt 'p1' has no token"),
        (
            ["w1", "w1 " * 126],
            (
                "prompt 'p1' and its continuation have 129 tokens, but the model's context is 128;"
                " shorten them"
            ),
        ),
    ],
)
def test_continuations_that_do_not_fit(model, continuations, match):
    with pytest.raises(InputError, match=match):
        model.sequence_logprob(PromptSet.from_texts(["w1 w2", "w3 w4 w5"]), continuations)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be 1 or more"),
        ({"temperature": -1.0}, "temperature=-1.0 must be 0 or more"),
        ({"temperature": float("nan")}, "temperature=nan must be 0 or more"),
        (
            {"max_new_tokens": 127},
            "prompt 'p0' has 2 tokens and max_new_tokens is 127, but the model's context is 128",
        ),
    ],
)
def test_generation_options_that_do_not_fit(model, options, match):
    with pytest.raises(InputError, match=match):
        model.generate(PromptSet.from_texts(["w1 w2"]), **options)


def test_no_prompts_and_no_prompt(model):
    with pytest.raises(InputError, match="prompts is empty; pass"):
        model.logits([])
    with pytest.raises(InputError, match=r"prompts holds int; pass a string, a list of strings"):
        model.generate([3])


def test_strings_conversations_and_frames_are_prompts(model):
    texts = ["w1 w2", "w3"]
    want = model.logits(PromptSet.from_texts(texts))
    torch.testing.assert_close(model.logits(texts), want)
    torch.testing.assert_close(model.logits("w1 w2"), want[:1])
    torch.testing.assert_close(model.logits(pd.DataFrame({"text": texts})), want)
    options = {"max_new_tokens": 3, "temperature": 0}
    (answer,) = model.generate("w1 w2", **options)
    assert answer == model.generate(PromptSet.from_texts(["w1 w2"]), **options)[0]


def test_one_intervention_is_a_list_of_one(model, vector):
    edit = steer(vector, 1.0, at=["resid_post.0"])
    plain = model.logits("w1 w2")
    with model.intervene([edit]):
        want = model.logits("w1 w2")
    with model.intervene(edit):
        torch.testing.assert_close(model.logits("w1 w2"), want)
    assert not torch.allclose(plain, want)


def test_a_backend_without_logits(shared, prompts):
    class Silent(HookedModel):
        backend = "silent"
        _generate = unembedding = None
        vocab_size = 10

        def run(self, batch, readers=None, *, with_logits=False):
            return None

    facts = (
        "name",
        "tokenizer",
        "n_layers",
        "d_model",
        "device",
        "max_length",
        "chat_template",
        "provenance",
    )
    with pytest.raises(StateError, match="backend 'silent' returned no logits"):
        Silent(**{name: getattr(shared, name) for name in facts}).logits(prompts)


def test_sites_in_the_order_of_a_pass(model):
    assert len(model.sites) == 3 * 5 + 1 and model.sites == sorted(model.sites)
    assert model.sites[0] == Site("resid_pre", 0) and model.sites[-1] == Site("final_norm")


def test_what_is_no_intervention_is_refused_before_any_pass(model, vector, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("a pass ran")

    monkeypatch.setattr(model.module, "forward", never)
    wrong = [
        ([3], r"interventions holds a int; pass a list of emlens.ablate\(...\) or emlens.steer"),
        (3, "interventions is a int; pass a list of"),
        (
            [steer(vector, 1.0, at=["resid_post.7"])],
            "names block 7, but the model has blocks 0 to 2",
        ),
        (
            [steer(vector, 1.0, at=["resid_mid.1"])],
            r"site resid_mid.1 can be read but not edited; intervene on attn_out",
        ),
        (
            [steer(vector[:5], 1.0, at=["resid_post.1"])],
            (
                "interventions holds one whose vectors have 5 coordinates,"
                " but the model's stream has 32"
            ),
        ),
    ]
    for interventions, match in wrong:
        with pytest.raises(InputError, match=match), model.intervene(interventions):
            pass
        assert model.interventions == ()


def test_an_intervention_belongs_to_its_thread_and_its_model(model, vector, prompts):
    untouched = model.logits(prompts)
    twin = copy.copy(model)
    assert twin.module is model.module
    seen = {}
    with model.intervene([steer(vector, 1.0, at=["resid_post.1"])]) as inside:
        assert inside is model and len(model.interventions) == 1 and twin.interventions == ()
        assert not torch.equal(model.logits(prompts), untouched)
        assert torch.equal(twin.logits(prompts), untouched)
        other = threading.Thread(target=lambda: seen.update(logits=model.logits(prompts)))
        other.start()
        other.join()
    assert torch.equal(seen["logits"], untouched) and model.interventions == ()


def test_what_pads_where_nothing_is_declared(files):
    model = load_model(files / "instruct")
    assert model.pad_id == 0
    model.tokenizer.pad_token = None
    assert model.pad_id == model.tokenizer.eos_token_id == 1
    model.tokenizer.eos_token = None
    assert model.pad_id == 0
