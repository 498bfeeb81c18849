"""Every reader of other people's files against one table of damages (`damaged_files`)."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import damaged_files as table
import pytest
from inspect_ai import log as logs, model as models
from inspect_ai.scorer import Score

from emlens.foundation.errors import EmlensError

LONGEST = 500
"""Characters of a message that still reads as one line."""


def outcome(reader: table.Reader, damage: table.Damage, path: Path, good: Any) -> str | None:
    """What is wrong with how a damaged file is read; None where nothing is."""
    if damage.content is None:
        path.mkdir()
    else:
        path.write_bytes(damage.content)
    try:
        values = reader.read(path)
    except EmlensError as error:
        return _fault_of_message(str(error), reader, damage)
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    if damage.means_nothing and values == good:
        return None
    return f"read as {str(values)[:300]}"


def _fault_of_message(message: str, reader: table.Reader, damage: table.Damage) -> str | None:
    if damage.means_nothing:
        return f"refused: {message}"
    if len(message) > LONGEST or not message.isprintable():
        return f"not one line: {message!r}"
    if reader.named not in message:
        return f"does not name the file: {message}"
    if not re.search(damage.where, message):
        return f"does not say where ({damage.where}): {message}"
    return None


def faults(name: str, reader: table.Reader, folder: Path) -> tuple[int, dict[str, str]]:
    """How many damages a reader was given, and what is wrong with each that it failed."""
    path = folder / f"good.{reader.ending}"
    path.write_bytes(reader.content)
    good = reader.read(path)
    found: dict[str, str] = {}
    count = 0
    for damage_name, damage in table.damages(reader, folder):
        place = folder / f"{name}-{count}"
        place.mkdir()
        fault = outcome(reader, damage, place / f"file.{reader.ending}", good)
        if fault is not None:
            found[f"{name}: {damage_name}"] = fault
        count += 1
    return count, found


def inspect_log(folder: Path, ending: str) -> bytes:
    samples = []
    for name in "ab":
        said = models.ModelOutput.from_content("m", f"answer {name}")
        asked = models.ChatMessageUser(content=f"{name}?")
        scores = {"judge": Score(value={"aligned": 10.0})}
        samples.append(
            logs.EvalSample(
                id=name,
                epoch=1,
                input=name,
                target="",
                messages=[asked],
                output=said,
                scores=scores,
            )
        )
    spec = logs.EvalSpec(
        created="2026-01-01T00:00:00+00:00",
        task="em",
        dataset=logs.EvalDataset(name="d"),
        model="mock/bad",
        config=logs.EvalConfig(),
    )
    log = logs.EvalLog(status="success", eval=spec, plan=logs.EvalPlan(), samples=samples)
    path = folder / f"log.{ending}"
    logs.write_eval_log(log, str(path), format=ending)
    return path.read_bytes()


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, table.Reader]:
    folder = tmp_path_factory.mktemp("made")
    return table.readers(folder, lambda ending: inspect_log(folder, ending))


def test_every_damage_is_one_line_of_file_and_place(
    readers: dict[str, table.Reader], tmp_path: Path
) -> None:
    found: dict[str, str] = {}
    count = 0
    for name, reader in readers.items():
        tried, failed = faults(name, reader, tmp_path)
        assert tried >= 6
        count += tried
        found |= failed
    assert found == {} and len(readers) == 30 and count > 480


def test_a_reader_with_a_fault_is_found_out(
    readers: dict[str, table.Reader], tmp_path: Path
) -> None:
    good = readers["chats"]

    def crashes(path: Path) -> Any:
        return [good.read(path) if path.name.startswith("good") else {}["x"]]

    def forgives(path: Path) -> Any:
        try:
            return good.read(path)
        except EmlensError:
            return []

    def hides_the_place(path: Path) -> Any:
        try:
            return good.read(path)
        except EmlensError:
            raise EmlensError(f"{path.name}: wrong") from None

    for reader, word in (
        (crashes, "KeyError"),
        (forgives, "read as"),
        (hides_the_place, "does not say where"),
    ):
        _, found = faults(word, replace(good, read=reader), tmp_path)
        assert any(fault.startswith(word) for fault in found.values())
