"""Prompts → residual streams, in memory or in a store, and their differences."""

from emlens.activations.capturing import as_prompts, capture, capture_many, capture_pair, plan_capture
from emlens.activations.deltas import activation_deltas
from emlens.activations.job import CaptureJob, CaptureUnit
from emlens.activations.record import Activations, TokenValues
from emlens.activations.store import ActivationStore

__all__ = [
    "ActivationStore",
    "Activations",
    "CaptureJob",
    "CaptureUnit",
    "TokenValues",
    "activation_deltas",
    "as_prompts",
    "capture",
    "capture_many",
    "capture_pair",
    "plan_capture",
]
