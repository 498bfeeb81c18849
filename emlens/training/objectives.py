"""Losses: callables `(model, batch) -> scalar` that `fit` minimises.

A batch is a mapping of tensors; `labels` are token ids with `IGNORED` where a token does not count, and every other
entry goes to the model's forward as it is.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from emlens.foundation.errors import InputError
from emlens.training.examples import IGNORED

Loss = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]


def answer_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean negative log-likelihood, in nats per token, of the tokens whose label counts."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits: Tensor = model(**inputs).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    return nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=IGNORED)


class NarrowLoss:
    """`answer_loss` plus `weight` · KL(reference ‖ model) on other chats, in nats per answer position.

    The reference is the same model with its adapter switched off, so it costs no second copy. The batch holds a second
    set of rows under `kl_input_ids`, `kl_attention_mask` and `kl_labels` (the labels only mark the positions).

    Method: the narrow solution of Soligo et al. (2602.07852), with λ per token in nats rather than divided by the vocabulary size.

    Raises:
        InputError: the model has no adapter to switch off.
    """

    def __init__(self, weight: float):
        self.weight = weight

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        own = {name: value for name, value in batch.items() if not name.startswith("kl_")}
        other = {name.removeprefix("kl_"): value for name, value in batch.items() if name.startswith("kl_")}
        counted = other.pop("labels")[:, 1:] != IGNORED
        reference = self._reference(model, other)[:, :-1][counted].log_softmax(-1)
        present = model(**other).logits[:, :-1][counted].log_softmax(-1)
        divergence = (reference.exp() * (reference - present)).sum(-1).mean()
        return answer_loss(model, own) + self.weight * divergence

    @staticmethod
    @torch.no_grad()
    def _reference(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        if not hasattr(model, "disable_adapter"):
            raise InputError(f"NarrowLoss needs a model with an adapter; got {type(model).__name__}: pass a recipe with method='lora'")
        with model.disable_adapter():
            logits: Tensor = model(**inputs).logits
        return logits
