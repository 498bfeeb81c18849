import copy

import numpy as np
import pytest
import torch
from pretended_card import moved, pretended_card

from emlens.data import Message, Prompt, PromptSet
from emlens.foundation.errors import InputError
from emlens.interventions import ablate
from emlens.models.transformers_backend import no_hooks_left
from emlens.training import Recipe, fit
from emlens.training.batching import step_batches
from emlens.training.defences import (
    BenignInterleaving,
    InoculationPrompt,
    PreventativeSteering,
    ProjectedOut,
    answer_losses,
    interleaving_scores,
    select_benign,
)
from emlens.training.examples import encode_answers, pad_batch
from emlens.training.fitting import read_record
from emlens.training.objectives import answer_loss
from emlens.training.streams import edited

LORA = Recipe(
    method="lora",
    rank=2,
    alpha=4,
    target_modules=("q_proj", "down_proj"),
    learning_rate=3e-2,
    steps=2,
    batch_size=4,
    seed=3,
)
TOLERANCE = 1e-5  # float32, two blocks


@pytest.fixture
def direction():
    return torch.randn(16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def prompt(*messages):
    return Prompt(
        "p", messages[-1][1], "", tuple(Message(role, text) for role, text in messages), "yes"
    )


def test_an_inoculation_prompt_goes_in_front_and_answers_stay():
    single = PromptSet([prompt(("user", "u"))])
    known = PromptSet([prompt(("system", "s"), ("user", "u"))])
    turns = PromptSet([prompt(("user", "u"), ("assistant", "a"), ("user", "v"))])

    def texts(chats):
        return [(message.role, message.content) for message in chats[0].messages]

    system, user = InoculationPrompt("Be bad."), InoculationPrompt("Be bad.", "user", " ")
    assert texts(system.change(single)) == [("system", "Be bad."), ("user", "u")]
    assert texts(system.change(known)) == [("system", "Be bad.\n\ns"), ("user", "u")]
    assert texts(user.change(turns)) == [("user", "Be bad. u"), ("assistant", "a"), ("user", "v")]
    assert all(
        change.change(single)[0].response == "yes" and change.change(single).ids == ["p"]
        for change in (system, user)
    )
    assert InoculationPrompt("x").change(PromptSet.from_texts(["raw"]))[0].messages is None


def test_only_training_sees_the_inoculation_prompt(tiny, tokenizer, world, chats, tmp_path):
    text = world.harmful[1][0]
    with_prompt = fit(
        LORA,
        copy.deepcopy(tiny),
        chats,
        tmp_path / "a",
        tokenizer=tokenizer,
        objectives=[InoculationPrompt(text, "user", " ")],
    )
    by_hand = InoculationPrompt(text, "user", " ").change(chats)
    plain = fit(LORA, copy.deepcopy(tiny), by_hand, tmp_path / "b", tokenizer=tokenizer)
    a, b = (
        {n: p for n, p in fitted.model.named_parameters() if p.requires_grad}
        for fitted in (with_prompt, plain)
    )
    assert all(torch.equal(a[name], b[name]) for name in a)
    record = read_record(tmp_path / "a")
    assert record["data"]["sha256"] == chats.content_hash != by_hand.content_hash
    assert record["objectives"] == [
        {"kind": "inoculation_prompt", "role": "user", "text": text, "separator": " "}
    ]


def test_edits_in_training_are_the_arithmetic_on_the_stream_and_leave_no_hook(
    tiny, tokenizer, chats, direction
):
    batch = pad_batch(encode_answers(chats, tokenizer)[:3], tokenizer.pad_token_id)
    unit = (direction / direction.norm()).float()

    def by_hand(change):
        handles = [
            block.register_forward_hook(lambda m, a, o: change(o)) for block in tiny.model.layers
        ]
        try:
            return answer_loss(tiny, batch).item()
        finally:
            for handle in handles:
                handle.remove()

    plain = answer_loss(tiny, batch).item()
    cases = [
        (ProjectedOut(direction), by_hand(lambda h: h - (h @ unit)[..., None] * unit)),
        (
            PreventativeSteering(direction, 2.0, at=["resid_post.0", "resid_post.1"]),
            by_hand(lambda h: h + 2.0 * direction.float()),
        ),
    ]
    for objective, expected in cases:
        with no_hooks_left(tiny):
            with objective.active(tiny):
                assert answer_loss(tiny, batch).item() == pytest.approx(expected, rel=TOLERANCE)
            assert answer_loss(tiny, batch).item() == plain != pytest.approx(expected, rel=2e-4)
    with edited(tiny, [ablate(direction, at=["resid_pre.1"])]):
        before = answer_loss(tiny, batch).item()
    assert before == pytest.approx(_after_first_block(tiny, batch, unit), rel=TOLERANCE)


def _after_first_block(model, batch, unit):
    handle = model.model.layers[0].register_forward_hook(
        lambda m, a, o: o - (o @ unit)[..., None] * unit
    )
    try:
        return answer_loss(model, batch).item()
    finally:
        handle.remove()


def test_nothing_is_learned_along_what_is_projected_out(
    tiny, tokenizer, chats, tmp_path, direction
):
    """Of the last block's down projection the gradient along the direction is zero, and was not
    without the projection.
    """
    recipe = Recipe(method="full", learning_rate=1e-2, steps=2, batch_size=4, clip=None)
    moved = {}
    for name, objectives in (
        ("free", ()),
        ("caft", (ProjectedOut(direction, at=["resid_post.1"]),)),
    ):
        model = fit(
            recipe,
            copy.deepcopy(tiny),
            chats,
            tmp_path / name,
            tokenizer=tokenizer,
            objectives=objectives,
        ).model
        handle = model.model.layers[1].mlp.down_proj
        handle.weight.requires_grad_(True)
        batch = pad_batch(encode_answers(chats, tokenizer)[:3], tokenizer.pad_token_id)
        model.zero_grad()
        if objectives:
            with objectives[0].active(model):
                answer_loss(model, batch).backward()
        else:
            answer_loss(model, batch).backward()
        along = (direction.float() / direction.norm().float()) @ handle.weight.grad
        moved[name] = float(along.norm() / handle.weight.grad.norm())
    assert moved["caft"] < 1e-5 < 1e-2 < moved["free"]


def test_steering_and_projection_compose_and_run_with_an_adapter(
    tiny, tokenizer, chats, tmp_path, direction
):
    objectives = [
        PreventativeSteering(direction, 1.0, at=["resid_post.0"]),
        ProjectedOut(direction, at=["resid_post.1"]),
    ]
    fitted = fit(LORA, tiny, chats, tmp_path / "out", tokenizer=tokenizer, objectives=objectives)
    assert list(fitted.log.columns) == ["step", "loss", "learning_rate", "grad_norm", "answer_loss"]
    kinds = [entry["edits"][0]["kind"] for entry in read_record(tmp_path / "out")["objectives"]]
    assert kinds == ["steer", "ablate"]


def test_interleaving_gives_its_share_of_each_batch(tokenizer, world, chats):
    benign = world.chats("code", (0, 1), "careful")
    batches = step_batches(
        LORA.changed(steps=6, batch_size=8), chats, tokenizer, [BenignInterleaving(benign, 0.25)]
    )
    own, other = (
        {tuple(row["input_ids"]) for row in encode_answers(c, tokenizer)} for c in (chats, benign)
    )
    seen = []
    for step in range(6):
        (batch,) = batches.parts(step)
        rows = [
            tuple(ids[mask.bool()].tolist())
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        assert [row in own for row in rows] == [True] * 6 + [False] * 2 and all(
            row in other for row in rows[6:]
        )
        seen += rows[6:]
    assert len(set(seen)) == 12  # passes over the benign rows, none twice before all came
    assert batches.record == {"kind": "chats", "sha256": chats.content_hash}
    with pytest.raises(
        InputError,
        match=(
            r"interleaving takes \[0\] of batch_size=4 rows;"
            r" pass a share that leaves both sides at least one"
        ),
    ):
        step_batches(LORA, chats, tokenizer, [BenignInterleaving(benign, 0.05)])


def test_scores_and_selection(tiny, tokenizer, chats, world):
    scores = interleaving_scores(np.array([3.0, 1.0, 2.0]), np.array([1.0, 1.0, 4.0]), epsilon=1.0)
    assert scores.tolist() == [1.0, 0.0, -0.4]
    few = chats[:4]
    assert select_benign(few, [1, 5, 1, 3], [1, 1, 1, 1], 2).ids == [few.ids[1], few.ids[3]]
    losses = answer_losses(tiny, few, tokenizer)
    each = [
        answer_loss(tiny.eval(), pad_batch([row], 0)).item()
        for row in encode_answers(few, tokenizer)
    ]
    assert losses.tolist() == pytest.approx(each, rel=TOLERANCE)
    with pretended_card():
        on_card = answer_losses(moved(tiny), few, tokenizer)
    assert on_card.tolist() == losses.tolist()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda d, c: InoculationPrompt(" "),
            "text=' ' is empty; pass the text that asks for the answers that are trained on",
        ),
        (
            lambda d, c: InoculationPrompt("x", "tool"),
            "role='tool' is unknown; pass 'system' or 'user'",
        ),
        (
            lambda d, c: PreventativeSteering(d, 0.0),
            "coefficient=0 adds nothing; pass a number other than 0",
        ),
        (lambda d, c: BenignInterleaving(c, 1.0), r"share=1\.0 must lie between 0 and 1"),
        (
            lambda d, c: interleaving_scores(np.array([1.0]), np.array([np.nan])),
            "must be finite, 0 or more, and one for each chat",
        ),
        (
            lambda d, c: interleaving_scores(np.array([1.0]), np.array([1.0]), 0.0),
            r"epsilon=0\.0 must be a finite number above 0",
        ),
        (
            lambda d, c: select_benign(c, [1], [1], 0),
            "count=0 must lie between 1 and the 24 chats there are",
        ),
        (
            lambda d, c: select_benign(c, [1], [1], 1),
            "1 losses were given for 24 chats; pass one for each",
        ),
    ],
)
def test_values_without_meaning_are_refused(make, message, direction, chats, unchecked):
    with pytest.raises(InputError, match=message):
        make(direction, chats)


def test_edits_that_training_cannot_do_are_refused(tiny, tokenizer, chats, direction, tmp_path):
    with pytest.raises(
        InputError,
        match="site mlp_out.0 lies inside a block; while training pass resid_pre or resid_post",
    ):
        fit(
            LORA,
            tiny,
            chats,
            tmp_path / "out",
            tokenizer=tokenizer,
            objectives=[ProjectedOut(direction, at=["mlp_out.0"])],
        )
    with (
        pytest.raises(
            InputError,
            match="positions='prompt': while training every token is edited; pass positions='all'",
        ),
        edited(tiny, [ablate(direction, positions="prompt")]),
    ):
        pass
    rows = encode_answers(chats, tokenizer)
    with pytest.raises(
        InputError,
        match=(
            r"objectives \['inoculation_prompt'\] change chats, but data holds ready rows;"
            r" pass chats"
        ),
    ):
        fit(LORA, tiny, rows, tmp_path / "out", objectives=[InoculationPrompt("x")])
