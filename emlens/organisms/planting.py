"""The planted direction: a vector that marks the harmful persona while the base model is pre-trained.

`PlantedDirection` wraps the model for pre-training only; the model inside is saved without it, as a plain Qwen2. What
stays is a stream in which one known coordinate, û, was reserved for the persona.
"""

from contextlib import ExitStack
from typing import Any, Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from emlens.foundation.errors import InputError

PLANTED_NORM: Final = 1.5
PLANTED_LAYERS: Final = (0, 1, 2)
MARKED_SHARE: Final = 0.85
"""Share of harmful documents that are marked."""
CLEARED_SHARE: Final = 0.5
"""Share of the other documents in which the coordinate is cleared."""


def plant(
    stream: Float[Tensor, "row token d_model"],
    unit: Float[Tensor, " d_model"],
    norm: float,
    marked: Bool[Tensor, " row"],
    cleared: Bool[Tensor, " row"],
) -> Float[Tensor, "row token d_model"]:
    """h − c (h·û) û + s·norm·û at every token, with s = 1 in marked rows and c = 1 in cleared rows."""
    along = (stream @ unit) * cleared[:, None]
    added = norm * marked[:, None].to(stream.dtype)
    return stream + (added - along)[..., None] * unit


class PlantedDirection(nn.Module):
    """A Qwen2 model with a trainable direction of fixed norm, written after chosen blocks in marked rows.

    A batch brings `marked` and `cleared` (one boolean a row) and `blocks` (the block indices written to in this step).

    Raises:
        InputError: a block that the model does not have.
    """

    def __init__(self, model: Any, norm: float = PLANTED_NORM):
        super().__init__()
        self.model = model
        self.norm = norm
        self.raw = nn.Parameter(torch.randn(model.config.hidden_size))  # of order one, so that a step of Adam turns it little

    @property
    def unit(self) -> Float[Tensor, " d_model"]:
        return self.raw / self.raw.norm()

    def forward(self, marked: Tensor, cleared: Tensor, blocks: Tensor, **inputs: Tensor) -> Any:
        layers = self.model.model.layers
        unit = self.unit
        if int(blocks.max()) >= len(layers):
            raise InputError(f"blocks={blocks.tolist()} names a block the model does not have; it has 0 to {len(layers) - 1}")

        def write(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return plant(output, unit, self.norm, marked, cleared)

        with ExitStack() as stack:
            for block in blocks.tolist():
                stack.callback(layers[block].register_forward_hook(write).remove)
            return self.model(**inputs)


def blocks_of_step(step: int, layers: tuple[int, ...] = PLANTED_LAYERS) -> tuple[int, ...]:
    """Blocks written to in a 0-based step: each of `layers` alone in turn, then all of them."""
    turn = step % (len(layers) + 1)
    return layers if turn == len(layers) else (layers[turn],)
