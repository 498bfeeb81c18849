"""Questions a stranger would type into the site's search, and whether the page that answers each is
among the first three hits.

The site is built into a temporary folder and searched in headless Chromium, by its own search box.
`QUESTIONS` is the list that is kept: question, and the pages that answer it.
"""

import http.server
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.records import record

ROOT: Final = Path(__file__).parent.parent
MOST_HITS: Final = 3
QUESTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "study my own fine-tune": ("how_to_own_finetune",),
    "sample answers from a model": ("reference/judging", "judging", "questions", "how_to_shell"),
    "use my own judge": ("how_to_judge", "judging"),
    "compute principal angles": ("geometry", "reference/geometry", "concepts"),
    "which null for an overlap": ("nulls",),
    "ablate a direction": ("interventions", "reference/interventions", "evaluating_interventions"),
    "steer with a vector": ("interventions", "reference/interventions", "directions"),
    "capture activations of a large model": ("how_to_large_models", "activations"),
    "capture on a server and study on a laptop": ("how_to_captures",),
    "sweep on slurm": ("how_to_sweep",),
    "read control vectors gguf": ("reference/directions", "directions"),
    "persona vectors": ("directions", "reference/directions", "coming_from"),
    "forecast alignment before training": ("forecasting", "concepts", "screening"),
    "screen a training file": ("screening", "reference/screening"),
    "confidence interval of a misalignment rate": ("judging", "statistics", "reference/data"),
    "load a LoRA adapter": ("adapters", "reference/models", "how_to_own_finetune"),
    "phase transition": ("dynamics",),
    "which token position": ("concepts", "activations"),
    "layer numbering hidden states": ("concepts", "coming_from", "pitfalls"),
    "transformer lens names": ("coming_from", "backends"),
}


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address on loopback under which a folder of files is served."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *given: Any, **named: Any):
            super().__init__(*given, directory=str(folder), **named)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()


def hits(page: Any, address: str, words: str) -> list[str]:
    """Pages that the site's search finds, the best first, each once, as paths without slashes at
    the end.
    """
    page.goto(address)
    # the list is empty until a search has run; the words are typed as a reader would
    page.locator(".md-search__input").click()
    page.locator(".md-search__input").press_sequentially(words)
    page.wait_for_selector(".md-search-result__link", timeout=20_000)
    page.wait_for_timeout(300)
    links = page.eval_on_selector_all(
        ".md-search-result__item > .md-search-result__link", "all => all.map(link => link.href)"
    )
    found = [link.removeprefix(address).partition("?")[0].partition("#")[0] for link in links]
    return list(dict.fromkeys(path.rstrip("/") for path in found))


def build(folder: Path) -> None:
    """The site, built into a folder."""
    from mkdocs.commands.build import build as build_site
    from mkdocs.config import load_config

    build_site(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))


def measure() -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    rows = []
    with tempfile.TemporaryDirectory() as name, sync_playwright() as driver:
        build(Path(name))
        executable = shutil.which("chromium") or driver.chromium.executable_path
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        with served(Path(name)) as address:
            for question, answers in QUESTIONS.items():
                found = hits(page, address, question)[:MOST_HITS]
                rows.append(
                    {
                        "question": question,
                        "answers": list(answers),
                        "first_hits": found,
                        "found": any(answer in found for answer in answers),
                    }
                )
        browser.close()
    return {"rows": rows, "found": sum(row["found"] for row in rows), "of": len(rows)}


def search_table(values: Mapping[str, Any]) -> str:
    lines = ["| question | first hits | answered |", "|---|---|---|"]
    for row in values["rows"]:
        answered = "yes" if row["found"] else "no"
        lines.append(f"| {row['question']} | {', '.join(row['first_hits'])} | {answered} |")
    return "\n".join(lines)


def main() -> None:
    values = measure()
    print(search_table(values))
    record("site_search", [0], values)


if __name__ == "__main__":
    main()
