"""Text that reaches a figure: questions, answers and names are data, never markup.

Plotly reads a few HTML tags and entities in labels and hover boxes. Whatever a user or a model
wrote is escaped here, and characters that steer a terminal or the direction of writing are
replaced.
"""

import html
import textwrap
import unicodedata

LONGEST_LABEL = 40
LONGEST_HOVER = 400
HOVER_WIDTH = 56


def printable(text: object) -> str:
    """The text with control, format, surrogate and line-separating characters replaced by `�`;
    white space becomes blanks.
    """
    kept = []
    for character in str(text):
        if character in "\t\n\r\u2028\u2029":
            kept.append(" ")
        else:
            kept.append(
                "\ufffd" if unicodedata.category(character) in ("Cc", "Cf", "Cs") else character
            )
    return "".join(kept)


def label(text: object, longest: int = LONGEST_LABEL) -> str:
    """A name for an axis, a legend or a title: printable, shortened, escaped."""
    return html.escape(_shortened(printable(text), longest), quote=False)


def stacked(text: object, width: int = 18, longest: int = LONGEST_LABEL) -> str:
    """A label broken into lines of at most `width` characters, for axes that have little room."""
    lines = textwrap.wrap(_shortened(printable(text), longest), width) or [""]
    return "<br>".join(html.escape(line, quote=False) for line in lines)


def hover(text: object) -> str:
    """A question or an answer for a hover box: printable, shortened, wrapped, escaped."""
    lines = textwrap.wrap(_shortened(printable(text), LONGEST_HOVER), HOVER_WIDTH) or [""]
    return "<br>".join(html.escape(line, quote=False) for line in lines)


def _shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


def number(value: float, digits: int = 2) -> str:
    """Fixed digits with a true minus sign; nothing is minus zero."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if not text.strip("-0.") else text.replace("-", "−")


def position_name(position: object) -> str:
    """A token position in words."""
    known = {
        "last_prompt": "last prompt token",
        "mean_prompt": "mean over prompt",
        "mean_response": "mean over response",
    }
    return known.get(str(position), label(position))
