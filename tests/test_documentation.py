"""The documentation says what is so: snippets run, names exist, links lead somewhere, and every page is in the navigation.

What needs a GPU, a cluster or a large model is marked, with its reason, and parses. Pages with a test of their own run there.
"""

import ast
import re
from importlib import import_module
from pathlib import Path

import documented
import pytest
import yaml

import emlens

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(page.name for page in DOCS.glob("*.md"))
RUN_ELSEWHERE = {
    "geometry.md": "geometry/test_geometry_page.py",
    "nulls.md": "geometry/test_reference_nulls.py",
    "questions.md": "evaluation/test_questions_page.py",
    "running.md": "activations/test_executing.py",
}
"""Pages whose snippets another test runs, which looks at what they gave."""
WITH_SNIPPETS = [page for page in PAGES if page not in RUN_ELSEWHERE and documented.snippets((DOCS / page).read_text("utf-8"))]


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
    page = "text\n```python\nx = 1\n```\n\n<!-- not run: needs a cluster -->\n```python\nraise OSError\n```\n\n```python\nx / 0\n```\n"
    assert [(s.line, s.reason) for s in documented.snippets(page)] == [(3, None), (8, "needs a cluster"), (12, None)]
    with documented.on_stage(stage), pytest.raises(ZeroDivisionError) as failed:
        documented.run_page(page, "docs/planted.md")
    assert failed.traceback[-1].lineno == 11  # counted from 0: the page's own line
    with pytest.raises(SyntaxError):
        documented.run_page(page.replace("raise OSError", "raise raise"), "docs/planted.md")


def test_every_page_is_in_the_navigation_once(repository: Path) -> None:
    listed = pages_in(yaml.safe_load((repository / "mkdocs.yml").read_text("utf-8"))["nav"])
    assert sorted(listed) == PAGES


def pages_in(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    inner = nav.values() if isinstance(nav, dict) else nav
    return [page for part in inner for page in pages_in(part)]  # type: ignore[union-attr]


def documentation_faults(text: str) -> list[str]:
    """Python snippets that do not parse, names of emlens they use that do not exist, local links that lead nowhere."""
    found = []
    for snippet in re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        try:
            tree = ast.parse(snippet)
        except SyntaxError as error:
            found.append(f"snippet does not parse: {error.msg}: {error.text}")
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "emlens":
                if node.attr not in emlens.__all__:
                    found.append(f"emlens.{node.attr} does not exist")
            elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "emlens":
                known = import_module(str(node.module)).__all__
                found += [f"{node.module}.{a.name} does not exist" for a in node.names if a.name not in known]
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
        "```python\nimport emlens\nemlens.load_modle()\nfrom emlens.foundation import Sight\n```\n```python\n(\n```\n"
    )
    faults = documentation_faults(snippet)
    assert faults[:2] == ["emlens.load_modle does not exist", "emlens.foundation.Sight does not exist"] or faults[
        :2
    ] == [
        "emlens.foundation.Sight does not exist",
        "emlens.load_modle does not exist",
    ]
    assert faults[2].startswith("snippet does not parse")
    assert broken_links("[a](gone.md) [b](https://example.org/x) [c](#here)", tmp_path) == ["gone.md"]
