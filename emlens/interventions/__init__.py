"""Ablate and steer; always undone."""

from emlens.interventions.edits import Ablation, Steering, ablate, steer

__all__ = ["Ablation", "Steering", "ablate", "steer"]
