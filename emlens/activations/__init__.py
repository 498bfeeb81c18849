"""Prompts → residual streams, in memory, in a store or as sums, and their differences."""

from emlens.activations.capture_spec import CaptureSpec
from emlens.activations.capturing import capture, capture_many, capture_pair
from emlens.activations.deltas import activation_deltas
from emlens.activations.estimating import estimate_capture
from emlens.activations.exchange import export_activations, import_activations
from emlens.activations.executor_capture import capture_many_over, capture_over
from emlens.activations.memory import Activations
from emlens.activations.store import ActivationStore
from emlens.activations.streaming import stream_moments

__all__ = [
    "ActivationStore",
    "Activations",
    "CaptureSpec",
    "activation_deltas",
    "capture",
    "capture_many",
    "capture_many_over",
    "capture_over",
    "capture_pair",
    "estimate_capture",
    "export_activations",
    "import_activations",
    "stream_moments",
]
