"""The site: it builds without a warning, every page can be read at a desk and on a phone, and no
page asks another host for anything.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks import site_search
from benchmarks.reference import public_names

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WIDTHS = (1300, 390)
LOOK = """() => {
  const cut = [];
  for (const table of document.querySelectorAll('table')) {
    let box = table, scrolls = false;
    while (box && box !== document.body) {
      const overflow = getComputedStyle(box).overflowX;
      scrolls = scrolls || overflow === 'auto' || overflow === 'scroll';
      box = box.parentElement;
    }
    if (!scrolls && table.getBoundingClientRect().right > innerWidth + 1)
      cut.push(table.innerText.slice(0, 60));
  }
  return {cut, sideways: document.documentElement.scrollWidth - innerWidth};
}"""


WIDE = """() => document.body.insertAdjacentHTML('beforeend',
  '<div style="overflow: hidden"><table style="width: 900px"><td>wide</td></table></div>')"""


@pytest.fixture(scope="module")
def site(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning of MkDocs, such as a dead link, fails."""
    mkdocs = pytest.importorskip("mkdocs.commands.build", reason="the docs group is not installed")
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    warnings: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("mkdocs")
    log.addHandler(handler)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(repository)
            patch.setenv("NO_MKDOCS_2_WARNING", "1")
            mkdocs.build(load_config("mkdocs.yml", site_dir=str(folder)))
    finally:
        log.removeHandler(handler)
    assert warnings == []
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with site_search.served(site) as address:
        yield address


def pages(site: Path) -> list[str]:
    return sorted(str(path.parent.relative_to(site)) for path in site.rglob("index.html"))


def columns(site: Path, name: str) -> int:
    """Of the widest table of a page."""
    text = (site / name / "index.html").read_text("utf-8")
    return max((row.count("<th") for row in text.split("<tr>")), default=0)


def look(address: str, browser: "Browser", width: int, names: list[str]) -> None:
    page, faults = watched(browser, width, address)
    seen = {}
    for name in names:
        page.goto(f"{address}{name}/")
        found = page.evaluate(LOOK)
        if found["cut"] or found["sideways"] > 0:
            seen[name] = found
    assert seen == {} and faults == []
    page.close()


def watched(browser: "Browser", width: int, address: str) -> "tuple[Page, list[str]]":
    """A page of this width, and a list that fills with messages and requests to other hosts."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))

    def note(request: Any) -> None:
        if not request.url.startswith((address, "data:", "blob:")):
            faults.append(request.url)

    page.on("request", note)
    return page, faults


@pytest.mark.browser
@pytest.mark.parametrize("width", WIDTHS)
def test_no_table_is_cut_off_and_no_page_asks_another_host(
    width: int, site: Path, address: str, browser: "Browser"
) -> None:
    """The pages with the widest tables, and one of the reference."""
    widest = sorted(pages(site), key=lambda name: columns(site, name), reverse=True)[:5]
    look(address, browser, width, [*widest, "reference/geometry"])


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_at_all_is_cut_off(
    width: int, site: Path, address: str, browser: "Browser"
) -> None:
    look(address, browser, width, pages(site))


@pytest.mark.browser
def test_a_table_that_is_cut_off_is_seen(address: str, browser: "Browser") -> None:
    page, _ = watched(browser, 390, address)
    page.goto(address)
    page.evaluate(WIDE)
    assert page.evaluate(LOOK)["cut"] == ["wide"]
    page.close()


@pytest.mark.browser
def test_the_search_finds_a_function_before_a_decision(address: str, browser: "Browser") -> None:
    page, faults = watched(browser, 1300, address)
    first = site_search.hits(page, address, "principal angles")[0]
    assert first in ("geometry", "reference/geometry", "concepts")
    assert faults == []
    page.close()


def test_every_public_name_has_its_place_with_a_signature(site: Path) -> None:
    for full in public_names():
        package = full.partition(".")[0]
        text = (site / "reference" / package / "index.html").read_text("utf-8")
        assert f'id="emlens.{full}"' in text, full


def test_formulas_are_mathml(site: Path) -> None:
    text = (site / "geometry" / "index.html").read_text("utf-8")
    assert "<math" in text and 'class="arithmatex"' not in text
