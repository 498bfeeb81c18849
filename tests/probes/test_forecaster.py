import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from read_back import faults
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from emlens.foundation.errors import InputError, IntegrityError
from emlens.probes import Design, Forecaster, fit_forecaster
from emlens.probes.targets import labels_of

PARENT = {"weights_sha256": "a" * 64, "adapter": None}


@pytest.fixture(scope="module")
def cells() -> dict[tuple[str, str], np.ndarray]:
    rng = np.random.default_rng(0)
    constant = rng.standard_normal((40, 6))
    constant[:, 2] = 4.0
    return {
        ("resid_post.0", "last_prompt"): rng.standard_normal((40, 6)),
        ("resid_post.1", "last_prompt"): constant,
    }


@pytest.fixture(scope="module")
def fitted(make: Any, cells: Any) -> Forecaster:
    acts = make(cells, model=PARENT)
    y = (
        50
        + 5 * cells["resid_post.1", "last_prompt"][:, 0]
        + np.random.default_rng(1).standard_normal(40)
    )
    scores = dict(zip(acts.ids, y.tolist(), strict=True))
    return fit_forecaster(acts, scores, design=Design(inner_folds=4))


def test_it_equals_scikit_learn_on_the_chosen_cell(
    make: Any, cells: Any, fitted: Forecaster
) -> None:
    assert (fitted.site, fitted.position) == ("resid_post.1", "last_prompt")
    x = cells["resid_post.1", "last_prompt"]
    y = 50 + 5 * x[:, 0] + np.random.default_rng(1).standard_normal(40)
    reference = make_pipeline(StandardScaler(), Ridge(alpha=fitted.alpha)).fit(x, y)
    new = np.random.default_rng(2).standard_normal((7, 6))
    new[:, 2] = 4.0
    acts = make(
        {("resid_post.1", "last_prompt"): new}, ids=[f"new{i}" for i in range(7)], model=PARENT
    )
    found = fitted.predict(acts)
    np.testing.assert_allclose(found.to_numpy(), reference.predict(new), atol=1e-8)
    assert list(found.index) == acts.ids and found.name == "predicted"
    assert fitted.facts["rows"] == 40 and 0.8 < fitted.facts["cross_validated_r2"]["value"] <= 1


def test_saved_and_loaded_it_predicts_the_same_numbers(
    make: Any, cells: Any, fitted: Forecaster, tmp_path: Path
) -> None:
    acts = make(cells, model=PARENT)
    home = tmp_path / "kept"
    loaded = Forecaster.load(fitted.save(home))
    assert faults(home / "forecaster.json", lambda: Forecaster.load(home)) == {}
    np.testing.assert_array_equal(loaded.predict(acts), fitted.predict(acts))
    assert loaded.facts == json.loads(json.dumps(dict(fitted.facts)))
    assert {p.name for p in (tmp_path / "kept").iterdir()} == {
        "forecaster.json",
        "forecaster.safetensors",
    }
    with pytest.raises(InputError, match="no such file"):
        Forecaster.load(tmp_path / "absent")
    weights = tmp_path / "kept" / "forecaster.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(
        IntegrityError,
        match=(
            r"kept: the weights are missing, or not those forecaster\.json describes;"
            r" save the forecaster again"
        ),
    ):
        Forecaster.load(tmp_path / "kept")
    weights.unlink()
    with pytest.raises(IntegrityError, match="the weights are missing"):
        Forecaster.load(tmp_path / "kept")


@pytest.mark.parametrize(
    "model",
    [
        {"weights_sha256": "b" * 64, "adapter": None},
        {"weights_sha256": "a" * 64, "adapter": {"sha256": "c"}},
    ],
)
def test_activations_of_another_model_are_refused_adapters_included(
    make: Any, cells: Any, fitted: Forecaster, model: dict[str, Any]
) -> None:
    with pytest.raises(
        InputError, match="acts come from other weights than this forecaster was fitted on"
    ):
        fitted.predict(make(cells, model=model))
    assert len(fitted.predict(make(cells))) == 40  # nothing is known about these


def test_another_stream_is_refused(make: Any, fitted: Forecaster) -> None:
    with pytest.raises(
        InputError, match="acts have 5 coordinates, the forecaster 6; pass the same residual stream"
    ):
        fitted.predict(make({("resid_post.1", "last_prompt"): np.ones((3, 5))}))


def test_paraphrases_share_a_fold(make: Any) -> None:
    acts = make(np.ones((4, 2)), ids=["a/p1", "a/p2", "b/p1", "b/p2"])
    assert labels_of(acts, None) == (["a", "a", "b", "b"], "question")


# several fine-tunes
# ------------------------------------------------------------------------------

GROUPS = 10
DOMAINS = ("d0", "d1", "d2", "d3", "d4")


def planted(
    seed: int = 0, runs: int = 2, noise: float = 2.0
) -> tuple[np.ndarray, pd.DataFrame, dict[str, str], pd.DataFrame]:
    """Activations, scores question × run with the own domain left out, clusters, context: loss =
    severity · hazard.
    """
    rng = np.random.default_rng(seed)
    n = GROUPS * 6
    x = rng.standard_normal((n, 5))
    hazard = np.clip(40 + 12 * x[:, 0], 2, 90)
    names = [f"{d}@{r}" for d in DOMAINS for r in range(runs)]
    severity = np.array([0.4 + 0.25 * DOMAINS.index(name[:2]) for name in names])
    table = pd.DataFrame(
        np.clip(
            100 - np.outer(hazard, severity) + noise * rng.standard_normal((n, len(names))), 0, 100
        ),
        [f"q{i}" for i in range(n)],
        names,
    )
    for name in names:
        table.loc[[f"q{i}" for i in range(n) if f"d{i // 6}" == name[:2]], name] = np.nan
    context = pd.DataFrame(
        {"surprise": 1 + 2 * severity + 0.02 * rng.standard_normal(len(names))}, index=names
    )
    return x, table, {name: name[:2] for name in names}, context


def fit_planted(make: Any, seed: int = 0) -> tuple[Forecaster, Any, pd.DataFrame, pd.DataFrame]:
    x, table, clusters, context = planted(seed)
    acts = make(x, groups=[f"d{i // 6}" for i in range(len(x))], model=PARENT)
    design = Design(groups="group", inner_folds=3)
    fitted = fit_forecaster(acts, table, clusters=clusters, context=context, design=design)
    return fitted, acts, table, context


@pytest.fixture(scope="module")
def several(make: Any) -> tuple[Forecaster, Any, pd.DataFrame, pd.DataFrame]:
    return fit_planted(make)


def test_severity_and_hazard_are_told_apart(several: Any) -> None:
    found, _, table, _ = several
    pairs = found.pairs()
    assert len(pairs) == int(table.notna().sum().sum())
    # the mildest and the most severe are kept within what the others showed
    inner = pairs[~pairs["cluster"].isin(["d0", "d4"])]
    error = {
        name: np.sqrt(((inner[name] - inner["observed"]) ** 2).mean())
        for name in ("predicted", "from_past", "past_mean")
    }
    assert max(error["predicted"], error["from_past"]) < 4 < error["past_mean"]
    assert found.facts["cross_validated_r2"]["value"] > 0.7


def test_a_prediction_of_the_backtest_has_seen_neither_its_group_nor_its_cluster(
    make: Any, several: Any
) -> None:
    found, acts, table, context = several
    spoiled = table.copy()
    spoiled.loc[[f"q{i}" for i in range(30, 36)]] = 3.0  # group d5
    spoiled[["d2@0", "d2@1"]] = np.where(spoiled[["d2@0", "d2@1"]].notna(), 1.0, np.nan)
    clusters = {name: name[:2] for name in table}
    again = fit_forecaster(
        acts,
        spoiled,
        clusters=clusters,
        context=context,
        design=Design(groups="group", inner_folds=3),
    ).pairs()
    own = (again["label"] == "d5") & (again["cluster"] == "d2")
    assert own.sum() == 12
    np.testing.assert_allclose(again["predicted"][own], found.pairs()["predicted"][own], rtol=1e-12)
    others = ~own & (again["label"] != "d5")
    # and they do matter
    assert (
        np.abs(again["predicted"] - found.pairs()["predicted"])[
            others & (again["cluster"] != "d2")
        ].max()
        > 1
    )


def test_intervals_hold_new_questions_in_new_fine_tunes(make: Any) -> None:
    inside, widths = [], []
    for seed in range(6):
        x, table, clusters, context = planted(seed)
        kept, held = [f"q{i}" for i in range(54)], [f"q{i}" for i in range(54, 60)]
        acts = make(x, groups=[f"d{i // 6}" for i in range(60)], model=PARENT)
        past = [name for name in table if name[:2] != "d2"]
        found = fit_forecaster(
            acts.select(kept),
            table.loc[kept, past],
            clusters=clusters,
            context=context,
            design=Design(groups="group", inner_folds=3, seed=seed),
        )
        given = found.predict_table(
            acts.select(held),
            context=context.loc["d2@0"].to_dict(),
            level=0.8,
            allow=("far", "shift"),
        )
        truth = table.loc[held, "d2@0"].to_numpy()
        inside.append(float(((given["low"] <= truth) & (truth <= given["high"])).mean()))
        widths.append(float((given["high"] - given["low"]).mean()))
        assert not given["known"].any() and given["from_past"].isna().all()
    assert np.mean(inside) >= 0.8 - 3 * np.sqrt(0.16 / 36) and np.mean(widths) < 40
    wide = found.predict_table(
        acts.select(held), context=context.loc["d2@0"].to_dict(), level=0.95, allow=("far", "shift")
    )
    assert (wide["low"] == 0).all() and (wide["high"] == 100).all()  # 9 groups know no .95


def test_known_questions_are_forecast_from_what_they_lost_before(several: Any) -> None:
    found, acts, table, context = several
    given = found.predict_table(acts, context=context.loc["d4@0"].to_dict()).set_index("id")
    assert given["known"].all() and (given["past_low"] <= given["past_high"]).all()
    truth = table["d4@0"].dropna()
    assert np.abs(given.loc[truth.index, "from_past"] - truth).mean() < 4
    benign = found.predict_table(acts, context=context.loc["d0@0"].to_dict()).set_index("id")
    spans = [(frame["high"] - frame["low"]).mean() for frame in (benign, given)]
    assert spans[0] < spans[1] and benign["predicted"].mean() > given["predicted"].mean() + 20


def test_several_fine_tunes_survive_the_disk(make: Any, several: Any, tmp_path: Path) -> None:
    found, acts, _, context = several
    loaded = Forecaster.load(found.save(tmp_path))
    one, other = (f.predict_table(acts, context=context.iloc[0].to_dict()) for f in (found, loaded))
    pd.testing.assert_frame_equal(one, other, check_dtype=False)
    pd.testing.assert_frame_equal(found.pairs(), loaded.pairs(), check_dtype=False)
    record = json.loads((tmp_path / "forecaster.json").read_text())
    (tmp_path / "forecaster.json").write_text(
        json.dumps({**record, "format": "emlens-forecaster-1"})
    )
    with pytest.raises(
        InputError,
        match=(
            "forecaster.json: its format is 'emlens-forecaster-1', and this version of emlens reads"
            " 'emlens-forecaster-2'; fit the forecaster again, and save it"
        ),
    ):
        Forecaster.load(tmp_path)
    (tmp_path / "forecaster.json").write_text(
        json.dumps({key: value for key, value in record.items() if key != "runs"})
    )
    with pytest.raises(
        IntegrityError,
        match=(
            "forecaster.json: was changed after it was written; fit the forecaster again, and save"
        ),
    ):
        Forecaster.load(tmp_path)


def test_each_unlikeness_is_refused_with_its_reason_and_allowed_by_its_name(
    make: Any, several: Any
) -> None:
    found, acts, _, context = several
    values, groups = acts["resid_post.0"].double().numpy(), acts.groups
    numbers = context.iloc[3].to_dict()

    def refused(match: str, reason: str, given: Any, context: dict[str, float] = numbers) -> None:
        with pytest.raises(InputError, match=match):
            found.predict_table(given, context=context)
        assert len(found.predict_table(given, context=context, allow=(reason, "stale"))) == len(
            given
        )

    template = make(values, groups=groups, model={**PARENT, "chat_template_sha256": "x"})
    found.facts["provenance"]["model"]["chat_template_sha256"] = "y"
    refused(
        r"another chat template than the forecaster's; render them with the same one,"
        r" or pass allow=\['template'\]",
        "template",
        template,
    )
    del found.facts["provenance"]["model"]["chat_template_sha256"]
    refused(
        r"from other weights than this forecaster was fitted on; .* allow=\['model'\]",
        "model",
        make(values, groups=groups, model={"weights_sha256": "z"}),
    )
    edited = make(values, groups=groups, model=PARENT)
    edited.provenance["interventions"] = [{"kind": "ablate"}]
    refused(
        "captured under other interventions than the forecaster's .*ablate.*;"
        " capture them under the same ones",
        "interventions",
        edited,
    )
    moved = make(
        values + 9, ids=[f"new{i}" for i in range(len(values))], groups=groups, model=PARENT
    )
    refused(
        r"60 of 60 rows lie further .* these are other prompts or another stream\."
        r" Fit on such, or pass allow=\['shift'\]",
        "shift",
        moved,
    )
    refused(
        r"surprise is 50; the fine-tunes fitted on had .* allow=\['context'\]",
        "context",
        acts,
        {"surprise": 50.0},
    )
    some = values.copy()
    some[:5] += 9
    part = found.predict_table(
        make(some, ids=[f"new{i}" for i in range(60)], groups=groups, model=PARENT), context=numbers
    )
    assert (part["refused"][:5] == "far from the questions fitted on").all() and part["predicted"][
        :5
    ].isna().all()
    assert part["low"][:5].isna().all() and (part["refused"][5:] == "").mean() > 0.8
    stale = found.predict_table(
        make(values[::-1].copy(), groups=groups, model=PARENT), context=numbers
    )
    assert (
        stale["refused"].str.startswith("the id was fitted on with other activations").mean() > 0.9
        and not stale["known"].any()
    )
    with pytest.raises(
        InputError,
        match=(
            "allow names 'all'; pass some of model, template, interventions, context, shift, far,"
            " stale"
        ),
    ):
        found.predict(acts, context=numbers, allow=("all",))
    with pytest.raises(
        InputError,
        match=(
            r"context has nothing; this forecaster was fitted with \['surprise'\]:"
            r" pass those numbers"
        ),
    ):
        found.predict(acts)
    with pytest.raises(
        InputError,
        match=(
            r"acts hold \['resid_post\.1'\] at .* the forecaster reads resid_post\.0 at"
            r" last_prompt: capture that too"
        ),
    ):
        found.predict(make({("resid_post.1", "last_prompt"): values}), context=numbers)


def test_rows_like_the_fitted_ones_are_seldom_refused(make: Any, several: Any) -> None:
    found, _, _, context = several
    new = np.random.default_rng(9).standard_normal((200, 5))
    acts = make(new, ids=[f"new{i}" for i in range(200)], groups=["d1"] * 200, model=PARENT)
    share = (found.predict_table(acts, context=context.iloc[0].to_dict())["refused"] != "").mean()
    assert share < found.facts["false_refusals"][0] + 3 * np.sqrt(0.05 * 0.95 / 60)


def test_what_cannot_be_fitted_is_refused(make: Any) -> None:
    x, table, clusters, _ = planted()
    acts = make(x, groups=[f"d{i // 6}" for i in range(60)])
    with pytest.raises(
        InputError,
        match="clusters has no entry for fine-tune 'd4@1'; pass one for each, such as its domain",
    ):
        fit_forecaster(acts, table, clusters={k: v for k, v in clusters.items() if k != "d4@1"})
    with pytest.raises(
        InputError,
        match=r"row 'q59' has no aligned score \(nor 0 more rows\); score every question",
    ):
        fit_forecaster(acts, table.drop(index="q59"))
    with pytest.raises(InputError, match="fine-tune 'empty' has no score on any row; leave it out"):
        fit_forecaster(acts, table.assign(empty=np.nan))
    with pytest.raises(
        InputError,
        match=(
            r"fine-tune 'd0@0' has scores from .* outside scale=\(0\.0, 10\.0\);"
            r" pass the scale they are on"
        ),
    ):
        fit_forecaster(acts, table, scale=(0.0, 10.0))
    with pytest.raises(
        InputError, match="the aligned score is 7 for every row; there is nothing to predict"
    ):
        fit_forecaster(acts, dict.fromkeys(acts.ids, 7.0))
    with pytest.raises(
        InputError,
        match=(
            "design has permutations=9, which fit_forecaster does not use;"
            " it uses groups, inner_folds, seed"
        ),
    ):
        fit_forecaster(acts, table, design=Design(permutations=9))
