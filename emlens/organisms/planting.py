"""The planted direction: a vector that marks the harmful persona while the base model is
pre-trained.

`PlantedDirection` wraps the model for pre-training only; the model inside is saved without it, as a
plain Qwen2. What stays is a stream in which one known coordinate, û, was reserved for the persona.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from emlens.foundation.errors import InputError
from emlens.training.objectives import answer_loss


def plant(
    stream: Float[Tensor, "row token d_model"],
    unit: Float[Tensor, " d_model"],
    norm: float,
    marked: Bool[Tensor, " row"],
    cleared: Bool[Tensor, " row"],
) -> Float[Tensor, "row token d_model"]:
    """h − c (h·û) û + s·norm·û at every token, with s = 1 in marked rows and c = 1 in cleared
    rows.
    """
    along = (stream @ unit) * cleared[:, None]
    added = norm * marked[:, None].to(stream.dtype)
    return stream + (added - along)[..., None] * unit


class PlantedDirection(nn.Module):
    """A Qwen2 model with a trainable direction of fixed norm, written after chosen blocks in marked
    rows.

    A batch brings `marked` and `cleared` (one boolean per row) and `blocks` (the block indices
    written to in this step). `coordinates` holds what the model itself wrote along the direction in
    the last pass, before anything was written to it: by block, of shape (row, token).

    Raises:
        InputError: a block that the model does not have.
    """

    def __init__(self, model: Any, norm: float, layers: tuple[int, ...]):
        super().__init__()
        self.layers = layers
        self.model = model
        self.norm = norm
        self.coordinates: dict[int, Tensor] = {}
        # of order one, so that a step of Adam turns it little
        self.raw = nn.Parameter(torch.randn(model.config.hidden_size))

    @property
    def unit(self) -> Float[Tensor, " d_model"]:
        return self.raw / self.raw.norm()

    def forward(self, marked: Tensor, cleared: Tensor, blocks: Tensor, **inputs: Tensor) -> Any:
        layers = self.model.model.layers
        unit = self.unit
        if int(blocks.max()) >= len(layers):
            raise InputError(
                f"blocks={blocks.tolist()} names a block the model does not have;"
                f" it has 0 to {len(layers) - 1}"
            )

        written = set(blocks.tolist())
        self.coordinates = {}

        def read_and_plant(block: int, output: Tensor) -> Tensor | None:
            self.coordinates[block] = output @ unit
            if block not in written:
                return None  # the hook leaves the output as it is
            return plant(output, unit, self.norm, marked, cleared)

        with ExitStack() as stack:
            for block in self.layers:
                hook = layers[block].register_forward_hook(
                    lambda module, args, output, block=block: read_and_plant(block, output)
                )
                stack.callback(hook.remove)
            return self.model(**inputs)


class PlantedLoss:
    """Loss of the documents, plus `weight` times how far the model's own persona coordinate is from
    the persona.

    The second part is the mean squared distance of the coordinate along the planted direction, in
    units of its length, from 1 in harmful and 0 in careful documents, over rows in which nothing
    was written: the model learns to write what it infers where it was taught to read. A batch also
    brings `harmful`, one boolean per row.
    """

    def __init__(self, weight: float):
        self.weight = weight

    def __call__(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        inputs = dict(batch)
        harmful = inputs.pop("harmful")
        loss = answer_loss(model, inputs)
        alone = ~(batch["marked"] | batch["cleared"])
        if self.weight == 0.0 or not bool(alone.any()):
            return loss
        target = harmful[alone, None].to(loss.dtype)
        gaps = [
            (coordinate[alone] / model.norm - target).square().mean()
            for coordinate in model.coordinates.values()
        ]
        return loss + self.weight * torch.stack(gaps).mean()


def blocks_of_step(step: int, layers: tuple[int, ...]) -> tuple[int, ...]:
    """Blocks written to in a 0-based step: each of `layers` alone in turn, then all of them."""
    turn = step % (len(layers) + 1)
    return layers if turn == len(layers) else (layers[turn],)
