"""Feature sets: what a forecast may look at, built inside each fold.

A set gives training and test matrices for given rows; whatever it fits (a vocabulary, idf weights, scaling) it fits on the
training rows. Baselines are feature sets like any other and run through the identical folds.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from emlens.activations import Activations
from emlens.foundation.errors import InputError
from emlens.foundation.seeds import numpy_rng
from emlens.probes.ridge import Array, standardise

Rows = NDArray[np.int64]


class Features(ABC):
    """A named feature set over a fixed list of rows."""

    name: str

    @abstractmethod
    def split(self, train: Rows, test: Rows) -> tuple[Array, Array]:
        """(training row, feature) and (test row, feature), fitted on `train` alone."""


class MatrixFeatures(Features):
    """Given numbers, scaled by the training rows."""

    def __init__(self, name: str, values: Array):
        if not np.isfinite(values).all():
            raise InputError(f"features {name!r} hold values that are NaN or infinite; drop or fix them first")
        self.name = name
        self.values = np.asarray(values, dtype=np.float64)

    def split(self, train: Rows, test: Rows) -> tuple[Array, Array]:
        return standardise(self.values[train], self.values[test])


class TextFeatures(Features):
    """TF-IDF over words and word pairs; vocabulary and weights from the training texts."""

    def __init__(self, name: str, texts: Sequence[str]):
        self.name = name
        self._texts = list(texts)

    def split(self, train: Rows, test: Rows) -> tuple[Array, Array]:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"[^\s]+", sublinear_tf=True)
        fitted = vectorizer.fit_transform([self._texts[i] for i in train])
        return fitted.toarray(), vectorizer.transform([self._texts[i] for i in test]).toarray()


class DomainFeatures(Features):
    """One column a training group; a group that was held out sits at their centre, which makes the forecast there the mean."""

    name = "domain"

    def __init__(self, groups: Sequence[str]):
        self._groups = np.array(groups)

    def split(self, train: Rows, test: Rows) -> tuple[Array, Array]:
        known = sorted(set(self._groups[train]))
        table = (self._groups[:, None] == np.array(known)[None, :]).astype(np.float64)
        centre = table[train].mean(0)
        seen = table[test].any(axis=1, keepdims=True)
        return table[train], np.where(seen, table[test], centre)


def activation_cells(acts: Activations, sites: Sequence[str] | None = None) -> list[MatrixFeatures]:
    """One feature set for each captured site and position.

    Raises:
        InputError: no pooled position was captured; UnknownNameError: a site that was not.
    """
    if not acts.pooled_positions:
        raise InputError(f"acts hold positions {acts.positions}, none of them pooled; capture last_prompt or mean_prompt")
    chosen = acts.sites if sites is None else list(sites)
    return [
        MatrixFeatures(f"{site}@{position}", acts[site, position].double().numpy())
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
) -> list[Features]:
    """The baselines a forecast is shown beside, as far as their inputs were given: domain, length, text, mean input
    embedding, the parent's own score, and random features of the activations' width."""
    width = acts[acts.sites[0], acts.pooled_positions[0]].shape[1]
    noise = numpy_rng(seed, "random features").standard_normal((len(acts), width))
    found: list[Features] = [MatrixFeatures("random features", noise)]
    if len(set(acts.groups)) > 1:
        found.append(DomainFeatures(acts.groups))
    if texts is not None:
        found.append(TextFeatures("text", texts))
        found.append(MatrixFeatures("length", np.array([[float(len(t)), float(len(t.split()))] for t in texts])))
    if embedding is not None:
        found.append(MatrixFeatures("mean embedding", embedding["resid_pre.0", "mean_prompt"].double().numpy()))
    if parent_scores is not None:
        found.append(MatrixFeatures("parent's own score", np.asarray(parent_scores, dtype=np.float64)[:, None]))
    return found


def assert_different(a: Sequence[MatrixFeatures], b: Sequence[MatrixFeatures], name_a: str, name_b: str) -> None:
    """Refuse two feature sets that should differ and hold the same numbers (a released predictor's "two" parents did).

    Raises:
        InputError: every matrix of the two is identical.
    """
    if len(a) == len(b) and all(x.values.shape == y.values.shape and np.array_equal(x.values, y.values) for x, y in zip(a, b, strict=True)):
        raise InputError(f"features of {name_a!r} and {name_b!r} are identical numbers; one of them was read from the wrong model")
