"""`ActivationStore`: activations on disk behind the reading interface of `Activations`.

The manifest, written last, holds all that reading needs beside the shards: row order, checksums,
provenance. Shards stay memory-mapped; each tensor is verified at its first read in a process. A
read allocates the result and nothing else of its size; `chunks` walks through a store that is
larger than memory, a shard at a time.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from emlens.activations.record import Activations, Key, bits, empty_rows, place_rows
from emlens.activations.shards import (
    FORMAT,
    TensorFile,
    damage_of,
    read_record,
    shard_path,
    tensor_name,
    write_record,
    write_shard,
    write_tensors,
)
from emlens.foundation.errors import InputError, IntegrityError
from emlens.foundation.sites import Site

MANIFEST, PLAN, ROWS = "manifest.json", "plan.json", "rows.safetensors"
_SAVED_ROWS = 1024
_BLOCK, _PIECE = 2**22, 2**17
"""Bytes of a result that are filled before the next, and at least as many a shard: more shards,
larger blocks.
"""
_OURS = re.compile(
    r"(manifest|plan|shard-\d+|replan-\d+)\.json|(rows|shard-\d+)\.safetensors"
    r"|\..*\.part|\.lock(-\w+)?|units"
)


class _MappedValues(Mapping[Key, Tensor]):
    """Tensors by (site, position), read from shards and put in prompt order when asked for."""

    def __init__(self, directory: Path, manifest: Mapping[str, Any]):
        self._directory = directory
        self._manifest = manifest
        self._files: dict[int, TensorFile] = {}
        # each ascending
        self._index = [
            torch.tensor(rows, dtype=torch.long)
            for rows in _split(manifest["order"], manifest["shard_rows"])
        ]
        self.offsets: Tensor | None = None

    def __iter__(self) -> Iterator[Key]:
        return (
            (site, position)
            for site in self._manifest["sites"]
            for position in self._manifest["positions"]
        )

    def __contains__(self, key: object) -> bool:  # the inherited one would read the tensor
        return key in set(self)

    def __len__(self) -> int:
        return len(self._manifest["sites"]) * len(self._manifest["positions"])

    def __getitem__(self, key: Key) -> Tensor:
        parts = list(self.parts(key))
        if not parts:
            raise IntegrityError(f"{self._directory}: the manifest names no shard")
        if key[1] == "all" and self.offsets is not None:
            found = empty_rows(parts[0][1], int(self.offsets[-1]), parts[0][1].shape[1])
            for index, part in parts:
                place_rows(found, part, index, self.offsets)
            return found
        count = len(self._manifest["ids"])
        found = empty_rows(parts[0][1], count, parts[0][1].shape[1])
        # In blocks of the result: a page is filled while it is still in the cache, which saves a
        # fifth of the time.
        block = max(
            1, max(_BLOCK, _PIECE * len(parts)) // max(1, found.shape[1] * found.element_size())
        )
        edges = np.arange(0, count + block, block)
        target, pieces = bits(found), [(index.numpy(), bits(part)) for index, part in parts]
        cuts = [np.searchsorted(where, edges).tolist() for where, _ in pieces]
        for b in range(len(edges) - 1):
            for (where, piece), cut in zip(pieces, cuts, strict=True):
                if cut[b] < cut[b + 1]:
                    target[where[cut[b] : cut[b + 1]]] = piece[cut[b] : cut[b + 1]]
        return found

    def parts(self, key: Key) -> Iterator[tuple[Tensor, Tensor]]:
        """Row indices of each shard and its tensor, which lies in the mapped file."""
        for number, index in enumerate(self._index):
            part = self.file(number).read(tensor_name(key))
            expected = len(index)
            if key[1] == "all" and self.offsets is not None:
                expected = int((self.offsets[index + 1] - self.offsets[index]).sum())
            if part.ndim != 2 or len(part) != expected:
                raise IntegrityError(
                    f"{self.file(number).path}: {tensor_name(key)!r} has shape {tuple(part.shape)},"
                    f" not {expected} rows of vectors"
                )
            yield index, part

    def file(self, number: int) -> TensorFile:
        if number not in self._files:
            self._files[number] = TensorFile(
                shard_path(self._directory, number), self._manifest["shards"][number]
            )
        return self._files[number]


def _split(values: Sequence[int], sizes: Sequence[int]) -> list[Sequence[int]]:
    return [values[a:b] for a, b in pairwise([0, *accumulate(sizes)])]


class ActivationStore(Activations):
    """A store on disk, with the reading interface of `Activations`."""

    directory: Path
    shards: int
    nbytes: int
    _values: _MappedValues

    @classmethod
    def open(cls, directory: str | Path) -> "ActivationStore":
        """Open a finished store.

        Raises:
            InputError: no such directory, or no store in it.
            IntegrityError: the capture was not finished, or a file was changed.
        """
        path = Path(directory)
        manifest = read_manifest(path)
        values = _MappedValues(path, manifest)
        offsets = token_ids = None
        if "all" in manifest["positions"]:
            rows = TensorFile(path / ROWS, manifest["rows"])
            offsets, token_ids = rows.read("offsets").clone(), rows.read("tokens").long()
            values.offsets = offsets
        store = cls(
            values,
            ids=manifest["ids"],
            groups=manifest["groups"],
            sites=manifest["sites"],
            positions=manifest["positions"],
            provenance=manifest["provenance"],
            offsets=offsets,
            token_ids=token_ids,
        )
        store.directory = path
        store.shards = len(manifest["shards"])
        store.nbytes = sum(shard["bytes"] for shard in manifest["shards"])
        return store

    def chunks(
        self, site: str | Site, position: str | None = None
    ) -> Iterator[tuple[list[str], Float[Tensor, "row d_model"]]]:
        """Row ids and values of one site a shard at a time, in the order on disk: memory for one
        shard.

        Raises:
            UnknownNameError: a site or position that was not captured; `position` is needed where
                there are several.
        """
        key = self._pooled_key(site if position is None else (site, position))
        for index, part in self._values.parts(key):
            yield [self.ids[i] for i in index.tolist()], part.clone()

    def damage(self) -> list[str]:
        """Read every byte; a line for each file or tensor that is not as it was recorded."""
        found = []
        for number in range(len(self._values._index)):
            try:
                file = self._values.file(number)
            except IntegrityError as error:
                found.append(str(error))
                continue
            found += [
                f"{file.path}: tensor {name} does not have the bytes its manifest recorded"
                for name in damage_of(file)
            ]
        return found


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a finished store.

    Raises:
        InputError: no such directory, or no store in it.
        IntegrityError: the capture was not finished; another format; changed after it was written.
    """
    path = directory / MANIFEST
    if not path.is_file():
        if (directory / PLAN).is_file():
            raise IntegrityError(
                f"{directory}: the capture into this store was not finished; run it again to resume"
            )
        raise InputError(
            f"{directory}: holds no activation store; pass a directory that capture(store=...) or"
            " acts.save(...) wrote"
        )
    try:
        manifest = read_record(path)
    except InputError as error:
        raise IntegrityError(f"{error}; capture again into this directory to restore it") from None
    if manifest.get("format") != FORMAT:
        raise IntegrityError(
            f"{path}: is no manifest of store format {FORMAT}, which this version reads"
        )
    return manifest


def write_manifest(
    directory: Path,
    body: Mapping[str, Any],
    sidecars: Sequence[Mapping[str, Any]],
    rows: Mapping[str, Any] | None,
) -> None:
    """Publish the manifest: the store is whole."""
    shards = [
        {name: sidecar[name] for name in ("bytes", "header_sha256", "tensors")}
        for sidecar in sidecars
    ]
    write_record(directory / MANIFEST, {"format": FORMAT, **body, "shards": shards, "rows": rows})


def require_ours(directory: Path) -> None:
    """Make the directory of a store; refuse one that holds anything else.

    Raises:
        InputError: it is a file.
        IntegrityError: there is something in it that belongs to no store.
    """
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory}: is a file; pass a directory for the store")
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / PLAN).exists() and not all(
        _OURS.fullmatch(path.name) for path in directory.iterdir()
    ):
        raise IntegrityError(
            f"{directory}: is not empty and holds no store; pass an empty directory"
        )


def write_store(acts: Activations, directory: Path) -> Path:
    """Write activations held in memory (or another store's) as a store of their own."""
    if (directory / MANIFEST).exists() or (directory / PLAN).exists():
        raise IntegrityError(f"{directory}: already holds a store; pass an empty directory")
    require_ours(directory)
    rows = None
    bounds: Tensor | None = None
    if "all" in acts.positions:
        held = acts.tokens(acts.sites[0])
        bounds = held.offsets
        rows = write_tensors(
            directory / ROWS, {"offsets": held.offsets, "tokens": held.token_ids.int()}
        )
    starts = list(range(0, max(len(acts), 1), _SAVED_ROWS))
    sidecars: list[dict[str, Any]] = []
    values = {(s, p): acts[s, p] for s in acts.sites for p in acts.pooled_positions}
    if "all" in acts.positions:
        values |= {(s, "all"): acts.tokens(s).values for s in acts.sites}
    for number, start in enumerate(starts):
        stop = min(start + _SAVED_ROWS, len(acts))
        cut = {
            key: (
                value[int(bounds[start]) : int(bounds[stop])]
                if key[1] == "all" and bounds is not None
                else value[start:stop]
            )
            for key, value in values.items()
        }
        write_shard(directory, number, cut, {"ids": acts.ids[start:stop]})
        sidecars.append(read_record(shard_path(directory, number).with_suffix(".json")))
    body = {
        "ids": acts.ids,
        "groups": acts.groups,
        "order": list(range(len(acts))),
        "shard_rows": [min(start + _SAVED_ROWS, len(acts)) - start for start in starts],
        "sites": acts.sites,
        "positions": acts.positions,
        "provenance": acts.provenance,
    }
    write_manifest(directory, body, sidecars, rows)
    return directory
