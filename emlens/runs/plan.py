"""A plan: a deterministic list of units of work, written once, for any number of processes.

Every process that joins makes the same list and compares it with `plan.json` by hash; another list
is refused, so that two kinds of work never mix in one directory. The plan decides *what* is done,
including everything results depend on (such as the layout of batches); who does it, where and in
what order changes no result.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from emlens.foundation.errors import InputError, IntegrityError
from emlens.foundation.files import read_json, write_json
from emlens.foundation.provenance import hash_json

FORMAT = 1


@dataclass(frozen=True)
class Unit:
    """One piece of work.

    Attributes:
        id: unique within the plan; how the unit is called in records and errors.
        inputs: JSON-ready; what the work depends on.
        cost: relative time it takes; only the progress bar reads it.
    """

    id: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    cost: float = 1.0


class Plan:
    """Units in order, and the directory of their claims and answers. Made by `open` or `read`."""

    def __init__(self, directory: Path, units: Sequence[Unit]):
        self.directory = directory
        self.units = tuple(units)
        self.sha256 = hash_json([asdict(unit) for unit in self.units])
        self._by_id = {unit.id: unit for unit in self.units}

    @classmethod
    def open(cls, directory: str | Path, units: Sequence[Unit]) -> "Plan":
        """Write the plan, or join the one that is there.

        Raises:
            InputError: no units, or an id twice.
            IntegrityError: the directory holds another plan.
        """
        if not units:
            raise InputError("units is empty; pass at least one unit of work")
        counts = Counter(unit.id for unit in units)
        repeated = sorted(name for name, count in counts.items() if count > 1)
        if repeated:
            raise InputError(f"units holds the id {repeated[0]!r} twice; ids must be unique")
        plan = cls(Path(directory), units)
        path = plan.directory / "plan.json"
        if not path.exists():
            records = [asdict(unit) for unit in plan.units]
            write_json(path, {"format": FORMAT, "units": records, "sha256": plan.sha256})
        written = cls.read(directory)
        if written.sha256 != plan.sha256:
            raise IntegrityError(
                f"{path}: plans other work ({_summary(written)})"
                f" than was asked for ({_summary(plan)});"
                " pass another directory, or the arguments it was begun with"
            )
        return plan

    @classmethod
    def read(cls, directory: str | Path) -> "Plan":
        """The plan in a directory.

        Raises:
            InputError: there is none.
            IntegrityError: it was changed after it was written.
        """
        path = Path(directory) / "plan.json"
        content = read_json(path)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise IntegrityError(
                f"{path}: is not a plan of format {FORMAT}, which this version reads"
            )
        try:
            plan = cls(Path(directory), [Unit(**unit) for unit in content["units"]])
        except (KeyError, TypeError):
            plan = None
        if plan is None or plan.sha256 != content.get("sha256"):
            raise IntegrityError(
                f"{path}: was changed after it was written; pass another directory"
            )
        return plan

    def __getitem__(self, unit_id: str) -> Unit:
        return self._by_id[unit_id]

    def inputs(self, unit: Unit) -> dict[str, Any]:
        """What a unit's answer depends on: the whole plan, which holds its inputs, and which unit
        it is.
        """
        return {"plan": self.sha256, "unit": unit.id}


def _summary(plan: Plan) -> str:
    return f"{len(plan.units)} units, hash {plan.sha256[:8]}"
