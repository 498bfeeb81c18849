"""The embedded model family with planted ground truth: an instrument, and no evidence about large
models.
"""

from emlens.organisms.building import build
from emlens.organisms.loading import Organism, load_organism
from emlens.organisms.plans import PLANTED, OrganismPlan

__all__ = [
    "PLANTED",
    "Organism",
    "OrganismPlan",
    "build",
    "load_organism",
]
