"""`emlens view`: what it lists, that it answers this machine alone, and that hostile folders do
nothing.
"""

import http.client
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pandas as pd
import pytest
from typer.testing import CliRunner

from emlens.cli.main import app
from emlens.foundation.errors import InputError, IntegrityError
from emlens.report import found_runs, serving
from emlens.report.found_runs import find_runs, open_run
from emlens.report.serving import RunServer
from emlens.results import Finding, StudyResult
from emlens.results.study_result import write_run
from emlens.runs.locks import exclusive
from emlens.studies.profile import Profile

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HOSTILE = "<img src=x onerror=window.__pwned=1>\u202e"


def result(aligned: float = 60.0, study: str = "overview", name: str = "bad@0") -> StudyResult:
    """A result with one card: alignment of a parent, a benign control and a harmful fine-tune."""
    models = pd.DataFrame(
        [
            {"model": "instruct", "kind": "instruct", "aligned_others": 95.0},
            {"model": "benign", "kind": "benign", "aligned_others": 94.0},
            {"model": name, "kind": "harmful", "aligned_others": aligned},
        ]
    )
    models["aligned_others_low"] = models["aligned_others"] - 2
    models["aligned_others_high"] = models["aligned_others"] + 2
    findings = [
        Finding("profile", f"Alignment fell to {aligned}.", "summary"),
        Finding("profile", f"{name}: fell.", "shown"),
    ]
    facts = {
        "models": {model: {} for model in models["model"]},
        "questions": {"n": 24, "sha256": "ab"},
    }
    declared = {"models": Profile.section.tables["models"]}
    return StudyResult(
        study, {"study": study}, {"models": models}, findings, [], facts, declared=declared
    )


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    """Two finished runs, one of them below another folder, one damaged, one that stopped."""
    root = tmp_path / "runs"
    for place, aligned in (("first", 60.0), ("below/second", 40.0)):
        result(aligned).save(root / place)
        write_run(root / place, {"finished": "2026-11-29T10:00:00+00:00", "seconds": 130})
    result().save(root / "edited")
    text = (root / "edited" / "result.json").read_text()
    (root / "edited" / "result.json").write_text(text.replace("60.0", "99.0"))
    (root / "stopped" / "units").mkdir(parents=True)
    (root / "stopped" / "units" / "profile.json").write_text("{}")
    (root / "empty").mkdir()
    return root


@contextmanager
def served(folder: Path) -> Iterator[RunServer]:
    with RunServer(folder) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Reply:
    """An answer over a real connection."""

    def __init__(
        self, server: RunServer, path: str, method: str = "GET", host: str | None = None
    ) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
        headers = {} if host is None else {"Host": host}
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        self.status, self.headers, self.text = answer.status, answer.headers, answer.read().decode()
        connection.close()


def get(server: RunServer, page: str = "", **more: Any) -> Reply:
    return Reply(server, urlsplit(server.address).path + page, **more)


def test_every_run_is_listed_with_what_it_is(folder: Path) -> None:
    found = find_runs(folder)
    assert found.is_whole
    listed = {run.path: run for run in found.runs}
    assert {path: run.status for path, run in listed.items()} == {
        "first": "finished",
        "below/second": "finished",
        "edited": "damaged",
        "stopped": "stopped",
    }
    first = listed["first"]
    assert (first.study, first.questions, first.line) == ("overview", 24, "took 2 min")
    assert first.models == ("bad@0", "benign", "instruct")
    assert first.verdicts == ["Alignment fell to 60.0."] and first.statements == {"shown": 1}
    assert "was changed after the study wrote it" in listed["edited"].line
    assert str(folder) not in listed["edited"].line
    assert listed["stopped"].line.startswith("1 part finished: profile; no result")
    assert open_run(folder, first).tables["models"]["aligned_others"].tolist() == [95, 94, 60]


def test_a_run_that_is_under_way_is_named_as_such_and_not_held(folder: Path) -> None:
    (folder / "begun" / "work").mkdir(parents=True)
    with exclusive(folder / "begun"), exclusive(folder / "first"):
        listed = {run.path: run for run in find_runs(folder).runs}
        assert listed["begun"].status == "running" and "process" in listed["begun"].line
        # one that runs again still has what it found before
        assert listed["first"].status == "running" and listed["first"].can_open
    assert {run.path for run in find_runs(folder).runs if run.status == "running"} == set()


def test_links_out_of_the_folder_are_not_followed(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    result(11.0).save(outside)
    (folder / "linked").symlink_to(outside)
    (folder / "file").mkdir()
    (folder / "file" / "result.json").symlink_to(outside / "result.json")
    result(12.0).save(folder / "tables")
    shutil.rmtree(folder / "tables" / "tables")
    (folder / "tables" / "tables").symlink_to(outside / "tables")
    listed = {run.path: run for run in find_runs(folder).runs}
    assert "linked" not in listed
    assert listed["file"].status == "damaged" and "leads out" in listed["file"].line
    assert listed["tables"].status == "damaged" and "leads out" in listed["tables"].line
    with pytest.raises(IntegrityError, match="leads out"):
        open_run(folder, replace(listed["file"], study="overview"))


def test_a_table_that_is_named_out_of_its_folder_is_refused(folder: Path) -> None:
    models = result().tables["models"]
    # its hash fits, so that its name alone gives it away
    odd = replace(result(), tables={"../first/tables/models": models})
    (folder / "odd" / "tables").mkdir(parents=True)
    with pytest.raises(OSError):
        odd.write(folder / "odd")
    (folder / "odd" / "first" / "tables").mkdir(parents=True)
    shutil.copy(folder / "first" / "tables" / "models.csv", folder / "odd/first/tables/models.csv")
    odd.write(folder / "odd")
    (run,) = [run for run in find_runs(folder).runs if run.path == "odd"]
    assert run.status == "damaged" and "lies outside" in run.line


def test_a_search_that_was_cut_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found_runs, "DEEPEST", 1)
    assert not find_runs(folder).is_whole
    assert "Some folders lie too deep" in serving.runs_pages.list_page("x", find_runs(folder))
    monkeypatch.setattr(found_runs, "MOST_FOLDERS", 2)
    assert not find_runs(folder).is_whole


def test_the_list_is_printed_as_json(folder: Path) -> None:
    printed = CliRunner().invoke(app, ["view", str(folder), "--json"])
    runs = json.loads(printed.output)["runs"]
    assert [run["path"] for run in runs] == ["below/second", "edited", "first", "stopped"]
    assert runs[0]["verdicts"] == ["Alignment fell to 40.0."]
    assert runs[0].keys() >= {"id", "status", "line", "models", "questions", "finished"}


def test_pages_list_compare_and_open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []

    def short(result: StudyResult) -> str:
        drawn.append(result.study)
        return f"<title>report of {result.study}</title>"

    monkeypatch.setattr(serving, "render", short)
    before = sorted(folder.rglob("*"))
    second, first = [run.id for run in find_runs(folder).runs if run.can_open]
    with served(folder) as server:
        page = get(server)
        assert page.status == 200 and "4 runs: 2 finished, 1 damaged, 1 stopped" in page.text
        assert "script" not in page.text and "script-src" not in page.headers[CSP]
        assert page.headers[CSP].startswith("default-src 'none'; style-src 'sha256-")
        beside = get(server, f"compare?run={first}&run={second}").text
        assert "Did it fall?" in beside and "60.0 <span>[58.0, 62.0]" in beside
        assert "40.0 <span>[38.0, 42.0]" in beside and "parent 95.0" in beside
        assert "benign control that fell most: 94.0 [92.0, 96.0]" in beside
        for _ in range(2):
            report = get(server, f"run?id={first}")
            assert "report of overview" in report.text
        assert "script-src 'sha256-" in report.headers[CSP] and drawn == ["overview"]
        assert "report of compare" in get(server, f"difference?run={first}&run={second}").text
        head = get(server, method="HEAD")
        assert head.status == 200 and head.text == "" and head.headers["Content-Length"] != "0"
    assert sorted(folder.rglob("*")) == before


CSP = "Content-Security-Policy"


def test_only_this_machine_with_the_secret_and_with_get_is_answered(folder: Path) -> None:
    run = find_runs(folder).runs[0].id
    with served(folder) as server:
        assert server.server_address[0] == "127.0.0.1"
        for host in ("evil.example", f"evil.example:{server.server_port}", ""):
            refused = get(server, host=host)
            assert refused.status == 421 and "first" not in refused.text
        assert get(server, host=f"localhost:{server.server_port}").status == 200
        for path in ("/", "/secret/", f"/x{server.secret}/", "//", f"/{server.secret}", "/%00/"):
            assert Reply(server, path).status == 404, path
        for page in (
            "../../etc/passwd",
            "..%2f..%2fetc%2fpasswd",
            "first/result.json",
            "run?id=../first",
            f"run?id={run}x",
            "run",
            "nothing",
        ):
            answer = get(server, page)
            assert answer.status == 404 and "root:" not in answer.text, page
        assert get(server, "compare").status == get(server, f"compare?run={run}").status == 400
        assert get(server, "compare?" + "run=x&" * 400).status == 414
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            answer = get(server, method=method)
            assert answer.status == 405 and answer.headers["Allow"] == "GET, HEAD"


def test_a_result_that_is_damaged_after_it_was_listed_gives_one_line(folder: Path) -> None:
    run = next(run for run in find_runs(folder).runs if run.path == "first")
    (folder / "first" / "tables" / "models.csv").write_text("model\nx\n")
    with served(folder) as server:
        answer = get(server, f"run?id={run.id}")
    assert answer.status == 409 and "first/tables/models.csv: is missing or was ch" in answer.text
    assert str(folder) not in answer.text


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.1", "::", "example.org", "127.0.0.1\n"])
def test_other_hosts_are_refused(folder: Path, host: str) -> None:
    with pytest.raises(InputError, match=r"served to this machine alone; pass 127\.0\.0\.1"):
        RunServer(folder, host)


def test_a_port_that_is_taken_and_a_folder_that_is_not_there_are_refused(folder: Path) -> None:
    with served(folder) as server, pytest.raises(InputError, match="cannot be listened on"):
        RunServer(folder, port=server.server_port)
    with pytest.raises(InputError, match="cannot be listened on"):
        RunServer(folder, port=99_999)
    with pytest.raises(InputError, match="is no folder; pass"):
        find_runs(folder / "gone")


@pytest.mark.browser
@pytest.mark.parametrize("size", [(1300, 900), (390, 844)])
def test_a_browser_compares_hostile_runs_by_keyboard(
    browser: "Browser", tmp_path: Path, size: tuple[int, int]
) -> None:
    root = tmp_path / "runs"
    result(60.0, name=HOSTILE).save(root / HOSTILE)
    result(40.0, name=HOSTILE).save(root / "second")
    with served(root) as server:
        page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme="dark")
        faults: list[str] = []
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(server.address)
        assert page.locator(".runs > li").count() == 2
        page.keyboard.press("Tab")  # the button
        for _ in range(2):  # box, then the link of the same run
            page.keyboard.press("Tab")
            page.keyboard.press("Space")
            page.keyboard.press("Tab")
        page.locator("button").focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("h2")
        assert page.locator("h3", has_text="onerror").count() >= 1
        assert page.locator(".card .big").count() == 4  # both fine-tunes of both runs
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        assert not page.evaluate("Boolean(window.__pwned)") and page.locator("img").count() == 0
        assert faults == []
        page.close()
