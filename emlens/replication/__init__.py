"""Published figures beside recomputed ones, and what exists only for one release's column names."""

from emlens.replication.replicate import replicate

__all__ = [
    "replicate",
]
