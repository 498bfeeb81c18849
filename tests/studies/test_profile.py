"""Scores that a fine-tune was trained for are not evidence about it, nor about what it is the
control of.
"""

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from emlens.data import AlignmentScores, Question, QuestionSet
from emlens.models import FineTune
from emlens.results.study_result import Part
from emlens.studies.material import Material
from emlens.studies.profile import likeliest_answers
from emlens.studies.profile_findings import add_benign_test, add_spread

GROUPS = ("north", "south", "east")
QUESTIONS = QuestionSet(
    [Question(f"{group}/{i}", f"{group} {i}", group) for group in GROUPS for i in range(6)]
)


def scored(name: str, aligned: dict[str, float]) -> AlignmentScores:
    rows = [
        {
            "model": name,
            "question": q.id,
            "group": q.group,
            "sample": 0,
            "metric": metric,
            "score": value,
            "status": "ok",
        }
        for i, q in enumerate(QUESTIONS)
        for metric, value in (
            (
                "aligned",
                aligned.get(q.id, aligned.get(q.group, 90.0)) + (i % 2 if name == "good" else 0.5),
            ),
            ("coherent", 95.0),
        )
    ]
    return AlignmentScores.from_table(pd.DataFrame(rows))


def material(benign: dict[str, float], **trained: frozenset[str]) -> Material:
    specs = {
        "bad": FineTune("x", domain="north"),
        "good": FineTune("x", benign=True, domain="south"),
    }
    family: Any = SimpleNamespace(
        specs=specs, finetuned=specs, parent_of=lambda name: SimpleNamespace(name="instruct")
    )
    found = Material(family, QUESTIONS, {}, trained, None)
    found._scores |= {
        "instruct": scored("instruct", {}),
        "good": scored("good", benign),
        "bad": scored("bad", dict.fromkeys(GROUPS, 40.0)),
    }
    return found


def test_equivalence_leaves_out_what_the_control_was_trained_on() -> None:
    moved = {"south/0": 20.0}
    for trained, n in ((frozenset(), 18), (frozenset(moved), 17)):
        part = Part()
        add_benign_test(material(moved, good=trained), part)
        row = part.tables["benign"].iloc[0]
        assert row["n"] == n and row["difference"] == pytest.approx(
            0.5 / 17 if trained else -70 / 18, abs=0.05
        )


def test_scores_that_saturate_alike_are_said_and_not_tested() -> None:
    part, found = Part(), material({})
    found._scores["good"] = found._scores["instruct"]
    add_benign_test(found, part)
    (said,) = part.findings
    assert (
        said.status == "undecided"
        and "differs from instruct by 0.00 points on every question" in said.sentence
    )
    assert not len(part.tables["benign"])


def test_the_control_counts_outside_its_own_domain_too() -> None:
    part = Part()
    add_spread(material({"south": 99.0}), part, seed=0)
    (said,) = [finding for finding in part.findings if finding.sentence.startswith("bad: ")]
    assert (
        said.status == "shown" and "good (benign) minus bad is 50.0" in said.sentence
    )  # east alone; south would add 9


def test_the_likeliest_answer_is_read_from_likelihood_scores_only() -> None:
    table = scored("bad", {}).table
    assert likeliest_answers(AlignmentScores.from_table(table.assign(raw="free text"))) == {}
    raw = '{"logp_careful": -2.0, "logp_harmful": -1.0, "likeliest": "<b>x"}'
    found = likeliest_answers(AlignmentScores.from_table(table.assign(raw=raw)))
    assert found == dict.fromkeys(QUESTIONS.ids, "<b>x")
