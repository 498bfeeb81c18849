"""A section for every part in the order of its study, drawn from records; nothing is imported that
is no part.
"""

import base64
import gzip
import json
import re
import sys
from dataclasses import replace

import pandas as pd
import pytest
from figures.study_tables import study_tables
from report.invented import INVENTED, registered, tables

from emlens.report import data_blocks, slots
from emlens.report.browser import browser_html
from emlens.report.cards import cards_html
from emlens.report.data_blocks import DataBlocks
from emlens.report.page import render
from emlens.report.sections import sections_of
from emlens.report.slots import make_slot, slot_html
from emlens.report.statements import summaries_html
from emlens.results import Finding, Plot, StudyResult, Table
from emlens.studies import registry
from emlens.studies.comparing import compare_results

FIGURE_BYTES = 2000
"""Room for one figure of two points, and not for two."""


def a_result(
    study: str = "mixed", found: dict[str, pd.DataFrame] | None = None, **fields: object
) -> StudyResult:
    result = StudyResult(study, {}, tables() if found is None else found, [], [], {})
    return replace(result, **fields)  # type: ignore[arg-type]


def headings(text: str) -> list[str]:
    """The parts of the page, in order."""
    return re.findall(r'<details class="part" id="([^"]+)"', text)


def test_a_part_nobody_drew_has_method_figures_tables_and_its_place() -> None:
    with registered("direction_transfer", "invented", "profile"):
        text = render(
            a_result(
                found={**tables(), **study_tables()},
                findings=[Finding("invented", "It rose by 3 [1, 5].", "summary")],
            )
        )
    assert headings(text)[:3] == ["direction_transfer", "invented", "profile"]
    own = text[text.index('class="part" id="invented"') : text.index('class="part" id="profile"')]
    assert (
        "How do invented things go?" in own
        and "They were invented. <cite>Nobody (2000).</cite>" in own
    )
    assert '<p class="claim">It rose by 3 [1, 5].</p>' in own
    assert re.findall(r'data-slot="slot-([^"]+)"', own) == [
        f"invented-plot{i}" for i in (1, 2, 3, 4)
    ]
    # one place for both optimisers, and a button for each
    assert 'data-column="optimiser" data-value="adam">adam</button>' in own
    assert 'data-value="muon">muon</button>' in own
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
    assert f'id="priors-plot{number}"' in text
    assert "“More” shows values with neither interval nor null" in text


def test_only_parts_are_imported() -> None:
    before = set(sys.modules)
    for name in ("os", "..report", "running", "this.that", "<b>", "antigravity"):
        assert sections_of(a_result(name, {})) == []
    assert "antigravity" not in set(sys.modules) - before
    assert headings(render(a_result("<b>", {"x": pd.DataFrame({"y": [1]})}))) == [
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
        assert '<p class="missing">Left out: nothing to invent.</p>\n</details>' in text
        assert "Left out: the study has none of its tables." in render(a_result(found={}))


def test_a_comparison_has_its_section() -> None:
    a = a_result("profile", study_tables())
    shifted = {**study_tables(), "models": study_tables()["models"].assign(aligned_others=1.0)}
    result = compare_results(a, a_result("profile", shifted), anyway=True)
    text = render(result)
    assert headings(text)[0] == "compare" and "What differs between two results?" in text
    # nothing leads such a page, so its part is open
    assert '<details class="part" id="compare" open>' in text
    assert f'data-csv="{next(iter(result.tables))}"' in text


def drawn(plot: Plot, data: pd.DataFrame) -> tuple[list[str], str]:
    """The labels of the figures that a plot draws, and its place on the page."""
    blocks = DataBlocks()
    slot = make_slot("t-plot1", plot, a_result(found={"t": data}), blocks)
    return [variant["label"] for variant in slot.variants], slot_html(slot, blocks)


def test_many_facets_are_cut_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "MOST_FACETS", 3)
    data = pd.DataFrame({"who": [f"p{i}" for i in range(5)], "x": 1.0, "y": 2.0})
    plot = Plot("points", "t", "x", "y", "T", "C", facet="who")
    labels, text = drawn(plot, data)
    assert labels == ["p0", "p1", "p2"] and "3 of 5 figures, one per value of who;" in text
    assert "figures, one per value" not in drawn(plot, data.head(3))[1]


def test_figures_that_would_make_the_page_too_large_are_left_out_and_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = pd.DataFrame({"who": list("ab"), "x": 1.0, "y": 2.0})
    plot = Plot("points", "t", "x", "y", "T", "C", facet="who")
    monkeypatch.setattr(data_blocks, "MOST_FIGURE_BYTES", FIGURE_BYTES)
    labels, text = drawn(plot, data)
    assert labels == ["a"] and "1 of 2 figures, one per value of who;" in text


def test_figures_beyond_their_room_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = DataBlocks()
    monkeypatch.setattr(data_blocks, "MOST_PLAIN_BYTES", 100)
    plain, large = {"data": [1]}, {"data": ["<b>"] * 1000}
    assert blocks.add_figure("one", plain) and blocks.add_figure("two", large)
    text = blocks.html()
    assert '{"data":[1]}' in text and len(text) < 400
    packed = re.search(r'id="two">"(.+)"</script>', text)
    assert packed is not None
    assert json.loads(gzip.decompress(base64.b64decode(packed[1]))) == large


def test_three_sentences_stand_open() -> None:
    def said(count: int) -> str:
        return summaries_html([Finding("p", f"Sentence {i}.", "summary") for i in range(count)])

    assert "<details" not in said(1)
    three = said(3)
    assert three.count("<details") == 1 and "2 more sentences" in three
    five = said(5)
    folded = five[five.index('<details class="fourth">') :]
    assert "Sentence 3." in folded and "Sentence 4." in folded and "2 more sentences" in folded
    assert "Sentence 2." not in folded and 'start="4"' in folded


def test_facets_that_are_numbers_bear_the_name_of_their_column() -> None:
    data = pd.DataFrame({"k": [1, 8], "x": 1.0, "y": 2.0})
    plot = Plot("points", "t", "x", "y", "T", "C", facet="k")
    assert drawn(plot, data)[0] == ["k 1", "k 8"]


def test_a_column_that_the_head_selects_has_no_buttons() -> None:
    blocks = DataBlocks()
    data = pd.DataFrame({"model": list("ab"), "x": 1.0, "y": 2.0})
    plot = Plot("points", "t", "x", "y", "T", "C", facet="model")
    slot = make_slot("t-plot1", plot, a_result(found={"t": data}), blocks)
    assert "data-column" in slot_html(slot, blocks)
    followed = slot_html(slot, blocks, {"model"})
    assert "data-column" not in followed and "follows the selected fine-tune" in followed


def test_a_kind_that_nobody_made_is_named_on_the_page() -> None:
    text = drawn(Plot("pie", "t", title="P"), pd.DataFrame({"x": [1.0]}))[1]
    assert "Left out: draw_plot: kind &#x27;pie&#x27; is unknown; pass one of line," in text


@pytest.mark.parametrize(
    ("domain", "where"),
    [("medicine", "outside the trained domain"), (None, "on all questions"), ("", "on all")],
)
def test_a_card_says_on_which_questions_alignment_fell(domain: str | None, where: str) -> None:
    models = pd.DataFrame(
        {
            "model": ["instruct", "bad"],
            "kind": ["instruct", "harmful"],
            "domain": [None, domain],
            "aligned_others": [90.0, 50.0],
            "aligned_others_low": [88.0, 45.0],
            "aligned_others_high": [92.0, 55.0],
        }
    )
    cards = cards_html({"models": models}, [], ["bad"])
    assert "Which direction?" not in cards
    assert f"alignment (0–100) {where}" in re.sub("<[^>]+>", "", cards)


def test_a_question_without_a_number_has_its_statement() -> None:
    sentence = "bad: no direction was chosen, because restoration is undefined."
    said = [Finding("direction_transfer", sentence, "undecided")]
    cards = cards_html({}, said, ["bad", "worse"])
    first, second = cards.split("</article>")[:2]
    assert "Which direction?" in first and "There is no number" in first and sentence in first
    assert "undecided" in first and "Not measured for this fine-tune." in second


def test_scores_without_a_text_are_no_answers() -> None:
    row = {"model": "bad", "question": "q", "aligned": 50.0, "coherent": 90.0}
    told = {
        answer: browser_html({"questions": pd.DataFrame([row | {"answer": answer}])}, DataBlocks())
        for answer in ("", "well")
    }
    assert "1 score of 1 model on 1 question. No text was kept" in told[""]
    assert "1 answer of 1 model to 1 question." in told["well"]
