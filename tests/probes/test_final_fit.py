"""A forecast predicts new questions and is a direction: both are one ridge on all its rows, which
scikit-learn gives too.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import Ridge

from emlens.activations import Activations
from emlens.data import AlignmentScores
from emlens.foundation.errors import InputError
from emlens.interventions import ablate
from emlens.probes import (
    Design,
    cross_validate_forecast,
    fit_forecaster,
    random_projections,
)

ROWS, D = 80, 5
DESIGN = Design(folds=3, inner_folds=3, repeats=1, permutations=0)
AXIS = np.array([1.0, -1, 1, 0, 0]) / np.sqrt(3)
SAME = 1e-9
"""Relative difference of two exact solvers."""
MODEL = {"weights_sha256": "aa"}


def numbers(seed: int = 0, n: int = ROWS) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, D))


def target(x: np.ndarray) -> np.ndarray:
    return 50 + 5 * x @ AXIS + 0.3 * np.random.default_rng(9).standard_normal(len(x))


@pytest.fixture
def acts(make: Any) -> Activations:
    cells = {
        ("resid_post.0", "last_prompt"): numbers(7),
        ("resid_post.1", "last_prompt"): numbers(),
    }
    return make(cells, model=MODEL)


def new_acts(make: Any, sha: str = "aa", x: np.ndarray | None = None) -> Activations:
    values = numbers(1, 30) if x is None else x
    ids = [f"new{i}" for i in range(len(values))]
    return make({("resid_post.1", "last_prompt"): values}, ids=ids, model={"weights_sha256": sha})


@pytest.mark.parametrize("weighted", [False, True])
def test_new_questions_are_predicted_as_scikit_learn_does(
    acts: Activations, make: Any, weighted: bool
) -> None:
    weights = {name: 1.0 + i % 3 for i, name in enumerate(acts.ids)} if weighted else None
    forecast = cross_validate_forecast(
        acts, target(numbers()), design=replace(DESIGN, weights=weights)
    )
    x, new = numbers(), new_acts(make)
    mean, sd = x.mean(0), x.std(0)
    ridge = Ridge(alpha=forecast.direction.provenance["penalty"])
    shares = None
    if weights is not None:
        shares = np.array(list(weights.values()))
        shares = shares / shares.mean()
    ridge.fit((x - mean) / sd, target(x), sample_weight=shares)
    predicted = forecast.predict(new)
    assert list(predicted.index) == new.ids
    np.testing.assert_allclose(
        predicted, ridge.predict((numbers(1, 30) - mean) / sd), rtol=SAME, atol=SAME
    )


def test_the_direction_is_where_the_forecast_rises(acts: Activations, make: Any) -> None:
    forecast = cross_validate_forecast(acts, target(numbers()), design=DESIGN)
    direction, new = forecast.direction, new_acts(make)
    assert (str(direction.site), direction.position) == ("resid_post.1", "last_prompt")
    assert float(direction.unit.double() @ torch.from_numpy(AXIS)) > 0.98
    along = numbers(1, 30) @ direction.unit.double().numpy()
    predicted = forecast.predict(new)
    assert np.corrcoef(along, predicted)[0, 1] == pytest.approx(1)
    assert np.polyfit(along, predicted, 1)[0] > 0
    assert direction.norm == pytest.approx((numbers() @ direction.unit.double().numpy()).std())
    assert direction.ids == {"questions": tuple(acts.ids)}
    # what reads nothing along the direction is forecast alike
    removed = numbers(1, 30) - np.outer(along, direction.unit.double().numpy())
    flat = forecast.predict(new_acts(make, x=removed))
    assert predicted.std() > 1 and flat.std() < 1e-9
    assert "resid_post.1" in repr(ablate(direction, at="own_site"))


def test_logits_are_predicted_as_logits(acts: Activations, make: Any) -> None:
    forecast = cross_validate_forecast(acts, target(numbers()), target="logit", design=DESIGN)
    assert forecast.predict(new_acts(make)).abs().max() < 5


def values_by_kind() -> dict[str, Callable[[Sequence[str], np.ndarray], Any]]:
    def judged(ids: Sequence[str], y: np.ndarray) -> AlignmentScores:
        rows = {"model": "m", "question": list(ids), "sample": 1, "metric": "aligned"}
        return AlignmentScores.from_table(pd.DataFrame({**rows, "score": y, "status": "ok"}))

    return {
        "a list": lambda ids, y: y.tolist(),
        "a tuple": lambda ids, y: tuple(y),
        "an array": lambda ids, y: y,
        "a tensor": lambda ids, y: torch.from_numpy(y),
        "a mapping": lambda ids, y: dict(zip(reversed(ids), y[::-1], strict=True)),
        "a series by id": lambda ids, y: pd.Series(y[::-1], index=list(reversed(ids))),
        "a numbered series": lambda ids, y: pd.Series(y),
        "judged scores": judged,
    }


@pytest.mark.parametrize("kind", values_by_kind())
def test_scores_may_come_as(kind: str, acts: Activations) -> None:
    y = target(numbers())
    scores = values_by_kind()[kind](acts.ids, y)
    forecast = cross_validate_forecast(acts, scores, design=DESIGN)
    np.testing.assert_allclose(forecast.predictions["target"], y)
    fitted = fit_forecaster(acts, scores)
    np.testing.assert_allclose(fitted.observed[:, 0], y)


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([1.0, 2.0], r"scores has shape \(2,\) for 80 rows; pass one score per row"),
        (np.ones((ROWS, 2)), r"scores has shape \(80, 2\) for 80 rows"),
        ("aligned", "scores='aligned' is a string; pass one score per row"),
        (["high"] * ROWS, "scores is a list that holds no numbers"),
    ],
)
def test_other_scores_are_refused_by_what_they_are(
    scores: Any, words: str, acts: Activations
) -> None:
    with pytest.raises(InputError, match=words):
        cross_validate_forecast(acts, scores, design=DESIGN)


def test_a_forecast_that_is_no_ridge_on_the_stream_says_so(acts: Activations, make: Any) -> None:
    y, new = target(numbers()), new_acts(make)
    settings = replace(DESIGN, settings=[{"alpha": 0.1}])
    lasso = cross_validate_forecast(acts, y, estimator="lasso", design=settings)
    with pytest.raises(InputError, match="estimator='lasso', which has no weights on the stream"):
        lasso.predict(new)
    projected = cross_validate_forecast(
        acts, y, features=random_projections(acts, 3, seeds=[0]), design=DESIGN
    )
    with pytest.raises(InputError, match="looked at 'random 0, resid_post.0@last_prompt'"):
        _ = projected.direction
    with pytest.raises(InputError, match="not made by cross_validate_forecast"):
        replace(lasso, fit=None).predict(new)


def test_other_captures_are_refused(acts: Activations, make: Any) -> None:
    forecast = cross_validate_forecast(acts, target(numbers()), design=DESIGN)
    with pytest.raises(InputError, match="other weights"):
        forecast.predict(new_acts(make, "bb"))
    assert len(forecast.predict(new_acts(make, "bb"), allow=["model"])) == 30
    elsewhere = make({("resid_post.0", "last_prompt"): numbers(1)}, model=MODEL)
    with pytest.raises(InputError, match="the forecast reads resid_post.1 at last_prompt"):
        forecast.predict(elsewhere)
    wide = make({("resid_post.1", "last_prompt"): np.ones((4, D + 1))}, model=MODEL)
    with pytest.raises(InputError, match="acts have 6 coordinates, the forecast 5"):
        forecast.predict(wide)
    with pytest.raises(InputError, match="allow names 'everything'"):
        forecast.predict(new_acts(make), allow=["everything"])
