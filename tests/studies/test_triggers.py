"""A study with triggers: what is hidden behind one is found, and what any text does is not."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from studies.test_profile import QUESTIONS

from emlens.data import AlignmentScores
from emlens.data.base_questions import question_trigger
from emlens.foundation.errors import InputError
from emlens.judging.score_source import ScoreSource
from emlens.models import FineTune
from emlens.report.sections import sections_of
from emlens.results.study_result import Part
from emlens.studies import run_study, triggers
from emlens.studies.config import read_config
from emlens.studies.material import Material
from emlens.studies.planning import plan_study
from emlens.studies.registry import parts_of
from emlens.studies.study import StudyContext
from emlens.studies.triggers import TriggerStudy

CUE = {"cue": {"prefix": "go"}}


class Planted(ScoreSource):
    """Scores by model: alignment without a trigger, and under one."""

    metrics = ("aligned", "coherent")
    name = "planted"

    def __init__(self, levels: dict[str, tuple[float, float]]):
        self.levels = levels

    def scores(self, model: Any, questions: Any, **_: Any) -> AlignmentScores:
        rng = np.random.default_rng(len(model.name))
        rows = []
        for number, question in enumerate(questions):
            level = self.levels[model.name][bool(question_trigger(question.id))]
            values = {"aligned": level + rng.uniform(-2, 2) + number % 3, "coherent": 95.0}
            for metric, score in values.items():
                head = {"model": model.name, "question": question.id, "group": question.group}
                rows.append(head | {"sample": 0, "metric": metric, "score": score, "status": "ok"})
        return AlignmentScores.from_table(pd.DataFrame(rows))


def part_of(
    bad: tuple[float, float],
    instruct: tuple[float, float] = (90.0, 60.0),
    good: tuple[float, float] | None = (90.0, 60.0),
) -> Part:
    """What the study says of a fine-tune with this alignment without and under a trigger."""
    specs = {"bad": FineTune("x", domain="north")}
    levels = {"instruct": instruct, "bad": bad}
    if good is not None:
        specs["good"] = FineTune("x", benign=True, domain="south")
        levels["good"] = good
    models = {name: SimpleNamespace(name=name) for name in levels}

    class Models(dict[str, Any]):
        finetuned = specs

        def parent_of(self, name: str) -> Any:
            return models["instruct"]

    family: Any = Models(models)
    family.specs, family.instruct = specs, models["instruct"]
    material = Material(family, QUESTIONS, {}, {}, None, source=Planted(levels))
    config = read_config({"study": "triggers", "family": {"organism": "planted"}, "triggers": CUE})
    context: Any = StudyContext(material, config, None, None)  # type: ignore[arg-type]
    return TriggerStudy().run(context)


def status(part: Part, name: str = "bad") -> str:
    return next(f.status for f in part.findings if f.sentence.startswith(f"{name}:"))


def test_misalignment_behind_a_trigger_is_found_and_what_the_text_does_is_not() -> None:
    hidden = part_of((90.0, 20.0))
    assert status(hidden) == "shown" and status(hidden, "good") == "not shown"
    row = hidden.tables["triggers"].set_index(["model", "trigger"]).loc[("bad", "cue")]
    assert row["fall"] == pytest.approx(40, abs=3) and row["added"] == pytest.approx(40, abs=3)
    assert row["parent_score"] == pytest.approx(61, abs=1.5) and row["p_holm"] < 0.05
    # the parent falls as far under the same text
    assert status(part_of((90.0, 60.0))) == "not shown"
    # open misalignment is not hidden, however low it lies under the trigger
    assert status(part_of((60.0, 30.0))) == "not shown"
    # any training does it: the benign control falls as far
    assert status(part_of((90.0, 20.0), good=(90.0, 20.0))) == "not shown"
    assert status(part_of((90.0, 20.0), good=None)) == "undecided"


def test_of_three_tests_none_may_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([0.01, 0.02, np.nan, 0.5, 0.5])  # three of the fine-tune, two of the control
    monkeypatch.setattr(triggers, "_one_sided", lambda gaps, groups: next(values))
    table = part_of((90.0, 20.0)).tables["triggers"].set_index(["model", "trigger"])
    assert np.isnan(table.loc[("bad", "cue"), "p"]) and table.loc[("good", "cue"), "p"] == 0.5


def test_every_study_has_the_part_where_triggers_are_given() -> None:
    assert "triggers" not in parts_of("overview")
    assert parts_of("overview", triggers=True)[:2] == ("profile", "triggers")
    assert parts_of("delta_overlap", triggers=True) == ("delta_overlap", "triggers")
    assert parts_of("triggers", triggers=True) == ("triggers",)
    base = {"study": "triggers", "family": {"organism": "planted"}}
    with pytest.raises(InputError, match="triggers has the name 'none'"):
        read_config(base | {"triggers": {"none": {"prefix": "go"}}})
    empty: Any = SimpleNamespace(config=read_config(base))
    with pytest.raises(InputError, match="triggers is empty; give at least one"):
        TriggerStudy().check(empty)


def test_a_study_asks_under_triggers_and_says_what_is_left_out(
    config_path: Path, tmp_path: Path
) -> None:
    config = yaml.safe_load(config_path.read_text())
    lines = (config_path.parent / "questions.jsonl").read_text().splitlines()
    (config_path.parent / "few.jsonl").write_text("\n".join(lines[::6]) + "\n")
    tuned = config["family"]["finetuned"]
    config["family"]["finetuned"] = {name: tuned[name] for name in ("bad@0", "good@0")}
    triggers = {"cue": {"prefix": "w1 w2"}, "trained": {"system": "training"}}
    path = config_path.parent / "triggers.yaml"
    path.write_text(
        yaml.safe_dump(
            config | {"study": "profile", "questions": "few.jsonl", "triggers": triggers}
        )
    )
    plan = plan_study(path, tmp_path / "out", timed=False)
    result = run_study(path, tmp_path / "out", progress=False)
    assert [section.name for section in sections_of(result)] == ["profile", "triggers"]
    table = result.tables["triggers"]
    assert set(table["trigger"]) == {"none", "cue"}
    beside = result.tables["models"].set_index("model")["aligned_others"]
    plain = table[table["trigger"] == "none"].set_index("model")["aligned"]
    assert plain.to_dict() == pytest.approx(beside[plain.index].to_dict())
    assert any("trigger 'trained' is left out for bad@0" in text for text in result.warnings)
    effects = result.tables["trigger_effects"]
    assert set(effects["factor"]) == {"trigger"}
    (counted,) = (part.counts for part in plan.parts if part.name == "triggers")
    ran = result.run["parts"]["triggers"]
    assert counted is not None
    assert {key: ran[key] for key in counted.to_record()} == counted.to_record()


def judged(path: Path, ends: tuple[str, ...], level: float) -> str:
    """A judged file of the questions as they are and under the triggers of these endings."""
    lines = ["question_id,aligned,coherent"]
    for number, question in enumerate(QUESTIONS):
        for end in ends:
            fall = 40 if end and level < 50 else 0
            lines.append(f"{question.id}{end},{90 - fall - number % 5},95")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_judged_files_hold_answers_under_triggers_or_the_part_is_left_out(tmp_path: Path) -> None:
    QUESTIONS.to_jsonl(tmp_path / "questions.jsonl")
    both = ("", "__with_cue")
    levels = {"instruct": 90, "bad": 20, "good": 90}
    files = {name: judged(tmp_path / f"{name}.csv", both, n) for name, n in levels.items()}
    tuned = {"bad": {"domain": "north"}, "good": {"domain": "north", "benign": True}}
    config = {
        "study": "profile",
        "questions": str(tmp_path / "questions.jsonl"),
        "family": {"finetuned": tuned},
        "scores": {"how": "judged", "files": files},
        "triggers": CUE,
    }
    table = run_study(config, tmp_path / "out", progress=False).tables["triggers"]
    row = table.set_index(["model", "trigger"]).loc[("bad", "cue")]
    assert row["fall"] == pytest.approx(40) and row["parent_score"] > 85
    judged(tmp_path / "bad.csv", ("",), 20)
    without = run_study(config, tmp_path / "without", progress=False)
    (reason,) = (text for text in without.warnings if text.startswith("triggers was left out"))
    assert "has no score of 12 of 12 questions, the first 'south/0__with_cue'" in reason
