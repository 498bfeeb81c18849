"""Prompts → residual streams, in memory, in a store or as sums, and their differences."""

from emlens.activations.capturing import (
    as_prompts,
    capture,
    capture_many,
    capture_pair,
    plan_capture,
)
from emlens.activations.deltas import activation_deltas
from emlens.activations.estimating import CaptureEstimate, estimate_capture
from emlens.activations.exchange import export_activations, import_activations
from emlens.activations.executing import capture_many_over, capture_over
from emlens.activations.job import CaptureJob, CaptureUnit
from emlens.activations.record import Activations, TokenValues
from emlens.activations.sketching import MomentSketch
from emlens.activations.store import ActivationStore
from emlens.activations.streaming import StreamedMoments, stream_moments

__all__ = [
    "ActivationStore",
    "Activations",
    "CaptureEstimate",
    "CaptureJob",
    "CaptureUnit",
    "MomentSketch",
    "StreamedMoments",
    "TokenValues",
    "activation_deltas",
    "as_prompts",
    "capture",
    "capture_many",
    "capture_many_over",
    "capture_over",
    "capture_pair",
    "estimate_capture",
    "export_activations",
    "import_activations",
    "plan_capture",
    "stream_moments",
]
