"""Feature sets: what a forecast may look at, built inside each fold.

A set gives training and test matrices for given rows; whatever it fits (a vocabulary, idf weights,
components, scaling) it fits on the training rows. Baselines are feature sets like any other and run
through the identical folds. A set is family-free where its numbers mean the same in every model (a
length, a distance in standard deviations, a score); coordinates of a residual stream are not.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from emlens.activations import Activations
from emlens.foundation.errors import InputError
from emlens.foundation.seeds import numpy_rng
from emlens.probes.ridge import Array, mean_and_scale, standardise

Rows = NDArray[np.int64]
Fold = tuple[Rows, Rows]
"""(training rows, test rows)."""
CANCELLED = 1e-6
"""Variance over mean square below which sums of squares have lost digits, and a column's scale is
computed anew.
"""


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
    """

    near_centre = True

    def __init__(
        self, name: str, values: Array | Float[Tensor, "row feature"], *, family_free: bool = False
    ):
        finite = (
            bool(values.isfinite().all())
            if isinstance(values, Tensor)
            else bool(np.isfinite(values).all())
        )
        if not finite:
            raise InputError(
                f"features {name!r} hold values that are NaN or infinite; drop or fix them first"
            )
        self.name, self.family_free = name, family_free
        self._source = (
            values if isinstance(values, Tensor) else np.asarray(values, dtype=np.float64)
        )

    @property
    def values(self) -> Array:
        return self._source.double().numpy() if isinstance(self._source, Tensor) else self._source

    def split(self, train: Rows, test: Rows) -> tuple[Array, Array]:
        values = self.values
        return standardise(values[train], values[test])

    def pairs(self, folds: Sequence[Fold], orders: Sequence[Rows]) -> Iterator[tuple[Array, Array]]:
        """The same matrices but for a small common offset of each column, which no intercept sees.

        Means and variances of all folds come from two matrix products, and scaling is one pass over
        rows laid out in order. Both matrices lie in memory that the next pair overwrites.
        """
        values = self.values
        mean, scale = mean_and_scale(values)
        x = values - mean
        x *= 1 / scale  # without offset and scale, sums of squares keep their digits
        share = np.zeros((len(folds), len(x)))
        for number, (train, _) in enumerate(folds):
            share[number, train] = 1 / len(train)
        squares = share @ (x * x)
        variances = squares - (share @ x) ** 2
        unsure = variances <= CANCELLED * squares
        with np.errstate(divide="ignore", invalid="ignore"):
            factors = np.where(unsure, 0.0, 1 / np.sqrt(variances))
        room = [
            np.empty((max(map(len, side), default=0), x.shape[1]))
            for side in zip(*folds, strict=True)
        ]
        laid, place, order = np.empty_like(x), np.arange(len(x)), None
        for number, (train, test) in enumerate(folds):
            if order is not orders[number]:
                order = orders[number]
                # other modes buffer the output
                np.take(x, order, axis=0, out=laid[: len(order)], mode="clip")
                place[order] = np.arange(len(order))
            found = [
                _scaled_rows(laid, place[rows], factors[number], memory)
                for rows, memory in zip((train, test), room, strict=True)
            ]
            anew = np.flatnonzero(unsure[number])
            if len(anew):
                found[0][:, anew], found[1][:, anew] = standardise(
                    values[np.ix_(train, anew)], values[np.ix_(test, anew)]
                )
            yield found[0], found[1]


def _scaled_rows(rows: Array, wanted: Rows, factors: Array, out: Array) -> Array:
    """`rows[wanted] * factors`, a run of neighbouring rows at a time."""
    ends = [*(np.flatnonzero(wanted[1:] != wanted[:-1] + 1) + 1), len(wanted)]
    start = 0
    for end in ends:
        first = wanted[start]
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
        fitted = vectorizer.fit_transform([self._texts[i] for i in train])
        return fitted.toarray(), vectorizer.transform([self._texts[i] for i in test]).toarray()


class DomainFeatures(Features):
    """One column a training group; a group that was held out sits at their centre, which makes the
    forecast there the mean.
    """

    name = "domain"
    family_free = True

    def __init__(self, groups: Sequence[str]):
        self._groups = np.array(groups)

    def split(self, train: Rows, test: Rows) -> tuple[Array, Array]:
        known = sorted(set(self._groups[train]))
        table = (self._groups[:, None] == np.array(known)[None, :]).astype(np.float64)
        centre = table[train].mean(0)
        seen = table[test].any(axis=1, keepdims=True)
        return table[train], np.where(seen, table[test], centre)


class JoinedFeatures(Features):
    """Several sets side by side.

    Args:
        parts: over the same rows.
        balanced: divide each set by the root of its width, so that sets weigh alike and not by
            their number of columns.
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
        found = [part.split(train, test) for part in self._parts]
        factors = [1 / max(1, a.shape[1]) ** 0.5 if self._balanced else 1.0 for a, _ in found]
        return tuple(
            np.hstack([side * f for side, f in zip(sides, factors, strict=True)])
            for sides in zip(*found, strict=True)
        )  # type: ignore[return-value]


class RepeatedFeatures(Features):
    """A set over questions, read at rows that repeat them: `index` gives the question of each row
    (long tables).

    What the set fits, it fits on the training rows' questions, each as often as it occurs there.
    """

    def __init__(self, features: Features, index: Sequence[int] | Rows):
        self.name, self.family_free, self.near_centre = (
            features.name,
            features.family_free,
            features.near_centre,
        )
        self._features, self._index = features, np.asarray(index, dtype=np.int64)

    def split(self, train: Rows, test: Rows) -> tuple[Array, Array]:
        return self._features.split(self._index[train], self._index[test])


def activation_cells(acts: Activations, sites: Sequence[str] | None = None) -> list[MatrixFeatures]:
    """One feature set for each captured site and position.

    Raises:
        InputError: no pooled position was captured; UnknownNameError: a site that was not.
    """
    if not acts.pooled_positions:
        raise InputError(
            f"acts hold positions {acts.positions}, none of them pooled;"
            " capture last_prompt or mean_prompt"
        )
    chosen = acts.sites if sites is None else list(sites)
    return [
        MatrixFeatures(f"{site}@{position}", acts[site, position])
        for site in chosen
        for position in acts.pooled_positions
    ]


def baselines(
    acts: Activations,
    texts: Sequence[str] | None,
    parent_scores: Sequence[float] | Array | None,
    embedding: Activations | None,
    *,
    seed: int,
    further: Mapping[str, Sequence[float] | Array] | None = None,
) -> list[Features]:
    """The baselines a forecast is shown beside, as far as their inputs were given: random features
    of the activations' width, domain, text, length, mean input embedding, the parent's own score,
    and `further` numbers of a question by name.
    """
    width = acts[acts.sites[0], acts.pooled_positions[0]].shape[1]
    noise = numpy_rng(seed, "random features").standard_normal((len(acts), width))
    found: list[Features] = [MatrixFeatures("random features", noise)]
    if len(set(acts.groups)) > 1:
        found.append(DomainFeatures(acts.groups))
    if texts is not None:
        found.append(TextFeatures("text", texts))
        lengths = np.array([[float(len(t)), float(len(t.split()))] for t in texts])
        found.append(MatrixFeatures("length", lengths, family_free=True))
    if embedding is not None:
        found.append(MatrixFeatures("mean embedding", embedding["resid_pre.0", "mean_prompt"]))
    numbers = {} if parent_scores is None else {"parent's own score": parent_scores}
    for name, values in (numbers | dict(further or {})).items():
        found.append(
            MatrixFeatures(name, np.asarray(values, dtype=np.float64)[:, None], family_free=True)
        )
    return found


def assert_different(
    a: Sequence[MatrixFeatures], b: Sequence[MatrixFeatures], name_a: str, name_b: str
) -> None:
    """Refuse two feature sets that should differ and hold the same numbers (a released predictor's
    "two" parents did).

    Raises:
        InputError: every matrix of the two is identical.
    """
    if len(a) == len(b) and all(
        np.array_equal(x.values, y.values) for x, y in zip(a, b, strict=True)
    ):
        raise InputError(
            f"features of {name_a!r} and {name_b!r} are identical numbers;"
            " one of them was read from the wrong model"
        )
