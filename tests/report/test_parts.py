"""A section for every part in the order of its study, drawn from records; nothing is imported that
is no part.
"""

import re
import sys
from dataclasses import replace

import pandas as pd
import pytest
from figures.study_tables import study_tables
from report.invented import INVENTED, registered, tables

from emlens.report.data_blocks import DataBlocks
from emlens.report.figures import MOST_FACETS, plot_html
from emlens.report.page import render
from emlens.report.sections import sections_of
from emlens.results import Finding, Plot, StudyResult, Table
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
    assert headings(text)[:4] == ["verdict", "direction_transfer", "invented", "profile"]
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
    assert "What few studies have" not in own and "table rare" not in own
    assert "One row per person." in own and 'data-csv="people"' in own
    # the text alternative
    assert "one: 20 values from 2.05 to 3; two: 20 values from 2.05 to 3." in own


def test_every_registered_part_has_a_section() -> None:
    for study in registry.study_names():
        parts = registry.parts_of(study)
        found = sections_of(a_result(study, {}))
        assert [section.name for section in found] == list(parts), study
        assert len({section.name for section in found}) == len(found)


def test_a_plot_added_to_a_section_is_drawn_and_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    priors = type(registry.get_study("priors"))
    assert priors.section is not None
    plot = Plot("points", "runs", "loss", "aligned", "More", "More.")
    more = replace(
        priors.section,
        plots=(*priors.section.plots, plot),
        tables={**priors.section.tables, "runs": Table("Runs.", INVENTED)},
    )
    monkeypatch.setattr(priors, "section", more)
    (section,) = sections_of(a_result("priors", tables()))
    assert section.title == "Could it have been foreseen?"
    text = render(a_result("priors", tables()))
    number = len(more.plots)
    assert f'id="priors-plot{number}-1"' in text
    assert "“More” shows values with neither interval nor null" in text


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
        "delta_overlap",
        "direction_transfer",
        "priors",
    ]


def test_a_part_that_was_left_out_says_why() -> None:
    with registered("invented"):
        text = render(a_result(found={}, warnings=["invented was left out: nothing to invent"]))
        assert '<p class="missing">Left out: nothing to invent.</p>\n</section>' in text
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


def captions(plot: Plot, data: pd.DataFrame) -> list[str]:
    """The captions of the figures that a plot draws."""
    text = plot_html("t-plot1", plot, a_result(found={"t": data}), DataBlocks())
    return re.findall(r"<figcaption>([^<]*)</figcaption>", text)


def test_many_facets_are_cut_and_said() -> None:
    data = pd.DataFrame({"who": [f"p{i}" for i in range(40)], "x": 1.0, "y": 2.0})
    plot = Plot("points", "t", "x", "y", "T", "C", facet="who")
    assert captions(plot, data) == [f"p{i}" for i in range(MOST_FACETS)]
    said = f"{MOST_FACETS} of 40 figures, one per value of who;"
    assert said in plot_html("t-plot1", plot, a_result(found={"t": data}), DataBlocks())
    few = plot_html("t-plot1", plot, a_result(found={"t": data.head(3)}), DataBlocks())
    assert "figures, one per value" not in few


def test_facets_that_are_numbers_bear_the_name_of_their_column() -> None:
    data = pd.DataFrame({"k": [1, 8], "x": 1.0, "y": 2.0})
    plot = Plot("points", "t", "x", "y", "T", "C", facet="k")
    assert captions(plot, data) == ["k 1", "k 8"]


def test_a_kind_that_nobody_made_is_named_on_the_page() -> None:
    text = plot_html("t-plot1", Plot("pie", "t", title="P"), a_result(), DataBlocks())
    assert "Left out: draw_plot: kind &#x27;pie&#x27; is unknown; pass one of line," in text
