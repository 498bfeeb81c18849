"""Replication: recompute published figures from the files their authors released, with emlens's
public functions.

What others printed is text in the module of each release, with its source; what emlens gives
is computed from the files each time. Files that are not there are named and left out; at least one
group must be complete. Nothing is downloaded. Cost: seconds, and the largest file in memory.
"""

import math
from pathlib import Path
from typing import Final

from emlens.foundation.errors import InputError
from emlens.replication import (
    clarifying_em,
    em_generalization,
    em_generalization_answers,
    em_generalization_tables,
    refusal_direction,
)
from emlens.replication.own_figures import FILE, own_figures
from emlens.replication.published_figures import (
    NOT_GIVEN,
    NOT_PUBLISHED,
    Figure,
    Group,
    Replication,
)

_GROUPS: Final[tuple[Group, ...]] = (
    *clarifying_em.GROUPS,
    *em_generalization.GROUPS,
    *em_generalization_answers.GROUPS,
    *em_generalization_tables.GROUPS,
    *refusal_direction.GROUPS,
)


def replicate(directory: str | Path) -> Replication:
    """Recompute the published figures from the released files under `directory`.

    Figures come in groups, each from one or several files; a group with a file that is not there
    gives one line that is marked as not given. A folder with a `replication.yaml` gives the figures
    that it names instead (`emlens.replication.own_figures`).

    Raises:
        InputError: no such directory, no group complete, or a file that cannot be read: file and
            reason.
    """
    root = Path(directory)
    if not root.is_dir():
        raise InputError(f"{root}: no such directory; pass the one that holds the released files")
    if (root / FILE).is_file():
        return Replication(tuple(own_figures(root)))
    figures: list[Figure] = []
    complete = 0
    for group in _GROUPS:
        missing = [name for name in group.files if not (root / name).exists()]
        if missing:
            figures.append(
                Figure(missing[0], "every figure", NOT_PUBLISHED, math.nan, note=NOT_GIVEN)
            )
            continue
        figures += group.compute(root)
        complete += 1
    if not complete:
        raise InputError(
            f"{root}: holds none of the released files;"
            f" looked for {[group.files[0] for group in _GROUPS]}"
        )
    return Replication(tuple(figures))
