from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from emlens.foundation.errors import InputError, UnknownNameError
from emlens.probes import activation_cells, assert_different
from emlens.probes.baselines import baseline_features
from emlens.probes.features import DomainFeatures, Features, MatrixFeatures, TextFeatures
from emlens.probes.ridge import standardise

TRAIN, TEST = np.arange(8), np.arange(8, 12)


def numbers(change: bool) -> np.ndarray:
    values = np.random.default_rng(0).standard_normal((12, 3))
    if change:
        values[8:] = values[8:] * 50 + 9
    return values


def texts(change: bool) -> list[str]:
    words = [f"w{i % 3} w{i % 5}" for i in range(12)]
    return words[:8] + (["w0 w0 new unseen"] * 4 if change else words[8:])


class ScaledOnAll(MatrixFeatures):
    """The leak: scaling fitted on all rows."""

    def split(self, train: Any, test: Any) -> Any:
        everything, _ = standardise(self.values, self.values)
        return everything[train], everything[test]


class TextOnAll(TextFeatures):
    """The leak: vocabulary and weights fitted on all texts."""

    def split(self, train: Any, test: Any) -> Any:
        table = (
            TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"[^\s]+")
            .fit_transform(self._texts)
            .toarray()
        )
        return table[train], table[test]


def depends_on_test_rows(build: Callable[[bool], Features]) -> bool:
    """Whether the training matrix, or what is done to an unchanged test row, moves when other test
    rows change.
    """
    before, after = build(False).split(TRAIN, TEST)[0], build(True).split(TRAIN, TEST)[0]
    return before.shape != after.shape or not np.array_equal(before, after)


def test_nothing_is_fitted_on_test_rows() -> None:
    assert not depends_on_test_rows(lambda change: MatrixFeatures("x", numbers(change)))
    assert not depends_on_test_rows(lambda change: TextFeatures("t", texts(change)))


def test_the_same_check_catches_a_scaler_and_a_vocabulary_fitted_on_all_rows() -> None:
    assert depends_on_test_rows(lambda change: ScaledOnAll("x", numbers(change)))
    assert depends_on_test_rows(lambda change: TextOnAll("t", texts(change)))


def test_text_features_are_tf_idf_of_the_training_texts() -> None:
    words = texts(True)
    reference = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"[^\s]+", sublinear_tf=True).fit(
        words[:8]
    )
    train, test = TextFeatures("t", words).split(TRAIN, TEST)
    np.testing.assert_allclose(train, reference.transform(words[:8]).toarray())
    np.testing.assert_allclose(test, reference.transform(words[8:]).toarray())


def test_domains_that_were_held_out_sit_at_the_centre() -> None:
    features = DomainFeatures(["a", "a", "b", "b", "b", "c"])
    train, test = features.split(np.arange(5), np.array([5]))
    np.testing.assert_allclose(test[0], train.mean(0))
    train, test = features.split(np.array([0, 2, 3, 5]), np.array([1, 4]))
    np.testing.assert_array_equal(test, [[1, 0, 0], [0, 1, 0]])


def test_every_captured_cell_is_a_feature_set(make: Any) -> None:
    cells = {
        (s, p): np.full((3, 2), i)
        for i, (s, p) in enumerate(
            (s, p) for s in ("resid_post.0", "resid_post.1") for p in ("last_prompt", "mean_prompt")
        )
    }
    found = activation_cells(make(cells))
    assert [f.name for f in found] == [
        "resid_post.0@last_prompt",
        "resid_post.0@mean_prompt",
        "resid_post.1@last_prompt",
        "resid_post.1@mean_prompt",
    ]
    assert [f.values[0, 0] for f in found] == [0, 1, 2, 3]
    assert (
        next(f.name for f in activation_cells(make(cells), ["resid_post.1"]))
        == "resid_post.1@last_prompt"
    )
    with pytest.raises(UnknownNameError, match="was not captured"):
        activation_cells(make(cells), ["resid_post.7"])


def test_baselines_are_those_whose_inputs_were_given(make: Any) -> None:
    acts = make(np.random.default_rng(0).standard_normal((8, 5)))
    embedding = make({("resid_pre.0", "mean_prompt"): np.ones((8, 2))})
    full = {
        f.name: f for f in baseline_features(acts, ["a bb"] * 8, list(range(8)), embedding, seed=3)
    }
    assert set(full) == {
        "random features",
        "domain",
        "text",
        "length",
        "mean embedding",
        "parent's own score",
    }
    assert full["random features"].values.shape == (8, 5) and full["length"].values[0].tolist() == [
        4,
        2,
    ]
    alone = make(np.random.default_rng(0).standard_normal((8, 5)), groups=["g"] * 8)
    assert [f.name for f in baseline_features(alone, None, None, None, seed=3)] == [
        "random features"
    ]


def test_what_is_no_feature_is_refused(make: Any) -> None:
    with pytest.raises(InputError, match="features 'x' hold values that are NaN or infinite"):
        MatrixFeatures("x", np.array([[np.nan]]))
    tokens = make(np.ones((3, 2)))
    tokens.positions = ["all"]
    with pytest.raises(
        InputError,
        match=(
            r"acts hold positions \['all'\], none of them pooled;"
            r" capture last_prompt or mean_prompt"
        ),
    ):
        activation_cells(tokens)


def test_two_parents_with_the_same_numbers_are_refused() -> None:
    a, b = MatrixFeatures("s", np.ones((3, 2))), MatrixFeatures("s", np.ones((3, 2)))
    other = MatrixFeatures("s", np.ones((3, 2)) + np.eye(3, 2) * 1e-9)
    with pytest.raises(
        InputError,
        match=(
            "features of 'instruct' and 'base' are identical numbers;"
            " one of them was read from the wrong model"
        ),
    ):
        assert_different([a, a], [b, b], "instruct", "base")
    assert_different([a, a], [b, other], "instruct", "base")
    assert_different([a], [MatrixFeatures("s", np.ones((3, 1)))], "instruct", "base")
