from typing import Any

import numpy as np
import pandas as pd
import pytest

from emlens.foundation.errors import InputError
from emlens.probes import Design
from emlens.probes.across import cross_validate_across
from emlens.probes.features import MatrixFeatures, RepeatedFeatures


def table(
    rng: np.random.Generator, questions: int = 30, tunes: int = 5, strength: float = 1.0
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Scores = strength · signal of the question + its own fragility, known to nothing, + noise;
    activations carry the signal.
    """
    x, fragile = rng.standard_normal((questions, 8)), 3 * rng.standard_normal(questions)
    index = np.tile(np.arange(questions), tunes)
    score = (
        50 + 5 * strength * x[index, 0] + fragile[index] + rng.standard_normal(questions * tunes)
    )
    rows = pd.DataFrame(
        {
            "question": [f"q{i}" for i in index],
            "finetune": np.repeat([f"f{t}" for t in range(tunes)], questions),
            "score": score,
        }
    )
    rows["family"] = rows["finetune"].map({f"f{t}": f"family {t % 3}" for t in range(tunes)})
    return rows, x, index


def test_what_is_learned_on_some_fine_tunes_holds_on_another() -> None:
    rows, x, index = table(np.random.default_rng(0))
    noise = np.random.default_rng(9).standard_normal((30, 8))
    features = [
        RepeatedFeatures(MatrixFeatures(name, values), index)
        for name, values in (("signal", x), ("noise", noise))
    ]
    found = cross_validate_across(rows, features)
    assert (
        found.r2.value > 0.5
        and found.r2.n == 5
        and set(found.chosen) == {"signal"}
        and found.held_out == "finetune, the same questions"
    )
    assert (
        list(found.by_unit["finetune"]) == [f"f{t}" for t in range(5)]
        and (found.by_unit["n"] == 30).all()
    )
    y, p, m = (found.predictions[c].to_numpy() for c in ("score", "predicted", "mean"))
    assert found.r2.value == pytest.approx(1 - ((p - y) ** 2).sum() / ((m - y) ** 2).sum())
    mine = rows["finetune"] == "f2"
    # its own scores had no part
    np.testing.assert_allclose(found.predictions.loc[mine, "mean"], rows.loc[~mine, "score"].mean())


def test_new_questions_are_new_in_every_form() -> None:
    rows, _, index = table(np.random.default_rng(0))
    ids = [f"x{i // 3}{('', '_json', '_template')[i % 3]}" for i in index]
    rows = rows.assign(question=ids)
    base = np.array([int(name[1:].split("_")[0]) for name in ids])
    seen: list[bool] = []

    class Recorded(MatrixFeatures):
        def split(self, train: Any, test: Any) -> Any:
            seen.append(bool(set(base[train]) & set(base[test])))
            return super().split(train, test)

    cross_validate_across(
        rows,
        [Recorded("base", base[:, None].astype(float))],
        estimator="ols",
        new_questions=True,
        design=Design(folds=3),
    )
    assert seen and not any(seen)


def test_with_the_same_questions_a_forecast_may_live_on_knowing_them_and_with_new_ones_not() -> (
    None
):
    rng = np.random.default_rng(1)
    rows, _, index = table(rng, strength=0.0)
    names = RepeatedFeatures(MatrixFeatures("which question", np.eye(30)), index)
    same, new = (cross_validate_across(rows, [names], new_questions=flag) for flag in (False, True))
    assert same.r2.value > 0.7 and new.r2.value < 0.05 and new.held_out == "finetune, new questions"
    rows, x, index = table(rng)
    kept = cross_validate_across(
        rows, [RepeatedFeatures(MatrixFeatures("signal", x), index)], new_questions=True
    )
    assert kept.r2.value > 0.4  # positive control: what is in the activations survives


def test_families_are_held_out_with_family_free_features_only() -> None:
    rows, x, index = table(np.random.default_rng(2), tunes=6)
    coordinates = MatrixFeatures("resid_post.3@last_prompt", x[index])
    with pytest.raises(
        InputError,
        match=(
            "features 'resid_post.3@last_prompt' are coordinates of one model,"
            " which mean nothing in another family's"
        ),
    ):
        cross_validate_across(rows, [coordinates], "family")
    free = MatrixFeatures("distance", x[index, :1], family_free=True)
    found = cross_validate_across(
        rows,
        [RepeatedFeatures(MatrixFeatures("distance", x[:, :1], family_free=True), index)],
        "family",
    )
    assert (
        found.r2.n == 3
        and found.r2.value > 0.4
        and list(found.by_unit["family"]) == ["family 0", "family 1", "family 2"]
    )
    tree = cross_validate_across(
        rows, [free], "family", estimator="tree", design=Design(settings=[{"max_depth": 3}])
    )
    assert tree.r2.value > 0.3


def test_tables_that_cannot_be_held_out_are_refused(unchecked: None) -> None:
    rows, x, index = table(np.random.default_rng(3))
    features = [MatrixFeatures("x", x[index])]

    def refused(
        match: str, given: pd.DataFrame = rows, hold_out: Any = "finetune", sets: Any = features
    ) -> None:
        with pytest.raises(InputError, match=match):
            cross_validate_across(given, sets, hold_out)

    refused("hold_out='domain' is unknown; pass 'finetune' or 'family'", hold_out="domain")
    refused(
        "rows has no column 'score'; pass question, finetune, score", rows.drop(columns="score")
    )
    refused(
        "rows has no column 'family'; pass question, finetune, score, family",
        rows.drop(columns="family"),
        "family",
    )
    refused("features is empty; pass at least one set", sets=[])
    refused("rows holds a score that is NaN or infinite", rows.assign(score=np.nan))
    refused(
        "question 'q0' appears twice under fine-tune 'f0'",
        pd.concat([rows, rows.iloc[:1]], ignore_index=True),
    )
    refused(
        "fine-tune 'f0' appears under two families",
        rows.assign(family=["a", *["b"] * 149]),
        "family",
    )
    refused(
        "rows hold 2 finetunes; pass at least 3",
        rows[rows["finetune"].isin(["f0", "f1"])].reset_index(drop=True),
    )
