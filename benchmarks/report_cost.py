"""What a report costs its reader: size, screens, printed pages, and how long after opening the
first figure stands, in headless Chromium.

`EMLENS_REPORT_OF` names the directory of a finished study (several with the path separator
between); by default the demonstration is run first. Beside each stands the page of the same study
as if every fine-tune had `SEEDS` seeds. Each page is opened afresh `OPENINGS` times; the time is
the page's own clock at its first drawn figure.
"""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.records import record, show
from emlens.cli.study import DEMO
from emlens.report import write_report
from emlens.results import StudyResult
from emlens.studies import run_study

MOST_BYTES = 12_000_000
MOST_SECONDS = 2.0
MOST_SCREENS = 8
MOST_PAGES = 8
OPENINGS = 5
SEEDS = 3
NAMING = ("model", "direction_of", "ablated_in", "steered")
"""Columns that name a fine-tune."""
SIZES = {"desktop": (1300, 900), "phone": (390, 844)}


def cost_of(result: StudyResult, browser: Any, openings: int = OPENINGS) -> dict[str, Any]:
    """Bytes of the page and of its parts, seconds to write it, and by screen the seconds to its
    first and to all of its figures.
    """
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "report.html"
        started = time.process_time()
        write_report(result, path)
        seconds = time.process_time() - started
        found: dict[str, Any] = {
            "study": result.study,
            "rows": sum(len(table) for table in result.tables.values()),
            "bytes": path.stat().st_size,
            "cpu_seconds_to_write": seconds,
        }
        for screen, (width, height) in SIZES.items():
            firsts = [_opened(browser, path, width, height) for _ in range(openings)]
            found[f"first_figure_{screen}"] = {
                "seconds": firsts,
                "median": float(np.median(firsts)),
                "greatest": max(firsts),
            }
        found |= _looked_at(browser, path)
    return found | {
        "length_reached": max(found["screens"].values()) <= MOST_SCREENS
        and found["printed_pages"] <= MOST_PAGES,
        "size_reached": found["bytes"] <= MOST_BYTES,
        "time_reached": found["first_figure_desktop"]["median"] <= MOST_SECONDS,
    }


def with_seeds(result: StudyResult, seeds: int = SEEDS) -> StudyResult:
    """The same study with every row of a fine-tune once a seed, named `<fine-tune>@<seed>`: as many
    rows and figures as so many seeds give.
    """
    models = result.tables["models"]
    tuned = set(models.loc[models["kind"].isin(["harmful", "benign"]), "model"])
    tables = {}
    for name, table in result.tables.items():
        naming = [c for c in NAMING if c in table.columns]
        mine = (
            table[naming].isin(tuned).any(axis=1) if naming else pd.Series(False, index=table.index)
        )
        copies = [
            table[mine].assign(
                **{
                    c: table.loc[mine, c].map(lambda n, s=seed: f"{n}@{s}" if n in tuned else n)
                    for c in naming
                }
            )
            for seed in range(seeds)
        ]
        tables[name] = pd.concat([table[~mine], *copies], ignore_index=True)
    return replace(result, tables=tables)


def _opened(browser: Any, path: Path, width: int, height: int) -> float:
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(path.as_uri(), wait_until="commit")
    page.wait_for_selector("html[data-first]", state="attached", timeout=120_000)
    first = float(page.evaluate("document.documentElement.dataset.first"))
    page.close()
    return first / 1000


def _looked_at(browser: Any, path: Path) -> dict[str, Any]:
    """Screens as the page opens, figures on it, what is left out, printed pages, and what the
    console said meanwhile.
    """
    faults: list[str] = []
    screens: dict[str, float] = {}
    found: dict[str, Any] = {"screens": screens, "faults": faults}
    for screen, (width, height) in SIZES.items():
        page = browser.new_page(viewport={"width": width, "height": height})
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-drawn=all]", state="attached", timeout=300_000)
        screens[screen] = page.evaluate("document.documentElement.scrollHeight") / height
        found["figures"] = page.evaluate("document.querySelectorAll('[id^=figure-]').length")
        found["left_out"] = page.evaluate("document.querySelectorAll('.missing').length")
        found["printed_pages"] = len(re.findall(rb"/Type\s*/Page[^s]", page.pdf(format="A4")))
        page.close()
    return found


@contextmanager
def chromium() -> Iterator[Any]:
    """The system's headless Chromium."""
    from playwright.sync_api import sync_playwright

    found = next(
        (
            path
            for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
            if path
        ),
        None,
    )
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


def measure(
    directories: Sequence[str | Path], browser: Any, openings: int = OPENINGS
) -> list[dict[str, Any]]:
    values = []
    for result in map(StudyResult.load, directories):
        values.append(cost_of(result, browser, openings) | {"seeds": 1})
        values.append(cost_of(with_seeds(result), browser, openings) | {"seeds": SEEDS})
    return values


def main() -> None:
    asked = [name for name in os.environ.get("EMLENS_REPORT_OF", "").split(os.pathsep) if name]
    with tempfile.TemporaryDirectory() as name, chromium() as browser:
        if not asked:
            run_study(DEMO, name, progress=False)
        values = measure(asked or [name], browser)
    columns = (
        "study",
        "seeds",
        "rows",
        "bytes",
        "figures",
        "cpu_seconds_to_write",
        "left_out",
        "printed_pages",
        "length_reached",
        "size_reached",
        "time_reached",
    )
    table = pd.DataFrame(
        [
            {c: value[c] for c in columns}
            | {s: value[f"first_figure_{s}"]["median"] for s in SIZES}
            for value in values
        ]
    )
    show("Reports: size and seconds to the first figure", table)
    record(
        "report_cost",
        [0],
        {
            "goals": {"bytes": MOST_BYTES, "seconds": MOST_SECONDS},
            "openings": OPENINGS,
            "reports": values,
        },
    )
