"""Forecasts where there is nothing to forecast: said, not a crash in the middle of an overview."""

from pathlib import Path

import pandas as pd
import pytest
import tiny_family

from emlens.studies import priors
from emlens.studies.config import read_config
from emlens.studies.material import Material, load_material


def test_a_fine_tune_that_scores_every_question_alike_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read_config(tiny_family.build(tmp_path, study="priors"))
    material = load_material(config)
    real = Material.per_question

    def saturated(self: Material, name: str, metric: str = "aligned") -> "pd.Series[float]":
        scores = real(self, name, metric)
        return scores * 0 + 100 if name == "full@0" else scores

    monkeypatch.setattr(Material, "per_question", saturated)
    part = priors.run(material, config, lambda share: None)
    assert set(part.tables["forecast"]["model"]) == {"bad@0"}
    assert any(warning.startswith("full@0: every question outside its domain has the same score") for warning in part.warnings)
    summary = part.findings[0]
    assert summary.status == "summary" and summary.sentence.endswith("of 2 forecasts.")


def test_nothing_to_forecast_at_all_gives_warnings_and_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read_config(tiny_family.build(tmp_path, study="priors"))
    monkeypatch.setattr(Material, "per_question", lambda self, name, metric="aligned": pd.Series(1.0, index=self.questions.ids))
    part = priors.run(load_material(config), config, lambda share: None)
    assert set(part.tables) == {"score_statistics", "score_changes", "score_relation"} and not part.findings
    assert sum("nothing to forecast" in warning for warning in part.warnings) == 2
    assert part.tables["score_changes"]["p_bh"].isna().all()  # nothing varies, so nothing is tested
