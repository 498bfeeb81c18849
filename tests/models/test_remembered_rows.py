"""Rendered prompts are remembered up to a number of tokens, and no row is lost beyond it."""

import pytest

from emlens.data.prompts import Prompt
from emlens.data.rendering import Rendered
from emlens.models import remembered_rows
from emlens.models.remembered_rows import RememberedRows

PROMPTS = [Prompt(f"p{i}", "x" * i) for i in range(1, 9)]


class Counting:
    """Renders a prompt as so many tokens as its text is long."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, prompts: list[Prompt]) -> list[Rendered]:
        self.count += len(prompts)
        return [Rendered(each.id, "", tuple(range(len(each.text))), 1) for each in prompts]


def test_a_prompt_is_rendered_once() -> None:
    render, remembered = Counting(), RememberedRows()
    rows = remembered.rows([*PROMPTS, PROMPTS[0]], render)
    assert [row.id for row in rows] == [*(each.id for each in PROMPTS), "p1"]
    assert remembered.rows(PROMPTS[::-1], render) == rows[-2::-1]
    assert render.count == 8


def test_beyond_its_tokens_all_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    # three rows of 1 to 3 tokens and what a row costs beside them
    monkeypatch.setattr(remembered_rows, "REMEMBERED_TOKENS", 3 * 24 + 6)
    render, remembered = Counting(), RememberedRows()
    rows = remembered.rows(PROMPTS[:3], render)
    assert remembered.rows(PROMPTS[:3], render) == rows and render.count == 3
    assert len(remembered.rows(PROMPTS, render)) == 8 and render.count == 8
    assert remembered.rows(PROMPTS[:3], render) == rows and render.count == 11
