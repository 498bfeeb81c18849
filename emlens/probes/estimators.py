"""The estimators of a forecast, behind scikit-learn's interface, each with the settings that inner
folds choose among.

Features come scaled by the training rows, targets in units of their training standard deviation, so
one grid of penalties fits any score. Ridge is not fitted here but solved for the whole grid at once
(`probes.ridge`); its entry serves those who want the same model alone. scikit-learn is imported
when an estimator is made.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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

    def set_params(self, **parameters: Any) -> Self:
        for name, value in parameters.items():
            setattr(self, name, value)
        return self

    def fit(self, x: Array, y: Array, sample_weight: Array | None = None) -> Self:
        shares = np.full(len(x), 1 / len(x))
        if sample_weight is not None:
            shares = sample_weight / sample_weight.sum()
        self._centre, self._offset = shares @ x, float(shares @ y)
        root = np.sqrt(shares)[:, None]
        rows, target = (x - self._centre) * root, (y - self._offset) * root[:, 0]
        # with rows = U S Vᵀ, the Gram matrix rows·rowsᵀ = U S² Uᵀ is small where features are many;
        # the weights on the strongest components are V S⁻¹ Uᵀ y = rowsᵀ U S⁻² Uᵀ y
        values, vectors = np.linalg.eigh(rows @ rows.T)
        floor = len(x) * np.finfo(np.float64).eps * values[-1]
        strongest = np.flatnonzero(values > floor)[::-1][: self.n_components]
        u = vectors[:, strongest]
        self.coef_ = rows.T @ (u / values[strongest] @ (u.T @ target))
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


def _settings(name: str, values: Sequence[Any]) -> tuple[Setting, ...]:
    return tuple({name: value} for value in values)


_KNOWN: tuple[Estimator, ...] = (
    Estimator("ridge", _ridge, _settings("alpha", ALPHAS)),
    Estimator("ridge1", _ridge, _settings("alpha", (1.0,))),
    Estimator("lasso", _lasso, _settings("alpha", PENALTIES)),
    Estimator("elastic_net", _elastic_net, _settings("alpha", PENALTIES)),
    Estimator(
        "pcr",
        lambda seed: ComponentRegression(),
        _settings("n_components", (1, 2, 4, 8, 16, 32, 64)),
    ),
    Estimator("ols", _least_squares, ({},)),
    Estimator("forest", _forest, ({},)),
    Estimator("tree", _tree, _settings("max_depth", (1, 2, 3, 5, 7))),
)
ESTIMATORS: Mapping[str, Estimator] = {estimator.name: estimator for estimator in _KNOWN}
"""By name: ridge (13 penalties), ridge1 (α = 1), lasso, elastic_net, pcr, ols, forest, tree."""


def resolve_estimator(estimator: str | Any, settings: Sequence[Setting] | None = None) -> Estimator:
    """An estimator by name, or anything with scikit-learn's `fit`, `predict` and `get_params`.

    Args:
        settings: parameters to choose among on inner folds, instead of the estimator's own.

    Raises:
        InputError: an unknown name, something that is not a regressor, or settings that are empty.
    """
    require_settings(settings)
    if isinstance(estimator, str):
        if estimator not in ESTIMATORS:
            raise InputError(
                f"estimator {estimator!r} is unknown; pass one of {', '.join(ESTIMATORS)},"
                " or a regressor of scikit-learn",
                name=estimator,
                known=ESTIMATORS,
            )
        resolved = ESTIMATORS[estimator]
    else:
        _require_regressor(estimator)
        resolved = Estimator(type(estimator).__name__, lambda seed: _clone(estimator), ({},))
    if settings is None:
        return resolved
    return replace(resolved, settings=tuple(dict(setting) for setting in settings))


def require_settings(settings: Sequence[Setting] | None) -> None:
    """Raises:
    InputError: no setting to choose among.
    """
    if settings is not None and not len(settings):
        raise InputError(
            "settings is empty; pass at least one mapping of parameters,"
            " or None for the estimator's own"
        )


def _require_regressor(estimator: Any) -> None:
    methods = ("fit", "predict", "get_params", "set_params")
    has_all = all(callable(getattr(estimator, name, None)) for name in methods)
    if not has_all or isinstance(estimator, type):
        raise InputError(
            f"estimator {type(estimator).__name__!r} is not a regressor of scikit-learn"
            " (an instance with fit and predict); pass one, or a name"
        )


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
    # one model for all settings: lasso and elastic net start from the fit of the setting before
    model, scaled = estimator.make(seed), (y - offset) / unit
    extra = {} if weights is None else {"sample_weight": weights}
    predictions = []
    for setting in estimator.settings:
        fitted = model.set_params(**setting).fit(train, scaled, **extra)
        predicted = np.asarray(fitted.predict(test), dtype=np.float64).reshape(-1)
        predictions.append(predicted * unit + offset)
    return np.stack(predictions)


def _clone(estimator: Any) -> Any:
    from sklearn.base import clone

    return clone(estimator)
