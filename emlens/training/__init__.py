"""Recipes and `fit`: one recipe, one model, one data set → one checkpoint with its record; sweeps
over recipes.
"""

from emlens.training.checkpoints import open_checkpoint
from emlens.training.examples import IGNORED, Example, encode_answers
from emlens.training.fitting import Fitted, fit, read_record
from emlens.training.objectives import Loss, NarrowLoss, Objective, answer_loss
from emlens.training.recipes import Recipe
from emlens.training.schedules import SCHEDULES, Schedule
from emlens.training.steering_vector import TrainedVector, train_steering_vector
from emlens.training.stopping import StopRun, TrainingCallback
from emlens.training.sweeps import Sweep, SweepResult, SweepRun, SweepWorker, run_sweep

__all__ = [
    "IGNORED",
    "SCHEDULES",
    "Example",
    "Fitted",
    "Loss",
    "NarrowLoss",
    "Objective",
    "Recipe",
    "Schedule",
    "StopRun",
    "Sweep",
    "SweepResult",
    "SweepRun",
    "SweepWorker",
    "TrainedVector",
    "TrainingCallback",
    "answer_loss",
    "encode_answers",
    "fit",
    "open_checkpoint",
    "read_record",
    "run_sweep",
    "train_steering_vector",
]
