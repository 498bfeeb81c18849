"""Activations on disk: safetensors shards, a sidecar a shard, a manifest last.

A shard counts once its sidecar stands; both are written to a temporary name and renamed. Reads are memory-mapped, and
each shard's bytes are verified against the sidecar's checksum at the first read in a process. A directory that was
begun for another plan is refused, never overwritten.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from emlens.activations.record import Activations, Key
from emlens.data.rendering import Rendered
from emlens.foundation.errors import InputError, IntegrityError
from emlens.foundation.files import publishing, read_json, sha256_file, write_json
from emlens.foundation.provenance import hash_json

FORMAT = 1


def _tensor_name(key: Key) -> str:
    return f"{key[0]}@{key[1]}"


class ShardWriter:
    """Writes one store; shards in any order, `finish` last.

    Raises:
        IntegrityError: the directory was begun for another plan.
    """

    def __init__(
        self,
        directory: Path,
        *,
        rows: Sequence[Rendered],
        shard_rows: Sequence[Sequence[int]],
        sites: Sequence[str],
        positions: Sequence[str],
        provenance: Mapping[str, Any],
    ):
        self._directory = directory
        self._shard_rows = [list(shard) for shard in shard_rows]
        plan = {
            "format": FORMAT,
            "ids": [row.id for row in rows],
            "groups": [row.group for row in rows],
            "lengths": [len(row.ids) for row in rows],
            "token_ids": [list(row.ids) for row in rows] if "all" in positions else None,
            "sites": list(sites),
            "positions": list(positions),
            "shards": self._shard_rows,
            "provenance": dict(provenance),
        }
        self._plan = plan
        self._plan_hash = hash_json(plan)
        begun = directory / "plan.json"
        if begun.exists():
            if hash_json(read_json(begun)) != self._plan_hash:
                raise IntegrityError(
                    f"{directory}: holds a store begun for another model, prompt set, site, position or library version; pass an empty directory"
                )
        else:
            if directory.exists() and not directory.is_dir():
                raise InputError(f"{directory}: is a file; pass a directory for the store")
            directory.mkdir(parents=True, exist_ok=True)
            if any(not (path.name.startswith(".") and path.suffix == ".part") for path in directory.iterdir()):
                raise IntegrityError(f"{directory}: is not empty and holds no store; pass an empty directory")
            write_json(begun, plan)

    def has(self, number: int) -> bool:
        """Whether a shard stands as its sidecar says; one that is missing or damaged counts as not written."""
        sidecar = self._directory / f"shard-{number:05d}.json"
        path = sidecar.with_suffix(".safetensors")
        if not sidecar.is_file() or not path.is_file():
            return False
        try:
            record = read_json(sidecar)
        except InputError:
            return False
        return isinstance(record, dict) and record == self._sidecar(number, sha256_file(path))

    def _sidecar(self, number: int, digest: str) -> dict[str, Any]:
        return {"rows": self._shard_rows[number], "sha256": digest, "plan_sha256": self._plan_hash}

    def write(self, number: int, values: Mapping[Key, Tensor]) -> None:
        path = self._directory / f"shard-{number:05d}.safetensors"
        with publishing(path) as temporary:
            save_file({_tensor_name(key): _alone(value) for key, value in values.items()}, temporary)
        write_json(path.with_suffix(".json"), self._sidecar(number, sha256_file(path)))

    def finish(self) -> None:
        """Publish the manifest: the store is whole."""
        missing = [n for n in range(len(self._shard_rows)) if not self.has(n)]
        if missing:
            raise IntegrityError(f"{self._directory}: shards {missing} are not written yet")
        sidecars = [self._directory / f"shard-{n:05d}.json" for n in range(len(self._shard_rows))]
        write_json(
            self._directory / "manifest.json",
            {**self._plan, "plan_sha256": self._plan_hash, "shard_sha256": [read_json(path)["sha256"] for path in sidecars]},
        )


def _alone(value: Tensor) -> Tensor:
    """Contiguous in a storage of its own: safetensors refuses tensors that share one."""
    owns = value.is_contiguous() and value.untyped_storage().nbytes() == value.nbytes and value._base is None
    return value if owns else value.clone(memory_format=torch.contiguous_format)


class _LazyValues(Mapping[Key, Tensor]):
    """Tensors by (site, position), read from shards and put in prompt order when asked for."""

    def __init__(self, directory: Path, manifest: Mapping[str, Any]):
        self._directory = directory
        self._manifest = manifest
        self._verified: set[int] = set()
        lengths = torch.tensor(manifest["lengths"])
        planned = torch.tensor([i for shard in manifest["shards"] for i in shard])
        self._order = torch.argsort(planned)
        ends = lengths[planned].cumsum(0)
        starts = ends - lengths[planned]
        self._spans = [(int(starts[p]), int(ends[p])) for p in self._order.tolist()]

    def __iter__(self) -> Iterator[Key]:
        return ((site, position) for site in self._manifest["sites"] for position in self._manifest["positions"])

    def __contains__(self, key: object) -> bool:  # the inherited one would read the tensor
        return key in set(self)

    def __len__(self) -> int:
        return len(self._manifest["sites"]) * len(self._manifest["positions"])

    def __getitem__(self, key: Key) -> Tensor:
        parts = [self._read(number, key) for number in range(len(self._manifest["shards"]))]
        joined = torch.cat(parts)
        if key[1] == "all":
            return joined[torch.cat([torch.arange(a, b) for a, b in self._spans])]
        return joined[self._order]

    def _read(self, number: int, key: Key) -> Tensor:
        path = self._directory / f"shard-{number:05d}.safetensors"
        if not path.is_file():
            raise IntegrityError(f"{path}: is missing; capture again into this directory to restore it")
        if number not in self._verified:
            if sha256_file(path) != self._manifest["shard_sha256"][number]:
                raise IntegrityError(f"{path}: does not have the bytes its manifest recorded; capture again into this directory to restore it")
            self._verified.add(number)
        try:
            with safe_open(path, framework="pt") as handle:
                return handle.get_tensor(_tensor_name(key))
        except SafetensorError as error:
            raise IntegrityError(f"{path}: holds no tensor {_tensor_name(key)!r} ({error})") from None


class ActivationStore(Activations):
    """A store on disk, with the reading interface of `Activations`."""

    @classmethod
    def open(cls, directory: str | Path) -> "ActivationStore":
        """Open a finished store.

        Raises:
            InputError: no such directory, or no store in it.
            IntegrityError: the capture was not finished, or a file was changed.
        """
        path = Path(directory)
        manifest_path = path / "manifest.json"
        if not manifest_path.is_file():
            if (path / "plan.json").is_file():
                raise IntegrityError(f"{path}: the capture into this store was not finished; run it again to resume")
            raise InputError(f"{path}: holds no activation store; pass a directory that capture(store=...) or acts.save(...) wrote")
        manifest = read_json(manifest_path)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise IntegrityError(f"{manifest_path}: is no manifest of store format {FORMAT}, which this version reads")
        body = {key: value for key, value in manifest.items() if key not in ("plan_sha256", "shard_sha256")}
        digests = manifest.get("shard_sha256")
        if hash_json(body) != manifest.get("plan_sha256") or not isinstance(digests, list) or len(digests) != len(manifest["shards"]):
            raise IntegrityError(f"{manifest_path}: was changed after it was written")
        offsets = token_ids = None
        if manifest["token_ids"] is not None:
            offsets = torch.tensor([0, *manifest["lengths"]]).cumsum(0)
            token_ids = torch.tensor([t for row in manifest["token_ids"] for t in row])
        return cls(
            _LazyValues(path, manifest),
            ids=manifest["ids"],
            groups=manifest["groups"],
            sites=manifest["sites"],
            positions=manifest["positions"],
            provenance=manifest["provenance"],
            offsets=offsets,
            token_ids=token_ids,
        )


def write_store(acts: Activations, directory: Path) -> Path:
    """Write activations held in memory as a one-shard store."""
    if (directory / "manifest.json").exists():
        raise IntegrityError(f"{directory}: already holds a store; pass an empty directory")
    lengths = [1] * len(acts)
    tokens: list[tuple[int, ...]] = [(0,)] * len(acts)
    if "all" in acts.positions:
        held = acts.tokens(acts.sites[0])
        bounds = held.offsets.tolist()
        tokens = [tuple(held.token_ids[a:b].tolist()) for a, b in pairwise(bounds)]
        lengths = [len(row) for row in tokens]
    rows = [Rendered(name, group, ids, n) for name, group, ids, n in zip(acts.ids, acts.groups, tokens, lengths, strict=True)]
    writer = ShardWriter(
        directory,
        rows=rows,
        shard_rows=[list(range(len(acts)))],
        sites=acts.sites,
        positions=acts.positions,
        provenance=acts.provenance,
    )
    values: dict[Key, Tensor] = {(s, p): acts[s, p] for s in acts.sites for p in acts.pooled_positions}
    if "all" in acts.positions:
        values.update({(s, "all"): acts.tokens(s).values for s in acts.sites})
    writer.write(0, values)
    writer.finish()
    return directory
