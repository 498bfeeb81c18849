"""Forecasts where there is nothing to forecast: said, not a crash in the middle of an overview."""

from pathlib import Path

import pandas as pd
import pytest
import tiny_family
import tiny_models

from emlens.activations import capture
from emlens.foundation.errors import InputError
from emlens.results.study_result import Part
from emlens.studies.config import StudyConfig, read_config
from emlens.studies.material import Material
from emlens.studies.material_loading import load_material
from emlens.studies.priors import SECTION, Options, Priors
from emlens.studies.study import StudyContext
from emlens.studies.unrelated_model import read_unrelated


def run(config: StudyConfig) -> Part:
    """The part alone, without what a study writes."""
    options = config.options_of(Priors.name, Options)
    return Priors().run(StudyContext(load_material(config), config, options, Path("unused")))


def test_a_fine_tune_that_scores_every_question_alike_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read_config(tiny_family.build(tmp_path, study="priors"))
    real = Material.per_question

    def saturated(
        self: Material, name: str, metric: str = "aligned", asked_as: str = ""
    ) -> "pd.Series[float]":
        scores = real(self, name, metric)
        return scores * 0 + 100 if name == "full@0" else scores

    monkeypatch.setattr(Material, "per_question", saturated)
    part = run(config)
    assert set(part.tables["forecast"]["model"]) == {"bad@0"}
    assert any(
        warning.startswith("full@0: every question outside its domain has the same score")
        for warning in part.warnings
    )
    for plot in SECTION.plots:
        if not plot.y:  # a figure of this part's own, which names its columns itself
            continue
        columns = {plot.x, plot.y, plot.colour, plot.facet, plot.null} - {""}
        assert columns | {f"{plot.y}_low", f"{plot.y}_high"} <= set(part.tables[plot.table].columns)
    assert set(part.tables) == set(SECTION.tables)
    predictors = set(part.tables["forecast_baselines"]["predictor"])
    assert {
        "other parent",
        "parent's own score",
        "parent's P(harmful)",
        "text",
        "random features",
    } <= predictors
    shuffled = part.tables["forecast"].set_index(["parent", "held_out"])["shuffled"]
    assert shuffled["base", "question"] == "question" and shuffled["base", "domain"] == "group"
    # tested also where nothing is forecast
    assert (part.tables["score_changes"]["model"] == "full@0").sum() == 10
    summary = part.findings[0]
    assert summary.status == "summary" and "any of 2 forecasts" in summary.sentence
    # 20 permutations, and no model of another family: said, and nothing is shown
    assert "since not among the baselines: a model of another family." in summary.sentence
    for beginning in (
        "permutations: 20 are too few for 4 forecasts: no p corrected over them can lie at .05;",
        "no forecast was compared with unrelated model:",
    ):
        assert any(warning.startswith(beginning) for warning in part.warnings), part.warnings
    for finding in part.findings[1:]:
        assert finding.status != "shown" and "too few permutations for" in finding.sentence
        assert finding.sentence.endswith("not compared with unrelated model.")


def test_nothing_to_forecast_at_all_gives_warnings_and_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read_config(tiny_family.build(tmp_path, study="priors"))
    monkeypatch.setattr(
        Material,
        "per_question",
        lambda self, name, metric="aligned", **_: pd.Series(1.0, index=self.questions.ids),
    )
    part = run(config)
    assert (
        set(part.tables) == {"score_statistics", "score_changes", "score_relation"}
        and not part.findings
    )
    assert sum("nothing to forecast" in warning for warning in part.warnings) == 2
    assert part.tables["score_changes"]["p_bh"].isna().all()  # nothing varies, so nothing is tested


def test_logits_and_the_plain_rendering_of_both_parents(tmp_path: Path) -> None:
    options = {"priors": {"plain": True, "target": "logit", "clamp": 2.0, "estimator": "ridge1"}}
    config = read_config(
        tiny_family.build(tmp_path, study="priors", focus=["bad@0"], options=options)
    )
    part = run(config)
    table = part.tables["forecast"]
    assert list(table["parent"].unique()) == ["instruct", "base", "instruct, plain", "base, plain"]
    assert set(table["target_is"]) == {"logit, clamped 2 from the ends"} and set(
        table["estimator"]
    ) == {"ridge1"}
    by_parent = part.tables["forecast_predictions"].groupby("parent")["predicted"].sum()
    assert by_parent.nunique() == 4  # four readings, four forecasts


def test_a_model_of_another_family_stands_beside_and_one_of_the_family_is_refused(
    tmp_path: Path,
) -> None:
    stranger = tiny_models.build(tmp_path / "stranger", kind="llama", seed=11, template=False)
    record = tiny_family.build(
        tmp_path, study="priors", focus=["bad@0"], unrelated="stranger", permutations=None
    )
    config = read_config(record)
    part = run(config)
    predictors = part.tables["forecast_baselines"]["predictor"]
    assert {"unrelated model", "text", "length"} <= set(predictors)
    assert not any("no forecast was compared with" in warning for warning in part.warnings)
    table = part.tables["forecast"]
    assert len(table) == 4 and (table["p_holm"] >= table["p"]).all()
    # 2 parents, 2 ways of holding out: 200 shuffles
    assert ((201 * table["p"]) % 1).round(9).isin([0, 1]).all()
    sentences = [finding.sentence for finding in part.findings[1:]]
    assert all("gain over unrelated model" in sentence for sentence in sentences)

    material = load_material(config)
    assert material.unrelated is not None
    prompts = material.questions.prompts()
    live = read_unrelated(material.unrelated, prompts, config.positions)
    for folder, rows in (("all", prompts), ("few", prompts.select(prompts.ids[:9]))):
        capture(material.unrelated, rows, store=tmp_path / folder, progress=False)
    stored = load_material(config.model_copy(update={"unrelated": str(tmp_path / "all")}))
    assert stored.unrelated is not None
    captured = read_unrelated(stored.unrelated, prompts, config.positions)
    assert captured.positions == ["last_prompt"]
    assert captured["resid_post.0"].allclose(live["resid_post.0", "last_prompt"], atol=1e-5)
    other = config.model_copy(update={"unrelated": str(tmp_path / "few")})
    context = StudyContext(load_material(other), other, Options(), Path("unused"))
    with pytest.raises(InputError, match="unrelated: captures of 'unrelated model' .* of 60 promp"):
        Priors().check(context)
    own = config.model_copy(update={"unrelated": str(tmp_path / "base")})
    with pytest.raises(InputError, match="has the weights of 'base', a model of this family"):
        load_material(own)
    assert stranger.is_dir()


def test_what_the_options_refuse(tmp_path: Path) -> None:
    config = read_config(
        tiny_family.build(tmp_path, study="priors", options={"priors": {"clamp": 60}})
    )
    with pytest.raises(InputError, match="options: field 'priors.clamp'"):
        config.options_of("priors", Options)
