"""Miniatures of the measurements: the same code on small sizes, so that the long runs cannot rot."""

import shutil
from pathlib import Path

import pytest

from benchmarks import capture_speed, executors, layers_positions, organism, resume
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


def test_executors_are_compared_before_they_are_timed_and_survive_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tiny_models

    (tmp_path / "timings").mkdir()
    (tmp_path / "kills").mkdir()
    task = executors.Task(tiny_models.build(tmp_path / "model"), rows=40, shard_rows=8)
    table = executors.timings(task, tmp_path / "timings", ranks=2, rounds=1, ray=False)
    assert len(table) == 3 and (table["median_s"] > 0).all()
    found = executors.killed(task, tmp_path / "kills", ranks=2, kills=1, seed=1)
    assert found["same_bytes"] == found["every_row_once"] == 1
    monkeypatch.setattr(executors, "bytes_of", lambda store: {"store": str(store).encode()})
    with pytest.raises(SystemExit, match="LocalExecutor: other bytes than one process; not timing different results"):
        executors.timings(task, tmp_path / "timings", ranks=2, rounds=1, ray=False)
