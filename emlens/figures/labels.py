"""Text that reaches a figure: questions, answers and names are data, never markup.

Plotly reads a few HTML tags and entities in labels and hover boxes. Whatever a user or a model
wrote is escaped here, and characters that steer a terminal or the direction of writing are
replaced.
"""

import html
import textwrap
import unicodedata

import numpy as np

LONGEST_LABEL = 40
LONGEST_HOVER = 400
LONGEST_NUMBER = 1e9
"""Numbers from here on are written with an exponent: 1e308 has 309 digits."""
HOVER_WIDTH = 56
BLANKS = "\t\n\r\u2028\u2029"
UNPRINTABLE = ("Cc", "Cf", "Cs")
"""Unicode categories: control, format (which reverses the direction of writing), surrogate."""
POSITION_NAMES = {
    "last_prompt": "last prompt token",
    "mean_prompt": "mean over prompt",
    "mean_response": "mean over response",
    "end_of_turn": "end of turn",
}


def printable(text: object) -> str:
    """The text with unprintable characters replaced by `�`, and white space by blanks."""
    return "".join(map(_printable_character, str(text)))


def _printable_character(character: str) -> str:
    if character in BLANKS:
        return " "
    if unicodedata.category(character) in UNPRINTABLE:
        return "\ufffd"
    return character


def label(text: object, longest: int = LONGEST_LABEL) -> str:
    """A name for an axis, a legend or a title: printable, shortened, escaped."""
    return html.escape(_shortened(printable(text), longest), quote=False)


def key(text: object) -> str:
    """A name by which the page finds what belongs to it: printable, whole, escaped."""
    return html.escape(printable(text), quote=False)


def stacked(text: object, width: int = 18, longest: int = LONGEST_LABEL) -> str:
    """A label broken into lines of at most `width` characters, for axes that have little room."""
    return _wrapped(_shortened(printable(text), longest), width)


def hover(text: object) -> str:
    """A question or an answer for a hover box: printable, shortened, wrapped, escaped."""
    return _wrapped(_shortened(printable(text), LONGEST_HOVER), HOVER_WIDTH)


def _shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


def _wrapped(text: str, width: int) -> str:
    # Escape each line after wrapping, so that no entity is cut.
    lines = textwrap.wrap(text, width) or [""]
    return "<br>".join(html.escape(line, quote=False) for line in lines)


def number(value: float, digits: int = 2) -> str:
    """Fixed digits with a true minus sign; nothing is minus zero."""
    text = f"{value:.{digits}f}" if abs(value) < LONGEST_NUMBER else f"{value:.4g}"
    is_zero = not text.strip("-0.")
    return text.lstrip("-") if is_zero else text.replace("-", "−")


def interval(low: float, high: float, digits: int = 2) -> str:
    """Two ends in brackets, in fixed digits."""
    return f"[{number(low, digits)}, {number(high, digits)}]"


def position_name(position: object) -> str:
    """A token position in words."""
    return POSITION_NAMES.get(str(position), label(position))


def four_digits(value: float) -> str:
    """Four significant digits with a true minus sign; a dash where there is no number."""
    return f"{value:.4g}".replace("-", "−") if np.isfinite(value) else "–"


def cell_text(value: object) -> str:
    """A cell of a table in words: four digits, yes or no, a dash for nothing."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        number = float(value)
        is_count = number.is_integer() and abs(number) < 1e9
        return f"{number:.0f}" if is_count else four_digits(number)
    return "–" if value is None else str(value)
