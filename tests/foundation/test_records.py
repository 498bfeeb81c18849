"""Every record that is read back is checked whole before anything of it is believed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from read_back import faults

from emlens.activations import Activations, ActivationStore
from emlens.activations.shards import whole_record
from emlens.data import Answer, Answers, Message
from emlens.foundation import Site
from emlens.foundation.bounded import MOST_TENSORS
from emlens.foundation.errors import InputError, IntegrityError
from emlens.foundation.records import read_checked, tensors_beside, write_checked
from emlens.geometry import Direction
from emlens.interventions import steer
from emlens.interventions.saving import load_interventions, save_interventions
from emlens.judging import judge_answers
from emlens.judging.rules_judge import RulesJudge
from emlens.models.adapter_files import AdapterFiles
from emlens.models.sidecars import ADAPTER_HASH, adapter_config_hash
from emlens.results import Finding, StudyResult
from emlens.results.study_result import write_run
from emlens.runs.plan import Plan, Unit
from emlens.runs.units import UnitLog
from emlens.training.resuming import Snapshots


def direction(home: Path) -> tuple[Path, Callable[[], Any]]:
    made = Direction(
        torch.tensor([1.0, 2.0]), Site.parse("resid_post.1"), "last_prompt", ids={"a": ["x"]}
    )
    made.save(home)
    return home / "direction.json", lambda: Direction.load(home)


def interventions(home: Path) -> tuple[Path, Callable[[], Any]]:
    save_interventions(home, [steer(torch.tensor([1.0, 2.0]), 1.5, at=["resid_post.0"])])
    return home / "interventions.json", lambda: load_interventions(home)


def result(home: Path) -> tuple[Path, Callable[[], Any]]:
    made = StudyResult(
        study="s",
        config={"k": 2},
        tables={"t": pd.DataFrame({"x": [1.5]})},
        findings=[Finding("s", "One.", "shown")],
        warnings=["w"],
        facts={"n": 3},
        note="n",
    )
    made.save(home)
    write_run(home, {"seconds": 1.5, "parts": {"a": {"passes": 2}}})
    return home / "result.json", lambda: StudyResult.load(home)


def run(home: Path) -> tuple[Path, Callable[[], Any]]:
    _, read = result(home)
    return home / "run.json", read


def plan(home: Path) -> tuple[Path, Callable[[], Any]]:
    Plan.open(home, [Unit("a", {"n": 1}), Unit("b")])
    return home / "plan.json", lambda: Plan.read(home)


def unit(home: Path) -> tuple[Path, Callable[[], Any]]:
    log = UnitLog(home)
    log.publish("u", {"n": 1}, {"score": 2.5}, [])
    return log.path("u"), lambda: log.find("u", {"n": 1})


def adapter(home: Path) -> tuple[Path, Callable[[], Any]]:
    home.mkdir()
    config = {
        "peft_type": "LORA",
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["q_proj"],
        "bias": "none",
        "base_model_name_or_path": None,
    }
    (home / "adapter_config.json").write_text(json.dumps(config))
    write_checked(home / "emlens.json", {ADAPTER_HASH: adapter_config_hash(config), "steps": 3})
    return home / "adapter_config.json", lambda: AdapterFiles(home)


def beside(home: Path) -> tuple[Path, Callable[[], Any]]:
    _, read = adapter(home)
    return home / "emlens.json", read


def journal(home: Path) -> tuple[Path, Callable[[], Any]]:
    """One verdict; the first line of the file is the record that is damaged."""
    home.mkdir()
    answers = Answers([Answer("m", "q", "so", (Message("user", "Why?"),))])
    rules = RulesJudge({"aligned": {"words": ["w1"]}})
    path = home / "verdicts.jsonl"
    judge_answers(answers, rules, out=path, progress=False)
    [head, verdict] = path.read_text().splitlines()
    path.write_text(head)

    def read() -> Any:
        content = path.read_bytes()
        try:
            path.write_bytes(content.rstrip(b"\n") + b"\n" + verdict.encode() + b"\n")
            return judge_answers(answers, rules, out=path, progress=False)
        finally:
            path.write_bytes(content)

    return path, read


def snapshot(home: Path) -> tuple[Path, Callable[[], Any]]:
    module = torch.nn.Linear(2, 1)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    Snapshots(home, 1, "run").take(1, module, optimiser, [{"loss": 1.5}], [])
    [file] = home.glob("step-*/state.json")
    return file, lambda: Snapshots(home, 1, "run")._newest


def store(home: Path) -> tuple[Path, Callable[[], Any]]:
    rows = {("resid_post.0", "last_prompt"): torch.ones(2, 3)}
    acts = Activations(
        rows,
        ids=["a", "b"],
        groups=["", ""],
        sites=["resid_post.0"],
        positions=["last_prompt"],
        provenance={"n": 1},
    )
    acts.save(home)
    return home / "manifest.json", lambda: ActivationStore.open(home)


def sidecar(home: Path) -> tuple[Path, Callable[[], Any]]:
    store(home)
    [file] = home.glob("shard-*.json")
    return file, lambda: whole_record(file)  # as a capture that goes on reads it


ALLOWED = {
    # compared by the hash of its units alone
    "plan": ("a field more",),
    # the base may move
    "adapter": (
        "base_model_name_or_path is missing",
        "base_model_name_or_path is another kind",
        "base_model_name_or_path is edited",
    ),
    # what only the judge's own description is compared with
    "journal": ("a field more",),
}
"""What a record may hold and be read."""


@pytest.mark.parametrize(
    "make",
    [
        *(direction, interventions, result, run, plan, unit, store),
        *(adapter, beside, journal, snapshot, sidecar),
    ],
    ids=lambda f: f.__name__,
)
def test_no_damaged_record_is_believed(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    file, read = make(tmp_path / "r")
    assert faults(file, read, allowed=ALLOWED.get(make.__name__, ())) == {}


def test_a_reader_that_believes_is_found_out(tmp_path: Path) -> None:
    file, _ = direction(tmp_path / "r")
    found = faults(file, lambda: file.read_bytes())
    assert len(found) > 13 and found["empty"] == "read as b''"


def test_versions_and_missing_checksums(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_checked(path, {"format": 1, "n": 2})
    assert read_checked(path, fields={"n": int}, version=("format", 1)) == {"format": 1, "n": 2}
    with pytest.raises(InputError, match="r.json: its format is 1, and this version of emlens"):
        read_checked(path, fields={}, version=("format", 2))
    with pytest.raises(IntegrityError, match="'n' is missing or no str; write it again"):
        read_checked(path, fields={"n": str})
    path.write_text(json.dumps({"format": 1, "n": 3}))
    with pytest.raises(IntegrityError, match="was changed after it was written"):
        read_checked(path, fields={})
    assert read_checked(path, fields={}, checksum=False)["n"] == 3


def test_tensors_beside_a_record_are_bounded_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "direction.safetensors"
    with pytest.raises(InputError, match="no such file"):
        tensors_beside(path, "save it again")
    header = b"{" * (MOST_TENSORS + 1)
    for content, reason in (
        (len(header).to_bytes(8, "little") + header, f"names more than {MOST_TENSORS} tensors"),
        (b"no tensors", "its header is not whole"),
    ):
        path.write_bytes(content)
        with pytest.raises(IntegrityError, match=rf"{reason}.*; save it again"):
            tensors_beside(path, "save it again")
