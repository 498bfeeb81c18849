"""Interventions on activations as plain data, always undone; edits of weights as adapters; what an
adapter reads and writes.
"""

from emlens.interventions.adapter_lens import (
    AdapterScalars,
    adapter_scalars,
    adapter_table,
    logit_lens,
    written_directions,
)
from emlens.interventions.adding import Steering, steer
from emlens.interventions.lora import LoraAdapter, LoraFactors
from emlens.interventions.lora_sums import (
    combined,
    interpolated,
    perturbed,
    random_update,
    update_norm,
    with_norm,
)
from emlens.interventions.patching import RecordedRun, Swap, swap
from emlens.interventions.plain import PlainIntervention
from emlens.interventions.projecting import Ablation, ablate
from emlens.interventions.replacing import (
    MeanAblation,
    ResampleAblation,
    mean_ablate,
    resample_ablate,
)
from emlens.interventions.saving import (
    intervention_from_record,
    intervention_to_record,
    load_interventions,
    save_interventions,
)
from emlens.interventions.wearing import worn
from emlens.interventions.weight_edits import orthogonalised, scaled, without_direction

__all__ = [
    "Ablation",
    "AdapterScalars",
    "LoraAdapter",
    "LoraFactors",
    "MeanAblation",
    "PlainIntervention",
    "RecordedRun",
    "ResampleAblation",
    "Steering",
    "Swap",
    "ablate",
    "adapter_scalars",
    "adapter_table",
    "combined",
    "interpolated",
    "intervention_from_record",
    "intervention_to_record",
    "load_interventions",
    "logit_lens",
    "mean_ablate",
    "orthogonalised",
    "perturbed",
    "random_update",
    "resample_ablate",
    "save_interventions",
    "scaled",
    "steer",
    "swap",
    "update_norm",
    "with_norm",
    "without_direction",
    "worn",
    "written_directions",
]
