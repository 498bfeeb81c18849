import copy
import math

import pytest
import torch

from emlens.data import PromptSet
from emlens.foundation.errors import InputError
from emlens.training import Recipe, fit
from emlens.training.examples import IGNORED, encode_answers, pad_batch
from emlens.training.fitting import read_record
from emlens.training.objectives import ObjectiveLoss, answer_loss
from emlens.training.penalties import FeatureDistance, ReferenceKL
from emlens.training.streams import blocks_of

TOLERANCE = 1e-4  # relative, float32 sums over the vocabulary
LORA = Recipe(
    method="lora",
    rank=2,
    alpha=4,
    target_modules=("q_proj", "down_proj"),
    learning_rate=3e-2,
    steps=3,
    batch_size=4,
    seed=3,
)


@pytest.fixture
def rows(world, tokenizer, chats):
    own = pad_batch(encode_answers(chats, tokenizer)[:3], tokenizer.pad_token_id)
    general = world.chats("code", (0, 1, 2), "careful")
    return own, general, pad_batch(encode_answers(general, tokenizer)[:4], tokenizer.pad_token_id)


@pytest.fixture
def moved(tiny):
    """An adapted model whose adapter does something."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny, LoraConfig(r=2, target_modules=["down_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.arange(parameter.numel()).reshape(parameter.shape) % 5 - 2.0)
    return model


def batch_of(own, other):
    return {**own, **{f"objective0_{name}": value for name, value in other.items()}}


def test_kl_is_in_nats_a_token_and_the_released_form_is_that_over_the_vocabulary(moved, rows):
    own, general, other = rows
    objective = ReferenceKL(general, weight=2.0)
    loss = ObjectiveLoss(answer_loss, [objective], moved)
    total = loss(moved, batch_of(own, other)).item()
    inputs = {name: other[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        now = moved(**inputs).logits
        with moved.disable_adapter():
            before = moved(**inputs).logits
    terms = []
    for row in range(len(now)):  # the plain loop
        for t in range(1, now.shape[1]):
            if other["labels"][row, t] != IGNORED:
                p, q = (
                    before[row, t - 1].double().log_softmax(-1).tolist(),
                    now[row, t - 1].double().log_softmax(-1).tolist(),
                )
                terms.append(sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True)))
    kl = sum(terms) / len(terms)
    assert kl > 1e-4 and len(terms) == 12
    assert total == pytest.approx(answer_loss(moved, own).item() + 2.0 * kl, rel=TOLERANCE)
    assert loss.values(moved, 1) == {
        "answer_loss": pytest.approx(answer_loss(moved, own).item()),
        "reference_kl": pytest.approx(kl, rel=TOLERANCE),
    }
    # the released form averages over tokens *and* vocabulary, which is what torch's default
    # reduction does
    counted = other["labels"][:, 1:] != IGNORED
    released = torch.nn.functional.kl_div(
        now[:, :-1][counted].log_softmax(-1),
        before[:, :-1][counted].log_softmax(-1),
        log_target=True,
        reduction="mean",
    ).item()
    vocabulary = now.shape[-1]
    assert released * vocabulary == pytest.approx(kl, rel=TOLERANCE)
    # so their λ is ours times the vocabulary
    assert 2.0 * kl == pytest.approx(2.0 * vocabulary * released, rel=TOLERANCE)


def test_feature_distance_is_that_of_hidden_states(moved, rows):
    own, general, other = rows
    loss = ObjectiveLoss(answer_loss, [FeatureDistance(3.0, blocks=(0,))], moved)
    total = loss(moved, own).item()
    inputs = {name: own[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        # entry 0 is the embedding
        now = moved(**inputs, output_hidden_states=True).hidden_states[1]
        with moved.disable_adapter():
            before = moved(**inputs, output_hidden_states=True).hidden_states[1]
    shares = []
    for row in range(len(now)):
        real = [t for t in range(now.shape[1]) if own["attention_mask"][row, t]]
        each = [
            float((now[row, t] - before[row, t]).norm() ** 2 / before[row, t].norm() ** 2)
            for t in real
        ]
        shares.append(sum(each) / len(each))
    expected = sum(shares) / len(shares)
    assert expected > 1e-4
    assert total == pytest.approx(answer_loss(moved, own).item() + 3.0 * expected, rel=TOLERANCE)
    assert FeatureDistance(1.0)._layers(12) == [4, 9, 11] and FeatureDistance(1.0, every=2)._layers(
        4
    ) == [1, 3]
    general_loss = ObjectiveLoss(answer_loss, [FeatureDistance(3.0, chats=general)], moved)(
        moved, batch_of(own, other)
    ).item()
    assert general_loss != pytest.approx(total, rel=1e-3)


def test_a_penalty_holds_the_model_and_full_fine_tuning_keeps_a_copy(
    tiny, tokenizer, world, chats, tmp_path
):
    general = world.chats("code", (0, 1, 2, 3), "careful")

    def divergence_after(name, recipe, objectives):
        model = fit(
            recipe,
            copy.deepcopy(tiny),
            chats,
            tmp_path / name,
            tokenizer=tokenizer,
            objectives=objectives,
        ).model
        batch = pad_batch(encode_answers(general, tokenizer), tokenizer.pad_token_id)
        labels = batch.pop("labels")
        with torch.no_grad():
            now, before = (
                m(**batch).logits[:, :-1][labels[:, 1:] != IGNORED].log_softmax(-1)
                for m in (model, tiny)
            )
        return float((before.exp() * (before - now)).sum(-1).mean())

    full = Recipe(method="full", learning_rate=1e-2, steps=3, batch_size=4)
    free = divergence_after("free", full, ())
    held = divergence_after(
        "held", full, (ReferenceKL(general, 20.0, rows=8), FeatureDistance(1.0))
    )
    assert held < 0.7 * free
    record = read_record(tmp_path / "held")
    assert record["objectives"] == [
        {"kind": "reference_kl", "weight": 20.0, "rows": 8, "chats": general.content_hash},
        {
            "kind": "feature_distance",
            "weight": 1.0,
            "rows": 32,
            "chats": None,
            "every": 5,
            "blocks": None,
        },
    ]
    assert "objectives" not in read_record(tmp_path / "free")


@pytest.mark.parametrize(
    "swapped", [False, True], ids=["KL elsewhere, features here", "KL here, features elsewhere"]
)
def test_a_batch_in_parts_is_the_whole_batch(swapped, tiny, tokenizer, world, chats, tmp_path):
    """Losses, and so gradients, of the parts add up, each term by its own tokens or rows, of which
    the parts hold unequal shares.
    """
    from dataclasses import replace

    def uneven(prompts):
        return PromptSet(
            replace(p, response=" ".join([p.response] * (1 + 2 * (i % 3 == 0))))
            for i, p in enumerate(prompts)
        )

    general, chats = uneven(world.chats("code", (0, 1, 2), "careful")), uneven(chats)
    lengths = [
        sum(label != IGNORED for label in row["labels"]) for row in encode_answers(chats, tokenizer)
    ]
    assert max(lengths) > 2 * min(lengths)
    objectives = (
        ReferenceKL(None if swapped else general, 2.0, rows=6),
        FeatureDistance(5.0, general if swapped else None, rows=6),
    )
    logs = {}
    for name, parts in (("whole", 1), ("parts", 2), ("four", 4)):
        logs[name] = fit(
            LORA.changed(accumulation=parts, learning_rate=0.5),
            copy.deepcopy(tiny),
            chats,
            tmp_path / name,
            tokenizer=tokenizer,
            objectives=objectives,
        ).log
        assert list(logs[name].columns) == [
            "step",
            "loss",
            "learning_rate",
            "grad_norm",
            "answer_loss",
            "reference_kl",
            "feature_distance",
        ]
    for name in ("parts", "four"):
        for column in logs["whole"].columns:
            assert logs[name][column].tolist() == pytest.approx(
                logs["whole"][column].tolist(), rel=5e-3, abs=1e-7
            ), column
    assert logs["whole"]["reference_kl"].iloc[-1] > 1e-4
    with pytest.raises(
        InputError,
        match="3 rows per step of an objective cannot be run in accumulation=4 parts;",
    ):
        few = (ReferenceKL(general, 2.0, rows=3),)
        fit(
            LORA.changed(accumulation=4),
            copy.deepcopy(tiny),
            chats,
            tmp_path / "few",
            tokenizer=tokenizer,
            objectives=few,
        )


def test_refusals(tiny, tokenizer, chats, tmp_path):
    with pytest.raises(InputError, match=r"weight=0\.0 must be a finite number above 0"):
        ReferenceKL(chats, 0.0)
    with pytest.raises(InputError, match="rows=0 must be an integer of 1 or more"):
        ReferenceKL(chats, 1.0, rows=0)
    with pytest.raises(InputError, match="every=0 must be an integer of 1 or more"):
        FeatureDistance(1.0, every=0)
    with pytest.raises(InputError, match=r"blocks=\(2,\) must name blocks of the model, 0 to 1"):
        fit(
            LORA,
            tiny,
            chats,
            tmp_path / "out",
            tokenizer=tokenizer,
            objectives=[FeatureDistance(1.0, blocks=(2,))],
        )
    with pytest.raises(
        InputError, match="reference_kl reads the rows that are trained on; it has none of its own"
    ):
        ReferenceKL(None, 1.0).second_rows(tokenizer)
    ready = pad_batch(encode_answers(chats, tokenizer)[:2], 0)
    with pytest.raises(
        InputError,
        match=(
            r"objectives \['reference_kl'\] bring or change rows, but data comes as ready batches;"
            r" pass chats"
        ),
    ):
        fit(LORA, tiny, lambda step: ready, tmp_path / "out", objectives=[ReferenceKL(chats, 1.0)])
    with pytest.raises(
        InputError,
        match=(
            "accumulation=2, but data comes as ready batches; pass chats or rows, or accumulation=1"
        ),
    ):
        fit(LORA.varied(accumulation=2), tiny, lambda step: ready, tmp_path / "out")
    silent = [
        *encode_answers(chats, tokenizer)[:3],
        {"input_ids": [5, 6, 7], "labels": [5, IGNORED, IGNORED]},
    ]
    with pytest.raises(
        InputError,
        match=(
            "row 3 of data has no label that counts after its first token,"
            " so nothing is learned from it; leave it out"
        ),
    ):
        fit(LORA.varied(batch_size=2, accumulation=2), tiny, silent, tmp_path / "out")
    assert len(blocks_of(tiny)) == 2
