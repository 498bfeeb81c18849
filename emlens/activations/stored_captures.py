"""Captures of a study on disk: what one part captured is found again by every other part, and by
the same part after an interruption or a change of configuration that captures do not depend on.

One folder holds them, each in a store of its own (`emlens.activations.store`: checksums, written
whole or not at all) under a hash of what decides it: the weights as they are in memory, what
provenance says of the model and the process, prompts and their token ids, sites, positions, dtypes,
the batches, and the code. So what is found are the bytes that a new capture would give. What is
damaged is captured anew, with one line said.

The folder is no result: it may be deleted at any time, at the cost of capturing again. It holds a
fixed number of bytes at most. The capture that was not used for the longest time goes first, and
none is kept where little would stay free.
"""

import copy
import logging
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

from emlens.activations.capture_plan import CapturePlan
from emlens.activations.capture_provenance import capture_provenance
from emlens.activations.memory import Activations
from emlens.activations.shards import FORMAT
from emlens.activations.store import ActivationStore, write_store
from emlens.foundation.errors import InputError, IntegrityError
from emlens.foundation.files import one_line
from emlens.foundation.provenance import hash_json
from emlens.models.hooked import HookedModel

logger = logging.getLogger("emlens")
MOST_BYTES: Final = 2**33
"""On disk at most, of one study (8 GiB): 1,400 prompts of six 14B models in 16 bits, every block,
two positions each.
"""
FREE_BYTES: Final = 2**31
"""What stays free on the disk."""


@dataclass(eq=False)
class StoredCaptures:
    """Captures in a folder.

    Args:
        directory: made when the first one is written.
        most: bytes of all captures together.
        code: stands for the code that captures.
        found: captures that were found, so far.
    """

    directory: Path
    most: int = MOST_BYTES
    code: str = ""
    found: int = 0
    # by module, which is not kept alive: another one may come to lie in the same place
    _fingerprints: "WeakKeyDictionary[Any, dict[Any, tuple[Any, str | None]]]" = field(
        default_factory=WeakKeyDictionary
    )

    def key(self, model: HookedModel, plan: CapturePlan, prompts_sha256: str) -> str:
        """A name for what decides the capture of a model by a plan, the same in every process."""
        return hash_json(
            {
                "format": FORMAT,
                "code": self.code,
                "model": model.name,
                "weights": self._fingerprint(model),
                "capture": capture_provenance(model, plan, prompts_sha256),
                "layout": plan.layout.sha256,
            }
        )[:32]

    def _fingerprint(self, model: HookedModel) -> str | None:
        """Of the weights in memory; taken again once torch saw one change."""
        owner = getattr(model, "module", model)
        of_owner = self._fingerprints.setdefault(owner, {})
        adapter = getattr(model, "adapter_name", None), hash_json(model.provenance)
        versions = model.weight_versions()
        if adapter not in of_owner or of_owner[adapter][0] != versions:
            of_owner[adapter] = versions, model.weights_fingerprint()
        return of_owner[adapter][1]

    def get(self, key: str) -> Activations | None:
        """The capture under a key, every byte of it verified; None where there is none."""
        folder = self.directory / key
        if not folder.is_dir():
            return None
        try:
            store = ActivationStore.open(folder)
            damage = store.damage()
        except (InputError, IntegrityError, OSError) as error:
            damage = [str(error)]
        if damage:
            logger.warning("%s; it is captured anew", one_line(damage[0], 300))
            shutil.rmtree(folder, ignore_errors=True)
            return None
        with suppress(OSError):  # a folder that may only be read
            os.utime(folder)
        self.found += 1
        return store

    def add(self, key: str, activations: Activations) -> None:
        """Keep a capture where there is room, and forget those that were not used for longest."""
        folder, temporary = self.directory / key, self.directory / f".{key}.part"
        if folder.exists():
            return
        size = sum(activations.value(each).nbytes for each in activations.keys)
        if size > self.most:
            return
        try:
            self._remove_leftovers()
            if shutil.disk_usage(self.directory).free < size + FREE_BYTES:
                return
            write_store(_without_company(activations), temporary)
            if self._make_room(_bytes_of(temporary)):
                os.replace(temporary, folder)
        except OSError as error:
            logger.warning("%s: a capture is not kept (%s)", self.directory, error.strerror)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        """What killed processes left half written."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for leftover in self.directory.glob(".*.part"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _make_room(self, size: int) -> bool:
        """Forget captures until one of this size fits; whether it does."""
        folders = [path for path in self.directory.iterdir() if not path.name.startswith(".")]
        folders.sort(key=lambda folder: (folder.stat().st_mtime_ns, folder.name))
        sizes = [_bytes_of(folder) for folder in folders]
        held = sum(sizes)
        for folder, of_folder in zip(folders, sizes, strict=True):
            if held + size <= self.most:
                break
            shutil.rmtree(folder, ignore_errors=True)
            held -= of_folder
        return size <= self.most


def _without_company(activations: Activations) -> Activations:
    """The same without what provenance says of the models beside it, which change no value."""
    alone = copy.copy(activations)
    alone.provenance = {**activations.provenance, "shared_trunk": None}
    return alone


def _bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
