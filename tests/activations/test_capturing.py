import threading

import pytest
import tiny_models
import torch
from tiny_models import close

from emlens.activations import ActivationStore, CaptureSpec, capture, capture_many, capture_pair
from emlens.data import Answers, Prompt, PromptSet, QuestionSet
from emlens.data.answers import Answer
from emlens.data.prompt_inputs import as_prompts
from emlens.data.prompts import Message
from emlens.data.questions import Question
from emlens.foundation import Index, InputError, Site, Span
from emlens.geometry import Direction
from emlens.interventions import steer
from emlens.models import load_model


def streams(model, prompts, site):
    """(row, stream (token, d)) of each prompt alone, without padding, by one raw hook."""
    module = {"resid_post": lambda i: model.module.model.layers[i]}[site.kind](site.layer)
    found = []
    for row in model.render(prompts):
        kept = []
        handle = module.register_forward_hook(
            lambda _m, _a, out, kept=kept: kept.append(out.clone())
        )
        with torch.no_grad():
            model.module(torch.tensor([row.ids]))
        handle.remove()
        found.append((row, kept[0][0]))
    return found


def second_half(ids, mask):
    return torch.arange(len(ids)) >= len(ids) // 2


POSITIONS = {
    "last_prompt": ("last_prompt", lambda row, x: x[row.prompt_end - 1]),
    "mean_prompt": ("mean_prompt", lambda row, x: x[: row.prompt_end].mean(0)),
    # the template closes an answer with one token, <end>
    "last": ("last", lambda row, x: x[-2]),
    "mean_response": ("mean_response", lambda row, x: x[row.prompt_end : -1].mean(0)),
    "end_of_turn": ("end_of_turn", lambda row, x: x[-1]),
    "index": (Index(-2, of="prompt"), lambda row, x: x[row.prompt_end - 2]),
    "index of the sequence": (Index(3), lambda row, x: x[3]),
    "span": (
        Span(0, 2, of="response"),
        lambda row, x: x[row.prompt_end : row.prompt_end + 2].mean(0),
    ),
    "callable": (second_half, lambda row, x: x[len(row.ids) // 2 :].mean(0)),
}


@pytest.mark.parametrize("name", POSITIONS)
@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_positions_against_a_loop_over_rows(model, prompts, name, budget):
    position, expected = POSITIONS[name]
    site = Site("resid_post", 1)
    acts = capture(
        model, prompts, spec=CaptureSpec("resid_post.1", positions=position, batch_tokens=budget)
    )
    wanted = torch.stack([expected(row, x) for row, x in streams(model, prompts, site)])
    assert close(acts["resid_post.1"], wanted)
    assert not close(acts["resid_post.1"], wanted.roll(1, 0))  # rows in another order would be seen
    assert acts.ids == prompts.ids and acts.groups == prompts.groups


def test_every_token(model, prompts):
    acts = capture(
        model,
        prompts,
        spec=CaptureSpec(
            ["resid_post.0", "resid_post.1"], positions=["all", "end_of_turn"], batch_tokens=40
        ),
    )
    held = acts.tokens("resid_post.1")
    found = streams(model, prompts, Site("resid_post", 1))
    assert held.offsets.tolist() == [
        0,
        *torch.tensor([len(row.ids) for row, _ in found]).cumsum(0).tolist(),
    ]
    for i, (row, x) in enumerate(found):
        span = slice(int(held.offsets[i]), int(held.offsets[i + 1]))
        assert held.token_ids[span].tolist() == list(row.ids)
        assert close(held.values[span], x)
        assert torch.equal(held.values[span][-1], acts["resid_post.1", "end_of_turn"][i])


def test_skip_first(model, prompts):
    acts = capture(
        model,
        prompts,
        spec=CaptureSpec("resid_post.1", positions=["mean_prompt", "last_prompt"], skip_first=2),
    )
    assert acts.positions == ["mean_prompt[skip_first=2]", "last_prompt"]
    wanted = [
        x[2 : row.prompt_end].mean(0) for row, x in streams(model, prompts, Site("resid_post", 1))
    ]
    assert close(acts["resid_post.1", "mean_prompt[skip_first=2]"], torch.stack(wanted))


def test_sites_and_layers(model, prompts):
    assert capture(model, prompts).sites == ["resid_post.0", "resid_post.1", "resid_post.2"]
    assert capture(model, prompts, "mlp_out", layers=[-1, 0]).sites == ["mlp_out.0", "mlp_out.2"]
    acts = capture(
        model, prompts, [Site("final_norm"), "blocks.1.hook_resid_post", "resid_post.-2"]
    )
    assert acts.sites == ["resid_post.1", "final_norm"]


def test_equal_prompts_under_two_ids_read_the_same(model):
    twice = PromptSet.from_texts(["w1 w2 w3", "w4", "w1 w2 w3"])
    acts = capture(model, twice)
    assert torch.equal(acts["resid_post.2"][0], acts["resid_post.2"][2])
    assert not torch.equal(acts["resid_post.2"][0], acts["resid_post.2"][1])


def test_dtypes(model, files, prompts):
    assert capture(model, prompts)["resid_post.0"].dtype == torch.float32
    half = capture(model, prompts, spec=CaptureSpec(dtype=torch.bfloat16))
    assert (
        half["resid_post.0"].dtype == torch.bfloat16 and half.provenance["kept_dtype"] == "bfloat16"
    )
    assert torch.equal(half["resid_post.0"], capture(model, prompts)["resid_post.0"].bfloat16())
    assert (
        capture(load_model(files / "instruct", dtype="bfloat16"), prompts)["resid_post.0"].dtype
        == torch.bfloat16
    )


def test_a_pair_is_each_model_alone_and_runs_identical_batches(family, prompts):
    before, after = capture_pair(
        family.instruct, family["one"], prompts, spec=CaptureSpec(batch_tokens=40)
    )
    assert torch.equal(
        before.stacked(),
        capture(family.instruct, prompts, spec=CaptureSpec(batch_tokens=40)).stacked(),
    )
    assert torch.equal(
        after.stacked(),
        capture(family["one"], prompts, spec=CaptureSpec(batch_tokens=40)).stacked(),
    )
    assert not torch.equal(before.stacked(), after.stacked())
    again, same = capture_pair(
        family.instruct, family.instruct, prompts, spec=CaptureSpec(batch_tokens=40)
    )
    assert torch.equal(again.stacked(), same.stacked())


def test_threads_capture_what_one_captures(family, prompts):
    names = ["instruct", "one", "full"]
    expected = {
        name: capture(
            family[name], prompts, spec=CaptureSpec(batch_tokens=30), progress=False
        ).stacked()
        for name in names
    }
    found = {}
    threads = [
        threading.Thread(
            target=lambda name=name: found.update(
                {
                    name: [
                        capture(
                            family[name], prompts, spec=CaptureSpec(batch_tokens=30), progress=False
                        ).stacked()
                        for _ in range(4)
                    ]
                }
            )
        )
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(value, expected[name]) for name in names for value in found[name])
    assert not torch.equal(expected["instruct"], expected["one"])


def test_an_intervention_is_seen_and_recorded(model, prompts, tmp_path):
    direction = Direction(torch.ones(32), Site("resid_post", 1))
    plain = capture(model, prompts)
    with model.intervene([steer(direction, 2.0)]):
        steered = capture(model, prompts)
        stored = capture(model, prompts, store=tmp_path / "steered")
    assert torch.equal(steered["resid_post.0"], plain["resid_post.0"])
    torch.testing.assert_close(steered["resid_post.1"], plain["resid_post.1"] + 2)
    assert torch.equal(stored.stacked(), steered.stacked())
    assert stored.provenance["interventions"][0]["own_site"] == "resid_post.1"
    assert plain.provenance["interventions"] == []


def test_questions_answers_and_lists_are_prompts(model, prompts, unchecked):
    questions = QuestionSet([Question("q", "w1", paraphrases=("w1", "w2 w3"))])
    assert as_prompts(questions).ids == ["q/p1", "q/p2"]
    answers = Answers([Answer("m", "q", "w5 w6", (Message("user", "w1"),))])
    acts = capture(model, answers, positions="mean_response")
    assert acts.ids == answers.ids
    assert as_prompts(prompts) is prompts and as_prompts(list(prompts)).ids == prompts.ids
    wrong = ((3, "is a int"), ([], "is empty"), ([3], "holds int"), (["w1", 3], "holds str, int"))
    for prompts, kind in wrong:
        with pytest.raises(InputError, match=f"prompts {kind}; pass a string, a list of strings"):
            capture(model, prompts)


def test_what_does_not_fit_is_said_before_any_pass(family, model, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(type(model), "run", lambda *a, **k: pytest.fail("a pass ran"))
    bare = PromptSet([*prompts[:1], Prompt("bare", "w1 w2")])

    def refused(match, **options):
        with pytest.raises(InputError, match=match):
            capture(model, options.pop("prompts", prompts), **options)

    refused("positions is empty; pass at least one such as 'last_prompt'", positions=[])
    refused(
        r"positions holds a name twice: \['last_prompt', 'last_prompt'\]",
        positions=["last_prompt", Index(-1, of="prompt")],
    )
    refused("position 'first' is unknown", positions="first")
    refused(
        "prompt 'bare': position mean_response does not exist in a row whose response has 0 tokens",
        prompts=bare,
        positions="mean_response",
    )
    refused("names block 3, but the model has blocks 0 to 2", layers=[3])
    refused("sites is empty", sites=[])
    with pytest.raises(InputError, match="batch_tokens=0 must be 1 or more"):
        CaptureSpec(batch_tokens=0)
    for options in ({"layers": [0]}, {"sites": "mlp_out"}, {"positions": "all"}):
        (name,) = options
        refused(
            rf"spec was given together with {name}; write CaptureSpec\({name}=\.\.\.\)",
            spec=CaptureSpec(),
            **options,
        )
    with pytest.raises(InputError, match="models is empty; pass at least one"):
        capture_many({}, prompts)
    pair = {"a": family.instruct, "b": family["one"]}
    with pytest.raises(InputError, match="stores names 'c', which is not among the models a, b"):
        capture_many(pair, prompts, stores={"c": tmp_path})
    with pytest.raises(
        InputError, match="stores gives one directory to several models; pass one for each"
    ):
        capture_many(pair, prompts, stores={"a": tmp_path / "x", "b": tmp_path / "y" / ".." / "x"})


def test_a_spec_is_the_keywords_and_stays_as_it_was_made(model, prompts):
    layers, positions = [0, 2], ["last_prompt", "mean_prompt"]
    spec = CaptureSpec("resid_post", layers, positions)
    kept = capture(model, prompts, "resid_post", layers, positions)
    layers.append(1)
    positions.pop()
    again = capture(model, prompts, spec=spec)
    assert again.sites == kept.sites == ["resid_post.0", "resid_post.2"]
    assert again.provenance == kept.provenance
    assert CaptureSpec(site for site in ["mlp_out"]).sites == ("mlp_out",)


def test_models_that_read_other_ids(family, files, prompts):
    other = load_model(files / "full")
    other.chat_template = tiny_models.TEMPLATE.replace("<end>", "w1")
    with pytest.raises(InputError, match="prompt 'q0' renders to different ids"):
        capture_pair(family.instruct, other, prompts)


def test_only_some_models_into_stores(family, prompts, tmp_path):
    found = capture_many(
        {"a": family.instruct, "b": family["one"]}, prompts, stores={"b": tmp_path / "b"}
    )
    assert isinstance(found["b"], ActivationStore) and not isinstance(found["a"], ActivationStore)
    assert torch.equal(found["b"].stacked(), capture(family["one"], prompts).stacked())
