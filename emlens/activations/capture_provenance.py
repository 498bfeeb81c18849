"""Where activations came from: what a capture records, and what two captures must share to be
paired.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch

from emlens.activations.batch_layout import BatchLayout
from emlens.activations.capture_plan import CapturePlan
from emlens.foundation.errors import IntegrityError
from emlens.foundation.files import canonical_json, one_line
from emlens.foundation.positions import Chosen
from emlens.foundation.provenance import hash_json, library_versions
from emlens.models.hooked import HookedModel

MUST_MATCH: Final = {
    "rendered_sha256": "other prompts, or another rendering of them",
    "chosen_sha256": "another choice of tokens",
    "batch_tokens": "another batch layout",
    "batches": "another batch layout",
    "layout_sha256": "another batch layout",
    "kept_dtype": "values kept in another dtype",
    "threads": "another thread count",
    "device": "another kind of device",
    "model.architecture": "another architecture",
    "model.dtype": "weights in another dtype",
    "model.attention": "another attention implementation",
    "model.quantization": "another quantisation",
    "model.backend": "another backend",
    "versions.torch": "another version of torch",
    "versions.transformers": "another version of transformers",
}
"""Name in the provenance → what a difference in it would mix into a difference of activations."""

WEIGHTS: Final = "weights_in_memory"
"""Entry of a store's provenance: fingerprint of the weights that ran, beside the files' hash."""
OTHER_WEIGHTS: Final = (
    "was begun with other weights: those of the model in memory have changed since, or were loaded"
    " another way; load the model again, or pass an empty directory"
)


def capture_provenance(
    model: HookedModel,
    plan: CapturePlan,
    prompts_sha256: str,
    shared_trunk: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Provenance of one model's capture, as planned; `with_layout` adds how it ran.

    Args:
        shared_trunk: the blocks that it has in common with the first model of the capture.
    """
    return {
        "prompts_sha256": prompts_sha256,
        "rendered_sha256": plan.rows.sha256,
        "sites": [str(site) for site in plan.sites],
        "positions": [position.name for position in plan.positions],
        "chosen_sha256": _choice_hashes(plan),
        "batch_tokens": plan.batch_tokens,
        "batches": len(plan.layout.sizes),
        "shared_tokens": plan.shared_tokens,
        "whole_rows": model.no_sharing,
        "shared_trunk": shared_trunk,
        "kept_dtype": dtype_name(plan.dtype),
        **process_provenance(model, plan.compute_dtype),
    }


def _choice_hashes(plan: CapturePlan) -> dict[str, str]:
    """Position → hash over the tokens that a callable chose in every row."""
    hashes = {}
    for position in plan.positions:
        if isinstance(position, Chosen):
            rows = range(len(plan.rows))
            hashes[position.name] = hash_json([plan.rows.indices(position, row) for row in rows])
    return hashes


def dtype_name(dtype: torch.dtype | None) -> str | None:
    """`float32` for `torch.float32`."""
    if dtype is None:
        return None
    return str(dtype).removeprefix("torch.")


def process_provenance(
    model: HookedModel, compute_dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """What depends on the model and on the process that runs it."""
    widened: dict[str, Any] = {}
    if compute_dtype not in (None, model.dtype):
        widened = {
            "dtype": dtype_name(compute_dtype),
            "weights_dtype": model.provenance.get("dtype"),
        }
    device = model.device.type
    if device == "cuda":
        device = torch.cuda.get_device_name(model.device)
    return {
        # without the device's number: ranks on several GPUs of one machine are alike
        "model": {**model.provenance, **widened, "device": model.device.type},
        "n_layers": model.n_layers,
        "interventions": model.edit_records(),
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": _versions(model.backend),
    }


@cache
def _versions(backend: str) -> dict[str, str]:
    """Looked up once per process: reading package metadata costs more than a short capture."""
    if backend == "transformers":
        return library_versions()
    return {**library_versions(), **library_versions((backend.replace("_", "-"),))}


def with_layout(provenance: Mapping[str, Any], layout: BatchLayout) -> dict[str, Any]:
    """The provenance with the batches as they ran."""
    return {**provenance, "layout_sha256": layout.sha256, **layout.to_record()}


def check_process(
    planned: Mapping[str, Any],
    model: HookedModel,
    where: str,
    compute_dtype: torch.dtype | None = None,
) -> None:
    """Refuse to run part of a capture in another setting than it was planned for.

    Args:
        planned: the provenance in the plan.
        where: the store, for the message.

    Raises:
        IntegrityError: names the first entry that differs.
    """
    # through JSON, since what was planned was read from JSON: tuples became lists
    current = json.loads(canonical_json(process_provenance(model, compute_dtype)))
    for name, value in current.items():
        if planned.get(name) != value:
            planned_text = one_line(canonical_json(planned.get(name), None), 160)
            current_text = one_line(canonical_json(value, None), 160)
            raise IntegrityError(
                f"{where}: was planned for {name} {planned_text},"
                f" but this process has {current_text};"
                " run it as planned, or capture into an empty directory"
            )


def check_weights(planned: Mapping[str, Any], model: HookedModel, where: str) -> None:
    """Refuse to go on with other weights in memory than the plan was made with.

    Raises:
        IntegrityError: says so.
    """
    if planned.get(WEIGHTS) != model.weights_fingerprint():
        raise IntegrityError(f"{where}: {OTHER_WEIGHTS}")


def provenance_differences(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    names: Mapping[str, str],
    allow: Sequence[str] = (),
) -> Iterator["Difference"]:
    """The entries in which the provenance of two captures differs.

    Args:
        names: entry → what a difference in it means. allow: entries that may differ.
    """
    for name, meaning in names.items():
        values = provenance_value(before, name), provenance_value(after, name)
        if values[0] != values[1] and name not in allow:
            yield Difference(name, *values, meaning)


@dataclass(frozen=True)
class Difference:
    """An entry of provenance that differs between two captures; as text, with both values."""

    name: str
    before: Any
    after: Any
    meaning: str

    def __str__(self) -> str:
        values = [one_line(repr(value), 120) for value in (self.before, self.after)]
        return f"{self.name} ({' and '.join(values)}): {self.meaning}"


def provenance_value(provenance: Mapping[str, Any], name: str) -> Any:
    """An entry by its dotted name; None where it was not recorded."""
    value: Any = provenance
    for key in name.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value
