"""The report in a browser: no errors, every figure drawn, hostile text inert, nothing wider than a
phone, whole on paper.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from figures.study_tables import study_tables
from report import invented

from emlens.report import write_report
from emlens.report.tables import csv_text
from emlens.results import Finding, StudyResult

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
HOSTILE = (
    "<script>window.__pwned=1</script></script><img src=x"
    " onerror=window.__pwned=1>\u2028\"'&lt;b&gt; %{x} <a href='javascript:window.__pwned=1'>a</a>"
)
SIZES = {"desktop": (1200, 900), "phone": (390, 740)}
PARTS = ("profile", "delta_overlap", "direction_transfer", "invented", "priors")
SMALLEST_TEXT = 11.0
"""Pixels; below, text on a phone has to be enlarged to be read."""
PAPER = 718
"""Pixels across an A4 page within margins of 10 mm."""


def opened(browser: "Browser", path: Path, size: str) -> "tuple[Page, list[str]]":
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height})
    faults: list[str] = []
    page.on(
        "console",
        lambda message: (
            faults.append(message.text) if message.type in ("error", "warning") else None
        ),
    )
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "request",
        lambda request: (
            faults.append(request.url)
            if not request.url.startswith(("file:", "data:", "blob:"))
            else None
        ),
    )
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-drawn=all]", state="attached", timeout=120_000)
    page.wait_for_timeout(300)
    return page, faults


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with all kinds of figures, and one hostile name among ordinary ones."""
    finding = Finding("profile", f"{HOSTILE} fell", HOSTILE)
    tables = {
        **study_tables(HOSTILE, domain=HOSTILE, text=HOSTILE, extra=()),
        **invented.tables(HOSTILE, HOSTILE),
    }
    result = StudyResult(
        "mixed",
        {"path": HOSTILE},
        tables,
        [finding],
        [HOSTILE],
        {"models": {HOSTILE: {"adapter": None}}},
        HOSTILE,
    )
    with invented.registered(*PARTS):
        return write_report(
            result, tmp_path_factory.mktemp("report") / "report.html", title=HOSTILE
        )


@pytest.fixture(scope="module", params=SIZES)
def page(
    request: pytest.FixtureRequest, browser: "Browser", report: Path
) -> "Iterator[tuple[Page, list[str]]]":
    page, faults = opened(browser, report, request.param)
    yield page, faults
    page.close()


def test_no_console_error_and_no_request(page: "tuple[Page, list[str]]") -> None:
    assert page[1] == []


def test_every_figure_is_drawn_inside_its_frame(page: "tuple[Page, list[str]]") -> None:
    drawn = page[0].evaluate(
        "[...document.querySelectorAll('.plot')].map(p => [p.id,"
        " p.querySelectorAll('.main-svg').length, p.querySelectorAll('.trace, .heatmaplayer image,"
        " .hm').length, p.getBoundingClientRect().height])"
    )
    assert len(drawn) > 20 and sum(name.startswith("invented-plot") for name, *_ in drawn) == 5
    for name, layers, marks, height in drawn:
        assert layers >= 1 and marks >= 1 and height >= 150, name


def test_hostile_text_is_shown_but_does_nothing(page: "tuple[Page, list[str]]") -> None:
    shown = page[0]
    assert "<img src=x onerror" in shown.inner_text("h1")
    assert shown.evaluate(
        "[...document.querySelectorAll('.plot text')].some(t => t.textContent.includes('<script>'))"
    )
    point = shown.locator("#priors-points-1 .scatterlayer .trace .points path").first
    point.scroll_into_view_if_needed()
    point.hover(force=True)
    shown.wait_for_selector("#priors-points-1 .hoverlayer .hovertext", timeout=10_000)
    told = str(shown.text_content("#priors-points-1 .hoverlayer"))
    assert "<script>" in told and "answer:" in told  # the question, and what the fine-tune answers
    assert shown.evaluate("typeof window.__pwned") == "undefined"
    assert shown.evaluate("document.querySelectorAll('img, .plot a').length") == 0


def test_the_policy_stops_what_would_run(page: "tuple[Page, list[str]]") -> None:
    """Positive control: the same markup put into the page by hand is stopped by the policy, so the
    test above is not all there is.
    """
    shown, faults = page
    seen = len(faults)
    shown.evaluate(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.__pwned = 2';"
        " document.body.append(s); })()"
    )
    shown.evaluate(
        "(() => { const d = document.createElement('div');"
        " d.innerHTML = '<img src=x onerror=\"window.__pwned=3\">'; document.body.append(d); })()"
    )
    shown.wait_for_timeout(200)
    assert shown.evaluate("typeof window.__pwned") == "undefined"
    assert any("Content Security Policy" in fault for fault in faults[seen:])


def test_nothing_is_wider_than_the_screen(page: "tuple[Page, list[str]]") -> None:
    shown = page[0]
    shown.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert (
        shown.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        <= 0
    )


def test_the_only_button_of_a_figure_saves_it_as_a_picture(page: "tuple[Page, list[str]]") -> None:
    shown, faults = page
    figure = shown.locator("#priors-points-1")
    titles = figure.locator(".modebar-btn").evaluate_all(
        "buttons => buttons.map(b => b.dataset.title || b.getAttribute('aria-label'))"
    )
    assert titles == ["Download plot"]
    figure.scroll_into_view_if_needed()
    figure.hover(force=True)
    seen = len(faults)
    with shown.expect_download(timeout=20_000) as waiting:
        figure.locator(".modebar-btn").click(force=True)
    picture = Path(waiting.value.path()).read_text("utf-8")
    assert picture.startswith("<svg") and "<script" not in picture
    assert not [fault for fault in faults[seen:] if not fault.startswith("blob:")]


def test_download_gives_the_whole_table(page: "tuple[Page, list[str]]") -> None:
    shown = page[0]
    shown.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    with shown.expect_download() as waiting:
        shown.locator("button[data-csv=questions]").click()
    download = waiting.value
    assert download.suggested_filename == "questions.csv"
    assert Path(download.path()).read_text("utf-8") == csv_text(
        study_tables(HOSTILE, domain=HOSTILE, text=HOSTILE, extra=())["questions"]
    )


def test_text_is_large_enough_to_read(page: "tuple[Page, list[str]]") -> None:
    sizes = page[0].evaluate(
        "[...document.querySelectorAll('main p, main li, main td, main th, main summary,"
        " main button, .plot text')].filter(e => e.textContent.trim() &&"
        " e.getClientRects().length).map(e => [parseFloat(getComputedStyle(e).fontSize), e.tagName,"
        " e.textContent.slice(0, 40)])"
    )
    assert len(sizes) > 200
    assert min(sizes)[0] >= SMALLEST_TEXT, min(sizes)


def test_every_control_is_reached_by_keyboard(page: "tuple[Page, list[str]]") -> None:
    shown, places = page[0], "nav a, #verdict a, summary, button.download, .scroll, pre"
    wanted = shown.evaluate(f"""(() => {{
          document.querySelectorAll('details').forEach(d => {{ d.open = true; }});
          window.seen = [];
          document.addEventListener('focusin', e => {{
            if (e.target.matches('{places}')) {{
              window.seen.push([e.target.tagName, getComputedStyle(e.target).outlineStyle]);
            }}
          }});
          document.querySelector('nav a').focus();
          return document.querySelectorAll('{places}').length;
        }})()""")
    for _ in range(wanted * 2):
        shown.keyboard.press("Tab")
        if len(seen := shown.evaluate("window.seen")) >= wanted:
            break
    assert wanted > 20 and len(seen) >= wanted
    assert {style for _, style in seen[1:]} == {"solid"}


def test_a_link_to_a_section_arrives_there(page: "tuple[Page, list[str]]") -> None:
    shown = page[0]
    for place in ("priors", "invented", "direction_transfer-transfer", "provenance"):
        shown.evaluate(
            "place => { document.documentElement.style.scrollBehavior = 'auto';"
            " location.hash = place; }",
            place,
        )
        for _ in range(100):
            top, left = shown.evaluate(
                "place => [document.getElementById(place).getBoundingClientRect().top,"
                " document.documentElement.scrollHeight - innerHeight - scrollY]",
                place,
            )
            if abs(top) < 60 or left < 2:
                break
            shown.wait_for_timeout(100)
        assert abs(top) < 60 or left < 2, place


def test_on_paper_everything_is_open_and_whole(browser: "Browser", tmp_path: Path) -> None:
    found = {name: table for name, table in study_tables().items() if name in ("arms", "transfer")}
    result = StudyResult("mixed", {}, {**found, **invented.tables()}, [], [], {})
    with invented.registered("direction_transfer", "invented"):
        path = write_report(result, tmp_path / "report.html")
    shown, faults = opened(browser, path, "desktop")
    shut = shown.evaluate("document.querySelectorAll('details:not([open])').length")
    assert (
        shown.evaluate(
            "Math.max(...[...document.querySelectorAll('.plot')].map(e => e.offsetWidth))"
        )
        > PAPER
    )
    shown.emulate_media(media="print")
    shown.set_viewport_size({"width": PAPER, "height": 1000})
    shown.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    right, closed, across = shown.evaluate(
        "[[...document.querySelectorAll('.plot svg.main-svg,"
        " table')].map(e => e.getBoundingClientRect().right),"
        " document.querySelectorAll('details:not([open])').length,"
        " document.documentElement.scrollWidth]"
    )
    assert shut > 5 and closed == 0 and across <= PAPER
    assert len(right) > 10 and max(right) <= PAPER
    shown.emulate_media(media="screen")
    shown.set_viewport_size({"width": 1200, "height": 900})
    shown.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert shown.evaluate("document.querySelectorAll('details:not([open])').length") == shut
    assert len(shown.pdf(format="A4")) > 50_000 and faults == []
    shown.close()
