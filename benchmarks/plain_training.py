"""Training as one would write it by hand with peft: what `fit` is timed beside."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from emlens.data import PromptSet
from emlens.models.counted_logits import counted_logits
from emlens.training import Recipe
from emlens.training.adapters import with_adapter
from emlens.training.batching import step_batches
from emlens.training.objectives import labels_of_next_tokens
from emlens.training.trainer import seeded

StepLoss = Callable[[Any, Mapping[str, Tensor]], Tensor]
"""(model, batch) → loss in nats per answer token."""


def loss_over_all_logits(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """As most scripts do it: logits of every token."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100
    )


def loss_over_answer_logits(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Logits at the answers' tokens alone, as `fit` computes them."""
    labels = labels_of_next_tokens(batch["labels"])
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = counted_logits(model, inputs, labels != -100)
    return torch.nn.functional.cross_entropy(logits, labels[labels != -100])


def peft_loop(
    recipe: Recipe, base: Any, tokenizer: Any, chats: PromptSet, loss_of: StepLoss
) -> list[float]:
    """The loss of every step, by hand."""
    batches = step_batches(recipe, chats, tokenizer)
    with seeded(recipe.seed, "fit"):  # the same starting adapter
        model = with_adapter(recipe, base, "parent")
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0)
    model.train()
    device = parameters[0].device
    losses = []
    for step in range(recipe.steps):
        (part,) = batches.parts(step)
        batch = {name: value.to(device) for name, value in part.items()}
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.clip or math.inf)
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * recipe.rate_factor(step)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    return losses
