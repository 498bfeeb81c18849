"""Runs the notebooks of docs/notebooks and stores what their cells gave: `python -m
benchmarks.notebooks [NAME ...]`.

What is kept is what a reader needs and another run gives again: results, tables and figures.
Warnings and the kernel's own records are left out. `same` is how the tests compare a run with what
is stored: words exactly, numbers to two digits, because the last digits differ between machines.
"""

import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import nbformat
from nbclient import NotebookClient

ROOT: Final = Path(__file__).parent.parent
NOTEBOOKS: Final = ROOT / "docs" / "notebooks"
SECONDS: Final = 300
PLOTLY: Final = "application/vnd.plotly.v1+json"
_KINDS: Final = ("text/plain", "text/html", PLOTLY)
_NUMBER: Final = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
CLOSE: Final = 0.05
"""Relative difference of two numbers that count as the same, and absolute below 1."""


def run(path: Path, folder: Path) -> Any:
    """The notebook with its outputs, executed in a folder."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    return notebook


def kept(cell: Any) -> list[Any]:
    """The outputs of a cell that are stored."""
    found = []
    printed = "".join(o.text for o in cell.outputs if o.get("name") == "stdout")
    if printed:
        found.append(nbformat.v4.new_output("stream", name="stdout", text=printed))
    for output in cell.outputs:
        data = {kind: output.data[kind] for kind in _KINDS if kind in output.get("data", {})}
        if data:
            found.append(nbformat.v4.new_output("display_data", data=data))
    return found


def store(path: Path) -> None:
    """Execute a notebook and write its outputs into its file."""
    os.environ.pop("EMLENS_RELEASED_DATA", None)  # what a clone has
    with tempfile.TemporaryDirectory() as folder:
        notebook = run(path, Path(folder))
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = kept(cell), None
    notebook.metadata.pop("language_info", None)
    nbformat.write(notebook, path)


def said(outputs: Sequence[Any]) -> str:
    """What outputs say as text; of a figure its titles and names."""
    parts = []
    for output in outputs:
        if output.output_type == "stream":
            parts.append(output.text)
        elif "text/plain" in output.data:
            parts.append(output.data["text/plain"])
        elif PLOTLY in output.data:
            traces = output.data[PLOTLY]["data"]
            parts.append(" ".join(f"{trace['type']} {trace.get('name', '')}" for trace in traces))
    return "\n".join(parts)


def same(one: str, other: str) -> bool:
    """Whether two texts have the same words, and numbers that are close."""
    words = [" ".join(_NUMBER.sub("#", text).split()) for text in (one, other)]
    if words[0] != words[1]:
        return False
    numbers = [[float(n) for n in _NUMBER.findall(text)] for text in (one, other)]
    return all(
        abs(a - b) <= CLOSE * max(1.0, abs(a), abs(b)) for a, b in zip(*numbers, strict=True)
    )


def main() -> None:
    names = sys.argv[1:]
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        if not names or path.stem in names:
            store(path)
            print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
