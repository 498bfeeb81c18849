"""The optimiser and schedule that a recipe names, over what a module trains.

AdamW is torch's; Lion, Muon and SAM come from pytorch_optimizer, imported only when asked for.
Optimiser states cost: AdamW two numbers per trained weight, Lion and Muon one, SAM two and, within
a step, a copy of the weights and a second pass.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from emlens.foundation.errors import MissingExtraError
from emlens.training.recipes import Recipe

MUON_MOMENTUM = 0.95
SAM_RADIUS = 0.05


def make_optimiser(recipe: Recipe, module: nn.Module) -> torch.optim.Optimizer:
    """The optimiser over what requires a gradient: matrices with weight decay, vectors without.

    Muon takes matrices other than input and output embeddings; its other groups are AdamW's at the
    same rate. SAM's `step` calls its attribute `again`, which must clear nothing and leave
    the gradient of the perturbed point.

    Raises:
        MissingExtraError: pytorch_optimizer is not installed, and the recipe needs it.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2]
    vectors = [p for p in trained if p.ndim < 2]
    if recipe.optimiser == "muon":
        return _muon(recipe, matrices, vectors, _embeddings(module))
    groups = _without_empty(
        [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
    )
    rate = recipe.learning_rate
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=recipe.betas)
    optimiser: torch.optim.Optimizer
    if recipe.optimiser == "lion":
        optimiser = _package().Lion(groups, lr=rate, betas=recipe.betas)
    else:
        rho = SAM_RADIUS if recipe.rho is None else recipe.rho
        optimiser = _two_passes()(groups, torch.optim.AdamW, rho=rho, lr=rate, betas=recipe.betas)
    return optimiser


def _muon(
    recipe: Recipe,
    matrices: Sequence[nn.Parameter],
    vectors: Sequence[nn.Parameter],
    embeddings: Iterable[nn.Parameter],
) -> torch.optim.Optimizer:
    embedding_ids = {id(p) for p in embeddings}
    adam = {"use_muon": False, "lr": recipe.learning_rate, "betas": recipe.betas, "eps": 1e-8}
    hidden_group = {
        "params": [p for p in matrices if id(p) not in embedding_ids],
        "use_muon": True,
        "lr": recipe.learning_rate,
        "momentum": MUON_MOMENTUM if recipe.momentum is None else recipe.momentum,
        "weight_decay": recipe.weight_decay,
        "use_adjusted_lr": True,  # steps scaled by .2 √max(out, in): rates are then AdamW's
    }
    embedding_group = {
        "params": [p for p in matrices if id(p) in embedding_ids],
        "weight_decay": recipe.weight_decay,
        **adam,
    }
    vector_group = {"params": vectors, "weight_decay": 0.0, **adam}
    groups = _without_empty([hidden_group, embedding_group, vector_group])
    optimiser: torch.optim.Optimizer = _package().Muon(groups)
    return optimiser


def _without_empty(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Optimisers refuse a group without parameters."""
    return [group for group in groups if group["params"]]


def make_schedule(recipe: Recipe, optimiser: torch.optim.Optimizer, start: int = 0) -> LambdaLR:
    """The recipe's learning rate on an optimiser, as it is after `start` steps."""
    for group in optimiser.param_groups:
        group["lr"] = group["initial_lr"] = recipe.learning_rate
    return LambdaLR(optimiser, recipe.rate_factor, last_epoch=start - 1)


def _embeddings(module: nn.Module) -> Iterator[nn.Parameter]:
    """Weights of input embeddings and of the output matrix of every language model inside."""
    for part in module.modules():
        for name in ("get_input_embeddings", "get_output_embeddings"):
            get: Callable[[], nn.Module | None] | None = getattr(part, name, None)
            if get is None:
                continue
            try:
                embedding = get()
            except (NotImplementedError, AttributeError):  # transformers defines it on every model
                continue
            if embedding is not None:
                yield from embedding.parameters()


def _package() -> Any:
    try:
        import pytorch_optimizer
    except ImportError:
        raise MissingExtraError(
            "Lion, Muon and SAM need pytorch-optimizer, which is not installed; run:"
            " pip install 'misalignment-lens[train]'"
        ) from None
    return pytorch_optimizer


@cache
def _two_passes() -> Any:
    """SAM with the second pass as an attribute, because the Trainer calls `step()` without a
    closure.
    """

    class TwoPassSAM(_package().SAM):  # type: ignore[misc]
        again: Callable[[], Any]

        def step(self, closure: Callable[[], Any] | None = None) -> None:
            super().step(self.again)

    return TwoPassSAM
