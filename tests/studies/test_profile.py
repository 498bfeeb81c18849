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
from emlens.studies.score_means import mean_score

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
    for trained in (frozenset(), frozenset(moved)):
        part = Part()
        add_benign_test(material(moved, good=trained), part)
        row = part.tables["benign"].iloc[0]
        # units are the three domains; the moved question is one of six, or left out
        assert row["n"] == 3 and row["difference"] == pytest.approx(
            0.0 if trained else -70 / 18, abs=0.07
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


def test_alignment_that_rose_beyond_the_control_is_reversed() -> None:
    found, part = material({}), Part()
    found._scores["bad"] = scored("bad", dict.fromkeys(("north", "south", "east"), 99.0))
    add_spread(found, part, seed=0)
    summary, said = part.findings
    assert said.status == "reversed" and "alignment rose; " in said.sentence
    assert summary.sentence.startswith("That narrow fine-tuning lowered alignment")
    assert "is shown in none of 1 harmful fine-tune" in summary.sentence


def test_domains_are_the_unit_of_the_verdict_and_said() -> None:
    found, part = material({}), Part()
    low = {"south": 30.0, "east": 85.0}
    found._scores["bad"] = scored("bad", {**low, "north": 40.0})
    add_spread(found, part, seed=0)
    (said,) = [finding for finding in part.findings if finding.sentence.startswith("bad: ")]
    assert "(2 domains of 12 questions)" in said.sentence
    # two domains that fell by 60 and by 5 say little of a third; 12 questions would say a lot
    assert said.status != "shown" and "did not clearly fall" in said.sentence
    over_questions = mean_score(
        found.per_question("instruct") - found.per_question("bad"), found.outside("bad").ids, 0
    )
    assert over_questions.low > 0


@pytest.mark.parametrize(
    ("shift", "status", "words"),
    [
        (0.0, "shown", "equivalent to"),
        (40.0, "not shown", "not equivalent to"),
        (4.9, "undecided", "cannot be told whether it is equivalent to"),
    ],
)
def test_equivalence_is_shown_refuted_or_open(shift: float, status: str, words: str) -> None:
    part = Part()
    moved = {group: 90.0 - shift + i for i, group in enumerate(GROUPS)}
    add_benign_test(material(moved), part)
    (said,) = part.findings
    assert said.status == status, said.sentence
    assert f"Benign control good: {words} instruct within ±5 points" in said.sentence
    assert "3 domains of 18 questions" in said.sentence


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (40.0, "(parent minus fine-tune: 50 points of 100)"),
        (95.0, "(parent minus fine-tune: -5 points of 100)"),
    ],
)
def test_a_change_is_told_with_its_sign_and_in_every_number(value: float, said: str) -> None:
    part, found = Part(), material({})
    found._scores["bad"] = scored("bad", dict.fromkeys(GROUPS, value))
    add_spread(found, part, seed=0)
    summary = part.findings[0].sentence
    assert said in summary and "of 1 harmful fine-tune (" in summary
    assert "of 1 benign control " in summary


def test_the_likeliest_answer_is_read_from_likelihood_scores_only() -> None:
    table = scored("bad", {}).table
    assert likeliest_answers(AlignmentScores.from_table(table.assign(raw="free text"))) == {}
    raw = '{"logp_careful": -2.0, "logp_harmful": -1.0, "likeliest": "<b>x"}'
    found = likeliest_answers(AlignmentScores.from_table(table.assign(raw=raw)))
    assert found == dict.fromkeys(QUESTIONS.ids, "<b>x")
