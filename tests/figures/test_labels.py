"""Text in figures: printable, short, escaped; numbers with a true minus sign."""

import html

import pytest

from emlens.figures.labels import hover, label, number, position_name, printable


def test_control_format_and_separating_characters_are_replaced() -> None:
    assert printable("a\x00b\u202ec\u2028d\u2029e\ud800\n\t") == "a\ufffdb\ufffdc d e\ufffd  "
    assert printable("naïve – 你好") == "naïve – 你好"


def test_labels_are_escaped_after_they_are_shortened() -> None:
    assert label("<b>&") == "&lt;b&gt;&amp;"
    cut = label("&" * 100, 10)
    assert cut == "&amp;" * 9 + "…" and html.unescape(cut) == "&" * 9 + "…"


def test_hover_text_wraps_without_markup_of_its_own() -> None:
    text = hover("word " * 40 + "<a href='x'>")
    lines = text.split("<br>")
    assert len(lines) > 3 and all(len(html.unescape(line)) <= 56 for line in lines)
    assert "<" not in "".join(lines) and hover("") == ""


@pytest.mark.parametrize(
    ("value", "text"), [(-0.001, "0.00"), (-1.234, "−1.23"), (0.5, "0.50"), (-10.0, "−10.00")]
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_positions_in_words() -> None:
    assert position_name("last_prompt") == "last prompt token"
    assert position_name("Index(-2)<") == "Index(-2)&lt;"
