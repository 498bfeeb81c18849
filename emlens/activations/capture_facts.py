"""Where activations came from: what a capture records, and which of it two captures must share to
be paired.
"""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import torch

from emlens.activations.batch_layout import BatchLayout
from emlens.activations.reading import Reading
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
"""Fact → what a difference in it would mix into a difference of activations."""


def capture_facts(model: HookedModel, reading: Reading, prompts_sha256: str) -> dict[str, Any]:
    """Provenance of one model's side of a capture, as planned; `with_layout` adds how it ran."""
    rows, positions = reading.rows, reading.positions
    chosen = {
        p.name: hash_json([[int(t) for t in rows.indices(p, i)] for i in range(len(rows))])
        for p in positions
        if isinstance(p, Chosen)
    }
    return {
        "prompts_sha256": prompts_sha256,
        "rendered_sha256": rows.sha256,
        "sites": [str(site) for site in reading.sites],
        "positions": [position.name for position in positions],
        "chosen_sha256": chosen,
        "batch_tokens": reading.batch_tokens,
        "batches": len(reading.layout.sizes),
        "kept_dtype": None if reading.dtype is None else str(reading.dtype).removeprefix("torch."),
        **process_facts(model),
    }


def process_facts(model: HookedModel) -> dict[str, Any]:
    """What depends on the model and on the process that runs it."""
    return {
        # ranks on several GPUs of one machine are alike
        "model": {**model.provenance, "device": model.device.type},
        "n_layers": model.n_layers,
        "interventions": [intervention.describe() for intervention in model.interventions],
        "device": (
            torch.cuda.get_device_name(model.device)
            if model.device.type == "cuda"
            else model.device.type
        ),
        "threads": torch.get_num_threads(),
        "versions": _versions(model.backend),
    }


@cache
def _versions(backend: str) -> dict[str, str]:
    """Looked up once a process: reading package metadata costs more than a short capture."""
    extra = () if backend == "transformers" else (backend.replace("_", "-"),)
    return {**library_versions(), **library_versions(extra)}


def with_layout(facts: Mapping[str, Any], layout: BatchLayout) -> dict[str, Any]:
    return {**facts, "layout_sha256": layout.sha256, **layout.record()}


def check_process(planned: Mapping[str, Any], model: HookedModel, where: str) -> None:
    """Refuse to run part of a capture in another setting than it was planned for.

    Raises:
        IntegrityError: names the first fact that differs.
    """
    here = json.loads(canonical_json(process_facts(model)))
    for name, value in here.items():
        if planned.get(name) != value:
            raise IntegrityError(
                f"{where}: was planned for {name}"
                f" {one_line(canonical_json(planned.get(name), None), 160)},"
                f" but this process has {one_line(canonical_json(value, None), 160)};"
                " run it as planned, or capture into an empty directory"
            )


def fact(provenance: Mapping[str, Any], name: str) -> Any:
    """A fact by its dotted name; None where it was not recorded."""
    value: Any = provenance
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
