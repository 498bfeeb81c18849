import pytest
import torch
from tiny_models import D_MODEL, close

from emlens.activations import ActivationStore, CaptureSpec, capture
from emlens.data import PromptSet
from emlens.foundation import Index, InputError, Span
from emlens.interventions import steer, swap

SITES = ["resid_pre.1", "attn_out.1", "mlp_out.0", "resid_post.1"]
POST = "resid_post.1"
QUIET = {"progress": False}


@pytest.fixture
def questions():
    return PromptSet.from_texts(["w1 w2 w3", "w4 w5 w6", "w7 w8 w9", "w10 w11 w12"])


def test_a_run_swapped_with_itself_keeps_its_bits(model, prompts, questions):
    before = model.logits(prompts)
    with model.intervene(
        [swap(capture(model, prompts, SITES, positions="all", **QUIET), positions="all")]
    ):
        assert torch.equal(model.logits(prompts), before)
    answers = model.generate(questions, max_new_tokens=5, temperature=0)
    with model.intervene(
        [swap(capture(model, questions, SITES, positions="all", **QUIET), positions="prompt")]
    ):
        assert model.generate(questions, max_new_tokens=5, temperature=0) == answers


def test_the_last_block_at_the_last_token_is_the_whole_answer(model, questions):
    """Whatever the prompt, its next token is that of the run that its last stream comes from."""
    run = capture(model, questions, "resid_post", **QUIET)
    ids = questions.ids
    source = dict(zip(ids, [*ids[1:], ids[0]], strict=True))
    before = model.logits(questions)
    with model.intervene([swap(run, at=["resid_post.-1"], source=source)]):
        assert close(model.logits(questions), before.roll(-1, 0))
    with model.intervene([swap(run, at=["resid_post.0"], source=source)]):
        partly = model.logits(questions)
    # earlier tokens still speak
    assert not close(partly, before, 0.01) and not close(partly, before.roll(-1, 0), 0.01)


def test_a_swap_undoes_what_lies_before_it(model, questions):
    """All tokens at one block come from the clean run, so nothing that an edit did below is left
    above.
    """
    run, clean = capture(model, questions, POST, positions="all", **QUIET), model.logits(questions)
    push = steer(torch.ones(D_MODEL), 5.0, at=["resid_post.0"])
    with model.intervene([push]):
        assert not close(model.logits(questions), clean, 0.01)
        with model.intervene([swap(run, positions="all")]):
            assert torch.equal(model.logits(questions), clean)


@pytest.mark.parametrize("budget", [1, 8192])
def test_tokens_that_are_not_touched_keep_their_values(model, prompts, budget):
    run = capture(model, prompts, POST, positions=Index(1), **QUIET)
    source = dict.fromkeys(prompts.ids, prompts.ids[2])
    spec = CaptureSpec(POST, positions="all", batch_tokens=budget)
    before = capture(model, prompts, spec=spec, **QUIET).tokens(POST)
    with model.intervene([swap(run, positions=Index(1), source=source)]):
        after = capture(model, prompts, spec=spec, **QUIET).tokens(POST)
    at = before.offsets[:-1] + 1
    assert torch.equal(after.values[at], run[POST][2].expand(len(at), -1))
    rest = torch.ones(len(before.values), dtype=torch.bool)
    rest[at] = False
    assert torch.equal(after.values[rest], before.values[rest])


def test_only_the_part_along_a_direction(model, questions):
    unit = torch.zeros(D_MODEL, dtype=torch.float64)
    unit[3] = 1
    run = capture(model, questions, POST, **QUIET)
    source = dict.fromkeys(questions.ids, "p0")
    with model.intervene([swap(run, source=source, direction=unit)]):
        found = capture(model, questions, POST, **QUIET)[POST]
    assert torch.allclose(found[:, 3], run[POST][0, 3].expand(4), atol=1e-5)
    assert torch.allclose(found[:, :3], run[POST][:, :3], atol=1e-5)


def test_a_run_in_a_store(model, questions, tmp_path):
    capture(model, questions, POST, store=tmp_path / "run", **QUIET)
    run = ActivationStore.open(tmp_path / "run")
    source = {"p0": "p1", "p1": "p0"}
    with model.intervene([swap(run, source=source)]):
        found = capture(model, questions, POST, **QUIET)[POST]
    assert torch.equal(found, run[POST][[1, 0, 2, 3]])


def test_what_does_not_fit(model, prompts, questions):
    run = capture(model, questions, POST, positions=["last_prompt", "mean_prompt", "all"], **QUIET)
    with pytest.raises(
        InputError,
        match=(
            "source names prompt 'q7', which is not in the recorded run; pass ids of its 4 prompts"
        ),
    ):
        swap(run, source={"p0": "q7"})
    for positions in (Index(0), Span(0, 2, of="prompt"), "response"):
        with pytest.raises(
            InputError,
            match=(
                "recorded holds positions last_prompt, mean_prompt, all,"
                " which do not give a token for each of"
            ),
        ):
            swap(run, positions=positions)
    other = PromptSet.from_texts(["w1 w2 w3 w4", "w1"])
    with (
        model.intervene([swap(run.select(["p0"]))]),
        pytest.raises(
            InputError,
            match="prompt 'p1' is not among the 1 of the recorded run, such as 'p0'; pass source=",
        ),
    ):
        model.logits(other)
    with model.intervene([swap(run, positions="all")]):
        match = (
            "prompt 'p0' has 4 tokens at positions all, but the recorded run has 3 of 'p0';"
            " pass positions that are equally many in both"
        )
        with pytest.raises(InputError, match=match):
            model.logits(other)
        with pytest.raises(
            InputError,
            match=(
                "prompt 'p0' has 8 tokens at positions all, those to be generated included,"
                " but the recorded run has 3"
            ),
        ):
            model.generate(questions, max_new_tokens=5)
    assert model.interventions == ()
