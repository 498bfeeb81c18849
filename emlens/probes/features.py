"""Feature sets: what a forecast may look at, built inside each fold.

A set gives training and test matrices for given rows. Whatever it fits (a vocabulary, idf weights,
components, scaling) it fits on the training rows: a scaler that saw the test rows would carry
their mean and spread into the fit. Baselines are feature sets like any other and run through the
identical folds. A set is family-free where its numbers mean the same in every model (a length, a
distance in standard deviations, a score); coordinates of a residual stream are not.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from emlens.activations import Activations
from emlens.foundation.errors import InputError
from emlens.probes.ridge import Array, mean_and_scale, standardise

Rows = NDArray[np.int64]
Fold = tuple[Rows, Rows]
"""(training rows, test rows)."""
T = TypeVar("T")
CANCELLED = 1e-6
"""Variance over mean square below which sums of squares have lost digits, and a column's scale is
computed again.
"""


def at_rows(values: Sequence[T], rows: Rows) -> list[T]:
    """The values of these rows, for what is no array."""
    return [values[int(i)] for i in rows]


class Features(ABC):
    """A named feature set over a fixed list of rows."""

    name: str
    family_free: bool = False
    near_centre: bool = False
    """Whether the columns of training matrices have means that are small beside their spread."""

    @abstractmethod
    def split(self, train: Rows, test: Rows) -> tuple[Array, Array]:
        """(training row, feature) and (test row, feature), fitted on `train` alone."""

    def pairs(self, folds: Sequence[Fold], orders: Sequence[Rows]) -> Iterator[tuple[Array, Array]]:
        """`split` of every fold in turn; use a pair before asking for the next.

        Args:
            orders: for each fold, an order of its rows in which training and test rows are few
                runs; folds that come one after the other should share it.
        """
        for train, test in folds:
            yield self.split(train, test)


class MatrixFeatures(Features):
    """Given numbers, scaled by the training rows.

    Args:
        values: (row, feature); a tensor is converted when it is read, so that a grid of them costs
            no second copy.

    Raises:
        InputError: a value that is NaN or infinite.
    """

    near_centre = True

    def __init__(
        self, name: str, values: Array | Float[Tensor, "row feature"], *, family_free: bool = False
    ):
        self._source: Array | Tensor
        if isinstance(values, Tensor):
            self._source = values
            all_finite = bool(values.isfinite().all())
        else:
            self._source = np.asarray(values, dtype=np.float64)
            all_finite = bool(np.isfinite(values).all())
        if not all_finite:
            raise InputError(
                f"features {name!r} hold values that are NaN or infinite; drop or fix them first"
            )
        self.name, self.family_free = name, family_free

    @property
    def values(self) -> Array:
        if isinstance(self._source, Tensor):
            return self._source.double().numpy()
        return self._source

    def split(self, train: Rows, test: Rows) -> tuple[Array, Array]:
        values = self.values
        return standardise(values[train], values[test])

    def pairs(self, folds: Sequence[Fold], orders: Sequence[Rows]) -> Iterator[tuple[Array, Array]]:
        """The matrices of `split`, but for a small offset per column that the intercept takes up.

        Means and variances of all folds come from two matrix products, and scaling is one pass over
        rows laid out in order. Both matrices lie in memory that the next pair overwrites.
        """
        values = self.values
        mean, scale = mean_and_scale(values)
        x = values - mean
        x *= 1 / scale  # without offset and scale, sums of squares keep their digits
        factors, is_unsure = _fold_scales(x, [train for train, _ in folds])
        most_train = max((len(train) for train, _ in folds), default=0)
        most_test = max((len(test) for _, test in folds), default=0)
        train_memory = np.empty((most_train, x.shape[1]))
        test_memory = np.empty((most_test, x.shape[1]))
        laid_out = np.empty_like(x)
        place = np.arange(len(x))
        order = None
        for number, (train, test) in enumerate(folds):
            if order is not orders[number]:
                order = orders[number]
                # other modes buffer the output
                np.take(x, order, axis=0, out=laid_out[: len(order)], mode="clip")
                place[order] = np.arange(len(order))
            train_x = _scaled_rows(laid_out, place[train], factors[number], train_memory)
            test_x = _scaled_rows(laid_out, place[test], factors[number], test_memory)
            unsure = np.flatnonzero(is_unsure[number])
            if len(unsure):
                train_x[:, unsure], test_x[:, unsure] = standardise(
                    values[np.ix_(train, unsure)], values[np.ix_(test, unsure)]
                )
            yield train_x, test_x


def _fold_scales(x: Array, training: Sequence[Rows]) -> tuple[Array, NDArray[np.bool_]]:
    """(fold, column) 1 / standard deviation over each fold's training rows, and where it is unsure.

    Var = E[x²] − (E[x])² loses digits where the mean is large beside the spread; there the factor
    is 0, and the column has to be scaled again.
    """
    shares = np.zeros((len(training), len(x)))
    for number, train in enumerate(training):
        shares[number, train] = 1 / len(train)
    mean_squares = shares @ (x * x)
    variances = mean_squares - (shares @ x) ** 2
    is_unsure = variances <= CANCELLED * mean_squares
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = np.where(is_unsure, 0.0, 1 / np.sqrt(variances))
    return factors, is_unsure


def _scaled_rows(rows: Array, index: Rows, factors: Array, out: Array) -> Array:
    """`rows[index] * factors`, a run of neighbouring rows at a time."""
    ends = [*(np.flatnonzero(index[1:] != index[:-1] + 1) + 1), len(index)]
    start = 0
    for end in ends:
        first = index[start]
        np.multiply(rows[first : first + end - start], factors, out=out[start:end])
        start = end
    return out[:start]


class TextFeatures(Features):
    """TF-IDF over words and word pairs; vocabulary and weights from the training texts."""

    family_free = True

    def __init__(self, name: str, texts: Sequence[str]):
        self.name = name
        self._texts = list(texts)

    def split(self, train: Rows, test: Rows) -> tuple[Array, Array]:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"[^\s]+", sublinear_tf=True)
        train_x = vectorizer.fit_transform(at_rows(self._texts, train))
        test_x = vectorizer.transform(at_rows(self._texts, test))
        return train_x.toarray(), test_x.toarray()


class DomainFeatures(Features):
    """One column per training group, or per another label of rows, such as the form of a question.

    A row of a group that was held out lies at the centre of the training rows, so that the forecast
    there is the mean.
    """

    family_free = True

    def __init__(self, groups: Sequence[str], *, name: str = "domain"):
        self.name = name
        self._groups = np.array(groups)

    def split(self, train: Rows, test: Rows) -> tuple[Array, Array]:
        training_groups = sorted(set(self._groups[train]))
        table = self._groups[:, None] == np.array(training_groups)[None, :]
        table = table.astype(np.float64)
        centre = table[train].mean(0)
        in_training = table[test].any(axis=1, keepdims=True)
        return table[train], np.where(in_training, table[test], centre)


class JoinedFeatures(Features):
    """Several sets side by side.

    Args:
        parts: over the same rows.
        balanced: divide each set by the root of its width, so that sets weigh alike and not by
            their number of columns.

    Raises:
        InputError: no part.
    """

    def __init__(
        self, parts: Sequence[Features], *, name: str | None = None, balanced: bool = True
    ):
        if not parts:
            raise InputError("parts is empty; pass at least one feature set to join")
        self.name = name or " + ".join(part.name for part in parts)
        self.family_free = all(part.family_free for part in parts)
        self._parts, self._balanced = list(parts), balanced

    def split(self, train: Rows, test: Rows) -> tuple[Array, Array]:
        train_parts, test_parts = [], []
        for part in self._parts:
            train_x, test_x = part.split(train, test)
            factor = 1.0
            if self._balanced:
                factor = 1 / max(1, train_x.shape[1]) ** 0.5
            train_parts.append(train_x * factor)
            test_parts.append(test_x * factor)
        return np.hstack(train_parts), np.hstack(test_parts)


class RepeatedFeatures(Features):
    """A set over questions, read at rows that repeat them (long tables).

    What the set fits, it fits on the training rows' questions, each as often as it occurs there.

    Args:
        index: the question of each row, as its number in `features`.
    """

    def __init__(self, features: Features, index: Sequence[int] | Rows):
        self.name = features.name
        self.family_free = features.family_free
        self.near_centre = features.near_centre
        self._features, self._index = features, np.asarray(index, dtype=np.int64)

    def split(self, train: Rows, test: Rows) -> tuple[Array, Array]:
        return self._features.split(self._index[train], self._index[test])


def activation_cells(acts: Activations, sites: Sequence[str] | None = None) -> list[MatrixFeatures]:
    """One feature set for each captured site and position.

    Raises:
        InputError: no pooled position was captured; UnknownNameError: a site that was not.
    """
    return [MatrixFeatures(name, rows) for name, rows in pooled_cells(acts, sites)]


def pooled_cells(acts: Activations, sites: Sequence[str] | None) -> list[tuple[str, Tensor]]:
    """Name (`site@position`) and rows of each captured site and pooled position.

    Raises:
        InputError: no pooled position was captured; UnknownNameError: a site that was not.
    """
    if not acts.pooled_positions:
        raise InputError(
            f"acts hold positions {acts.positions}, none of them pooled;"
            " capture last_prompt or mean_prompt"
        )
    cells = []
    for site in acts.sites if sites is None else sites:
        for position in acts.pooled_positions:
            cells.append((f"{site}@{position}", acts[site, position]))
    return cells


def assert_different(
    a: Sequence[MatrixFeatures], b: Sequence[MatrixFeatures], name_a: str, name_b: str
) -> None:
    """Refuse two feature sets that should differ and hold the same numbers.

    The "two" parents of a released predictor did.

    Args:
        name_a: what the message calls a; `name_b`, b.

    Raises:
        InputError: every matrix of the two is identical.
    """
    if len(a) != len(b):
        return
    for x, y in zip(a, b, strict=True):
        if not np.array_equal(x.values, y.values):
            return
    raise InputError(
        f"features of {name_a!r} and {name_b!r} are identical numbers;"
        " one of them was read from the wrong model"
    )
