"""What everything else builds on: errors, sites, positions, estimates, seeds, provenance, atomic
files.
"""

from emlens.foundation.errors import (
    EmlensError,
    InputError,
    IntegrityError,
    LoadError,
    MissingExtraError,
    StateError,
    UnknownNameError,
)
from emlens.foundation.estimate import Estimate
from emlens.foundation.intervention import Intervention
from emlens.foundation.positions import Index, Span
from emlens.foundation.sites import Site

__all__ = [
    "EmlensError",
    "Estimate",
    "Index",
    "InputError",
    "IntegrityError",
    "Intervention",
    "LoadError",
    "MissingExtraError",
    "Site",
    "Span",
    "StateError",
    "UnknownNameError",
]
