"""A cache of huggingface_hub as it lies on disk, so that hub ids load without a network."""

from pathlib import Path

import pytest


def commit_of(number: int) -> str:
    return f"{number:040x}"


def use(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let huggingface_hub read this cache; it is offline in every test."""
    import huggingface_hub

    patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))


def add(folder: Path, hub_id: str, commit: str, files: Path, *, ref: str, below: str = "") -> None:
    """Put a snapshot into the cache.

    Args:
        files: a directory whose files the snapshot holds, below its folder `below`.
        ref: the branch that points at the commit.
    """
    repository = folder / f"models--{hub_id.replace('/', '--')}"
    target = repository / "snapshots" / commit / below
    target.mkdir(parents=True)
    for file in files.iterdir():
        (target / file.name).symlink_to(file.resolve())
    reference = repository / "refs" / ref
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit)
