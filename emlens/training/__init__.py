"""Recipes and `fit`: one recipe, one model, one data set → one checkpoint with its record; sweeps
over recipes.
"""

from emlens.training.checkpoints import open_checkpoint
from emlens.training.fitting import Saving, fit
from emlens.training.objectives import Objective
from emlens.training.recipes import Recipe
from emlens.training.stopping import StopRun, TrainingCallback
from emlens.training.sweeps import Sweep, run_sweep

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
