"""Tokens of texts, coloured by how far each lies along a direction.

Orange is along the direction, blue against it. A text has one colour scale at each layer, from
minus to plus its largest value there. Attention sinks and massive activations are underlined and
not coloured: their vectors are many times longer than others, and whatever they project on says
nothing about the text. Everything that a text holds is shown as text: no markup, no character that
steers the direction of writing. Cost: one forward pass of the texts.
"""

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd

from emlens.data.prompt_inputs import PromptsLike, as_prompts
from emlens.directions.token_projections import token_projections
from emlens.figures.labels import printable
from emlens.foundation.choices import require_kind
from emlens.foundation.errors import InputError
from emlens.foundation.files import write_text
from emlens.foundation.notebooks import in_a_line
from emlens.foundation.sites import Site
from emlens.geometry import Direction
from emlens.models import HookedModel

ALONG, AGAINST = "213,94,0", "0,114,178"
STRONGEST = 0.75
"""Opacity of the largest projection of a text and layer."""
MOST_TOKENS: Final = 20_000
"""Tokens that are drawn; the table has all."""
_PAGE = '<!doctype html><html lang="en"><meta charset="utf-8"><title>tokens</title>{body}</html>'
_SPAN = (
    '<span style="background-color:rgba({colour},{share:.3f}){dim}" title="{title}">{text}</span>'
)
_SINK = '<span style="text-decoration:underline dotted{dim}" title="{title}">{text}</span>'
_DIM = ";opacity:0.7"


@dataclass(frozen=True, eq=False, repr=False)
class TokenView:
    """What `token_view` gives: it shows itself in a notebook, `table()` has the numbers.

    Args:
        place: where the direction was read, in words.
        length: of the direction.
    """

    _table: pd.DataFrame
    place: str
    length: float

    def table(self) -> pd.DataFrame:
        """One row per text, layer and token, as a copy.

        Columns: id, site, layer, token_index, token, prompt (whether it belongs to the prompt),
        projection (on the direction scaled to length 1, in units of the stream), sink.
        """
        return self._table.copy()

    def save(self, path: str | Path) -> Path:
        """Write it as a page of HTML without a script; returns the path."""
        write_text(path, _PAGE.format(body=self._repr_html_()))
        return Path(path)

    def __repr__(self) -> str:
        texts, layers = self._table["id"].nunique(), self._table["layer"].unique().tolist()
        tokens = len(self._table) // max(len(layers), 1)
        facts = {"texts": texts, "tokens": tokens, "layers": layers, "direction": self.place}
        return in_a_line("TokenView", facts)

    def _repr_html_(self) -> str:
        drawn = self._table[:MOST_TOKENS]
        parts = [f"<p>{_text(self._caption())}</p>"]
        for name, rows in drawn.groupby("id", sort=False):
            parts.append(f"<p><b>{_text(name)}</b></p>")
            for layer, tokens in rows.groupby("layer", sort=False):
                parts.append("".join(_line(layer, tokens)))
        if len(drawn) < len(self._table):
            parts.append(f"<p>{len(drawn)} of {len(self._table)} tokens are drawn.</p>")
        return f"<div>{''.join(parts)}</div>"

    def _caption(self) -> str:
        return (
            f"Projection of each token on the direction of {self.place}. Orange: along it; blue:"
            " against it; underlined: an attention sink or massive activation, not coloured; pale:"
            " the prompt."
        )


def token_view(
    model: HookedModel,
    direction: Direction,
    chat: PromptsLike,
    *,
    layers: int | Sequence[int] | None = None,
) -> TokenView:
    """Tokens coloured by their projection on a direction, at one or several layers.

    Args:
        direction: a `Direction` of this model, such as `forecast.direction`; it is read at its own
            kind of site.
        chat: a string, a conversation, a list of either, or prompts or answers.
        layers: 0-based blocks, negative ones from the end; None: the direction's own.

    Raises:
        InputError: a direction of another width, or of `final_norm`, which lies in no block; a
            layer that the model does not have; what `capture` refuses.
    """
    require_kind(direction, Direction, "direction", "a Direction, which knows its site")
    own = Site.parse(direction.site)
    if own.layer is None:
        raise InputError(
            f"direction was read at {own}, which is in no block; pass one of a block, such as"
            " resid_post.3"
        )
    if direction.d_model != model.d_model:
        raise InputError(
            f"direction has {direction.d_model} coordinates and {model.name!r} {model.d_model};"
            " pass a direction of this model"
        )
    blocks = [_block(layer, model) for layer in _as_list(layers, own.layer)]
    table = token_projections(model, direction, as_prompts(chat), list(dict.fromkeys(blocks)))
    place = str(own)
    if direction.position is not None:
        place = f"{own}, {direction.position}"
    return TokenView(table, place, direction.norm)


def _as_list(layers: int | Sequence[int] | None, own: int) -> list[int]:
    if layers is None:
        return [own]
    if isinstance(layers, int):
        return [layers]
    if not len(layers):
        raise InputError("layers is empty; pass at least one block, or None")
    return list(layers)


def _block(layer: int, model: HookedModel) -> int:
    block = layer
    if layer < 0:
        block = layer + model.n_layers
    if not 0 <= block < model.n_layers:
        raise InputError(
            f"layer {layer} does not exist; {model.name!r} has blocks 0 to {model.n_layers - 1}"
        )
    return block


def _line(layer: object, tokens: pd.DataFrame) -> Iterator[str]:
    """One text at one layer, from `<p>` to `</p>`."""
    shown = tokens.loc[~tokens["sink"], "projection"].abs()
    largest = float(shown.max()) if len(shown) and shown.max() > 0 else 1.0
    yield f'<p style="white-space:pre-wrap;line-height:1.9">layer {layer}, ± {largest:.3g}: '
    for row in tokens.itertuples(index=False):
        dim = ""
        if row.prompt:
            dim = _DIM
        text = _text(row.token)
        if row.sink:
            yield _SINK.format(dim=dim, title="attention sink: not coloured", text=text)
            continue
        projection = float(row.projection)  # type: ignore[arg-type]
        colour = AGAINST
        if projection > 0:
            colour = ALONG
        share = STRONGEST * abs(projection) / largest
        yield _SPAN.format(
            colour=colour, share=share, dim=dim, title=f"{projection:.3g}", text=text
        )
    yield "</p>"


def _text(value: object) -> str:
    """Text as text: escaped, and without characters that steer how it is written."""
    return html.escape(printable(value))
