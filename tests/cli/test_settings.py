"""`--set NAME=VALUE`: read by kind, refused with the names there are, and all on one page."""

from pathlib import Path

import pytest

from emlens.cli import capture, direction, judge, sample, screen, train
from emlens.cli.settings import (
    count,
    help_text,
    names,
    number,
    read_settings,
    text,
    whole_number,
    yes_or_no,
)
from emlens.foundation.errors import InputError

SETTINGS = {
    "k": whole_number("k"),
    "every": count("every"),
    "below": number("below"),
    "key": text("key"),
    "allow": names("allow"),
    "own": yes_or_no("own"),
}
COMMANDS = {
    "emlens screen": screen,
    "emlens judge": judge,
    "emlens train": train,
    "emlens sample": sample,
    "emlens capture": capture,
    "emlens direction": direction,
}


def test_every_kind_is_read() -> None:
    words = ["k=-3", "every=2", "below=1e1", "key=a=b", "allow=far, stale,", "own=Yes"]
    assert read_settings(words, SETTINGS) == {
        "k": -3,
        "every": 2,
        "below": 10.0,
        "key": "a=b",
        "allow": ("far", "stale"),
        "own": True,
    }
    assert read_settings([], SETTINGS) == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["k"], "--set k: pass NAME=VALUE with one of the names k, every, below, key, allow, own"),
        (["K=1"], "--set K=1: pass NAME=VALUE with one of the names k,"),
        (["k=1", "k=2"], "--set k=2: k was given twice; pass it once"),
        (["k=1.5"], "--set k=1.5: pass a whole number$"),
        (["every=0"], "--set every=0: pass a whole number of at least 1"),
        (["below=low"], "--set below=low: pass a number"),
        (["own=1"], "--set own=1: pass yes or no"),
    ],
)
def test_what_does_not_fit_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_settings(words, SETTINGS)


def test_the_help_names_all_settings() -> None:
    said = "NAME=VALUE, repeatable: k, every, below, key, allow, own"
    assert help_text(SETTINGS).startswith(said)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_lists_every_setting(command: str, repository: Path) -> None:
    page = (repository / "docs" / "command_line.md").read_text("utf-8")
    for name, setting in COMMANDS[command].SETTINGS.items():
        assert f"| `{command}` | `{name}` | {setting.description} |" in page
