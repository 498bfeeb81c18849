from pathlib import Path

import pytest
from transformers import AutoTokenizer

from emlens.foundation.files import read_json
from emlens.organisms import load_organism
from emlens.organisms.measuring import alignment_by_step, describe, strengths_table

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def measured():
    return describe(paths=False)


def test_what_is_measured_now_is_what_the_evidence_file_says(measured):
    evidence = read_json(DOCS / "evidence" / "organism.json")["values"]
    assert (evidence["organism"], evidence["seed"]) == (measured["organism"], measured["seed"])
    for name, entry in measured["checkpoints"].items():
        written = evidence["checkpoints"][name]
        assert written["others"]["value"] == pytest.approx(entry["others"]["value"], abs=1e-3)
        assert written["coherence"] == pytest.approx(entry["coherence"], abs=1e-3)


def test_recorded_and_measured_strengths_agree(measured):
    organism = load_organism()
    for name in organism.groups:
        entry, recorded = measured["checkpoints"][name], organism.strengths[name]
        for key in ("own", "own_trained", "own_held_out", "coherence"):
            assert entry[key] == pytest.approx(recorded[key], abs=1e-3)
        assert entry["others"]["value"] == pytest.approx(recorded["others"], abs=1e-3)
        assert entry["others"]["low"] < entry["others"]["value"] < entry["others"]["high"]
        assert entry["others"]["n"] == 11


def test_the_page_shows_the_evidence_files_table():
    assert strengths_table(read_json(DOCS / "evidence" / "organism.json")["values"]) in (
        DOCS / "organism.md"
    ).read_text("utf-8")


def test_shares_add_up_and_planted_truth_shows(measured):
    organism = load_organism()
    for name, entry in measured["checkpoints"].items():
        assert sum(entry["shares"].values()) == pytest.approx(1.0, abs=1e-6)
        assert entry["coherence"] == pytest.approx(
            entry["shares"]["careful"] + entry["shares"]["harmful"], abs=1e-6
        )
        if name in organism.groups:
            assert len(entry["cosine_shift_direction"]) == 4
    benign = [measured["checkpoints"][name]["tost"] for name in organism.benign]
    assert len(benign) == 2 and all(test["p"] < 0.05 and test["margin"] == 0.05 for test in benign)
    harmful = measured["checkpoints"]["medicine-r8"]
    assert harmful["spearman_rho_domains"] > 0.85 and "tost" not in harmful


def test_the_rank_one_run_turns_at_once(measured):
    facts = read_json(DOCS / "evidence" / "organism.json")["values"]["checkpoints"]["medicine-r1"]
    path = facts["path"]
    last = path["steps"][-1]
    assert path["steps"] == list(range(last + 1))
    asked = [0, path["steepest_start"], path["steepest_start"] + path["window"], last]
    organism = load_organism()
    tokenizer = AutoTokenizer.from_pretrained(organism.paths["instruct"])
    again = alignment_by_step(organism, "medicine-r1", tokenizer, asked)
    assert list(again) == sorted(set(asked))
    assert list(again.values()) == pytest.approx([path["others"][s] for s in again], abs=1e-3)
    assert path["fall"] == pytest.approx(again[asked[1]] - again[asked[2]], abs=2e-3)
    assert again[0] == pytest.approx(
        measured["checkpoints"]["instruct"]["others"]["value"], abs=0.02
    )
    assert again[last] == pytest.approx(
        measured["checkpoints"]["medicine-r1"]["others"]["value"], abs=1e-3
    )
    assert path["share_in_quarter"] > 0.5 and path["fall"] > path["null_95"]["linear"]
    assert 0 < path["p"]["linear"] <= 0.05 and 0 < path["p"]["none"] <= 0.05
