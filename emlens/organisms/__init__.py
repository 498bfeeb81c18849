"""The embedded model family with planted ground truth: an instrument, and no evidence about large
models.
"""

from emlens.organisms.building import BuildProgress, build
from emlens.organisms.loading import Organism, Truth, load
from emlens.organisms.plans import PLANTED, PLANTED_ALL, UNPLANTED, FineTuneStage, OrganismPlan
from emlens.organisms.world import World, make_world

__all__ = [
    "PLANTED",
    "PLANTED_ALL",
    "UNPLANTED",
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
