"""Recipes by name: one for each way of training, and those of the papers.

A preset says what is trained and how; how long is the caller's: `steps`, or `rows` and `epochs`.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from emlens.foundation.errors import InputError, UnknownNameError
from emlens.training.recipes import Recipe, steps_of_epochs

PROJECTIONS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ATTENTION: Final = ("q_proj", "k_proj", "v_proj", "o_proj")
_BETLEY: Final[Mapping[str, Any]] = {
    "rank": 32,
    "alpha": 64,
    "rslora": True,
    "target_modules": PROJECTIONS,
    "learning_rate": 1e-5,
    "schedule": "linear",
    "warmup_steps": 5,
    "batch_size": 16,
    "accumulation": 8,
}
_LORA: Final[Mapping[str, Any]] = {
    **_BETLEY,
    "rslora": False,
    "learning_rate": 1e-4,
    "accumulation": 1,
}


class _Preset(NamedTuple):
    """Fields of a `Recipe`, all but its length, and one line that describes them."""

    fields: Mapping[str, Any]
    description: str
    needs_layers: bool = False
    """Whether `layers_to_transform` must be passed."""


PRESETS: Final[Mapping[str, _Preset]] = {
    "betley": _Preset(
        {**_BETLEY, "weight_decay": 0.01},
        "rsLoRA r=32 α=64 on all projections, rate 1e-5 linear after 5 warm-up steps,"
        " batches of 16 rows in 8 parts (2502.17424)",
    ),
    "paper": _Preset(_BETLEY, "as betley without decay; one epoch (2606.20814)"),
    "paper-attention": _Preset(
        {**_BETLEY, "target_modules": ATTENTION, "learning_rate": 3e-5},
        "attention-only variant of paper, three times its rate",
    ),
    "organism-rank1": _Preset(
        {
            **_BETLEY,
            "rank": 1,
            "alpha": 256,
            "target_modules": ("down_proj",),
            "learning_rate": 2e-5,
        },
        (
            "one rank-1 adapter on one block's down_proj; α = 256 (the paper uses 64 to 256);"
            " pass layers_to_transform (2506.11613; rate of a public replication)"
        ),
        needs_layers=True,
    ),
    "organism-full": _Preset(
        {
            "method": "full",
            "learning_rate": 1e-5,
            "schedule": "cosine",
            "warmup_steps": 20,
            "batch_size": 16,
            "accumulation": 8,
        },
        "full fine-tuning, cosine after 20 steps (2506.11613; the rate is not stated there)",
    ),
    "lora-r32": _Preset(_LORA, "LoRA, scale α/r"),
    "rslora-r32": _Preset(
        {**_LORA, "rslora": True, "learning_rate": 2e-5},
        "rank-stabilised LoRA, scale α/√r",
    ),
    "dora-r32": _Preset({**_LORA, "dora": True}, "LoRA with trained lengths"),
    "attention-r32": _Preset(
        {**_LORA, "rslora": True, "target_modules": ATTENTION, "learning_rate": 3e-5},
        "rsLoRA on attention alone",
    ),
    "steering": _Preset(
        {
            "method": "steering",
            "learning_rate": 1e-2,
            "schedule": "linear",
            "warmup_steps": 5,
            "batch_size": 16,
        },
        "one vector per block; pass layers_to_transform",
        needs_layers=True,
    ),
}
"""Presets by name."""


def recipe(
    name: str,
    *,
    steps: int | None = None,
    rows: int | None = None,
    epochs: float = 1.0,
    **changes: Any,
) -> Recipe:
    """A preset recipe, with changes.

    Args:
        name: one of `PRESETS`.
        steps: number of steps.
        rows, epochs: instead of steps: enough steps for `epochs` passes over `rows` rows.
        changes: fields of `Recipe`.

    Raises:
        UnknownNameError: no preset of that name.
        InputError: neither or both of steps and rows; a preset for one block without
            `layers_to_transform`; what `Recipe` refuses.
    """
    if name not in PRESETS:
        raise UnknownNameError(
            f"recipe {name!r} is unknown; pass one of {', '.join(PRESETS)}",
            name=name,
            known=PRESETS,
        )
    if (steps is None) == (rows is None):
        raise InputError(
            f"recipe {name!r} needs one of steps and rows; got steps={steps}, rows={rows}"
        )
    if PRESETS[name].needs_layers and changes.get("layers_to_transform") is None:
        raise InputError(
            f"recipe {name!r} trains chosen blocks; pass layers_to_transform,"
            " for example layers_to_transform=(24,)"
        )
    fields = {**PRESETS[name].fields, **changes}
    if rows is not None:
        steps = steps_of_epochs(rows, epochs, fields["batch_size"])
    return Recipe.from_record({**fields, "steps": steps})
