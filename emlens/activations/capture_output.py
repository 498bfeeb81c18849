"""Where the shards of one model's capture go: into memory or into a store on disk.

Both outputs know which of their shards are complete, so that a job can ask what is missing.
"""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emlens.activations.batch_layout import BatchLayout
from emlens.activations.capture_plan import CapturePlan
from emlens.activations.capture_provenance import with_layout
from emlens.activations.memory import Activations, Key, empty_rows, place_rows
from emlens.activations.shards import (
    is_complete,
    read_record,
    shard_path,
    whole_record,
    write_record,
    write_shard,
)
from emlens.activations.store import ActivationStore, write_manifest


class StoreOutput:
    """One model's capture into a store.

    Args:
        directory: of the store.
        plan_record: what `plan.json` holds.
        plan_sha256: its hash, which every shard carries.
    """

    def __init__(self, directory: Path, plan_record: Mapping[str, Any], plan_sha256: str):
        self.directory = directory
        self.plan_record = plan_record
        self.plan_sha256 = plan_sha256
        # shard → the cuts with which this process wrote or verified it, so that it reads the bytes
        # of a shard once
        self._verified: dict[int, dict[int, int]] = {}

    def recorded_cuts(self) -> dict[int, int]:
        """Cuts that any process wrote for this plan; a damaged record counts as none."""
        cuts: dict[int, int] = {}
        for path in sorted(self.directory.glob("replan-*.json")):
            record = whole_record(path)
            if record is not None and record.get("plan_sha256") == self.plan_sha256:
                cuts |= {int(batch): count for batch, count in record["parts"].items()}
        return cuts

    def record_cuts(self, shard: int, cuts: Mapping[int, int]) -> None:
        record = {"plan_sha256": self.plan_sha256, "shard": shard, "parts": _with_text_keys(cuts)}
        write_record(self.directory / f"replan-{shard:05d}.json", record)

    def has_shard(self, layout: BatchLayout, shard: int, *, thorough: bool) -> bool:
        """Whether a shard is complete, as this layout runs it.

        `thorough` compares checksums, unless this process has done so before.
        """
        cuts = layout.cuts_of(shard)
        read_bytes = thorough and self._verified.get(shard) != cuts
        sidecar = self._sidecar(layout, shard)
        complete = is_complete(self.directory, shard, sidecar, thorough=read_bytes)
        if complete and thorough:
            self._verified[shard] = cuts
        return complete

    def add_shard(self, layout: BatchLayout, shard: int, values: Mapping[Key, Tensor]) -> None:
        write_shard(self.directory, shard, values, self._sidecar(layout, shard))
        self._verified[shard] = layout.cuts_of(shard)

    def _sidecar(self, layout: BatchLayout, shard: int) -> dict[str, Any]:
        """What the sidecar of a shard says beside its checksums."""
        ids = self.plan_record["ids"]
        return {
            "plan_sha256": self.plan_sha256,
            "ids": [ids[row] for row in layout.rows_of(shard)],
            "parts": _with_text_keys(layout.cuts_of(shard)),
        }

    def finish(self, plan: CapturePlan, layout: BatchLayout) -> ActivationStore:
        """Publish the manifest of a store whose shards are complete."""
        shards = range(len(layout.shards))
        shard_rows = [layout.rows_of(shard) for shard in shards]
        sidecars = [
            read_record(shard_path(self.directory, shard).with_suffix(".json")) for shard in shards
        ]
        body = {
            "plan_sha256": self.plan_sha256,
            "ids": self.plan_record["ids"],
            "groups": self.plan_record["groups"],
            "order": list(chain.from_iterable(shard_rows)),
            "shard_rows": [len(rows) for rows in shard_rows],
            "sites": self.plan_record["sites"],
            "positions": [position.name for position in plan.positions],
            "provenance": with_layout(self.plan_record["provenance"], layout),
        }
        write_manifest(self.directory, body, sidecars, self.plan_record["rows"])
        return ActivationStore.open(self.directory)


def _with_text_keys(cuts: Mapping[int, int]) -> dict[str, int]:
    """The keys of a JSON object are strings."""
    return {str(batch): count for batch, count in cuts.items()}


class MemoryOutput:
    """One model's capture into memory.

    Each tensor is allocated once, and the rows of a shard are copied to where they belong.
    """

    def __init__(self, plan: CapturePlan, provenance: Mapping[str, Any]):
        self._plan = plan
        self._provenance = provenance
        self._offsets: Tensor | None = None
        if not all(position.pooled for position in plan.positions):
            self._offsets = plan.rows.offsets
        self._values: dict[Key, Tensor] = {}
        self._finished: dict[int, dict[int, int]] = {}  # shard → the cuts with which it ran

    def recorded_cuts(self) -> dict[int, int]:
        return {}  # the job itself remembers them, and no other process shares this output

    def record_cuts(self, shard: int, cuts: Mapping[int, int]) -> None:
        pass

    def has_shard(self, layout: BatchLayout, shard: int, *, thorough: bool) -> bool:
        return self._finished.get(shard) == layout.cuts_of(shard)

    def add_shard(self, layout: BatchLayout, shard: int, values: Mapping[Key, Tensor]) -> None:
        index = torch.tensor(layout.rows_of(shard))
        every_row = range(len(self._plan.rows))
        for key, value in values.items():
            _, position = key
            if key not in self._values:
                count = self._plan.vector_count(position, every_row)
                self._values[key] = empty_rows(value, count, value.shape[1])
            offsets = self._offsets if position == "all" else None
            place_rows(self._values[key], value, index, offsets)
        self._finished[shard] = layout.cuts_of(shard)

    def finish(self, plan: CapturePlan, layout: BatchLayout) -> Activations:
        token_ids = None
        if self._offsets is not None:
            token_ids = plan.rows.tokens.long()
        return Activations(
            self._values,
            ids=plan.rows.ids,
            groups=plan.rows.groups,
            sites=[str(site) for site in plan.sites],
            positions=[position.name for position in plan.positions],
            provenance=with_layout(self._provenance, layout),
            offsets=self._offsets,
            token_ids=token_ids,
        )
