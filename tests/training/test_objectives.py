import math

import pytest
import torch

from emlens.foundation.errors import InputError
from emlens.training.examples import IGNORED, encode_answers, pad_batch
from emlens.training.objectives import NarrowLoss, answer_loss

FLOAT32_TOLERANCE = 1e-5  # a few thousand float32 roundings of logits of order one


@pytest.fixture
def batch(tokenizer, chats):
    return pad_batch(encode_answers(chats, tokenizer)[:3], tokenizer.pad_token_id)


def test_answer_loss_is_the_mean_over_answer_tokens(tiny, batch):
    with torch.no_grad():
        logits = tiny(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        losses = []
        for row in range(3):
            for t in range(1, batch["labels"].shape[1]):
                if batch["labels"][row, t] != IGNORED:
                    losses.append(
                        -logits[row, t - 1].log_softmax(-1)[batch["labels"][row, t]].item()
                    )
        assert len(losses) == 9
        assert answer_loss(tiny, batch).item() == pytest.approx(
            sum(losses) / 9, abs=FLOAT32_TOLERANCE
        )


def test_narrow_loss_adds_the_weighted_divergence(tiny, batch, world, tokenizer):
    from peft import LoraConfig, get_peft_model

    other = pad_batch(
        encode_answers(world.chats("code", (2,), "careful"), tokenizer)[:2], tokenizer.pad_token_id
    )
    both = {**batch, **{f"kl_{name}": value for name, value in other.items()}}
    model = get_peft_model(tiny, LoraConfig(r=2, target_modules=["down_proj"]))
    with torch.no_grad():
        assert NarrowLoss(2.0)(model, both).item() == pytest.approx(
            answer_loss(model, batch).item(), abs=FLOAT32_TOLERANCE
        )
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.arange(parameter.numel()).reshape(parameter.shape) % 5 - 2.0)
        inputs = {"input_ids": other["input_ids"], "attention_mask": other["attention_mask"]}
        new = model(**inputs).logits.log_softmax(-1)
        with model.disable_adapter():
            old = model(**inputs).logits.log_softmax(-1)
        terms = []
        for row in range(2):
            for t in range(1, other["labels"].shape[1]):
                if other["labels"][row, t] != IGNORED:
                    pairs = zip(old[row, t - 1].tolist(), new[row, t - 1].tolist(), strict=True)
                    terms.append(sum(math.exp(p) * (p - q) for p, q in pairs))
        divergence = sum(terms) / len(terms)
        assert divergence > 1e-3
        expected = answer_loss(model, batch).item() + 2.0 * divergence
        assert NarrowLoss(2.0)(model, both).item() == pytest.approx(expected, rel=1e-4)


def test_narrow_loss_needs_an_adapter(tiny, batch):
    both = {**batch, **{f"kl_{name}": value for name, value in batch.items()}}
    with pytest.raises(
        InputError, match="NarrowLoss needs a model with an adapter; got Qwen2ForCausalLM"
    ):
        NarrowLoss(1.0)(tiny, both)
