import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from emlens.foundation.errors import InputError, IntegrityError
from emlens.probes import Forecaster, fit_forecaster
from emlens.probes.forecaster import labels_of

PARENT = {"weights_sha256": "a" * 64, "adapter": None}


@pytest.fixture(scope="module")
def cells() -> dict[tuple[str, str], np.ndarray]:
    rng = np.random.default_rng(0)
    constant = rng.standard_normal((40, 6))
    constant[:, 2] = 4.0
    return {("resid_post.0", "last_prompt"): rng.standard_normal((40, 6)), ("resid_post.1", "last_prompt"): constant}


@pytest.fixture(scope="module")
def fitted(make: Any, cells: Any) -> Forecaster:
    acts = make(cells, model=PARENT)
    y = 50 + 5 * cells["resid_post.1", "last_prompt"][:, 0] + np.random.default_rng(1).standard_normal(40)
    return fit_forecaster(acts, dict(zip(acts.ids, y.tolist(), strict=True)), folds=4)


def test_it_equals_scikit_learn_on_the_chosen_cell(make: Any, cells: Any, fitted: Forecaster) -> None:
    assert (fitted.site, fitted.position) == ("resid_post.1", "last_prompt")
    x = cells["resid_post.1", "last_prompt"]
    y = 50 + 5 * x[:, 0] + np.random.default_rng(1).standard_normal(40)
    reference = make_pipeline(StandardScaler(), Ridge(alpha=fitted.alpha)).fit(x, y)
    new = np.random.default_rng(2).standard_normal((7, 6))
    new[:, 2] = 4.0
    acts = make({("resid_post.1", "last_prompt"): new}, ids=[f"new{i}" for i in range(7)], model=PARENT)
    found = fitted.predict(acts)
    np.testing.assert_allclose(found.to_numpy(), reference.predict(new), atol=1e-8)
    assert list(found.index) == acts.ids and found.name == "predicted"
    assert fitted.facts["rows"] == 40 and 0.8 < fitted.facts["cross_validated_r2"]["value"] <= 1


def test_saved_and_loaded_it_predicts_the_same_numbers(
    make: Any, cells: Any, fitted: Forecaster, tmp_path: Path
) -> None:
    acts = make(cells, model=PARENT)
    loaded = Forecaster.load(fitted.save(tmp_path / "kept"))
    np.testing.assert_array_equal(loaded.predict(acts), fitted.predict(acts))
    assert loaded.facts == json.loads(json.dumps(dict(fitted.facts)))
    assert {p.name for p in (tmp_path / "kept").iterdir()} == {"forecaster.json", "forecaster.safetensors"}
    with pytest.raises(InputError, match="no such file"):
        Forecaster.load(tmp_path / "absent")
    weights = tmp_path / "kept" / "forecaster.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(
        IntegrityError,
        match=r"kept: the weights are missing, or not those forecaster\.json describes; save the forecaster again",
    ):
        Forecaster.load(tmp_path / "kept")
    weights.unlink()
    with pytest.raises(IntegrityError, match="the weights are missing"):
        Forecaster.load(tmp_path / "kept")


@pytest.mark.parametrize(
    "model", [{"weights_sha256": "b" * 64, "adapter": None}, {"weights_sha256": "a" * 64, "adapter": {"sha256": "c"}}]
)
def test_activations_of_another_model_are_refused_adapters_included(
    make: Any, cells: Any, fitted: Forecaster, model: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match="acts come from other weights than this forecaster was fitted on"):
        fitted.predict(make(cells, model=model))
    assert len(fitted.predict(make(cells))) == 40  # nothing is known about these


def test_another_stream_is_refused(make: Any, fitted: Forecaster) -> None:
    with pytest.raises(InputError, match="acts have 5 coordinates, the forecaster 6; pass the same residual stream"):
        fitted.predict(make({("resid_post.1", "last_prompt"): np.ones((3, 5))}))


def test_phrasings_share_a_fold(make: Any) -> None:
    acts = make(np.ones((4, 2)), ids=["a/p1", "a/p2", "b/p1", "b/p2"])
    assert labels_of(acts, None) == (["a", "a", "b", "b"], "question")
