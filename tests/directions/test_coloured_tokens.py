"""Tokens coloured by a direction: numbers as a plain loop gives them, sinks without colour, hostile
text as text.
"""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny_models
import torch

from emlens.activations import CaptureSpec, capture
from emlens.data import PromptSet
from emlens.directions import token_view
from emlens.directions.coloured_tokens import TokenView
from emlens.foundation.errors import InputError
from emlens.foundation.sites import Site
from emlens.geometry import Direction
from emlens.models import HookedModel, load_model

CLOSE = 1e-5
HOSTILE = "<script>window.__pwned=1</script>\u202e\u2028\"'&amp;"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    return load_model(tiny_models.build(tmp_path_factory.mktemp("tokens") / "model"))


def direction(model: HookedModel, site: str = "resid_post.1") -> Direction:
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(3))
    return Direction(vector, Site.parse(site), "last_prompt")


CHAT = [
    {"role": "user", "content": "w1 w2 w3"},
    {"role": "assistant", "content": "w4 w5"},
]


def test_projections_are_those_of_the_captured_stream(model: HookedModel) -> None:
    axis = direction(model)
    view = token_view(model, axis, CHAT, layers=[0, -1])
    table = view.table()
    assert table["layer"].unique().tolist() == [0, model.n_layers - 1]
    spec = CaptureSpec(sites=["resid_post.0"], positions="all")
    stream = capture(model, CHAT, spec).tokens("resid_post.0").values.double()
    expected = stream @ (axis.vector.double() / axis.vector.double().norm())
    first = table[table["layer"] == 0]
    assert first["projection"].tolist() == pytest.approx(expected.tolist(), rel=CLOSE, abs=CLOSE)
    answer = "".join(first.loc[~first["prompt"], "token"])
    assert "w4 w5" in answer and "w1" not in answer


def test_by_default_the_layer_is_the_direction_s_own(model: HookedModel) -> None:
    view = token_view(model, direction(model), CHAT)
    assert view.table()["site"].unique().tolist() == ["resid_post.1"]
    assert repr(view).startswith("TokenView(texts=1, tokens=") and "\n" not in repr(view)


@pytest.mark.parametrize(
    "chat", ["w1 w2", ["w1 w2", "w3"], [CHAT, CHAT], PromptSet.from_questions(["w1 w2"])]
)
def test_a_chat_comes_as_people_have_it(model: HookedModel, chat: Any) -> None:
    assert len(token_view(model, direction(model), chat).table())


def view_of(tokens: list[tuple[str, float, bool]]) -> TokenView:
    rows = [
        {
            "id": HOSTILE,
            "site": "resid_post.1",
            "layer": 1,
            "token_index": i,
            "token": text,
            "prompt": False,
            "projection": value,
            "sink": sink,
        }
        for i, (text, value, sink) in enumerate(tokens)
    ]
    return TokenView(pd.DataFrame(rows), HOSTILE, 1.0)


def test_sinks_neither_have_a_colour_nor_set_the_scale() -> None:
    view = view_of([("sink", 1000.0, True), ("far", 2.0, False), ("back", -1.0, False)])
    page = view._repr_html_()
    assert "± 2:" in page
    assert 'rgba(213,94,0,0.750)" title="2">far' in page
    assert 'rgba(0,114,178,0.375)" title="-1">back' in page
    assert 'title="attention sink: not coloured">sink' in page and "1e+03" not in page


def test_hostile_text_is_text(tmp_path: Path) -> None:
    view = view_of([(HOSTILE, 1.0, False), (HOSTILE, 2.0, True)])
    page = view.save(tmp_path / "tokens.html").read_text(encoding="utf-8")
    assert "<script" not in page and "\u202e" not in page and "\u2028" not in page
    assert page.count("&lt;script&gt;") == 4
    assert "\u202e" not in repr(view)


def test_all_zero_projections_are_drawn() -> None:
    assert "± 1:" in view_of([("flat", 0.0, False)])._repr_html_()


def test_long_texts_are_cut_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emlens.directions.coloured_tokens.MOST_TOKENS", 2)
    view = view_of([("a", 1.0, False)] * 3)
    assert "2 of 3 tokens are drawn" in view._repr_html_() and len(view.table()) == 3


@pytest.mark.parametrize(
    ("site", "layers", "words"),
    [
        ("final_norm", None, "read at final_norm, which is in no block; pass one of a block"),
        ("resid_post.1", [], "layers is empty; pass at least one block"),
        ("resid_post.1", 99, r"layer 99 does not exist; .* has blocks 0 to"),
        ("resid_post.1", -99, r"layer -99 does not exist"),
    ],
)
def test_places_that_do_not_exist_are_refused(
    model: HookedModel, site: str, layers: Any, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        token_view(model, direction(model, site), CHAT, layers=layers)


def test_a_direction_of_another_width_is_refused(model: HookedModel) -> None:
    other = Direction(torch.ones(3), Site.parse("resid_post.1"))
    with pytest.raises(InputError, match="direction has 3 coordinates and .* pass a direction of"):
        token_view(model, other, CHAT)
