"""The page of the command line says what the commands are: their names, their JSON, their exit
codes, their completion.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from emlens.cli.main import EXIT_CODES, app, main
from emlens.foundation.errors import InputError

PAGE = (Path(__file__).parents[2] / "docs" / "command_line.md").read_text()


def commands(group: Any, name: str) -> Iterator[tuple[str, Any]]:
    for word, command in group.commands.items():
        path = f"{name} {word}"
        if not hasattr(command, "commands") or command.invoke_without_command:
            yield path, command
        if hasattr(command, "commands"):
            yield from commands(command, path)


ALL = dict(commands(typer.main.get_command(app), "emlens"))


def test_every_command_has_its_row_and_every_row_its_command() -> None:
    assert set(re.findall(r"^\| `(emlens [a-z ]+)` \|", PAGE, re.MULTILINE)) == set(ALL)


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_command_speaks_json_and_helps(name: str) -> None:
    options = {option for parameter in ALL[name].params for option in parameter.opts}
    assert "--json" in options
    assert ALL[name].help and all(
        getattr(p, "help", "x") for p in ALL[name].params if "--help" not in p.opts
    )


def test_the_exit_codes_are_those_of_the_page() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", PAGE, re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == EXIT_CODES


class Raising:
    """A version that something happens to as it is printed."""

    def __init__(self, stop: Any):
        self.stop = stop

    def __format__(self, spec: str) -> str:
        return str(self.stop())


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (None, 0, ""),
        (typer.Exit(1), 1, ""),
        (InputError("k=0 is no dimension"), 2, "error: k=0 is no dimension\n"),
        (ZeroDivisionError("nobody foresaw this"), 70, "ZeroDivisionError: nobody foresaw this"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on from where it was\n"),
    ],
)
def test_what_a_command_raises_becomes_its_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: BaseException | None,
    code: int,
    said: str,
) -> None:
    def stop() -> str:
        if raised is not None:
            raise raised
        return "{}"

    monkeypatch.setattr("emlens.__version__", Raising(stop))
    monkeypatch.setattr(sys, "argv", ["emlens", "--version"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code or 0) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_made_for_the_shell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shell: str
) -> None:
    monkeypatch.setenv("_EMLENS_COMPLETE", f"source_{shell}")
    monkeypatch.setattr(sys, "argv", ["emlens"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    made = capsys.readouterr().out
    assert f"_EMLENS_COMPLETE=complete_{shell}" in made


def test_completion_knows_the_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {
        "_EMLENS_COMPLETE": "complete_bash",
        "COMP_WORDS": "emlens co",
        "COMP_CWORD": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["emlens"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out.split() == ["compare"]
