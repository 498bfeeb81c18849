"""The embedded model family with planted ground truth: an instrument, and no evidence about large models."""

from emlens.organisms.building import BuildProgress, build
from emlens.organisms.loading import Organism, Truth, load
from emlens.organisms.plans import C5, FineTuneStage, OrganismPlan
from emlens.organisms.world import World, make_world

__all__ = [
    "C5",
    "BuildProgress",
    "FineTuneStage",
    "Organism",
    "OrganismPlan",
    "Truth",
    "World",
    "build",
    "load",
    "make_world",
]
