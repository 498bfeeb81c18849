"""Notebooks become pages when the site is built: nbconvert writes their Markdown, and figures draw
themselves with the plotly that is installed, served by the site itself.

A hook of MkDocs. The navigation names `notebooks/NAME.md`, which nobody wrote.
"""

import json
from pathlib import Path
from typing import Any, Final

import nbformat
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter
from plotly.offline import get_plotlyjs

PLOTLY: Final = "application/vnd.plotly.v1+json"
SCRIPT: Final = "theme/plotly.min.js"
_FIGURE: Final = (
    '<div class="figure" id="{name}"></div>'
    '<script src="../../{script}"></script>'
    "<script>{{const f = {figure};"
    "Plotly.newPlot('{name}', f.data, f.layout, {{responsive: true}});}}</script>"
)


def on_files(files: Files, config: Any) -> Files:
    """Called by MkDocs with all files of the documentation."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            text = page_of(Path(str(file.abs_src_path)))
            uri = file.src_uri.removesuffix(".ipynb") + ".md"
            files.append(File.generated(config, uri, content=text))
    return files


def on_post_build(config: Any) -> None:
    """Called by MkDocs when all pages are written."""
    path = Path(config["site_dir"]) / SCRIPT
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(get_plotlyjs(), encoding="utf-8")


def page_of(path: Path) -> str:
    """The Markdown of a notebook with its stored outputs."""
    notebook = nbformat.read(path, as_version=4)
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            _make_readable(output, f"{path.stem}-{number}")
    text, _ = MarkdownExporter().from_notebook_node(notebook)
    return str(text)


def _make_readable(output: Any, name: str) -> None:
    """Figures as HTML; tables without the look that pandas gives them."""
    data = output.get("data", {})
    if PLOTLY in data:
        # "<" never closes the script that the figure stands in
        figure = json.dumps(data.pop(PLOTLY)).replace("<", "\\u003c")
        data["text/html"] = _FIGURE.format(name=name, figure=figure, script=SCRIPT)
    if "text/html" in data:
        html = data["text/html"].replace('border="1" class="dataframe"', "")
        data["text/html"] = "\n".join(line for line in html.splitlines() if line.strip())
        data.pop("text/plain", None)
