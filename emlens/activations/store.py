"""`ActivationStore`: activations on disk behind the reading interface of `Activations`.

The manifest, written last, holds all that reading needs beside the shards: row order, checksums,
provenance. Shards stay memory-mapped; each tensor is verified at its first read in a process. A
read allocates the result and nothing else of its size; `chunks` goes through a store that is
larger than memory, shard by shard.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from emlens.activations.memory import Activations, Key, bits, empty_rows, place_rows
from emlens.activations.shards import (
    FORMAT,
    TensorFile,
    damaged_tensors,
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
"""Bytes of a result that are filled before the next ones: `_BLOCK`, or `_PIECE` per shard where
that is more.
"""
_STORE_FILES = re.compile(
    r"(manifest|plan|shard-\d+|replan-\d+)\.json|(rows|shard-\d+)\.safetensors"
    r"|\..*\.part|\.lock(-\w+)?|units"
)


class _MappedValues(Mapping[Key, Tensor]):
    """Tensors by (site, position), read from shards and put in prompt order at each access."""

    def __init__(self, directory: Path, manifest: Mapping[str, Any]):
        self._directory = directory
        self._manifest = manifest
        self._files: dict[int, TensorFile] = {}
        shard_rows = _split(manifest["order"], manifest["shard_rows"])
        self.row_index = [torch.tensor(rows, dtype=torch.long) for rows in shard_rows]
        self.offsets: Tensor | None = None

    def __iter__(self) -> Iterator[Key]:
        return product(self._manifest["sites"], self._manifest["positions"])

    def __contains__(self, key: object) -> bool:  # the inherited one would read the tensor
        return key in set(self)

    def __len__(self) -> int:
        return len(self._manifest["sites"]) * len(self._manifest["positions"])

    def __getitem__(self, key: Key) -> Tensor:
        pieces = list(self.pieces(key))
        if not pieces:
            raise IntegrityError(f"{self._directory}: the manifest names no shard")
        first = pieces[0][1]
        if key[1] == "all" and self.offsets is not None:
            result = empty_rows(first, int(self.offsets[-1]), first.shape[1])
            for index, piece in pieces:
                place_rows(result, piece, index, self.offsets)
            return result
        result = empty_rows(first, len(self._manifest["ids"]), first.shape[1])
        _fill_in_blocks(result, pieces)
        return result

    def pieces(self, key: Key) -> Iterator[tuple[Tensor, Tensor]]:
        """Row indices of each shard, ascending, and its tensor, which lies in the mapped file."""
        for number, index in enumerate(self.row_index):
            piece = self.file(number).read(tensor_name(key))
            expected = len(index)
            if key[1] == "all" and self.offsets is not None:
                expected = int((self.offsets[index + 1] - self.offsets[index]).sum())
            if piece.ndim != 2 or len(piece) != expected:
                raise IntegrityError(
                    f"{self.file(number).path}: {tensor_name(key)!r}"
                    f" has shape {tuple(piece.shape)}, not {expected} rows of vectors"
                )
            yield index, piece

    def file(self, number: int) -> TensorFile:
        if number not in self._files:
            self._files[number] = TensorFile(
                shard_path(self._directory, number), self._manifest["shards"][number]
            )
        return self._files[number]


def _fill_in_blocks(result: Tensor, pieces: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Copy the rows of every shard into `result`, one block of the result after another.

    So a page of the result is filled while it is still in the cache, which saves a fifth of the
    time of filling it shard by shard.
    """
    row_bytes = max(1, result.shape[1] * result.element_size())
    block = max(1, max(_BLOCK, _PIECE * len(pieces)) // row_bytes)
    edges = np.arange(0, len(result) + block, block)
    target = bits(result)
    for index, piece in _in_blocks(pieces, edges):
        target[index] = piece


def _in_blocks(
    pieces: Sequence[tuple[Tensor, Tensor]], edges: Int[np.ndarray, " edge"]
) -> Iterator[tuple[Any, Any]]:
    """Row indices and values, cut at `edges` of the result and in the order of its blocks."""
    indices = [index.numpy() for index, _ in pieces]
    values = [bits(piece) for _, piece in pieces]
    cuts = [np.searchsorted(index, edges).tolist() for index in indices]
    for block in range(len(edges) - 1):
        for index, value, cut in zip(indices, values, cuts, strict=True):
            start, stop = cut[block], cut[block + 1]
            if start < stop:
                yield index[start:stop], value[start:stop]


def _split(values: Sequence[int], sizes: Sequence[int]) -> list[Sequence[int]]:
    edges = [0, *accumulate(sizes)]
    return [values[start:stop] for start, stop in pairwise(edges)]


class ActivationStore(Activations):
    """A store on disk, with the reading interface of `Activations`.

    Args:
        directory: where it lies.
        shards: number of its files of values; `nbytes`, their bytes.
    """

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
        """Row ids and values of one site, shard by shard in the order on disk.

        It takes the memory of one shard.

        Raises:
            UnknownNameError: a site or position that was not captured; `position` is needed where
                there are several.
        """
        key = self._pooled_key(site if position is None else (site, position))
        for index, piece in self._values.pieces(key):
            yield [self.ids[i] for i in index.tolist()], piece.clone()

    def damage(self) -> list[str]:
        """Read every byte; one line per file or tensor that is not as it was recorded."""
        lines = []
        for number in range(len(self._values.row_index)):
            try:
                file = self._values.file(number)
            except IntegrityError as error:
                lines.append(str(error))
                continue
            for name in damaged_tensors(file):
                lines.append(
                    f"{file.path}: tensor {name} does not have the bytes its manifest recorded"
                )
        return lines


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a complete store.

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
            f"{path}: is not a manifest of store format {FORMAT}, which this version reads"
        )
    return manifest


def write_manifest(
    directory: Path,
    body: Mapping[str, Any],
    sidecars: Sequence[Mapping[str, Any]],
    rows: Mapping[str, Any] | None,
) -> None:
    """Publish the manifest, which makes the store complete.

    Args:
        sidecars: of the shards, in order.
        rows: size and checksums of `rows.safetensors`; None where no token is kept.
    """
    shards = []
    for sidecar in sidecars:
        shards.append({name: sidecar[name] for name in ("bytes", "header_sha256", "tensors")})
    write_record(directory / MANIFEST, {"format": FORMAT, **body, "shards": shards, "rows": rows})


def require_store_directory(directory: Path) -> None:
    """Make the directory of a store; refuse one that holds anything else.

    Raises:
        InputError: it is a file.
        IntegrityError: there is something in it that belongs to no store.
    """
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory}: is a file; pass a directory for the store")
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / PLAN).exists():
        return
    if not all(_STORE_FILES.fullmatch(path.name) for path in directory.iterdir()):
        raise IntegrityError(
            f"{directory}: is not empty and holds no store; pass an empty directory"
        )


def write_store(acts: Activations, directory: Path) -> Path:
    """Write activations held in memory (or another store's) as a store of their own.

    Raises:
        InputError: the path is a file.
        IntegrityError: the directory holds a store, or anything else.
    """
    if (directory / MANIFEST).exists() or (directory / PLAN).exists():
        raise IntegrityError(f"{directory}: already holds a store; pass an empty directory")
    require_store_directory(directory)
    tokens_file: dict[str, Any] | None = None
    offsets: Tensor | None = None
    if "all" in acts.positions:
        tokens = acts.tokens(acts.sites[0])
        offsets = tokens.offsets
        tokens_file = write_tensors(
            directory / ROWS, {"offsets": offsets, "tokens": tokens.token_ids.int()}
        )
    values = {key: acts.value(key) for key in acts.keys}
    # a store of no rows has one empty shard
    starts = range(0, max(len(acts), 1), _SAVED_ROWS)
    sidecars: list[dict[str, Any]] = []
    for number, start in enumerate(starts):
        stop = min(start + _SAVED_ROWS, len(acts))
        shard = _values_between(values, start, stop, offsets)
        write_shard(directory, number, shard, {"ids": acts.ids[start:stop]})
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
    write_manifest(directory, body, sidecars, tokens_file)
    return directory


def _values_between(
    values: Mapping[Key, Tensor], start: int, stop: int, offsets: Tensor | None
) -> dict[Key, Tensor]:
    """The rows `start` to `stop`; at "all", all tokens of them."""
    shard: dict[Key, Tensor] = {}
    for (site, position), value in values.items():
        if position == "all" and offsets is not None:
            shard[site, position] = value[int(offsets[start]) : int(offsets[stop])]
        else:
            shard[site, position] = value[start:stop]
    return shard
