"""Miniatures of the measurements: the same code on small sizes, so that the long runs cannot rot."""

import shutil
from pathlib import Path

import pytest

from benchmarks import capture_speed, layers_positions, organism, organism_worlds, resume
from benchmarks.records import EVIDENCE
from emlens.foundation.files import read_json
from emlens.organisms import load
from emlens.organisms.loading import ASSETS
from emlens.studies.config import StudyConfig
from emlens.studies.material import load_material


def test_capture_equals_hidden_states_before_it_is_timed() -> None:
    model = capture_speed.build(layers=2, width=32, words=200)
    table = capture_speed.measure(model, capture_speed.prompts(count=6, words=200), rounds=1, batch=2, batch_tokens=256)
    assert set(table["case"]) >= {"bare decoder, sorted by length", "emlens capture, last prompt token, all layers"}
    assert (table["median_s"] > 0).all()
    floor = table.set_index("case").loc["bare decoder, sorted by length", "ratio_to_bare_sorted"]
    assert floor == pytest.approx(1.0)


def test_different_results_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = capture_speed.build(layers=2, width=32, words=200)
    monkeypatch.setattr(capture_speed, "capture", lambda m, p, **o: _Shifted(capture_speed_capture(m, p, **o)))
    with pytest.raises(SystemExit, match="not timing different results"):
        capture_speed.measure(model, capture_speed.prompts(count=4, words=200), rounds=1, batch=2, batch_tokens=256)


capture_speed_capture = capture_speed.capture


class _Shifted:
    """Captured layers off by one: what a wrong index would give."""

    def __init__(self, acts: object):
        self._acts = acts

    def stacked(self, position: str) -> object:
        return self._acts.stacked(position).roll(1, dims=0)  # type: ignore[attr-defined]


def test_layers_and_positions_table_has_controls_in_every_cell() -> None:
    material = load_material(StudyConfig.model_validate({"family": {"organism": "planted"}}))
    table = layers_positions.measure(material, "medicine-r8", k=4, draws=20, permutations=20)
    assert len(table) == 8
    assert table[["overlap", "null_mean", "overlap_p", "restoration", "low", "high", "forecast_r2", "forecast_p_max"]].notna().all(axis=None)


def test_a_killed_study_finishes_with_the_same_bytes(tmp_path: Path) -> None:
    import tiny_family

    config = tiny_family.build(tmp_path, study="delta_overlap")
    found = resume.measure(config, 1, tmp_path, seed=3)
    assert found["same_bytes"] == found["kills"] == 1


def test_a_rebuilt_organism_is_compared_file_by_file(tmp_path: Path) -> None:
    shipped = ASSETS / "planted"
    copied = Path(shutil.copytree(shipped, tmp_path / "same"))
    assert organism.compare(copied, shipped)["weight_files_identical"] == organism.compare(copied, shipped)["weight_files"] > 5
    changed = next((copied / "finetuned" / "medicine-r1").glob("*.safetensors"))
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(bytes(content))
    found = organism.compare(copied, shipped)
    assert found["weight_files_identical"] == found["weight_files"] - 1


def test_a_worlds_figures_are_those_of_its_fine_tunes() -> None:
    facts = read_json(EVIDENCE / "organism.json")["values"]
    figures = organism_worlds.strengths(facts)
    rows = {name: row for name, row in facts["checkpoints"].items() if name in load().groups}
    harmful = {name: row for name, row in rows.items() if "benign" not in name and "narrow" not in name}
    assert len(harmful) == 6
    assert figures["own_worst"] == max(row["own"] for row in harmful.values())
    assert figures["coherence_worst"] == min(row["coherence"] for row in harmful.values())
    assert figures["others_below_instruct_worst"] == min(row["others_below_instruct"]["value"] for row in harmful.values())
    assert figures["cosine_last_worst"] == min(row["cosine_shift_direction"][3] for row in harmful.values())
    table = organism_worlds.over_seeds({1: {"figures": figures}, 2: {"figures": {k: 0.0 for k in figures}}})
    assert table["own"]["min"] == 0.0 and table["own"]["mean"]["low"] < table["own"]["mean"]["value"] < table["own"]["mean"]["high"]


def test_what_the_studies_say_of_a_world_is_gathered(tmp_path: Path) -> None:
    found = organism_worlds.as_found(
        ASSETS / "planted", tmp_path, focus=("medicine-r8", "finance-r8"), draws=20, repeats=1, permutations=20, random_directions=2
    )
    assert set(found["restoration_own"]) == {"medicine-r8", "finance-r8"}
    assert {"direction", "no ablation"} <= set(found["restoration_by_arm"]["medicine-r8"])
    assert found["restoration_by_arm"]["medicine-r8"]["no ablation"] == 0.0
    assert len(found["forecast_r2_domains_held_out"]) == len(found["forecast_gain_over_text"]) == 4
    assert all(len(values) == 4 for values in found["overlap_covariance_null_mean"].values())
    assert found["findings"]


def test_the_organisms_page_shows_what_was_measured_on_fresh_worlds() -> None:
    found = read_json(EVIDENCE / "organism_worlds.json")["values"]
    assert len(found["planted"]) >= 3
    table = organism_worlds.goals_table(found)
    assert table in (EVIDENCE.parent / "organism.md").read_text("utf-8")
    row = next(line for line in table.splitlines() if "own domain, mean" in line)
    values = [world["figures"]["own"] for world in found["planted"].values()]
    assert f"{min(values):.3f} to {max(values):.3f}" in row and f"{sum(v <= 0.3 for v in values)} of {len(values)}" in row
