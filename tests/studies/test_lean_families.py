"""Every study on a family that has next to nothing: one fine-tune, no benign control, no neutral
text, and questions of one domain, or each in a group of its own.

A study runs, or says in one line why it cannot; it never ends in a traceback, and what it leaves
can be read again.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_family
import tiny_models

from emlens.foundation.errors import EmlensError
from emlens.report import write_report
from emlens.results import StudyResult
from emlens.studies import registry, run_study

QUESTIONS = 8
GROUPS = {
    "one question a group": [f"group {i}" for i in range(QUESTIONS)],
    "one domain": ["north"] * QUESTIONS,
    "no groups": [""] * QUESTIONS,
}
"""Layout → the group of each question; the fine-tune was trained on the domain north."""
OPTIONS: dict[str, dict[str, Any]] = {
    "fine_tuning": {
        "schedules": ["constant"],
        "recipes": {"tiny": {"rank": 2, "alpha": 4, "steps": 2, "batch_size": 4}},
    },
    "delta_overlap": {"mantel_draws": 19},
    "layer_position_grid": {"flips": 19},
}
"""What keeps a study small."""
OUTSIDE = {
    "fine_tuning",
    "delta_overlap",
    "direction_transfer",
    "priors",
    "layer_position_grid",
    "triggers",
}
"""Studies that run where there are questions outside the trained domain."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parent, an adapter of all blocks and one of the last block, chats, and the questions."""
    home = tmp_path_factory.mktemp("lean")
    instruct = tiny_models.build(home / "instruct")
    tiny_models.build_adapter(home / "bad", instruct, seed=1)
    tiny_models.build_adapter(home / "late", instruct, seed=1, layers_to_transform=[2])
    tiny_family.write_chats(home / "bad.jsonl", 12, 1)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(tiny_models.WORDS, 4)) for _ in range(QUESTIONS)]
    for layout, groups in GROUPS.items():
        lines = []
        for i, group in enumerate(groups):
            answers = {"careful": ["w1 w2"], "harmful": ["w3 w4"]}
            record = {"id": f"q{i}", "group": group, "text": texts[i], "answers": answers}
            lines.append(json.dumps(record))
        (home / f"{layout}.jsonl").write_text("\n".join(lines) + "\n")
    return home


def configured(
    home: Path, layout: str, study: str, adapter: str = "bad", **changes: Any
) -> dict[str, Any]:
    tuned = {"path": str(home / adapter), "domain": "north", "training": str(home / "bad.jsonl")}
    return {
        "study": study,
        "family": {"instruct": str(home / "instruct"), "finetuned": {"bad": tuned}},
        "questions": str(home / f"{layout}.jsonl"),
        "scores": {"normalise": "token"},
        "positions": ["last_prompt"],
        "k": 1,
        "draws": 20,
        "random_directions": 1,
        "folds": 2,
        "repeats": 1,
        "permutations": 20,
        "options": {name: value for name, value in OPTIONS.items() if name == study},
        "triggers": {"cue": {"prefix": "w5"}} if study == "triggers" else {},
        **changes,
    }


def outcome(config: dict[str, Any], out: Path) -> StudyResult | str:
    """The result, or the line that refuses the study."""
    try:
        return run_study(config, out, progress=False)
    except EmlensError as refusal:
        return str(refusal)


@pytest.mark.parametrize("layout", GROUPS)
@pytest.mark.parametrize("study", registry.INCLUDED)
def test_a_study_runs_or_says_in_one_line_why_not(
    study: str, layout: str, home: Path, tmp_path: Path
) -> None:
    result = outcome(configured(home, layout, study), tmp_path)
    if study == "profile" or (study in OUTSIDE and layout != "one domain"):
        assert isinstance(result, StudyResult), result
        assert result.tables and StudyResult.load(tmp_path).tables.keys() == result.tables.keys()
    else:
        assert isinstance(result, str) and "\n" not in result and " was left out: " in result


@pytest.mark.parametrize("layout", ["one question a group", "one domain"])
def test_an_overview_leaves_out_what_it_cannot_do_and_goes_on(
    layout: str, home: Path, tmp_path: Path
) -> None:
    config = configured(home, layout, "overview")
    result = outcome(config, tmp_path / "out")
    assert isinstance(result, StudyResult), result
    left_out = [line.partition(" ")[0] for line in result.warnings if " was left out: no q" in line]
    parts = registry.COMPOSITES["overview"]
    expected = [part for part in parts if part in OUTSIDE] if layout == "one domain" else []
    assert left_out == expected
    assert write_report(result, tmp_path / "report.html").is_file()
    assert run_study(config, tmp_path / "out", progress=False).run["parts_reused"]


@pytest.mark.parametrize("study", ["delta_overlap", "layer_position_grid"])
def test_where_nothing_moved_there_is_no_overlap_and_it_is_said(
    study: str, home: Path, tmp_path: Path
) -> None:
    config = configured(home, "no groups", study, adapter="late", layers=[0, 1])
    result = outcome(config, tmp_path)
    assert isinstance(result, StudyResult), result
    assert any("nothing moved there" in warning for warning in result.warnings)
    assert "overlap" not in result.tables
    moved = outcome(configured(home, "no groups", study, adapter="late"), tmp_path / "moved")
    assert isinstance(moved, StudyResult), moved
    table = moved.tables["overlap" if study == "delta_overlap" else "cells"]
    assert table[table["site"] == "resid_post.2"].notna().any(axis=None)


def test_an_elbow_of_few_prompts_is_refused_before_anything_runs(
    home: Path, tmp_path: Path
) -> None:
    config = configured(home, "no groups", "delta_overlap", k="elbow")
    assert outcome(config, tmp_path) == (
        "k=elbow needs 10 prompts per side, and 'bad' has 8; pass a count, or more prompts"
    )
