"""Running a study: the same bytes again whatever interrupts it, one run a directory, and what it
says of parts that are missing.
"""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from emlens.foundation.errors import InputError, IntegrityError, StateError
from emlens.results import StudyResult
from emlens.runs.locks import exclusive
from emlens.runs.progress import Advance
from emlens.studies import registry, run_study, running


def contents(directory: Path) -> dict[str, bytes]:
    files = [directory / "result.json", *sorted((directory / "tables").iterdir())]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def _child(config: Path, out: Path) -> None:
    run_study(config, out, progress=False)


def test_killed_three_times_it_ends_with_the_same_bytes_in_another_process(
    finished: Any, config_path: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(int.from_bytes(os.urandom(4), "big"))
    out = tmp_path / "out"
    killed = 0
    for _ in range(3):
        child = multiprocessing.get_context("fork").Process(target=_child, args=(config_path, out))
        child.start()
        child.join(rng.uniform(0.05, 0.45) * finished.seconds)
        if child.is_alive():
            os.kill(int(child.pid or 0), signal.SIGKILL)
        child.join()
        killed += child.exitcode == -signal.SIGKILL
    assert killed >= 1
    code = (
        f"from emlens.studies import run_study; print(run_study({str(config_path)!r}, {str(out)!r},"
        " progress=False).run['parts_reused'])"
    )
    other = {
        **os.environ,
        "PYTHONHASHSEED": "12345",
        "PYTHONPATH": str(Path(run_study.__code__.co_filename).parents[2]),
    }
    subprocess.run([sys.executable, "-c", code], env=other, check=True, capture_output=True)
    assert contents(out) == contents(finished.directory)
    assert not list(out.rglob("*.part"))


def small(config_path: Path, name: str, **changes: Any) -> Path:
    """A copy of the configuration beside it; `family` and `finetuned` are merged, None takes a
    field out.
    """
    record = yaml.safe_load(config_path.read_text())
    tuned = changes.pop("finetuned", {})
    record["family"]["finetuned"] = {
        key: {**spec, **tuned.get(key, {})}
        for key, spec in record["family"]["finetuned"].items()
        if tuned.get(key, {}) is not None
    }
    record["family"].update(changes.pop("family", {}))
    record.update(changes)
    path = config_path.parent / f"{name}.yaml"
    path.write_text(yaml.safe_dump(record))
    return path


@pytest.fixture(scope="module")
def profiled(config_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    config = small(config_path, "profile", study="profile", family={"base": None})
    out = tmp_path_factory.mktemp("profile")
    run_study(config, out, progress=False)
    return config, out


def test_a_second_run_reuses_a_changed_table_is_found_and_a_changed_setting_recomputes(
    profiled: tuple[Path, Path], config_path: Path
) -> None:
    config, out = profiled
    before = contents(out)
    assert run_study(config, out, progress=False).run["parts_reused"] == ["profile"]
    table = out / "tables" / "models.csv"
    table.write_text(table.read_text().replace("harmful", "benign"))
    with pytest.raises(
        IntegrityError, match=r"models\.csv: is missing or was changed after the study wrote it"
    ):
        StudyResult.load(out)
    again = run_study(config, out, progress=False)
    assert again.run["parts_reused"] == [] and contents(out) == before
    changed = small(config_path, "profile-seed", study="profile", family={"base": None}, seed=1)
    assert (
        run_study(changed, out, progress=False).run["parts_reused"] == []
        and contents(out) != before
    )


def test_a_part_that_other_code_made_is_made_anew(
    profiled: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = profiled
    run_study(config, tmp_path / "out", progress=False)
    before = contents(tmp_path / "out")
    assert len(running._code(registry.get_study("profile"))) == 64 and run_study(
        config, tmp_path / "out", progress=False
    ).run["parts_reused"] == ["profile"]
    monkeypatch.setattr(running, "_code", lambda study: "an upgrade")
    assert run_study(config, tmp_path / "out", progress=False).run["parts_reused"] == []
    assert contents(tmp_path / "out") == before


def test_a_directory_has_one_run_and_one_study(
    profiled: tuple[Path, Path], config_path: Path
) -> None:
    config, out = profiled
    with (
        exclusive(out),
        pytest.raises(
            StateError,
            match="another run is working in this directory; wait for it, or pass another --out",
        ),
    ):
        run_study(config, out, progress=False)
    other = small(config_path, "overlap-here", study="delta_overlap", family={"base": None})
    before = contents(out)
    with pytest.raises(
        InputError,
        match=(
            "holds a result of study 'profile', which study 'delta_overlap' would replace;"
            " pass another --out"
        ),
    ):
        run_study(other, out, progress=False)
    assert contents(out) == before


def test_what_cannot_run_is_refused(config_path: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match="study 'all' is unknown; pass one of full, overview, profile, triggers, fine_tuning",
    ):
        run_study(small(config_path, "unknown", study="all"), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file: is a file; pass a directory for --out"):
        run_study(config_path, tmp_path / "file")
    with pytest.raises(
        InputError,
        match=(
            r"k=12 is above the rank that half of 24 prompts per side of 'bad@0' can carry;"
            r" pass k <= 11, or more prompts"
        ),
    ):
        run_study(
            small(config_path, "large-k", study="delta_overlap", k=12),
            tmp_path / "out",
            progress=False,
        )
    assert set(registry.COMPOSITES["overview"]) <= set(registry.INCLUDED)


def test_without_base_benign_training_and_neutral_it_runs_and_says_so(
    config_path: Path, tmp_path: Path
) -> None:
    bare = {"bad@0": {"training": None}, "full@0": {}, "good@0": None}
    config = small(
        config_path,
        "bare",
        family={"base": None},
        finetuned=bare,
        neutral=None,
        focus=["full@0"],
        positions=["last_prompt"],
        random_directions=1,
    )
    result = run_study(config, tmp_path / "out", progress=False)
    said = "\n".join(result.warnings)
    for part in (
        "fine-tune 'bad@0' has no training prompts",
        "no base model was given",
        "no benign fine-tune was given",
        "no neutral text was given",
        "the benign control is missing from the overlap comparison",
        "the arm with its direction is missing",
        "no neutral text: damage (KL) is missing",
        "no base model: forecasts from the pre-trained parent are missing",
    ):
        assert part in said
    assert set(result.tables["forecast"]["parent"]) == {"instruct"}
    assert result.tables["arms"]["kl"].isna().all() and "benign fine-tune's direction" not in set(
        result.tables["arms"]["arm"]
    )
    assert set(result.tables["overlap"]["comparison"]) == {"train–evaluation", "split-half ceiling"}
    assert not len(result.tables["benign"])
    assert all(
        f.status != "shown" for f in result.findings if f.section in ("delta_overlap", "profile")
    )


def test_without_any_training_prompts_overlap_is_left_out_and_said(
    config_path: Path, tmp_path: Path
) -> None:
    none = {name: {"training": None} for name in ("bad@0", "full@0", "good@0")}
    result = run_study(
        small(config_path, "untrained", study="delta_overlap", finetuned=none),
        tmp_path / "out",
        progress=False,
    )
    assert not result.tables and not result.findings
    assert (
        "no fine-tune in focus has training prompts: delta overlap was left out" in result.warnings
    )


def test_markup_in_a_question_stays_text_and_phrasings_run_through(
    config_path: Path, tmp_path: Path
) -> None:
    lines = [
        json.loads(line)
        for line in (config_path.parent / "questions.jsonl").read_text().splitlines()
    ]
    text = '<script>alert("w1")</script>\r w2'
    lines[15]["text"] = text
    lines[25]["paraphrases"] = [lines[25]["text"], "w1 w2 w3"]
    for line in lines:
        line["id"] = line["id"].replace("south/", "00")
    path = config_path.parent / "odd.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    config = small(
        config_path,
        "odd",
        study="overview",
        questions="odd.jsonl",
        family={"base": None},
        focus=["bad@0"],
        positions=["last_prompt"],
        random_directions=1,
    )
    result = run_study(config, tmp_path / "out", progress=False)
    for name, key in (("questions", "question"), ("forecast_predictions", "id")):
        table = result.tables[name]
        assert text in set(table["text"]), name
        assert set(table[table["text"] == text][key]) == {"005"}
    assert {"east/5/p1", "east/5/p2"} <= set(result.tables["forecast_predictions"]["id"])
    assert "w1 w2 w3" in set(result.tables["forecast_predictions"]["text"])


def test_a_part_tells_its_whole_share_of_the_work() -> None:
    seen: list[float] = []
    ticker = running.PartProgress(Advance(lambda amount, made: seen.append(amount), room=6), 6)
    for _ in range(3):
        ticker(0.25)
    ticker(0.9)  # more than is left
    ticker.finish()
    assert sum(seen) == pytest.approx(6)


def test_a_part_that_was_finished_before_says_nothing_of_the_rate() -> None:
    seen: list[float] = []
    found: list[float] = []
    bar = Advance(lambda amount, made: seen.append(amount), found=found.append, room=6)
    running.PartProgress(bar, 6).finish(found=True)
    assert (seen, found) == ([], [6])
