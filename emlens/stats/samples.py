"""Reading samples: one-dimensional, finite, float64, with messages that name the argument.

Missing values are never dropped here: which rows to leave out is the caller's decision, and it
changes n.
"""

from collections.abc import Iterable, Mapping, Sequence, Set

import numpy as np
from numpy.typing import ArrayLike

from emlens.foundation.errors import InputError


def as_sample(values: ArrayLike, name: str, at_least: int = 1) -> np.ndarray:
    """`values` as a float64 vector.

    Raises:
        InputError: not one-dimensional, fewer than `at_least` values, or NaN or infinity among
            them.
    """
    # float64 always: sums of float32 scores would lose digits that tests of ties need
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1:
        raise InputError(f"{name} has shape {sample.shape}; pass one number per unit, as a vector")
    if len(sample) < at_least:
        raise InputError(f"{name} has {len(sample)} values; pass at least {at_least}")
    bad = int((~np.isfinite(sample)).sum())
    if bad:
        raise InputError(
            f"{name} holds {bad} values that are NaN or infinite, of {len(sample)};"
            " drop or fix them first"
        )
    return sample


def as_paired(
    x: ArrayLike, y: ArrayLike, name_x: str, name_y: str, at_least: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Two samples of one length, row i of both belonging to unit i.

    Raises:
        InputError: as `as_sample`, or the lengths differ.
    """
    first, second = as_sample(x, name_x, at_least), as_sample(y, name_y, at_least)
    if len(first) != len(second):
        raise InputError(
            f"{name_x} has {len(first)} values and {name_y} has {len(second)};"
            " pass one pair per unit"
        )
    return first, second


def rows_by_label(
    labels: Sequence[object] | np.ndarray, n: int, name: str, who: str
) -> list[np.ndarray]:
    """Row numbers of each label, in order of first appearance; at least 2 labels.

    `who` is what needs them, for the message.

    Raises:
        InputError: not one label per row, or one label only.
    """
    labels = labels_in_order(labels, name)
    if len(labels) != n:
        raise InputError(f"{name} has {len(labels)} labels for {n} rows; pass one label per row")
    members = group_rows(labels)
    if len(members) < 2:
        raise InputError(f"{name} names 1 cluster; {who} needs at least 2")
    return members


def labels_in_order(labels: Iterable[object], name: str) -> list[object]:
    """The labels as a list; refuses what has no order of rows, such as a mapping or a set.

    A mapping would otherwise be read as its keys, which are all different: nothing would be held
    together, and nothing said.

    Raises:
        InputError: names the kind that came.
    """
    if isinstance(labels, Mapping | Set | str | bytes):
        raise InputError(
            f"{name} is a {type(labels).__name__}, which has no order of rows; pass a list with one"
            " label per row"
        )
    return list(labels)


def group_rows(labels: Sequence[object]) -> list[np.ndarray]:
    """Row numbers of each label, in order of first appearance."""
    rows: dict[object, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    return [np.array(members) for members in rows.values()]


def stratum_rows(strata: Sequence[object] | np.ndarray | None, n: int) -> list[np.ndarray]:
    """Row numbers of each stratum, in order of first appearance.

    Where `strata` is None, all rows are one stratum.

    Raises:
        InputError: not one label per row, or every stratum has one member, so that nothing can
            move.
    """
    if strata is None:
        return [np.arange(n)]
    labels = labels_in_order(strata, "strata")
    if len(labels) != n:
        raise InputError(f"strata has {len(labels)} labels for {n} units; pass one label per unit")
    members = group_rows(labels)
    if len(members) == n:
        raise InputError(
            f"strata puts each of {n} units in a stratum of its own, so nothing can be permuted"
        )
    return members


def require_level(level: float) -> float:
    """`level` if it is a coverage strictly between 0 and 1.

    Raises:
        InputError: it is not, for example 95 instead of .95.
    """
    if not 0 < level < 1:
        raise InputError(f"level={level!r} must lie strictly between 0 and 1; pass .95 for 95 %")
    return level


def require_count(count: int, name: str, at_least: int = 1) -> int:
    """`count` if it is an integer of `at_least` or more.

    Raises:
        InputError: it is not.
    """
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < at_least:
        raise InputError(f"{name}={count!r} must be an integer of {at_least} or more")
    return int(count)


def require_choice(value: str, name: str, choices: tuple[str, ...]) -> None:
    """Raises:
    InputError: `value` is none of `choices`.
    """
    if value not in choices:
        raise InputError(
            f"{name}={value!r} is unknown; pass one of {', '.join(map(repr, choices))}",
            name=value,
            known=choices,
        )
