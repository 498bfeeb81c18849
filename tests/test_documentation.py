"""The documentation says what is so: snippets run, names exist, links lead somewhere, and every
page is in the navigation.

What needs a GPU, a cluster or a large model is marked, with its reason, and parses. Pages with a
test of their own run there.
"""

import ast
import re
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import documented
import pytest
import yaml

import emlens
from benchmarks import evidence_tables, goals, tables
from benchmarks.records import EVIDENCE
from emlens.foundation.files import read_json

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))
RUN_ELSEWHERE = {
    "geometry.md": "geometry/test_geometry_page.py",
    "questions.md": "evaluation/test_questions_page.py",
    "running.md": "activations/test_executor_capture.py",
    "how_to_add_a_study.md": "studies/test_added_study.py",
}
"""Pages whose snippets another test runs, which looks at what they gave."""
WITH_SNIPPETS = [
    page
    for page in PAGES
    if page not in RUN_ELSEWHERE and documented.snippets((DOCS / page).read_text("utf-8"))
]


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return documented.stage(tmp_path_factory.mktemp("stage"))


@pytest.mark.parametrize("page", WITH_SNIPPETS)
def test_snippets_run(page: str, stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with documented.on_stage(stage):
        documented.run_page((DOCS / page).read_text("utf-8"), f"docs/{page}")


def test_pages_that_run_elsewhere_do(repository: Path) -> None:
    for page, test in RUN_ELSEWHERE.items():
        text = (repository / "tests" / test).read_text("utf-8")
        assert f'"{page}"' in text and ("exec(" in text or "subprocess" in text), page


def test_a_snippet_that_fails_is_seen_and_a_marked_one_is_not_run(stage: Path) -> None:
    page = (
        "text\n```python\nx = 1\n```\n\n<!-- not run: needs a cluster -->\n```python\nraise"
        " OSError\n```\n\n```python\nx / 0\n```\n"
    )
    assert [(s.line, s.reason) for s in documented.snippets(page)] == [
        (3, None),
        (8, "needs a cluster"),
        (12, None),
    ]
    with documented.on_stage(stage), pytest.raises(ZeroDivisionError) as failed:
        documented.run_page(page, "docs/planted.md")
    assert failed.traceback[-1].lineno == 11  # counted from 0: the page's own line
    with pytest.raises(SyntaxError):
        documented.run_page(page.replace("raise OSError", "raise raise"), "docs/planted.md")


def test_every_page_is_in_the_navigation_once(repository: Path) -> None:
    listed = pages_in(yaml.safe_load((repository / "mkdocs.yml").read_text("utf-8"))["nav"])
    notebooks = [str(path.relative_to(DOCS)) for path in DOCS.rglob("*.ipynb")]
    pages = [*PAGES, *(f"{name.removesuffix('.ipynb')}.md" for name in notebooks)]
    assert sorted(listed) == sorted(pages)


def pages_in(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    inner = nav.values() if isinstance(nav, dict) else nav
    return [page for part in inner for page in pages_in(part)]  # type: ignore[union-attr]


def documentation_faults(text: str) -> list[str]:
    """Python snippets that do not parse, names of emlens they use that do not exist, local links
    that lead nowhere.
    """
    found = []
    for snippet in re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        try:
            tree = ast.parse(snippet)
        except SyntaxError as error:
            found.append(f"snippet does not parse: {error.msg}: {error.text}")
            continue
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "emlens"
            ):
                if node.attr not in emlens.__all__:
                    found.append(f"emlens.{node.attr} does not exist")
            elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "emlens":
                module = import_module(str(node.module))
                known = getattr(module, "__all__", dir(module))
                found += [
                    f"{node.module}.{a.name} does not exist"
                    for a in node.names
                    if a.name not in known
                ]
    return found


def broken_links(text: str, folder: Path) -> list[str]:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    return [target for target in targets if "://" not in target and not (folder / target).exists()]


DOCUMENTS = ["README.md", "CHANGELOG.md", *(f"docs/{page}" for page in PAGES)]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documentation_snippets_and_links(document: str, repository: Path) -> None:
    path = repository / document
    text = path.read_text(encoding="utf-8")
    assert documentation_faults(text) == []
    assert broken_links(text, path.parent) == []


def test_planted_faults_of_documentation_are_found(tmp_path: Path) -> None:
    snippet = (
        "```python\nimport emlens\nemlens.load_modle()\nfrom emlens.foundation import"
        " Sight\n```\n```python\n(\n```\n"
    )
    faults = documentation_faults(snippet)
    assert faults[:2] == [
        "emlens.load_modle does not exist",
        "emlens.foundation.Sight does not exist",
    ] or faults[:2] == [
        "emlens.foundation.Sight does not exist",
        "emlens.load_modle does not exist",
    ]
    assert faults[2].startswith("snippet does not parse")
    assert broken_links("[a](gone.md) [b](https://example.org/x) [c](#here)", tmp_path) == [
        "gone.md"
    ]


@cache
def functions_of(file: Path) -> frozenset[str]:
    if not file.is_file():
        return frozenset()
    return frozenset(
        node.name
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef)
    )


def ledger_faults(text: str, repository: Path) -> list[str]:
    """Names of emlens, tests and evidence files in code marks that are not there."""
    found = []
    for mark in re.findall(r"`([^`\n]+)`", text):
        # patterns, and a file beside an adapter
        if "<" in mark or "*" in mark or mark == "emlens.json":
            continue
        if f"<!-- file: {mark} -->" in text:  # the page tells its reader to make it
            continue
        if mark.startswith("tests/") and mark.count(".py") == 1:
            path, _, name = mark.partition("::")
            defined = functions_of(repository / path)
            if not defined or (name and name not in defined):
                found.append(f"no test {mark}")
        elif mark.startswith("docs/evidence/") and not mark.endswith("/"):
            if not (repository / mark).is_file():
                found.append(f"no file {mark}")
        elif re.fullmatch(r"emlens(\.\w+)+", mark) and not resolves(mark):
            found.append(f"no name {mark}")
    return found


def resolves(dotted: str) -> bool:
    """A public name, or a module."""
    value: object = emlens
    for part in dotted.split(".")[1:]:
        listed = getattr(value, "__all__", None)
        if (listed is not None and part not in listed) or not hasattr(value, part):
            return of_a_module(dotted)
        value = getattr(value, part)
    return True


def of_a_module(dotted: str) -> bool:
    """A module, or a name in one."""
    root = Path(emlens.__file__).parent.parent
    module, _, name = dotted.rpartition(".")
    if (root / dotted.replace(".", "/")).with_suffix(".py").is_file():
        return True
    return (root / module.replace(".", "/")).with_suffix(".py").is_file() and hasattr(
        import_module(module), name
    )


def ledger_rows(text: str) -> list[list[str]]:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return [
        row
        for row in rows
        if not set("".join(row)) <= set("-: ") and row[1:] != ["function", "test", "result"]
    ]


def test_the_papers_page_is_true(repository: Path) -> None:
    text = (DOCS / "papers.md").read_text("utf-8")
    assert ledger_faults(text, repository) == []
    rows = ledger_rows(text)
    assert len(rows) > 60 and {len(row) for row in rows} == {4}
    for claim, function, test, result in rows:
        assert claim and result, claim
        assert "`emlens." in function and "`tests/" in test, claim
    for paper in (
        "2606.20814",
        "2502.17424",
        "2506.11613",
        "2506.11618",
        "2602.07852",
        "2507.21509",
        "2406.11717",
        "2508.06249",
    ):
        assert paper in text


def test_planted_faults_of_a_ledger_are_found(repository: Path) -> None:
    planted = (
        "`emlens.capture` `emlens.stats.gone` `emlens.gone` `docs/evidence/gone.json`"
        " `tests/test_surface.py::test_gone` `tests/gone.py` `x`"
    )
    assert ledger_faults(planted, repository) == [
        "no name emlens.stats.gone",
        "no name emlens.gone",
        "no file docs/evidence/gone.json",
        "no test tests/test_surface.py::test_gone",
        "no test tests/gone.py",
    ]


@pytest.mark.parametrize("page", PAGES)
def test_files_and_tests_that_a_page_names_are_there(page: str, repository: Path) -> None:
    assert ledger_faults((DOCS / page).read_text("utf-8"), repository) == []


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "<!-- table: " in (DOCS / page).read_text("utf-8")]
)
def test_tables_are_those_of_the_evidence_files(page: str) -> None:
    text = (DOCS / page).read_text("utf-8")
    assert tables.drawn(text) == text, "python -m benchmarks tables draws them anew"
    assert text.count("<!-- table: ") == text.count("<!-- end of table -->") > 0


def test_a_changed_figure_is_drawn_and_the_rest_of_the_page_stays(tmp_path: Path) -> None:
    text = (DOCS / "evidence.md").read_text("utf-8")
    stale = re.sub(r"\| \d+ of 89 \|", "| 3 of 89 |", text)
    (tmp_path / "evidence.md").write_text(stale + "\nwords")
    assert stale != text and [path.name for path in tables.draw(tmp_path)] == ["evidence.md"]
    assert (tmp_path / "evidence.md").read_text() == text + "\nwords" and tables.draw(
        tmp_path
    ) == []


@pytest.mark.parametrize(
    ("goal", "value", "met"),
    [
        (goals.Goal("≤", "1.25"), 1.25, True),
        (goals.Goal("≤", "1.25"), 1.251, False),
        (goals.Goal("≥", ".80"), 0.8, True),
        (goals.Goal("≥", ".80"), 0.799, False),
        (goals.Goal("<", "120"), 119.9, True),
        (goals.Goal("<", "120"), 120.0, False),
        (goals.Goal("=", "0"), 0, True),
        (goals.Goal("=", "0"), 1, False),
        (goals.Goal("=", "0 of 1,000"), (0, 1000), True),
        (goals.Goal("=", "0 of 1,000"), (1, 1000), False),
        (goals.Goal("=", "25 of 25"), (25, 25), True),
        (goals.Goal("=", "25 of 25"), (24, 25), False),
        (goals.Goal("=", "25 of 25"), (20, 20), False),
        (goals.Goal("all"), (89, 89), True),
        (goals.Goal("all"), (88, 89), False),
        (goals.Goal("all"), (0, 0), False),
    ],
)
def test_a_figure_is_marked_exactly_where_it_misses_its_goal(
    goal: goals.Goal, value: float | tuple[int, int], met: bool
) -> None:
    assert goal.met(value) is met
    seen, fine = goals.Measured(value, "seen"), goals.Measured(1.0, "fine")
    assert goals.told([goal, goals.Goal("=", "1")], [seen, fine]) == (
        "seen; fine" if met else "seen, not reached; fine"
    )
    assert goals.told([], [seen]) == "seen"


def test_every_row_of_figures_is_marked_exactly_where_it_misses_its_goal() -> None:
    """From the text of the page alone."""
    marked = 0
    for row in evidence_tables.figures_table().splitlines()[2:]:
        _, wanted, measured, _ = (cell.strip() for cell in row.strip("|").split("|"))
        for goal, seen in zip(wanted.split("; "), measured.split("; "), strict=True):
            said = seen.endswith(", not reached")
            shown = seen.removesuffix(", not reached")
            if goal == "–":
                assert not said
                continue
            if goal == "all":
                missed = len(set(shown.split(" of "))) > 1
            elif goal[0] in "≤≥<":
                value, bound = float(re.split(r"[ ,]", shown)[0]), float(goal[2:])
                missed = value < bound if goal[0] == "≥" else value > bound
            else:
                missed = shown not in (goal, f"{goal}, {goal}")
            assert said == missed, row
            marked += missed
    assert marked >= 5


def test_every_evidence_file_says_where_it_comes_from() -> None:
    listed = evidence_tables.files_table()
    for path in EVIDENCE.glob("*.json"):
        record = read_json(path)
        assert f"| `{path.name}` |" in listed
        assert {"cores", "python"} <= record["hardware"].keys() and {
            "torch",
            "transformers",
        } <= record["versions"].keys(), path.name
        assert record["commit"] and record["seeds"] and record["name"] == path.stem
    assert all(
        figure in evidence_tables.figures_table() for _, figure, _, _ in evidence_tables.FIGURES
    )


def test_the_reference_names_everything_public_under_its_concept() -> None:
    text = (DOCS / "reference.md").read_text("utf-8")
    named = re.findall(r"^\| \[`(emlens\.[\w.]+)`\]\(.+?\) \| (.*) \|$", text, flags=re.MULTILINE)
    names = [name for name, _ in named]
    assert len(names) == len(set(names))
    packages = {name for name in emlens.__all__ if isinstance(getattr(emlens, name), ModuleType)}
    for name in set(emlens.__all__) - packages:
        assert f"emlens.{name}" in names
    for package in packages:
        for name in import_module(f"emlens.{package}").__all__:
            assert {f"emlens.{name}", f"emlens.{package}.{name}"} & set(names)
    assert [name for name, told in named if len(told) < 8] == []
    assert [name for name in names if not resolves(name)] == []
