"""Recipes and `fit`: one recipe, one model, one data set → one checkpoint with its record; sweeps
over recipes.
"""

import os

from emlens.training.checkpoints import open_checkpoint
from emlens.training.fitting import Saving, fit
from emlens.training.objectives import Objective
from emlens.training.recipes import Recipe
from emlens.training.stopping import StopRun, TrainingCallback
from emlens.training.sweeps import Sweep, run_sweep

# torch reads it at its first tensor. Large tensors then begin at whole pages, and the holes
# that freed ones leave are used again: otherwise a quarter of the memory of a training is holes.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__all__ = [
    "Objective",
    "Recipe",
    "Saving",
    "StopRun",
    "Sweep",
    "TrainingCallback",
    "fit",
    "open_checkpoint",
    "run_sweep",
]
