"""Miniatures of the measurements: the same code on small sizes, so that the long runs cannot
rot.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import (
    capture_memory,
    capture_speed,
    em_rate_coverage,
    endpoint_judging,
    executors,
    layers_positions,
    organism,
    organism_directions,
    planted_directions,
    store_damage,
    store_resume,
    store_speed,
)
from benchmarks.records import hash_directory
from emlens.activations.shards import TensorFile
from emlens.foundation import InputError
from emlens.organisms.loading import ASSETS
from emlens.studies.config import StudyConfig
from emlens.studies.layer_position_grid import Options
from emlens.studies.material_loading import load_material


def test_captures_are_compared_before_they_are_timed() -> None:
    model = capture_speed.build(layers=2, width=32, words=200)
    asked = capture_speed.prompts(count=6, words=200)
    table, facts = capture_speed.measure(model, asked, rounds=1, batch=2, batch_tokens=256)
    assert {
        "bare decoder, given order",
        capture_speed.FLOOR,
        capture_speed.SAME,
        capture_speed.OURS,
        "output_hidden_states, as documented",
    } <= set(table["case"])
    for tool in ("TransformerLens", "nnsight"):
        named = {case for case in table["case"] if case.startswith(tool)}
        assert len(named) == (0 if facts["not_installed"] else 3)
    assert (table["median_s"] > 0).all() and (
        table["relative_gap"].dropna() < capture_speed.GAP
    ).all()
    ratio = table.set_index("case")["emlens_over_case"]
    assert ratio[capture_speed.OURS] == pytest.approx(1.0)
    goals = {goal["against"]: goal for goal in capture_speed.against_goals(table)}
    assert len(goals) == 4 and goals[capture_speed.SAME]["worst"] == ratio[capture_speed.SAME]
    assert all(goal["worst"] == ratio[case] for case, goal in goals.items())
    assert facts["prompts"] == 6 and len(model.module._forward_hooks) == 0


def test_different_results_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = capture_speed.build(layers=2, width=32, words=200)
    monkeypatch.setattr(
        capture_speed, "capture", lambda m, p, **o: _Shifted(capture_speed_capture(m, p, **o))
    )
    with pytest.raises(SystemExit, match="not timing different results"):
        capture_speed.measure(
            model, capture_speed.prompts(count=4, words=200), rounds=1, batch=2, batch_tokens=256
        )


capture_speed_capture = capture_speed.capture


class _Shifted:
    """Captured layers off by one: what a wrong index would give."""

    def __init__(self, acts: object):
        self._acts = acts

    def stacked(self, position: str) -> object:
        return self._acts.stacked(position).roll(1, dims=0)  # type: ignore[attr-defined]


def test_lengths_repeat_so_that_more_prompts_are_not_longer_ones() -> None:
    few, many = (capture_speed.prompts(count=n, words=200, period=5) for n in (5, 15))
    lengths = [[len(p.text.split()) for p in asked] for asked in (few, many)]
    assert lengths[1] == 3 * lengths[0] and few[0].text != many[5].text
    model = capture_speed.build(layers=1, width=16, words=200)
    assert [len(row.ids) for row in model.render(many)] == lengths[1]  # a word is a token


def test_memory_is_measured_in_its_own_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capture_memory.child(8, 4, str(tmp_path / "s"))
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 8 and found["peak"] >= found["before"] > 10**8


def test_a_store_is_read_before_its_reading_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = store_speed.measure(tmp_path, rows=40, width=8, layers=2, shard_rows=16, rounds=1)
    assert (found["bytes"], found["shards"]) == (40 * 8 * 2 * 4, 3)
    middle = found["median_s"]
    assert (
        found["later_read_over_memmap"]
        == middle["read"]["store"] / middle["read"]["numpy.memmap"]
        > 0
    )
    assert (
        found["write_over_durable_plain_files"]
        == middle["write"]["store"] / middle["write"]["plain files, durable"]
        > 0
    )
    (tmp_path / "again").mkdir()
    monkeypatch.setattr(np, "load", lambda *a, **k: np.zeros((2, 40, 8), np.float32))
    with pytest.raises(SystemExit, match="not timing different results"):
        store_speed.measure(tmp_path / "again", rows=40, width=8, layers=2, shard_rows=16, rounds=1)


def test_damage_to_a_store_is_seen_or_harmless(
    tmp_path: Path, unchecked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = store_damage.measure(tmp_path / "true", 50)
    assert (found["missed"], found["crashed"]) == (0, 0) and found["seen"] + found["harmless"] == 50
    # sidecars and plan are for resuming; reading does not need them
    assert found["seen"] > 20 and found["harmless"] > 0
    monkeypatch.setattr(TensorFile, "read", lambda self, name: self._handle.get_tensor(name))
    # without checksums the count would say so
    assert store_damage.measure(tmp_path / "blind", 30)["missed"] > 0


def test_a_killed_capture_gives_the_same_bytes(tmp_path: Path) -> None:
    found = store_resume.measure(tmp_path, 3, count=60, shard_rows=8, seed=1)
    assert found["same_bytes"] == found["kills"] == 3 and found["passed_for_finished"] == 0
    assert found["kills_before_the_end"] > 0 and found["shards"] > 3


def test_layers_and_positions_table_has_controls_in_every_cell() -> None:
    material = load_material(StudyConfig.model_validate({"family": {"organism": "planted"}}))
    small = {"k": 4, "draws": 20, "permutations": 20}
    config = layers_positions.ORGANISM.model_copy(update=small)
    options = Options(flips=99)
    table = layers_positions.measure(material, "medicine-r8", config, options)
    assert len(table) == 8
    measures = [
        "overlap",
        "overlap_null",
        "overlap_p",
        "cosine_low",
        "auroc",
        "auroc_null",
        "restoration",
        "random_restoration",
        "forecast_r2",
        "forecast_p_max",
    ]
    assert table[[*measures, "restoration_low", "restoration_high"]].notna().all(axis=None)
    one = config.model_copy(update={"layers": (2,), "positions": ("last_prompt",)})
    affine = layers_positions.measure(
        material, "medicine-r8", one, options, shares=(0.5, 0.5), is_affine=True
    )
    (row,) = affine.to_dict("records")
    assert row["n_extract"] + row["n_report"] == len(material.outside("medicine-r8"))
    # the direction of the shift gives back more than one that was drawn
    assert row["site"] == "resid_post.2" and row["restoration"] > row["random_restoration_high"]


def test_a_rebuilt_organism_is_compared_file_by_file(tmp_path: Path) -> None:
    shipped = ASSETS / "planted"
    copied = Path(shutil.copytree(shipped, tmp_path / "same"))
    assert (
        organism.compare(copied, shipped)["weight_files_identical"]
        == organism.compare(copied, shipped)["weight_files"]
        > 5
    )
    changed = next((copied / "finetuned" / "medicine-r1").glob("*.safetensors"))
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(bytes(content))
    found = organism.compare(copied, shipped)
    assert found["weight_files_identical"] == found["weight_files"] - 1


def test_executors_are_compared_before_they_are_timed_and_survive_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tiny_models

    (tmp_path / "timings").mkdir()
    (tmp_path / "kills").mkdir()
    task = executors.Task(tiny_models.build(tmp_path / "model"), rows=40, shard_rows=8)
    table = executors.timings(task, tmp_path / "timings", ranks=2, rounds=1, ray=False)
    assert len(table) == 3 and (table["median_s"] > 0).all()
    found = executors.killed(task, tmp_path / "kills", ranks=2, kills=1, seed=1)
    assert found["same_bytes"] == found["every_row_once"] == 1
    monkeypatch.setattr(executors, "bytes_of", lambda store: {"store": str(store).encode()})
    with pytest.raises(
        SystemExit,
        match="LocalExecutor: other bytes than one process; not timing different results",
    ):
        executors.timings(task, tmp_path / "timings", ranks=2, rounds=1, ray=False)


def test_planted_directions_are_held_against_theory() -> None:
    table = planted_directions.gaussian((48,), (4.0,), n=40, draws=lambda d: 4)
    assert len(table) == 14 and set(table["covariance"]) == {"isotropic", "power law"}
    assert (table["deviation"].abs() <= 0.02 + 5 * table["deviation_error"])[
        table["extractor"] != "top component of deltas"
    ].all()
    goals = planted_directions.against_goal(table).set_index("extractor")
    assert (goals["judged"] == 2).all() and (
        goals["within_goal"] <= goals["within_goal_and_error"]
    ).all()
    assert planted_directions.goals_table(goals.reset_index()).count("\n") == 8
    off = planted_directions.against_goal(table.assign(deviation=0.03, deviation_error=0.0))
    assert (off["within_goal"] == 0).all()


def test_extractors_are_compared_with_the_planted_direction() -> None:
    table = organism_directions.world(
        ASSETS / "planted",
        samples=1,
        steps=2,
        finetunes=("medicine-r1", "medicine-benign"),
        questions=24,
    )
    harmful = table[~table["benign"]]
    assert (
        set(harmful["extractor"]) == set(organism_directions.EXTRACTORS)
        and table["cosine"].abs().max() <= 1
    )
    assert (table["null_95"] < 0.7).all() and table["null_95"].min() > 0
    summary = organism_directions.over_worlds(
        pd.concat([table, table.assign(world="other", cosine=table["cosine"] / 2)])
    )
    one = summary[(summary["extractor"] == "both") & (summary["layer"] == 2)].iloc[0]
    assert one["low"] < one["cosine"] < one["high"] and one["worlds"] == 2
    shown = organism_directions.worlds_table(summary)
    assert (
        "benign fine-tunes" in shown
        and len(shown.splitlines()) == 2 + len(organism_directions.EXTRACTORS) + 4 + 2
    )


def test_a_killed_judge_scores_each_answer_once(tmp_path: Path) -> None:
    found = endpoint_judging.measure(tmp_path, 300, 2, seed=1)
    assert (
        found["scored"],
        found["scored_more_than_once"],
        found["lost"],
        found["wrong_scores"],
    ) == (300, 0, 0, 0)
    assert found["calls_repeated"] <= found["allowed_repeats"] == 2 * endpoint_judging.CONCURRENCY
    assert 0.2 < found["failed_share"] < 0.4 and all(
        0 < done < 300 for done in found["judged_at_kill"]
    )


def test_coverage_of_a_rate_is_counted() -> None:
    found = em_rate_coverage.cell(0.3, 4.0, "questions like these", draws=12, answers=20)
    assert found["coverage"] >= 0.7 and found["warned"] < 1 and 0.05 < found["width"] < 0.4
    assert (
        em_rate_coverage.cell(0.3, 4.0, "these questions", draws=3, answers=8)["width"]
        < found["width"]
    )


def test_directory_hash_sees_names_and_bytes_but_not_place_or_other_files(tmp_path: Path) -> None:
    first = tmp_path / "a"
    first.mkdir()
    (first / "model.safetensors").write_bytes(b"weights")
    (first / "config.json").write_text("{}")
    base = hash_directory(first)
    second = tmp_path / "elsewhere"
    shutil.copytree(first, second)
    (second / "notes.md").write_text("not a model file")
    (second / ".hidden.json").write_text("{}")
    (second / "checkpoint").mkdir()
    assert hash_directory(second) == base
    (second / "config.json").write_text("{ }")
    changed = hash_directory(second)
    (second / "config.json").rename(second / "other.json")
    assert len({base, changed, hash_directory(second)}) == 3


def test_directories_that_hold_no_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no model file to hash"):
        hash_directory(tmp_path)
    with pytest.raises(InputError, match="nowhere: no such directory"):
        hash_directory(tmp_path / "nowhere")
