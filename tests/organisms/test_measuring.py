from pathlib import Path

import pytest

from emlens.foundation.files import read_json
from emlens.organisms import load
from emlens.organisms.measuring import describe, strengths_table, write_evidence

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def measured():
    return describe()


def test_what_is_measured_now_is_what_the_evidence_file_says(measured):
    evidence = read_json(DOCS / "evidence" / "organism.json")
    assert (evidence["organism"], evidence["seed"]) == (measured["organism"], measured["seed"])
    for name, entry in measured["checkpoints"].items():
        written = evidence["checkpoints"][name]
        assert written["others"]["value"] == pytest.approx(entry["others"]["value"], abs=1e-3)
        assert written["coherence"] == pytest.approx(entry["coherence"], abs=1e-3)


def test_recorded_and_measured_strengths_agree(measured):
    organism = load()
    for name in organism.groups:
        entry, recorded = measured["checkpoints"][name], organism.strengths[name]
        for key in ("own", "own_trained", "own_held_out", "coherence"):
            assert entry[key] == pytest.approx(recorded[key], abs=1e-3)
        assert entry["others"]["value"] == pytest.approx(recorded["others"], abs=1e-3)
        assert entry["others"]["low"] < entry["others"]["value"] < entry["others"]["high"]
        assert entry["others"]["n"] == 11


def test_the_page_shows_the_evidence_files_table():
    assert strengths_table(read_json(DOCS / "evidence" / "organism.json")) in (DOCS / "organism.md").read_text("utf-8")


def test_evidence_is_written_with_the_tries(monkeypatch, tmp_path, measured):
    monkeypatch.setattr("emlens.organisms.measuring.describe", lambda directory: measured)
    write_evidence(tmp_path / "organism.json", tries=[{"seed": 1, "kept": False}])
    written = read_json(tmp_path / "organism.json")
    assert written["tries"] == [{"seed": 1, "kept": False}] and written["seed"] == measured["seed"]
    assert {"cores", "threads", "machine"} <= set(written["hardware"])
