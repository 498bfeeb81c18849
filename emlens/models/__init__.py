"""One hooked interface to a model, its adapters and its family. Importing this loads no model
library.
"""

from emlens.models.families import Family, FineTune, load_family
from emlens.models.hooked import HookedModel
from emlens.models.loading import load_model

__all__ = [
    "Family",
    "FineTune",
    "HookedModel",
    "load_family",
    "load_model",
]
