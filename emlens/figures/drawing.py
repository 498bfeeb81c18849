"""What `.plot()` of a result gives: a plotly figure that can be saved, or one that says why nothing
is drawn.

A `Drawing` is a plotly figure, so everything plotly can change can be changed. It shows itself in a
notebook, without a network. HTML and JSON are written by plotly alone; images need its companion
`kaleido`, which needs a browser.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from emlens.figures.labels import label
from emlens.figures.plots import draw_plot
from emlens.figures.style import add_panel_note, apply_layout
from emlens.foundation.errors import InputError, MissingExtraError
from emlens.foundation.files import write_text
from emlens.foundation.suggestions import did_you_mean
from emlens.results import Plot

IMAGES = ("svg", "png", "pdf", "jpg", "webp")
HEIGHT = 180
TITLE_ROOM = 34
MOST_OF_TITLE = 110


class Drawing(go.Figure):
    """A plotly figure that a result drew of itself."""

    def save(self, path: str | Path) -> Path:
        """Write the figure; the ending of the path says how.

        `.html` is one file that opens without a network (5 MB, nearly all of it plotly), `.json`
        what plotly reads again, `.svg`, `.png`, `.pdf`, `.jpg` and `.webp` are images.

        Returns the path.

        Raises:
            InputError: another ending.
            MissingExtraError: an image, and `kaleido` or its browser is not there.
        """
        path = Path(path)
        ending = path.suffix.removeprefix(".").lower()
        if ending == "html":
            write_text(path, self.to_html(include_plotlyjs=True))
        elif ending == "json":
            write_text(path, self.to_json())
        elif ending in IMAGES:
            self._save_image(path, ending)
        else:
            known = ("html", "json", *IMAGES)
            raise InputError(
                f"path={str(path)!r} ends in {path.suffix!r}; pass one that ends in"
                f" {', '.join(f'.{name}' for name in known)}{did_you_mean(ending, known)}"
            )
        return path

    def _save_image(self, path: Path, ending: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.write_image(path, format=ending)
        except (ImportError, ValueError, RuntimeError) as error:
            raise MissingExtraError(
                f"{path}: images are made by plotly through kaleido and a browser, and that failed"
                f" ({str(error).strip().splitlines()[0]}); run pip install kaleido,"
                " or save an .html"
            ) from error

    def _repr_html_(self) -> str:
        # plotly's own would load its script from a network
        return str(self.to_html(full_html=False, include_plotlyjs=True))


def drawing(
    table: pd.DataFrame,
    plot: Plot,
    *,
    empty: str,
    others: Mapping[str, pd.DataFrame] | None = None,
) -> Drawing:
    """The figure of a table with its title, or the sentence `empty` where it has no rows.

    Args:
        table: the plot's first table. others: further tables that its kind reads, by name.
        empty: what to say of a table without rows.
    """
    if not len(table):
        return sentence(empty)
    figure = Drawing(draw_plot({**(others or {}), plot.table: table}, plot))
    return titled(figure, plot.title)


def sentence(text: str) -> Drawing:
    """A figure that only says something."""
    figure = Drawing()
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    add_panel_note(figure, label(text, 200))
    apply_layout(figure, HEIGHT, legend=False)
    return figure


def titled(figure: Drawing, text: str) -> Drawing:
    """The figure with a title above everything that is drawn."""
    if text:
        top = (figure.layout.margin.t or 0) + TITLE_ROOM
        figure.update_layout(
            title={
                "text": label(text, MOST_OF_TITLE),
                "font": {"size": 14},
                "x": 0,
                "xref": "paper",
                "yref": "container",
                "y": 1,
                "yanchor": "top",
                "pad": {"t": 10},
            },
            margin={"t": top},
            height=(figure.layout.height or HEIGHT) + TITLE_ROOM,
        )
    return figure
