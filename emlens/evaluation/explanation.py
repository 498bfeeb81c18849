"""What `explain` gives, and the page that shows it.

Every text of a model or a data set is shown as text: no markup, no character that steers the
direction of writing, no script on the page.
"""

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd

from emlens.evaluation.dosing import UsableWindow
from emlens.figures.labels import printable
from emlens.foundation.errors import UnknownNameError
from emlens.foundation.files import write_text
from emlens.foundation.notebooks import in_a_line

_PAGE: Final = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>What a direction means</title>'
    "<style>body{{font-family:sans-serif;max-width:75em;margin:1em auto;padding:0 1em}}"
    "table{{border-collapse:collapse}}td,th{{border-bottom:1px solid #ccc;padding:.2em .6em;"
    "text-align:left;vertical-align:top;overflow-wrap:anywhere}}</style>{body}</html>"
)
_SECTIONS: Final = {
    "tokens": (
        "Tokens that it writes",
        "Logit lens: tokens that the vector raises and lowers most through the final norm and the"
        " unembedding, z in standard deviations over the vocabulary; the largest of as many random"
        " numbers lies near z_by_chance. Beside it, what the parent's mean stream and a random"
        " direction write there.",
    ),
    "texts": (
        "Rows that move most along it and against it",
        "Projection in units of the stream. random_q95: of random directions with the covariance"
        " of the parent's streams, 95 of 100 have no row that lies further along them.",
    ),
    "doses": (
        "What a dose costs",
        "KL on neutral text in nats per token, with 95 % intervals over prompts; the coefficient"
        " is in median lengths of the stream.",
    ),
    "samples": (
        "Answers of the steered model",
        "The largest usable dose on each side, the model without it, and a random direction of the"
        " same length; the same random numbers everywhere.",
    ),
    "similarity": (
        "Cosine with given vectors",
        "random_q95: 95 of 100 random directions with the covariance of the parent's streams have"
        " a smaller cosine with that vector, whatever its sign.",
    ),
    "features": (
        "Features of the sparse autoencoder",
        "Cosine with decoder rows. random_q95: 95 of 100 random directions have no feature with a"
        " greater one.",
    ),
    "patchscope": (
        "What the model says of it",
        "Next tokens after the vector took the place of the last token of a prompt that repeats"
        " words. read_back: share of known words that come back when their own stream is put in.",
    ),
}
"""Table → its heading and what it shows, in the order of the page."""


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """What can be read of a direction; it shows itself in a notebook.

    Args:
        facts: model, site and lengths, in words.
        left_out: what was not read, and why.
        window: doses at which the model stays usable; None where none was measured.
    """

    _tables: Mapping[str, pd.DataFrame]
    facts: Mapping[str, str]
    left_out: Sequence[str]
    window: UsableWindow | None = None

    @property
    def names(self) -> list[str]:
        """The tables there are, in the order of the page."""
        return [name for name in _SECTIONS if name in self._tables]

    def table(self, name: str) -> pd.DataFrame:
        """One table, as a copy.

        Raises:
            UnknownNameError: there is none of that name.
        """
        if name not in self._tables:
            raise UnknownNameError(
                f"table {name!r} is not there; there are {', '.join(self.names)}",
                name=name,
                known=self.names,
            )
        return self._tables[name].copy()

    def cautions(self) -> list[str]:
        """What this explanation cannot say, each true of its own tables."""
        return list(_cautions(self._tables))

    def save(self, path: str | Path) -> Path:
        """Write it as a page of HTML without a script; returns the path."""
        write_text(path, _PAGE.format(body=self._repr_html_()))
        return Path(path)

    def __repr__(self) -> str:
        return in_a_line("Explanation", {**self.facts, "tables": self.names})

    def _repr_html_(self) -> str:
        parts = ["<h1>What a direction means</h1>"]
        parts += [f"<p>{_text(name)}: {_text(value)}</p>" for name, value in self.facts.items()]
        parts += [f"<p><b>{_text(caution)}</b></p>" for caution in self.cautions()]
        for name in self.names:
            title, words = _SECTIONS[name]
            parts.append(f"<h2>{title}</h2><p>{words}</p>")
            parts.append("".join(_rows(self._tables[name])))
        parts += [f"<p>Left out: {_text(reason)}.</p>" for reason in self.left_out]
        return f"<div>{''.join(parts)}</div>"


def _cautions(tables: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    patches = tables.get("patchscope")
    if patches is not None and not patches["can_read"].any():
        best = patches["read_back"].max()
        yield (
            f"The patchscope reads at most {best:.0%} of known words back at any layer, so what it"
            " says of this direction is nothing."
        )
    texts = tables.get("texts")
    if texts is not None:
        for name, rows in texts[texts["side"] == "along"].groupby("set", sort=False):
            if rows["projection"].max() <= rows["random_q95"].iloc[0]:
                yield f"No row of {name} lies further along it than along random directions."
    doses = tables.get("doses")
    if doses is not None and not doses["usable"].any():
        yield "No dose of the grid leaves the model usable on neutral text."
    near = tables.get("similarity")
    if near is not None and (near["cosine"].abs() <= near["random_q95"]).all():
        yield "None of the given vectors is more alike to it than random directions are."


def _rows(table: pd.DataFrame) -> Iterator[str]:
    """A table as HTML, cell by cell."""
    yield "<table><tr>"
    yield "".join(f"<th>{_text(column)}</th>" for column in table.columns)
    yield "</tr>"
    for row in table.itertuples(index=False):
        yield "<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>"
    yield "</table>"


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else _text(value)


def _text(value: object) -> str:
    """Text as text: escaped, and without characters that steer how it is written."""
    return html.escape(printable(str(value)))
