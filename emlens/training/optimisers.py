"""The optimiser and schedule that a recipe names, over what a module trains.

AdamW is torch's; Lion, Muon and SAM come from pytorch_optimizer, imported only when asked for.
Optimiser states cost: AdamW two numbers a trained weight, Lion and Muon one, SAM two and, within a
step, a copy of the weights and a second pass.
"""

from collections.abc import Callable, Iterator
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

    Muon takes matrices other than input and output embeddings; the rest of its groups are AdamW's
    at the same rate. SAM's `step` calls its attribute `again`, which must clear nothing and leave
    the gradient of the perturbed point.

    Raises:
        MissingExtraError: pytorch_optimizer is not installed, and the recipe needs it.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    matrices, vectors = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
    decay, rate = recipe.weight_decay, recipe.learning_rate
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=rate, betas=recipe.betas)
    package = _package()
    if recipe.optimiser == "lion":
        lion: torch.optim.Optimizer = package.Lion(
            [g for g in groups if g["params"]], lr=rate, betas=recipe.betas
        )
        return lion
    if recipe.optimiser == "sam":
        rho = SAM_RADIUS if recipe.rho is None else recipe.rho
        sam: torch.optim.Optimizer = _two_passes()(
            [g for g in groups if g["params"]],
            torch.optim.AdamW,
            rho=rho,
            lr=rate,
            betas=recipe.betas,
        )
        return sam
    held = {id(p) for p in _embeddings(module)}
    adam = {"use_muon": False, "lr": rate, "betas": recipe.betas, "eps": 1e-8}
    muon_groups = [
        {
            "params": [p for p in matrices if id(p) not in held],
            "use_muon": True,
            "lr": rate,
            "momentum": MUON_MOMENTUM if recipe.momentum is None else recipe.momentum,
            "weight_decay": decay,
            "use_adjusted_lr": True,
        },
        {"params": [p for p in matrices if id(p) in held], "weight_decay": decay, **adam},
        {"params": vectors, "weight_decay": 0.0, **adam},
    ]
    muon: torch.optim.Optimizer = package.Muon([g for g in muon_groups if g["params"]])
    return muon


def make_schedule(recipe: Recipe, optimiser: torch.optim.Optimizer, start: int = 0) -> LambdaLR:
    """The recipe's learning rate on an optimiser, as it stands after `start` steps."""
    for group in optimiser.param_groups:
        group["lr"] = group["initial_lr"] = recipe.learning_rate
    return LambdaLR(optimiser, recipe.rate_factor, last_epoch=start - 1)


def _embeddings(module: nn.Module) -> Iterator[nn.Parameter]:
    """Weights of input embeddings and of the output matrix of every language model inside."""
    for part in module.modules():
        for name in ("get_input_embeddings", "get_output_embeddings"):
            get: Callable[[], nn.Module | None] | None = getattr(part, name, None)
            found = None
            if get is not None:
                try:
                    found = get()
                except (NotImplementedError, AttributeError):
                    continue
            if found is not None:
                yield from found.parameters()


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
