"""The estimators of a forecast, behind scikit-learn's interface: what is fitted, and the settings
that inner folds choose among.

Features come scaled by the training rows, targets in units of their training standard deviation, so
one grid of penalties fits any score. Ridge is not fitted here but solved for the whole grid at once
(`probes.ridge`); its entry serves those who want the same model alone. scikit-learn is imported
when an estimator is made.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from emlens.foundation.errors import InputError
from emlens.probes.ridge import ALPHAS, Array

Setting = Mapping[str, Any]

PENALTIES: tuple[float, ...] = tuple(float(a) for a in np.logspace(0, -3, 10))
"""Of lasso and elastic net, in units of the target's standard deviation: from 1, where no feature
enters, downwards.
"""


@dataclass(frozen=True)
class Estimator:
    """How to make a regressor, and the settings to choose among on inner folds; one setting needs
    no choice.
    """

    name: str
    make: Callable[[int], Any]
    settings: tuple[Setting, ...]


class ComponentRegression:
    """Principal component regression: least squares on the first `n_components` principal
    components of the features.

    Fewer where the training rows have a lower rank. Follows scikit-learn's interface without
    importing it.
    """

    def __init__(self, n_components: int = 8):
        self.n_components = n_components

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {"n_components": self.n_components}

    def set_params(self, **named: Any) -> Self:
        for name, value in named.items():
            setattr(self, name, value)
        return self

    def fit(self, x: Array, y: Array, sample_weight: Array | None = None) -> Self:
        shares = (
            np.full(len(x), 1 / len(x))
            if sample_weight is None
            else sample_weight / sample_weight.sum()
        )
        self._centre, self._offset = shares @ x, float(shares @ y)
        root = np.sqrt(shares)[:, None]
        rows, target = (x - self._centre) * root, (y - self._offset) * root[:, 0]
        values, vectors = np.linalg.eigh(rows @ rows.T)
        strong = np.flatnonzero(values > len(x) * np.finfo(np.float64).eps * values[-1])[::-1][
            : self.n_components
        ]
        self.coef_ = rows.T @ (
            vectors[:, strong] / values[strong] @ (vectors[:, strong].T @ target)
        )
        return self

    def predict(self, x: Array) -> Array:
        return np.asarray((x - self._centre) @ self.coef_ + self._offset)


def _ridge(seed: int) -> Any:
    from sklearn.linear_model import Ridge

    return Ridge()


def _lasso(seed: int) -> Any:
    from sklearn.linear_model import Lasso

    return Lasso(warm_start=True, max_iter=20_000, tol=1e-4)


def _elastic_net(seed: int) -> Any:
    from sklearn.linear_model import ElasticNet

    return ElasticNet(l1_ratio=0.5, warm_start=True, max_iter=20_000, tol=1e-4)


def _least_squares(seed: int) -> Any:
    from sklearn.linear_model import LinearRegression

    return LinearRegression()


def _forest(seed: int) -> Any:
    from sklearn.ensemble import RandomForestRegressor

    return RandomForestRegressor(
        n_estimators=200, min_samples_leaf=3, max_features=1 / 3, random_state=seed, n_jobs=1
    )


def _tree(seed: int) -> Any:
    from sklearn.tree import DecisionTreeRegressor

    return DecisionTreeRegressor(min_samples_leaf=3, random_state=seed)


def _each(name: str, values: Sequence[Any]) -> tuple[Setting, ...]:
    return tuple({name: value} for value in values)


_KNOWN: tuple[Estimator, ...] = (
    Estimator("ridge", _ridge, _each("alpha", ALPHAS)),
    Estimator("ridge1", _ridge, _each("alpha", (1.0,))),
    Estimator("lasso", _lasso, _each("alpha", PENALTIES)),
    Estimator("elastic_net", _elastic_net, _each("alpha", PENALTIES)),
    Estimator(
        "pcr", lambda seed: ComponentRegression(), _each("n_components", (1, 2, 4, 8, 16, 32, 64))
    ),
    Estimator("ols", _least_squares, ({},)),
    Estimator("forest", _forest, ({},)),
    Estimator("tree", _tree, _each("max_depth", (1, 2, 3, 5, 7))),
)
ESTIMATORS: Mapping[str, Estimator] = {one.name: one for one in _KNOWN}
"""By name: ridge (13 penalties), ridge1 (α = 1), lasso, elastic_net, pcr, ols, forest, tree."""


def resolve_estimator(given: str | Any, settings: Sequence[Setting] | None = None) -> Estimator:
    """An estimator by name, or anything with scikit-learn's `fit`, `predict` and `get_params`.

    Args:
        settings: parameters to choose among on inner folds, instead of the estimator's own.

    Raises:
        InputError: an unknown name, something that is no regressor, or settings that are empty.
    """
    if isinstance(given, str):
        if given not in ESTIMATORS:
            raise InputError(
                f"estimator {given!r} is unknown; pass one of {', '.join(ESTIMATORS)},"
                " or a regressor of scikit-learn"
            )
        found = ESTIMATORS[given]
    else:
        lacking = [
            name
            for name in ("fit", "predict", "get_params", "set_params")
            if not callable(getattr(given, name, None))
        ]
        if lacking or isinstance(given, type):
            raise InputError(
                f"estimator {type(given).__name__!r} is no regressor of scikit-learn (an instance"
                " with fit and predict); pass one, or a name"
            )
        found = Estimator(type(given).__name__, lambda seed: _copied(given), ({},))
    if settings is None:
        return found
    if not settings:
        raise InputError(
            "settings is empty; pass at least one mapping of parameters,"
            " or None for the estimator's own"
        )
    return Estimator(found.name, found.make, tuple(dict(setting) for setting in settings))


def make_estimator(name: str, *, seed: int = 0, **parameters: Any) -> Any:
    """A pipeline of scikit-learn: scaling by the training rows, then the named estimator with these
    parameters.

    Raises:
        InputError: an unknown name.
    """
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(
        StandardScaler(), resolve_estimator(name).make(seed).set_params(**parameters)
    )


def path_predictions(
    estimator: Estimator,
    train: Array,
    y: Array,
    test: Array,
    seed: int,
    weights: Array | None = None,
) -> Array:
    """Predictions (setting, test row) of one target, fitted at every setting in the given order."""
    offset, unit = float(y.mean()), float(y.std())
    if unit == 0:
        return np.full((len(estimator.settings), len(test)), offset)
    model, scaled, found = estimator.make(seed), (y - offset) / unit, []
    given = {} if weights is None else {"sample_weight": weights}
    for setting in estimator.settings:
        fitted = model.set_params(**setting).fit(train, scaled, **given)
        found.append(np.asarray(fitted.predict(test), dtype=np.float64).reshape(-1) * unit + offset)
    return np.stack(found)


def _copied(given: Any) -> Any:
    from sklearn.base import clone

    return clone(given)
