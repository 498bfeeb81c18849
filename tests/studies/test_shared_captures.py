"""Parts of a study share what they captured: found again by each other, after a kill and with other
settings, and the result has the same bytes wherever it came from.
"""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from emlens.activations.stored_captures import StoredCaptures
from emlens.foundation.files import read_json
from emlens.report.found_runs import INSIDE_A_RUN
from emlens.results.columns import Column
from emlens.results.sections import Section
from emlens.results.study_result import Part
from emlens.results.tables import Table
from emlens.studies import registry, run_study, running
from emlens.studies.planning import plan_study
from emlens.studies.streams import Reading, read_streams
from emlens.studies.study import Study, StudyContext

TUNED = "bad@0"
NAMES = ("reads_first", "reads_again")


class _Reads(Study):
    """Mean lengths of the streams of a fine-tune and its parent on all questions."""

    title = "How long are the streams?"
    runs_on_captures = True

    def readings(self, context: StudyContext) -> Iterator[Reading]:
        yield Reading((context.material.parent(TUNED).name, TUNED), context.questions.prompts())

    def run(self, context: StudyContext) -> Part:
        models = {"before": context.material.parent(TUNED), "after": context.family[TUNED]}
        streams = read_streams(models, context.questions, context.config)
        rows = []
        for name, activations in streams.items():
            for key in activations.keys:
                length = activations.value(key).double().norm(dim=1).mean()
                rows.append({"model": name, "place": " ".join(key), "length": float(length)})
        return Part(tables={self.name: pd.DataFrame(rows)})


def _section(table: str) -> Section:
    columns = [Column(name, "text", "Where.") for name in ("model", "place")]
    declared = Table("One row per place.", [*columns, Column("length", "number", "Mean length.")])
    return Section("Mean lengths.", "This test.", {table: declared})


class ReadsFirst(_Reads):
    name = "reads_first"
    section = _section("reads_first")


class ReadsAgain(_Reads):
    name = "reads_again"
    section = _section("reads_again")


@pytest.fixture
def config(config_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    registered = {study.name: study() for study in (ReadsFirst, ReadsAgain)}
    monkeypatch.setattr(registry, "_REGISTERED", registered)
    monkeypatch.setitem(registry.COMPOSITES, "reads_twice", tuple(registered))
    return changed(config_path, "reads-twice", study="reads_twice")


def changed(path: Path, name: str, **changes: Any) -> Path:
    record = {**yaml.safe_load(path.read_text()), **changes}
    other = path.with_name(f"{name}.yaml")
    other.write_text(yaml.safe_dump(record))
    return other


def contents(out: Path) -> dict[str, bytes]:
    files = [out / "result.json", *sorted((out / "tables").iterdir())]
    return {path.name: path.read_bytes() for path in files}


def measured(out: Path) -> list[tuple[int, int]]:
    """Passes, and captures that were found, of both parts."""
    parts = read_json(out / "run.json")["parts"]
    return [(parts[name]["passes"], parts[name]["captures_found"]) for name in NAMES]


def test_what_one_part_captured_no_other_captures_again(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = plan_study(config, out, timed=False)
    run_study(config, out, progress=False)
    (passes, none), of_second = measured(out)
    assert passes > 0 == none and of_second == (0, 2)
    assert running.CAPTURES in INSIDE_A_RUN  # a list of runs does not look into it
    counts = [part.counts.passes for part in plan.parts if part.counts is not None]
    assert counts == [passes, 0]
    whole = contents(out)
    on_disk = sum(file.stat().st_size for file in out.rglob("activations/*/*.safetensors"))
    assert plan.captures == pytest.approx(on_disk, rel=0.2) and plan.parts[1].captures == 0
    # with other settings every part is run again, and nothing is captured again
    run_study(changed(config, "other-draws", draws=77), out, progress=False)
    assert measured(out) == [(0, 2), (0, 2)] and contents(out) != whole
    tables = {name: text for name, text in contents(out).items() if name.endswith(".csv")}
    assert tables == {name: text for name, text in whole.items() if name.endswith(".csv")}
    # what is damaged is captured again, and the result is the same
    for path in out.glob("activations/*/shard-00000.safetensors"):
        damaged = bytearray(path.read_bytes())
        damaged[-9] ^= 1
        path.write_bytes(damaged)
    run_study(config, out, progress=False)
    assert measured(out) == [(passes, 0), (0, 2)] and contents(out) == whole


def _killed_after_the_first_capture(config: Path, out: Path) -> None:
    add = StoredCaptures.add

    def killing(self: StoredCaptures, *args: Any) -> None:
        add(self, *args)
        os.kill(os.getpid(), signal.SIGKILL)

    StoredCaptures.add = killing  # type: ignore[method-assign]
    run_study(config, out, progress=False)


def test_a_part_that_was_killed_finds_what_it_had_captured(config: Path, tmp_path: Path) -> None:
    run_study(config, tmp_path / "whole", progress=False)
    out = tmp_path / "out"
    child = multiprocessing.get_context("fork").Process(
        target=_killed_after_the_first_capture, args=(config, out)
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL and not (out / "units" / "reads_first.json").exists()
    run_study(config, out, progress=False)
    (whole, _), _ = measured(tmp_path / "whole")
    (passes, found), _ = measured(out)
    assert passes < whole and found == 1
    assert contents(out) == contents(tmp_path / "whole")


def test_families_share_the_room_of_one_study(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    most: list[int] = []

    def run(config: Any, folder: Path, progress: bool, captures: int) -> Any:
        most.append(captures)

    members = {f"f{i}": None for i in range(4)}
    monkeypatch.setattr(running, "read_members", lambda config: members)
    monkeypatch.setattr(running, "_run_family", run)
    monkeypatch.setattr(running, "gathered", lambda results: _Nothing())
    monkeypatch.setattr(running.StudyResult, "load", lambda directory: directory)
    run_study({}, tmp_path, progress=False)
    assert sum(most) <= running.MOST_BYTES and len(set(most)) == 1 and len(most) == 4


class _Nothing:
    def save(self, directory: Path) -> Path:
        return directory
