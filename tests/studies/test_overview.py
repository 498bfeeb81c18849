"""What an overview of the tiny family holds: every table with its columns, and what they must say
of this family.
"""

from typing import Any

import numpy as np
import pytest

COLUMNS: dict[str, set[str]] = {
    "models": {
        "model",
        "kind",
        "domain",
        "n_own",
        "n_others",
        "aligned_own",
        "aligned_others_low",
        "coherent_high",
        "em_rate",
        "em_rate_low",
    },
    "domains": {
        "model",
        "group",
        "trained_domain",
        "n",
        "aligned",
        "aligned_low",
        "aligned_high",
        "coherent",
    },
    "questions": {"model", "question", "group", "text", "trained", "aligned", "coherent"},
    "benign": {"model", "margin", "p_tost", "n", "difference", "difference_low", "difference_high"},
    "overlap": {
        "model",
        "site",
        "layer",
        "position",
        "k",
        "center",
        "measure",
        "comparison",
        "value",
        "low",
        "high",
        "null_kind",
        "null_mean",
        "null_q95",
        "n",
    },
    "angles": {"model", "site", "layer", "position", "comparison", "index", "degrees"},
    "shifts": {
        "model",
        "site",
        "layer",
        "position",
        "id",
        "group",
        "text",
        "prompt_overlap",
        "random_overlap",
        "cosine_to_mean_train",
        "delta_norm",
    },
    "overlap_shift": {
        "model",
        "site",
        "position",
        "pearson",
        "low",
        "high",
        "null_mean",
        "p",
        "partial",
        "mantel",
        "mantel_p",
        "n",
    },
    "overlap_groups": {
        "model",
        "site",
        "position",
        "group",
        "k",
        "overlap",
        "cosine",
        "cosine_low",
        "cosine_high",
        "n",
    },
    "overlap_test": {
        "model",
        "position",
        "measure",
        "value",
        "null_mean",
        "p_holm",
        "split_half",
        "benign_value",
        "adapters",
        "layers",
        "answered",
        "why",
    },
    "overlap_domains": {
        "model",
        "second_model",
        "kind",
        "position",
        "value",
        "p",
        "answered",
        "why",
    },
    "overlap_difference": {"model", "position", "difference_low", "difference_high", "domains"},
    "noise_floor": {"site", "position", "noise_norm", "delta_norm", "ratio", "n"},
    "question_sets": {"question", "group", "used_to"},
    "candidates": {
        "model",
        "candidate",
        "site",
        "position",
        "extraction",
        "layer",
        "restoration",
        "coherent_change",
        "kl",
        "chosen",
        "n",
    },
    "windows": {
        "model",
        "steered",
        "vector",
        "site",
        "dose_low",
        "dose_high",
        "ended_below",
        "ended_above",
    },
    "directions": {
        "model",
        "site",
        "layer",
        "last",
        "norm",
        "split_half_cosine",
        "cosine_unembedding",
        "restoration",
        "low",
        "high",
        "coherence_loss",
        "n",
    },
    "arms": {
        "model",
        "site",
        "role",
        "arm",
        "on",
        "control",
        "draws",
        "restoration",
        "restoration_low",
        "lead",
        "lead_low",
        "aligned",
        "coherent",
        "kl",
        "n",
        "method",
    },
    "steering": {
        "model",
        "steered",
        "vector",
        "site",
        "coefficient",
        "aligned",
        "aligned_low",
        "coherent",
        "coherent_low",
        "n",
    },
    "transfer": {
        "direction_of",
        "ablated_in",
        "same_domain",
        "site",
        "cosine",
        "restoration",
        "low",
        "high",
        "strongest_control",
        "n",
        "method",
    },
    "forecast": {
        "model",
        "parent",
        "held_out",
        "r2",
        "r2_low",
        "r2_fold_mean",
        "spearman",
        "rmse",
        "null_mean",
        "null_q95",
        "p",
        "n",
        "chosen_place",
    },
    "forecast_baselines": {
        "model",
        "parent",
        "held_out",
        "predictor",
        "r2",
        "r2_low",
        "gain",
        "gain_low",
        "gain_high",
    },
    "forecast_sites": {
        "model",
        "parent",
        "held_out",
        "site",
        "position",
        "r2",
        "p_max",
        "null_max_q95",
    },
    "forecast_predictions": {
        "model",
        "parent",
        "held_out",
        "id",
        "group",
        "target",
        "predicted",
        "text",
    },
}


def test_an_overview_holds_every_table_with_its_columns(finished: Any) -> None:
    tables = finished.result.tables
    assert set(COLUMNS) <= set(tables)
    for name, columns in COLUMNS.items():
        assert columns <= set(tables[name].columns), name
        assert len(tables[name]), name
    assert {f.section for f in finished.result.findings} == {
        "profile",
        "delta_overlap",
        "direction_transfer",
        "priors",
    }
    for finding in finished.result.findings:
        assert finding.status in ("summary", "shown", "not shown", "undecided")
        assert "nan" not in finding.sentence.lower() and "None" not in finding.sentence
    assert finished.result.run["parts_reused"] == []


def test_the_tables_describe_the_family(finished: Any) -> None:
    tables = finished.result.tables
    models = tables["models"].set_index("model")
    assert models["kind"].to_dict() == {
        "instruct": "instruct",
        "base": "base",
        "bad@0": "harmful",
        "full@0": "harmful",
        "good@0": "benign",
    }
    assert (
        models.loc["bad@0", ["n_own", "n_others"]].tolist() == [10, 50]
        and models.loc["instruct", "n_others"] == 60
    )
    questions = tables["questions"]
    own = questions[(questions["model"] == "bad@0") & (questions["group"] == "north")][
        "aligned"
    ].mean()
    assert models.loc["bad@0", "aligned_own"] == pytest.approx(own)
    overlap = tables["overlap"]
    assert set(overlap["comparison"]) == {
        "train–evaluation",
        "benign train–evaluation",
        "train–neutral text",
        "split-half ceiling",
    }
    landmark = overlap[overlap["null_kind"] == "isotropic"]["null_mean"]
    np.testing.assert_allclose(landmark, 3 / 32, rtol=1e-6)  # k/d
    means = overlap[overlap["center"] == "means"]
    assert (means["low"] <= means["high"]).all() and means[["low", "high"]].abs().le(1).all(
        axis=None
    )
    apart = tables["overlap_groups"]
    assert set(apart.loc[apart["model"] == "bad@0", "group"]) == {
        "own domain",
        "south",
        "east",
        "west",
        "up",
        "down",
        "neutral text",
    }
    test = tables["overlap_test"]
    tested = test[test["measure"].isin(["variance_weighted", "mean_cosine"])]
    assert set(tested["answered"]) == {"undecided"} and (test["adapters"] == 0).all()
    why = tested.drop_duplicates("model").set_index("model")["why"]
    assert "does not say learning_rate, steps, batch_size" in why["bad@0"]
    assert "its recipe is not known: the directory has no emlens.json" in why["full@0"]
    last = tables["directions"].groupby("model")["last"].sum()
    assert (last == 1).all()
    chosen = tables["arms"][tables["arms"]["role"] != "last layer"]
    assert "resid_post.2" not in set(chosen["site"])
    forecast = tables["forecast_predictions"]
    assert set(forecast.loc[forecast["model"] == "bad@0", "group"]) == {
        "south",
        "east",
        "west",
        "up",
        "down",
    }
    steering = (
        tables["steering"].groupby("steered")["coefficient"].agg(lambda doses: sorted(set(doses)))
    )
    # added there, taken away here
    assert steering["instruct"] == [0, 0.5, 1, 2, 4]
    assert steering["bad@0"] == [-4, -2, -1, -0.5, 0]
    none = tables["arms"][tables["arms"]["arm"] == "no ablation"]
    assert (none["kl"] == 0).all() and (none["restoration"].dropna() == 0).all()


def test_extraction_selection_and_report_share_no_question(finished: Any) -> None:
    table = finished.result.tables["question_sets"]
    assert table["question"].is_unique and len(table) == 60
    sets = {use: set(rows["question"]) for use, rows in table.groupby("used_to")}
    assert set(sets) == {"extract", "select", "report"}
    arms = finished.result.tables["arms"]
    report = table[(table["used_to"] == "report") & (table["group"] != "north")]
    assert set(arms[arms["model"] == "bad@0"]["n"]) == {len(report)}
