"""Interventions on activations as plain data, always undone; edits of weights as adapters.

Also here: what an adapter reads from the stream and writes to it.
"""

from emlens.interventions.ablation import ablate
from emlens.interventions.adapter_lens import adapter_table, logit_lens
from emlens.interventions.applied_adapter import applied_adapter
from emlens.interventions.lora import LoraAdapter
from emlens.interventions.lora_sums import interpolated, perturbed, update_norm, with_norm
from emlens.interventions.replacement import mean_ablate, resample_ablate
from emlens.interventions.saving import load_interventions, save_interventions
from emlens.interventions.scalars import adapter_scalars
from emlens.interventions.steering import steer
from emlens.interventions.swapping import swap
from emlens.interventions.weight_edits import orthogonalised, scaled, without_direction

__all__ = [
    "LoraAdapter",
    "ablate",
    "adapter_scalars",
    "adapter_table",
    "applied_adapter",
    "interpolated",
    "load_interventions",
    "logit_lens",
    "mean_ablate",
    "orthogonalised",
    "perturbed",
    "resample_ablate",
    "save_interventions",
    "scaled",
    "steer",
    "swap",
    "update_norm",
    "with_norm",
    "without_direction",
]
