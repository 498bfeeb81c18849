import numpy as np
import pandas as pd
import pytest

from emlens.foundation.errors import InputError
from emlens.probes.severity import (
    context_rows,
    fit_severity,
    hazard_of,
    outside_context,
    run_weights,
)


def test_clusters_of_runs_count_alike() -> None:
    np.testing.assert_allclose(run_weights(["a", "a", "b"]), [0.25, 0.25, 0.5])


def test_a_planted_product_is_found_though_each_question_lacks_other_runs() -> None:
    rng = np.random.default_rng(0)
    hazard, severity = rng.uniform(5, 60, 30), np.array([0.1, 0.8, 1.5, 1.6])
    losses = np.outer(hazard, severity)
    losses[rng.random(losses.shape) < 0.25] = np.nan
    losses[np.isnan(losses).all(1), 1] = 1.0
    losses[:, 1] = np.where(np.isnan(losses[:, 1]), np.nan, hazard * severity[1])
    found, sizes = hazard_of(losses, np.full(4, 0.25))
    assert sizes.mean() == pytest.approx(1)
    np.testing.assert_allclose(sizes, severity / severity.mean(), rtol=1e-6)
    np.testing.assert_allclose(found, hazard * severity.mean(), rtol=1e-6)
    # what the split is for: plain means depend on which runs are missing
    averaged = np.nanmean(losses, axis=1)
    assert np.abs(averaged / (hazard * severity.mean()) - 1).max() > 0.1


def test_a_run_without_weight_changes_nothing_but_has_a_severity() -> None:
    hazard = np.array([10.0, 20, 30])
    losses = np.column_stack([hazard, hazard, 3 * hazard])
    found, sizes = hazard_of(losses, np.array([0.5, 0.5, 0]))
    np.testing.assert_allclose(found, hazard)
    np.testing.assert_allclose(sizes, [1, 1, 3])


def test_severity_is_learnt_from_context_and_kept_within_what_was_seen() -> None:
    x = np.arange(8.0)[:, None]
    model = fit_severity(x, 0.2 * x[:, 0], [f"c{i}" for i in range(8)], 0)
    np.testing.assert_allclose(model(np.array([[3.0], [50.0], [-9.0]])), [0.6, 1.4, 0.0], atol=0.05)


def test_a_file_unlike_those_fitted_on_is_told() -> None:
    fitted = np.array([[1.0, 0.0], [3.0, 0.0]])
    assert outside_context(np.array([3.9, 0.0]), fitted, ["surprise", "x"]) is None
    said = outside_context(np.array([4.1, 0.0]), fitted, ["surprise", "x"])
    assert said == "the training file's surprise is 4.1; the fine-tunes fitted on had 1 to 3"


def test_what_cannot_be_split_or_learnt_is_refused() -> None:
    with pytest.raises(
        InputError,
        match=(
            "question number 1 has no score in any of 1 fine-tunes;"
            " drop it, or add a fine-tune outside its domain"
        ),
    ):
        hazard_of(np.array([[1.0, 2], [np.nan, 2]]), np.array([1.0, 0]))
    with pytest.raises(
        InputError, match="no fine-tune lost anything on any question; there is nothing to forecast"
    ):
        hazard_of(np.zeros((3, 2)), np.full(2, 0.5))
    with pytest.raises(
        InputError,
        match=(
            "context needs fine-tunes of 3 clusters to learn from beside one held out,"
            " and was given with 2; leave it out"
        ),
    ):
        fit_severity(np.ones((3, 1)), np.ones(3), ["a", "b", "a"], 0)
    table = pd.DataFrame({"surprise": [1.0, np.nan], "words": ["a", "b"]}, index=["x", "y"])
    with pytest.raises(
        InputError, match="context has no row for fine-tune 'z'; pass one row for each"
    ):
        context_rows(table, ["z"])
    with pytest.raises(
        InputError,
        match=(
            r"context has columns \['surprise', 'words'\], and one holds what is not a number;"
            r" pass numbers"
        ),
    ):
        context_rows(table, ["x"])
    with pytest.raises(
        InputError, match="context holds values that are missing or infinite; pass finite numbers"
    ):
        context_rows(table[["surprise"]], ["x", "y"])
