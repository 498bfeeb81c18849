"""The report in a browser: no errors, every figure drawn, few screens, readable, reached by
keyboard, hostile text inert, whole on paper.
"""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest
from figures.study_tables import study_tables
from report import invented

from emlens.report import data_blocks, write_report
from emlens.report.tables import csv_text
from emlens.results import Finding, StudyResult

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
HOSTILE = (
    "<script>window.__pwned=1</script></script><img src=x"
    " onerror=window.__pwned=1>\u2028\"'&lt;b&gt; %{x} <a href='javascript:window.__pwned=1'>a</a>"
)
SIZES = {"desktop": (1300, 900), "phone": (390, 844)}
PARTS = ("profile", "delta_overlap", "direction_transfer", "invented", "priors")
SMALLEST_TEXT = 11.0
"""Pixels; below, text on a phone has to be enlarged to be read."""
PAPER = 718
"""Pixels across an A4 page within margins of 10 mm."""
MOST_SCREENS = 8
MOST_PAGES = 8
LEAST_CONTRAST = 4.5
"""Of text and what is behind it (WCAG 2.2, level AA)."""
CONTROLS = "a[href], button:not(:disabled), input, select, summary, .scroll, .term, tr.pick, pre"
CONTRASTS = """() => {
  const numbers = c => c.match(/[\\d.]+/g).map(Number);
  const light = c => c.slice(0, 3).map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = node => {
    for (let n = node; n; n = n.parentElement) {
      const c = numbers(getComputedStyle(n).backgroundColor);
      if (c.length < 4 || c[3] > .99) return c;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll('body *')) {
    const own = [...node.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !node.checkVisibility({visibilityProperty: true})) continue;
    if (node.closest('script, style, dialog:not([open]), .heatmaplayer')) continue;
    const isSvg = node.namespaceURI.endsWith('svg');
    const colour = numbers(getComputedStyle(node)[isSvg ? 'fill' : 'color']);
    const paper = node.closest('.plot');
    const sheet = paper && paper.querySelector('.main-svg');
    const ground = sheet ? numbers(getComputedStyle(sheet).backgroundColor) : behind(node);
    const [a, b] = [light(colour), light(ground)].sort((x, y) => y - x);
    found.push([(a + .05) / (b + .05), node.textContent.slice(0, 40), node.className]);
  }
  return found;
}"""
"""The contrast of every visible text with what is behind it."""


def answer_tokens() -> pd.DataFrame:
    """The tokens of one answer: a sink, one along the direction, one half as far against it."""
    place = {"model": "bad@0", "question": "law/0", "direction_of": "bad@0", "layer": 1}
    tokens = (("<s>", 900.0, True), (" do", 4.0, False), (" it", -2.0, False))
    return pd.DataFrame(
        [
            {**place, "token_index": i, "token": token, "prompt": i == 0}
            | {"projection": projection, "sink": sink}
            for i, (token, projection, sink) in enumerate(tokens)
        ]
    )


def opened(
    browser: "Browser", path: Path, size: str, theme: str = "light"
) -> "tuple[Page, list[str]]":
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme)  # type: ignore[arg-type]
    page.set_default_timeout(10_000)
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text))
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
    page.wait_for_timeout(200)
    return page, faults


def open_everything(page: "Page") -> None:
    """Open every folded part, and wait until its figures are drawn."""
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    for _ in range(600):
        # the policy of the page forbids what `wait_for_function` would evaluate
        if page.evaluate(
            "[...document.querySelectorAll('figure.slot')].every(f => f.dataset.drawn"
            " || f.querySelector('.frame').hidden)"
        ):
            return
        page.wait_for_timeout(100)
    raise AssertionError("some figure was never drawn")


@pytest.fixture(scope="module")
def overview(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page such as a study of a family makes, with ordinary names."""
    findings = [
        Finding("profile", "Narrow fine-tuning lowered alignment in 2 of 2.", "summary"),
        Finding("delta_overlap", "Shifts overlap by 0.6.", "summary"),
        Finding("profile", "bad@0: fell by 14.9 [3.1, 27.0].", "shown"),
        Finding("profile", "wide@0: did not fall.", "not shown"),
        Finding("direction_transfer", "bad@0: removing its direction restores 0.7.", "not shown"),
        Finding("priors", "bad@0 from instruct, domains held out: R² 0.3.", "undecided"),
    ]
    warnings = ["no neutral text for bad@0", "bad@0: left out", "wide@0: left out"]
    tables = {**study_tables(), "answer_tokens": answer_tokens()}
    result = StudyResult("overview", {}, tables, findings, warnings, {}, "An instrument.")
    return write_report(result, tmp_path_factory.mktemp("overview") / "report.html")


@pytest.fixture(scope="module", params=SIZES)
def plain(
    request: pytest.FixtureRequest, browser: "Browser", overview: Path
) -> "Iterator[tuple[Page, list[str]]]":
    """The ordinary page as it opens."""
    page, faults = opened(browser, overview, request.param)
    yield page, faults
    page.close()


@pytest.fixture(scope="module")
def hostile(browser: "Browser", tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Page]":
    """A page with all kinds of figures, and one hostile name among ordinary ones; all is open."""
    tables = {
        **study_tables(HOSTILE, domain=HOSTILE, text=HOSTILE, extra=()),
        **invented.tables(HOSTILE, HOSTILE),
    }
    result = StudyResult(
        "mixed",
        {"path": HOSTILE},
        tables,
        [Finding("profile", f"{HOSTILE} fell", HOSTILE)],
        [HOSTILE],
        {"models": {HOSTILE: {"adapter": None}}},
        HOSTILE,
    )
    with invented.registered(*PARTS):
        path = write_report(
            result, tmp_path_factory.mktemp("report") / "report.html", title=HOSTILE
        )
    page, faults = opened(browser, path, "phone")
    open_everything(page)
    assert faults == []
    yield page
    page.close()


def test_the_page_opens_in_few_screens_without_a_message(plain: "tuple[Page, list[str]]") -> None:
    page, faults = plain
    height = page.evaluate("document.documentElement.scrollHeight / innerHeight")
    assert 1 < height <= MOST_SCREENS
    assert faults == []
    # whatever is left out is a table that this study has not
    missing = page.locator(".missing").all_text_contents()
    assert all(text.startswith("Left out: the study has no table") for text in missing)
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def test_every_figure_of_every_selection_is_drawn(plain: "tuple[Page, list[str]]") -> None:
    """All figures on the page, and not only those that are selected as it opens."""
    page, faults = plain
    if page.viewport_size != {"width": 390, "height": 844}:
        pytest.skip("once is enough, and a phone has the least room")
    drawn = page.evaluate("""async () => {
      const read = id => JSON.parse(document.getElementById(id).textContent);
      const node = document.createElement('div');
      node.style.width = '350px';
      document.querySelector('main').append(node);
      const found = [];
      for (const block of document.querySelectorAll('script[id^=slot-]')) {
        for (const variant of read(block.id).variants) {
          const figure = read(variant.figure);
          node.style.height = variant.height + 'px';
          await Plotly.newPlot(node, figure.data, figure.layout);
          const marks = node.querySelectorAll('.trace, .heatmaplayer image, .hm').length;
          found.push([block.id, variant.label, marks]);
        }
      }
      node.remove();
      return found;
    }""")
    assert len(drawn) > 50 and faults == []
    assert [name for *name, marks in drawn if marks < 1] == []


def test_selectors_drive_the_figures_the_cards_and_the_answers(
    plain: "tuple[Page, list[str]]",
) -> None:
    page, faults = plain
    lines, domains = page.locator("#delta_overlap-lines"), page.locator("#profile-domains")
    assert page.inner_text(".selected-model") == "bad@0"
    assert "bad@0, last prompt token" in lines.locator(".which").inner_text()
    page.select_option("#pick-model", "wide@0")
    page.select_option("#pick-position", "mean_prompt")
    page.wait_for_timeout(300)
    assert page.inner_text(".selected-model") == "wide@0"
    assert "wide@0, mean over prompt" in lines.locator(".which").inner_text()
    assert "wide@0" in str(domains.locator(".plot").get_attribute("aria-label"))
    shown = [card.inner_text() for card in page.locator(".card").all() if card.is_visible()]
    assert len(shown) == 3 and "not shown" in shown[0]
    # a fine-tune that a figure does not have is named, with those that it has
    page.select_option("#pick-model", "benign@0")
    assert "Not measured for benign@0. Measured for bad@0, wide@0." in lines.inner_text()
    page.select_option("#pick-model", "bad@0")
    page.select_option("#pick-group", "law")
    page.wait_for_timeout(300)
    assert page.locator("#profile-changes .which").inner_text() == "law"
    opacities = page.evaluate(
        "document.getElementById('priors-points-plot').data.map(t => [t.meta && t.meta.group,"
        " t.opacity])"
    )
    assert ["law", None] in opacities and ["cars", 0.12] in opacities
    page.select_option("#pick-group", "")
    page.select_option("#pick-position", "last_prompt")
    assert faults == []


def test_buttons_above_a_figure_choose_among_its_figures(plain: "tuple[Page, list[str]]") -> None:
    page, _ = plain
    lines = page.locator("#delta_overlap-lines")
    lines.locator("button[data-value=means]").click()
    assert "cosine of the mean shifts" in lines.locator(".which").inner_text()
    assert lines.locator("button[aria-pressed=true]").all_inner_texts() == [
        "cosine of the mean shifts"
    ]


def test_answers_are_searched_sorted_filtered_and_opened(plain: "tuple[Page, list[str]]") -> None:
    page, faults = plain
    rows = page.locator("#answers-list tbody tr")
    count = page.locator("#answers-list .count")
    assert count.inner_text().startswith("60 rows")
    page.fill("#answers-low", "65")
    assert count.inner_text().startswith("15 rows")  # the last five of twenty, in three domains
    page.select_option("#answers-order", "aligned")
    assert rows.first.locator("td.number").first.inner_text() == "65.0"
    page.fill("#answers-search", "law ? 19")
    assert count.inner_text().startswith("3 rows")
    page.fill("#answers-search", "")
    page.fill("#answers-low", "0")
    page.select_option("#pick-group", "cars")
    assert count.inner_text().startswith("20 rows")
    page.select_option("#pick-group", "")
    rows.first.focus()
    page.keyboard.press("Enter")
    told = page.inner_text("dialog")
    assert "answered by bad@0" in told and "The parent’s answer" in told
    assert "answered by instruct" in told
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible() and faults == []


def test_tokens_of_an_opened_answer_are_coloured_and_sinks_are_not(
    plain: "tuple[Page, list[str]]",
) -> None:
    page, faults = plain
    page.check("#answers-tokens")
    page.locator("#answers-list tbody tr").first.click()
    page.locator("dialog .tokens").wait_for()
    colours = page.evaluate(
        "[...document.querySelectorAll('.tokens span')].map(s => [s.textContent,"
        " s.style.backgroundColor])"
    )
    page.keyboard.press("Escape")
    page.uncheck("#answers-tokens")
    assert faults == []
    assert colours[:2] == [["<s>", ""], [" do", "rgba(213, 94, 0, 0.75)"]]
    text, colour = colours[2]
    # half as far, so half as strong; a browser keeps eight bits of it
    assert text == " it" and re.fullmatch(r"rgba\(0, 114, 178, 0\.37\d\)", colour)


def test_tables_are_sorted_searched_and_paged(plain: "tuple[Page, list[str]]") -> None:
    page, faults = plain
    page.evaluate("document.getElementById('profile').open = true")
    table = page.locator("details[data-table=questions]")
    table.locator("summary").click()
    table.locator(".live").wait_for()
    assert table.locator(".count").inner_text() == "300 rows, page 1 of 15"
    table.get_by_label("next page").click()
    assert table.locator(".count").inner_text() == "300 rows, page 2 of 15"
    table.locator("th button", has_text="aligned").click()
    assert table.locator("th[aria-sort=descending]").inner_text().startswith("aligned")
    assert "69" in table.locator("tbody tr").first.inner_text()
    table.get_by_label("search the table").fill("wide@0")
    assert table.locator(".count").inner_text() == "60 rows, page 1 of 3"
    page.evaluate("document.getElementById('profile').open = false")
    assert faults == []


def test_one_download_holds_every_table(plain: "tuple[Page, list[str]]", tmp_path: Path) -> None:
    page, _ = plain
    page.evaluate("document.getElementById('provenance').open = true")
    with page.expect_download(timeout=20_000) as waiting:
        page.click("#download-all")
    waiting.value.save_as(tmp_path / "tables.zip")
    page.evaluate("document.getElementById('provenance').open = false")
    tables = {**study_tables(), "answer_tokens": answer_tokens()}
    with zipfile.ZipFile(tmp_path / "tables.zip") as archive:
        assert archive.testzip() is None
        assert set(archive.namelist()) == {f"{name}.csv" for name in tables}
        assert archive.read("questions.csv").decode() == csv_text(tables["questions"])


def test_a_figure_is_saved_as_svg(plain: "tuple[Page, list[str]]") -> None:
    page, faults = plain
    with page.expect_download(timeout=20_000) as waiting:
        page.locator("#priors-points button.svg").click()
    assert waiting.value.suggested_filename == "priors-points.svg"
    picture = Path(waiting.value.path()).read_text("utf-8")
    assert picture.startswith("<svg") and "<script" not in picture
    assert not [fault for fault in faults if not fault.startswith("blob:")]


def test_every_control_is_reached_by_keyboard(browser: "Browser", overview: Path) -> None:
    page, _ = opened(browser, overview, "desktop")
    wanted = page.evaluate(f"""() => {{
      window.seen = new Set();
      document.addEventListener('focusin', e => {{
        if (e.target.matches('{CONTROLS}')) {{
          window.seen.add(e.target);
          e.target.dataset.outline = getComputedStyle(e.target).outlineStyle;
        }}
      }});
      return [...document.querySelectorAll('{CONTROLS}')].filter(n => n.checkVisibility()).length;
    }}""")
    for _ in range(wanted + 20):
        page.keyboard.press("Tab")
    missed = page.evaluate(
        f"[...document.querySelectorAll('{CONTROLS}')].filter(n => n.checkVisibility()"
        " && !window.seen.has(n)).map(n => n.outerHTML.slice(0, 80))"
    )
    assert wanted > 60 and missed == []
    styles = page.evaluate("[...window.seen].map(n => n.dataset.outline)")
    assert set(styles) == {"solid"}
    page.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(
    browser: "Browser", overview: Path, theme: str
) -> None:
    page, faults = opened(browser, overview, "desktop", theme)
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 200
    assert [found for found in contrasts if found[0] < LEAST_CONTRAST] == []
    page.click("#theme")  # the other theme
    page.wait_for_timeout(600)
    again = page.evaluate(CONTRASTS)
    assert [found for found in again if found[0] < LEAST_CONTRAST] == [] and faults == []
    page.close()


def test_the_page_prints_on_few_pages_with_its_statements(
    browser: "Browser", overview: Path
) -> None:
    page, faults = opened(browser, overview, "desktop")
    shut = page.evaluate("document.querySelectorAll('details:not([open])').length")
    pages = page.pdf(format="A4")
    assert 1 <= len(re.findall(rb"/Type\s*/Page[^s]", pages)) <= MOST_PAGES
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")  # still as wide as the screen
    page.emulate_media(media="print")
    page.set_viewport_size({"width": PAPER, "height": 1000})
    right, over, across, statement = page.evaluate("""[
      [...document.querySelectorAll('.plot svg.main-svg, table')].filter(e => e.checkVisibility())
        .map(e => e.getBoundingClientRect().right),
      [...document.querySelectorAll('.plot svg.main-svg')].filter(e => e.checkVisibility())
        .map(e => e.getBoundingClientRect().right
          - e.closest('figure').getBoundingClientRect().right),
      document.documentElement.scrollWidth,
      [...document.querySelectorAll('.statements .findings li')].every(e => e.checkVisibility())
    ]""")
    assert across <= PAPER and len(right) > 5 and max(right) <= PAPER and statement
    assert len(over) > 5 and max(over) <= 0  # nothing is cut off at the edge of its frame
    page.emulate_media(media="screen")
    page.set_viewport_size({"width": 1300, "height": 900})
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.querySelectorAll('details:not([open])').length") == shut
    assert faults == []
    page.close()


def test_every_figure_of_an_opened_page_is_in_its_frame(hostile: "Page") -> None:
    drawn = hostile.evaluate(
        "[...document.querySelectorAll('figure.slot')].map(f => [f.id, f.dataset.drawn,"
        " f.querySelectorAll('.main-svg').length, f.querySelector('.plot').offsetHeight])"
    )
    assert len(drawn) > 15 and sum(name.startswith("invented-plot") for name, *_ in drawn) == 4
    for name, state, layers, height in drawn:
        assert state == "yes" and layers >= 1 and height >= 150, name
    assert (
        hostile.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        <= 0
    )


def test_text_is_large_enough_to_read(hostile: "Page") -> None:
    sizes = hostile.evaluate(
        "[...document.querySelectorAll('main p, main li, main td, main th, main summary,"
        " main button, .plot text')].filter(e => e.textContent.trim() &&"
        " e.getClientRects().length).map(e => [parseFloat(getComputedStyle(e).fontSize), e.tagName,"
        " e.textContent.slice(0, 40)])"
    )
    assert len(sizes) > 200
    assert min(sizes)[0] >= SMALLEST_TEXT, min(sizes)


def test_hostile_text_is_shown_but_does_nothing(hostile: "Page") -> None:
    assert "<img src=x onerror" in hostile.inner_text("h1")
    assert hostile.evaluate(
        "[...document.querySelectorAll('.plot text')].some(t => t.textContent.includes('<script>'))"
    )
    point = hostile.locator("#priors-points .scatterlayer .trace .points path").first
    point.scroll_into_view_if_needed()
    point.hover(force=True)
    hostile.wait_for_selector("#priors-points .hoverlayer .hovertext", timeout=10_000)
    told = str(hostile.text_content("#priors-points .hoverlayer"))
    assert "<script>" in told and "answer:" in told  # the question, and what the fine-tune answers
    hostile.locator("#answers-list tbody tr").first.click()
    assert "<script>" in hostile.inner_text("dialog")
    hostile.keyboard.press("Escape")
    assert hostile.evaluate("typeof window.__pwned") == "undefined"
    assert hostile.evaluate("document.querySelectorAll('img, .plot a').length") == 0


def test_a_hostile_name_is_selected_like_any_other(hostile: "Page") -> None:
    options = hostile.locator("#pick-group option").evaluate_all("all => all.map(o => o.value)")
    name = next(value for value in options if "<script>" in value)
    hostile.select_option("#pick-group", name)
    hostile.wait_for_timeout(300)
    faded = hostile.evaluate(
        "document.getElementById('priors-points-plot').data.map(t => t.opacity)"
    )
    assert 0.12 in faded and None in faded
    hostile.select_option("#pick-group", "")


def test_the_policy_stops_what_would_run(hostile: "Page") -> None:
    """Positive control: the same markup put into the page by hand is stopped by the policy, so the
    test above is not all there is.
    """
    faults: list[str] = []
    hostile.on("console", lambda message: faults.append(message.text))
    hostile.evaluate(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.__pwned = 2';"
        " document.body.append(s); })()"
    )
    hostile.evaluate(
        "(() => { const d = document.createElement('div');"
        " d.innerHTML = '<img src=x onerror=\"window.__pwned=3\">'; document.body.append(d); })()"
    )
    hostile.wait_for_timeout(200)
    assert hostile.evaluate("typeof window.__pwned") == "undefined"
    assert any("Content Security Policy" in fault for fault in faults)


def test_packed_figures_are_drawn_and_follow_the_selectors(
    browser: "Browser", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_blocks, "MOST_PLAIN_BYTES", 0)
    tables = {name: study_tables()[name] for name in ("models", "domains", "arms")}
    result = StudyResult("overview", {}, tables, [], [], {})
    page, faults = opened(browser, write_report(result, tmp_path / "packed.html"), "phone")
    domains = page.locator("#profile-domains")
    assert domains.get_attribute("data-drawn") == "yes"
    assert page.locator("#profile-domains-plot .trace").count() > 0
    page.select_option("#pick-model", "wide@0")
    page.click("#theme")
    page.wait_for_timeout(400)
    assert "wide@0" in domains.locator(".which").inner_text()
    assert page.locator("#profile-domains-plot .trace").count() > 0 and faults == []
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    page.pdf(format="A4")  # before what was opened is unpacked
    assert faults == []
    page.close()


def test_a_link_into_a_folded_part_opens_it(browser: "Browser", overview: Path) -> None:
    page, _ = opened(browser, overview, "desktop")
    for place in ("priors", "direction_transfer-arms", "direction_transfer-transfer", "provenance"):
        page.evaluate("place => { location.hash = place; }", place)
        page.wait_for_timeout(400)
        top, left = page.evaluate(
            "place => [document.getElementById(place).getBoundingClientRect().top,"
            " document.documentElement.scrollHeight - innerHeight - scrollY]",
            place,
        )
        assert 0 <= top < 200 or left < 2, place
    assert page.evaluate("document.getElementById('direction_transfer').open")
    page.close()


def test_a_figure_that_fails_says_so(browser: "Browser", overview: Path, tmp_path: Path) -> None:
    """Positive control of the test that every figure is drawn."""
    text = overview.read_text("utf-8")
    start = text.index('id="figure-profile-domains-1">') + len('id="figure-profile-domains-1">')
    end = text.index("</script>", start)
    broken = tmp_path / "broken.html"
    broken.write_text(text[:start] + '{"data":7,"layout":{}}' + text[end:])
    page, _ = opened(browser, broken, "desktop")
    assert page.locator("#profile-domains").get_attribute("data-drawn") == "failed"
    assert "could not be drawn" in page.inner_text("#profile-domains .plot")
    page.close()
