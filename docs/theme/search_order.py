"""What the site's search puts first: pages that say how to do something, then the reference; notes
of the project are left out of it.

A hook of MkDocs; the search of Material for MkDocs reads what it sets.
"""

from typing import Any, Final

LEFT_OUT: Final = ("decisions.md", "architecture.md", "contributing.md", "evidence.md", "papers.md")
LESS: Final = (
    "advice.md",
    "architectures.md",
    "glossary.md",
    "reference.md",
    "reference/studies.md",
    "tables.md",
)
"""Long lists, which hold nearly every word."""


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by MkDocs with the text of each page; the text stays as it is."""
    path = page.file.src_uri
    if path in LEFT_OUT:
        page.meta["search"] = {"exclude": True}
    else:
        page.meta["search"] = {"boost": boost_of(path)}
    return markdown


def boost_of(path: str) -> float:
    if path.startswith("how_to_"):
        return 2
    if path in LESS:
        return 0.4
    return 1 if path.startswith("reference/") else 2
