"""The report as bytes: same result same page, one file that loads nothing, all text inert, policy
in step with its scripts.
"""

import base64
import gzip
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from figures.study_tables import study_tables

from emlens.figures.plots import missing_tables, plot_facets
from emlens.foundation.errors import InputError, IntegrityError
from emlens.report import write_report
from emlens.report.escaping import escape, inert_json, without_folders
from emlens.report.page import render
from emlens.report.sections import sections_of
from emlens.report.tables import ROWS_SHOWN, cell, csv_text
from emlens.results import Finding, StudyResult
from emlens.results.table_files import write_table

HOSTILE = (
    "<script>window.__pwned=1</script></script><img src=x"
    " onerror=window.__pwned=1>\u2028\u2029\"'&lt; <!-- ]]>"
)
LIMIT = 12 * 1024 * 1024


def a_result(
    name: str = "bad@0",
    *,
    domain: str = "medicine",
    text: str = "what is t1 in law ?",
    note: str = "An instrument, no evidence.",
    extra: tuple[str, ...] = ("wide@0",),
) -> StudyResult:
    facts = {
        "models": {
            name: (
                {
                    "architecture": "qwen2",
                    "dtype": "float32",
                    "benign": False,
                    "parent": "instruct",
                    "weights_sha256": "ab" * 32,
                }
                | {
                    "adapter": {
                        "peft_type": "LORA",
                        "r": 2,
                        "lora_alpha": 8,
                        "sha256": "cd" * 32,
                        "base_model_name_or_path": "/home/someone/base",
                    }
                }
            ),
            "instruct": {
                "architecture": "qwen2",
                "dtype": "float32",
                "adapter": None,
                "weights_sha256": "ab" * 32,
            },
        },
        "questions": {"n": 60, "sha256": "ef" * 32},
        "threads": 1,
        "versions": {"torch": "2.13.0"},
    }
    return StudyResult(
        study="overview",
        config={"questions": "/home/someone/work/questions.jsonl", "seed": 0, "k": 3},
        tables=study_tables(name, domain=domain, text=text, extra=extra),
        findings=[
            Finding("profile", f"{name}: fell by 14.9 [3.1, 27.0].", "shown"),
            Finding("delta_overlap", f"{text} overlaps.", "not shown"),
            Finding(name, "another part", "undecided"),
        ],
        warnings=[f"no neutral text for {name}"],
        facts=facts,
        note=note,
        run={
            "finished": "2026-01-02T03:04:05+00:00",
            "hardware": {"cores": 2, "accelerator": None},
        },
    )


class _Page(HTMLParser):
    """Elements and attributes as a browser's tokenizer would see them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text: list[str] = []
        self._open: dict[str, str | None] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self._open = dict(attrs)
            self.scripts.append((self._open, ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._open = None

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self.scripts[-1] = (self._open, self.scripts[-1][1] + data)
        else:
            self.text.append(data)


@pytest.fixture(scope="module")
def html() -> str:
    return render(a_result())


@pytest.fixture(scope="module")
def page(html: str) -> _Page:
    return _Page(html)


FEW = ("models", "domains", "questions", "arms", "transfer", "forecast_predictions")
"""Tables of every role, and few figures."""


def few_tables(result: StudyResult) -> StudyResult:
    return replace(result, tables={name: result.tables[name] for name in FEW})


def test_same_result_same_bytes(html: str, tmp_path: Path) -> None:
    one = write_report(few_tables(a_result()), tmp_path / "deep" / "one.html")
    assert one == tmp_path / "deep" / "one.html"
    assert one.read_bytes() == render(few_tables(a_result())).encode()
    assert len(html.encode()) < LIMIT


def test_from_the_directory_of_a_study(tmp_path: Path) -> None:
    result = a_result()
    result = replace(
        result, tables={name: result.tables[name] for name in ("models", "transfer", "arms")}
    )
    for name, table in result.tables.items():
        write_table(tmp_path / "study" / "tables" / f"{name}.csv", table)
    result.write(tmp_path / "study")
    path = write_report(tmp_path / "study", tmp_path / "r.html", title="Mine & yours")
    text = path.read_text("utf-8")
    assert "<h1>Mine &amp; yours</h1>" in text
    assert text.count("data-slot=") == 5
    (tmp_path / "study" / "tables" / "arms.csv").write_text("changed")
    with pytest.raises(IntegrityError, match="was changed after the study wrote it"):
        write_report(tmp_path / "study", tmp_path / "again.html")
    assert not (tmp_path / "again.html").exists()


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"is a directory; pass the file to write, such as .*report\.html"
    ):
        write_report(a_result(), tmp_path)
    with pytest.raises(
        InputError,
        match=r"result is a dict; pass a StudyResult or the directory that a study finished in",
    ):
        write_report({}, tmp_path / "r.html")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="holds no result.json"):
        write_report(tmp_path / "gone", tmp_path / "r.html")


def test_the_policy_names_exactly_the_scripts_of_the_page(page: _Page) -> None:
    policy = next(
        a["content"]
        for t, a in page.tags
        if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert (
        policy is not None
        and policy.startswith("default-src 'none'; ")
        and "unsafe-eval" not in policy
    )
    code = [text for attrs, text in page.scripts if attrs.get("type") != "application/json"]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in code]
    assert len(digests) == 4 and re.findall(r"'sha256-([^']+)'", policy) == digests
    assert not [a for t, a in page.tags if t == "script" and "src" in a]


def test_nothing_is_loaded_from_anywhere(page: _Page) -> None:
    for tag, attrs in page.tags:
        assert tag not in ("img", "iframe", "object", "embed", "base", "form")
        assert not [k for k in attrs if k.startswith("on")]
        for key in ("src", "href"):
            assert (attrs.get(key) or "#").startswith(("#", "data:,")), (tag, attrs)


def test_every_figure_has_data_and_a_text_alternative(page: _Page) -> None:
    plots = [a for t, a in page.tags if a.get("class") == "plot"]
    data = {
        a["id"]: json.loads(text) for a, text in page.scripts if a.get("type") == "application/json"
    }
    slots = {name: record for name, record in data.items() if name.startswith("slot-")}
    assert len(plots) == len(slots) > 15 and len({a["id"] for a in plots}) == len(plots)
    assert all(a["role"] == "img" and len(a["aria-label"] or "") > 60 for a in plots)
    for record in slots.values():
        for variant in record["variants"]:
            assert len(variant["alternative"]) > 60 and data[variant["figure"]]["data"]
    # a figure that cannot be drawn fails here: every facet of every plot is on the page
    tables = a_result().tables
    for section in sections_of(a_result()):
        for number, plot in enumerate(section.records.plots, start=1):
            if not missing_tables(tables, plot):
                record = slots[f"slot-{section.name}-{plot.name or f'plot{number}'}"]
                wanted = [list(facet.values) for facet in plot_facets(tables, plot)]
                assert [variant["values"] for variant in record["variants"]] == wanted
    said = "".join(page.text)
    reasons = re.findall(r"Left out(?! and why|, and why)([^.]*)", said)
    assert all(reason.startswith(": the study has no table") for reason in reasons)
    assert "figures, one per" not in said


def test_every_table_can_be_downloaded_in_full(page: _Page) -> None:
    result = a_result()
    data = {
        a["id"]: json.loads(text) for a, text in page.scripts if a.get("type") == "application/json"
    }
    buttons = {a["data-csv"] for t, a in page.tags if t == "button" and "data-csv" in a}
    assert buttons == set(result.tables)
    for name, table in result.tables.items():
        assert gzip.decompress(base64.b64decode(data[f"csv-{name}"])).decode() == csv_text(table)
    assert f"The first {ROWS_SHOWN} of {len(result.tables['questions'])} rows" in "".join(page.text)


def test_csv_is_what_a_study_writes(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": [1 / 3, float("nan")], "b": ["x,y", 'q"\n']})
    write_table(tmp_path / "t.csv", table)
    assert csv_text(table) == (tmp_path / "t.csv").read_text("utf-8")


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+1a",
        "-x",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "＝1",
        "\n=cmd()",
        " =cmd()",
        "\u3000+1a",
        "\nplain",
    ],
)
def test_what_a_spreadsheet_would_run_is_set_off_in_the_download(text: str) -> None:
    table = pd.DataFrame(
        {
            "a": [text, "-1.5", "plain = fine", "-"],
            "b": [-1.5, 2.0, float("nan"), -0.0],
            "=c": [True, False, True, False],
        }
    )
    back = pd.read_csv(io.StringIO(csv_text(table)), keep_default_na=False, dtype=str)
    assert list(back["a"]) == [f"'{text}", "-1.5", "plain = fine", "'-"]
    assert list(back["b"]) == ["-1.5", "2", "", "-0"] and list(back["'=c"]) == [
        "True",
        "False",
        "True",
        "False",
    ]


def test_the_verdict_comes_first_with_the_note_above_it(html: str) -> None:
    places = [
        html.index(text)
        for text in (
            "An instrument, no evidence.",
            'class="cards"',
            'id="selected"',
            'id="answers"',
            'id="cautions"',
            'id="parts"',
            'class="part" id="profile"',
        )
    ]
    assert places == sorted(places)
    assert "Shown, of 3 statements: profile 1 of 1, delta overlap 0 of 1, bad@0 0 of 1." in html
    assert "3 statements: 1 shown, 1 not shown, 1 undecided." in html
    chips = '<span aria-hidden="true">✓</span> shown', '<span aria-hidden="true">✕</span> not shown'
    assert all(chip in html for chip in chips)
    assert "No neutral text for bad@0." in html


def test_many_statements_are_folded_and_a_sentence_sums_them_up() -> None:
    found = [Finding("profile", f"fell {i}", "shown") for i in range(7)]
    bare = replace(a_result(extra=()), tables={})
    summed = render(replace(bare, findings=[Finding("profile", "all fell", "summary"), *found]))
    assert '<ol class="summary"><li>all fell</li></ol>' in summed
    assert '<details class="statements"><summary>7 statements: 7 shown' in summed
    assert '<p class="claim">all fell</p>' in summed
    few = render(replace(bare, findings=found[:6]))
    assert '<details class="statements" open><summary>6 statements' in few


def test_a_figure_says_the_layer_it_draws(page: _Page) -> None:
    result = a_result()
    shifts = result.tables["shifts"]
    late = shifts[(shifts["model"] != "bad@0") | (shifts["layer"] > 1)]
    tables = {"shifts": late, "overlap_shift": result.tables["overlap_shift"]}
    text = render(replace(result, tables=tables))
    assert '"label":"bad@0, layer 2"' in text and '"label":"wide@0, layer 1"' in text


def test_no_folder_of_the_machine_is_told(html: str) -> None:
    assert "/home/someone" not in html and "…/questions.jsonl" in html
    assert without_folders({"a": ["C:\\x\\y.csv", "~/z", "runs/x", "9 / 3", "/"]}) == {
        "a": ["…/y.csv", "…/z", "runs/x", "9 / 3", "/"]
    }
    spaced = [
        "/home/Jane Doe/q 1.jsonl",
        "/a//b/c/",
        "\\\\server\\share\\q.csv",
        "/home/o'neill/q.csv",
    ]
    assert without_folders(spaced) == ["…/q 1.jsonl", "…/c", "…/q.csv", "…/q.csv"]


def test_missing_tables_are_named() -> None:
    result = a_result(extra=())
    kept = {name: table for name, table in result.tables.items() if name not in ("overlap", "arms")}
    kept["directions"] = kept["directions"].drop(columns="coherent")
    kept["domains"] = kept["domains"].head(0)
    kept["transfer"] = kept["transfer"].drop(columns="n")
    kept["forecast_sites"] = kept["forecast_sites"].drop(columns="parent")
    kept["<b>own"] = pd.DataFrame({"x": [1]})
    text = render(replace(result, tables=kept, findings=[], warnings=[]))
    assert (
        "Left out: the study has no table overlap." in text
        and "Left out: the study has no table arms." in text
    )
    assert "Left out: the study has no table domains." in text
    assert "Left out (bad@0): direction_by_layer: the table has no column coherent; it has" in text
    assert "Left out: the table forecast_sites lacks the columns that tell its figures" in text
    assert "Left out: transfer_matrix: the table has no column n; it has" in text
    assert "The study reported no findings." in text
    assert "Further tables" in text and "&lt;b&gt;own" in text


def test_hostile_text_is_inert_in_the_markup() -> None:
    harmless = _Page(render(few_tables(a_result(extra=()))))
    hostile = a_result(f"{HOSTILE}@0", domain=HOSTILE, text=HOSTILE, note=HOSTILE, extra=())
    page = _Page(render(few_tables(hostile), title=HOSTILE))
    assert [t for t, _ in page.tags] == [t for t, _ in harmless.tags]
    assert [sorted(a) for _, a in page.tags] == [sorted(a) for _, a in harmless.tags]
    assert "<img src=x onerror=window.__pwned=1>" in "".join(page.text)  # it is there, as text
    for attrs, text in page.scripts:
        if attrs.get("type") == "application/json":
            assert not set(text) & set("<>&\u2028\u2029")


def test_escaping() -> None:
    assert escape(HOSTILE).count("<") == 0 and "\u2028" not in escape(HOSTILE)
    assert json.loads(inert_json({"a": HOSTILE})) == {"a": HOSTILE}
    assert [cell(v) for v in (True, float("nan"), 3.0, 0.123456, -2, "<")] == [
        "yes",
        "–",
        "3",
        "0.1235",
        "-2",
        "&lt;",
    ]
