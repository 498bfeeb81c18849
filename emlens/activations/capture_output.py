"""One model's side of a capture: where its shards go, in memory or on disk, and which of them
stand.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emlens.activations.batch_layout import BatchLayout
from emlens.activations.capture_facts import with_layout
from emlens.activations.reading import Reading
from emlens.activations.record import Activations, Key, empty_rows, place_rows
from emlens.activations.shards import (
    read_record,
    shard_path,
    shard_stands,
    whole_record,
    write_record,
    write_shard,
)
from emlens.activations.store import ActivationStore, write_manifest


class StoreSide:
    """One model's side of a capture, on disk."""

    def __init__(self, directory: Path, plan: Mapping[str, Any], digest: str):
        self.directory = directory
        self.plan = plan
        self.digest = digest
        self._standing: dict[int, dict[int, int]] = {}

    def parts(self) -> dict[int, int]:
        """Cuts that any process wrote for this plan; a damaged record counts as none."""
        found: dict[int, int] = {}
        for path in sorted(self.directory.glob("replan-*.json")):
            record = whole_record(path)
            if record is not None and record.get("plan_sha256") == self.digest:
                found |= {int(batch): count for batch, count in record["parts"].items()}
        return found

    def cut(self, shard: int, parts: Mapping[int, int]) -> None:
        record = {
            "plan_sha256": self.digest,
            "shard": shard,
            "parts": {str(b): n for b, n in parts.items()},
        }
        write_record(self.directory / f"replan-{shard:05d}.json", record)

    def _facts(self, layout: BatchLayout, shard: int) -> dict[str, Any]:
        ids = self.plan["ids"]
        parts = {str(batch): count for batch, count in layout.parts_of(shard).items()}
        return {
            "plan_sha256": self.digest,
            "ids": [ids[i] for i in layout.rows_of(shard)],
            "parts": parts,
        }

    def stands(self, layout: BatchLayout, shard: int, thorough: bool) -> bool:
        parts = layout.parts_of(shard)
        known = self._standing.get(shard) == parts
        stands = shard_stands(
            self.directory, shard, self._facts(layout, shard), thorough=thorough and not known
        )
        if stands and thorough:
            self._standing[shard] = parts
        return stands

    def keep(self, layout: BatchLayout, shard: int, values: Mapping[Key, Tensor]) -> None:
        write_shard(self.directory, shard, values, self._facts(layout, shard))
        self._standing[shard] = layout.parts_of(shard)

    def finish(self, reading: Reading, layout: BatchLayout) -> ActivationStore:
        sidecars = [
            read_record(shard_path(self.directory, n).with_suffix(".json"))
            for n in range(len(layout.shards))
        ]
        body = {
            "plan_sha256": self.digest,
            "ids": self.plan["ids"],
            "groups": self.plan["groups"],
            "order": [row for shard in range(len(layout.shards)) for row in layout.rows_of(shard)],
            "shard_rows": [len(layout.rows_of(n)) for n in range(len(layout.shards))],
            "sites": self.plan["sites"],
            "positions": [position.name for position in reading.positions],
            "provenance": with_layout(self.plan["provenance"], layout),
        }
        write_manifest(self.directory, body, sidecars, self.plan["rows"])
        return ActivationStore.open(self.directory)


class MemorySide:
    """One model's side of a capture, in memory; each result is allocated once, and rows are put
    where they belong.
    """

    def __init__(self, reading: Reading, provenance: Mapping[str, Any]):
        self._reading = reading
        self._provenance = provenance
        self._offsets = (
            reading.rows.offsets if any(not p.pooled for p in reading.positions) else None
        )
        self._values: dict[Key, Tensor] = {}
        self._kept: dict[int, dict[int, int]] = {}

    def parts(self) -> dict[int, int]:
        return {}

    def cut(self, shard: int, parts: Mapping[int, int]) -> None:
        pass

    def stands(self, layout: BatchLayout, shard: int, thorough: bool) -> bool:
        return self._kept.get(shard) == layout.parts_of(shard)

    def keep(self, layout: BatchLayout, shard: int, values: Mapping[Key, Tensor]) -> None:
        index = torch.tensor(layout.rows_of(shard))
        everything = range(len(self._reading.rows))
        for key, part in values.items():
            if key not in self._values:
                self._values[key] = empty_rows(
                    part, self._reading.count(key[1], everything), part.shape[1]
                )
            place_rows(self._values[key], part, index, self._offsets if key[1] == "all" else None)
        self._kept[shard] = layout.parts_of(shard)

    def finish(self, reading: Reading, layout: BatchLayout) -> Activations:
        return Activations(
            self._values,
            ids=reading.rows.ids,
            groups=reading.rows.groups,
            sites=[str(site) for site in reading.sites],
            positions=[position.name for position in reading.positions],
            provenance=with_layout(self._provenance, layout),
            offsets=self._offsets,
            token_ids=None if self._offsets is None else reading.rows.tokens.long(),
        )
