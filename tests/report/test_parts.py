"""A section for every part in the order of its study, drawn from records; nothing is imported that
is no part.
"""

import re
import sys
from dataclasses import replace

import pandas as pd
import pytest
from figures.study_tables import study_tables
from report.invented import SECTION, TITLE, registered, tables

from emlens.report.page import render
from emlens.report.parts import MOST_FACETS, section_of_records, sections_of
from emlens.results import Finding, Plot, StudyResult
from emlens.studies import registry
from emlens.studies.comparing import compare_results


def a_result(
    study: str = "mixed", found: dict[str, pd.DataFrame] | None = None, **fields: object
) -> StudyResult:
    result = StudyResult(study, {}, tables() if found is None else found, [], [], {})
    return replace(result, **fields)  # type: ignore[arg-type]


def headings(text: str) -> list[str]:
    return re.findall(r'<section id="([^"]+)"', text)


def test_a_part_nobody_drew_has_method_figures_tables_and_its_place() -> None:
    with registered("direction_transfer", "invented", "profile"):
        text = render(
            a_result(
                found={**tables(), **study_tables()},
                findings=[Finding("invented", "It rose by 3 [1, 5].", "summary")],
            )
        )
    assert headings(text)[:4] == ["verdict", "direction", "invented", "profile"]
    own = text[text.index('<section id="invented"') : text.index('<section id="profile"')]
    assert (
        "How do invented things go?" in own
        and "They were invented. <cite>Nobody (2000).</cite>" in own
    )
    assert '<p class="claim">It rose by 3 [1, 5].</p>' in own
    assert [name for name in re.findall(r'class="plot" id="([^"]+)"', own)] == [
        f"invented-plot{i}" for i in ("1-1", "1-2", "2-1", "3-1", "4-1")
    ]
    assert "<figcaption>adam</figcaption>" in own and "<figcaption>muon</figcaption>" in own
    assert "Left out: the study has no table gone." in own
    assert "One row a person." in own and 'data-csv="people"' in own
    # the text alternative
    assert "one: 20 values from 2.05 to 3; two: 20 values from 2.05 to 3." in own


def test_every_registered_part_has_a_section() -> None:
    for study in registry.study_names():
        parts = registry.parts_of(study)
        found = sections_of(a_result(study, {}))
        assert [section.part for section in found] == list(parts), study
        assert len({section.name for section in found}) == len(found)


def test_sections_made_by_hand_keep_the_plots_of_their_records(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    more = replace(
        SECTION,
        plots=(Plot("points", "runs", "loss", "aligned", "More", "More."),),
        tables={"runs": "Runs.", "models": "x"},
    )
    monkeypatch.setattr(type(registry.get_study("priors")), "section", more)
    (section,) = sections_of(a_result("priors", tables()))
    assert section.title == "Could it have been foreseen?" and section.topics[-1].title == "More"
    assert section.tables["runs"] == "Runs." and "forecast" in section.tables
    text = render(a_result("priors", tables()))
    assert (
        'id="forecast-plot1-1"' in text
        and "“More” shows values with neither interval nor null" in text
    )


def test_only_parts_are_imported() -> None:
    before = set(sys.modules)
    for name in ("os", "..report", "running", "this.that", "<b>", "antigravity"):
        assert sections_of(a_result(name, {})) == []
    assert "antigravity" not in set(sys.modules) - before
    assert headings(render(a_result("<b>", {"x": pd.DataFrame({"y": [1]})}))) == [
        "verdict",
        "other",
        "provenance",
    ]


def test_a_result_of_an_unknown_study_keeps_the_sections_of_its_tables() -> None:
    assert [s.name for s in sections_of(a_result("from elsewhere", study_tables()))][:4] == [
        "profile",
        "overlap",
        "direction",
        "forecast",
    ]


def test_a_part_that_was_left_out_says_why() -> None:
    with registered("invented"):
        text = render(a_result(found={}, warnings=["invented was left out: nothing to invent"]))
        assert '<p class="missing">Left out: nothing to invent.</p></section>' in text
        assert "Left out: the study has none of its tables." in render(a_result(found={}))


def test_a_comparison_has_its_section() -> None:
    a = a_result("profile", study_tables())
    shifted = {**study_tables(), "models": study_tables()["models"].assign(aligned_others=1.0)}
    result = compare_results(a, a_result("profile", shifted), anyway=True)
    text = render(result)
    assert (
        headings(text)[:2] == ["verdict", "compare"] and "What differs between two results?" in text
    )
    assert f'data-csv="{next(iter(result.tables))}"' in text


def test_many_facets_are_cut_and_said() -> None:
    data = pd.DataFrame({"who": [f"p{i}" for i in range(40)], "x": 1.0, "y": 2.0})
    plot = Plot("points", "t", "x", "y", "T", "C", facet="who")
    (topic,) = section_of_records("many", TITLE, replace(SECTION, plots=(plot,))).topics
    assert len(list(topic.draw({"t": data}))) == MOST_FACETS
    assert topic.more is not None and topic.more({"t": data}).startswith(
        f"{MOST_FACETS} of 40 figures, one a value of who"
    )
    assert topic.more({"t": data.head(3)}) == ""


def test_facets_that_are_numbers_bear_the_name_of_their_column() -> None:
    data = pd.DataFrame({"k": [1, 8], "x": 1.0, "y": 2.0})
    plot = Plot("points", "t", "x", "y", "T", "C", facet="k")
    (topic,) = section_of_records("t", TITLE, replace(SECTION, plots=(plot,))).topics
    assert [drawing.about for drawing in topic.draw({"t": data})] == ["k 1", "k 8"]
