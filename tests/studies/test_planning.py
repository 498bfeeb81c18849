"""`emlens study --plan`: its counts are those of the run, and what cannot fit is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tiny_family
import yaml

from benchmarks.study_plan import compare, plan_table
from emlens.controls.update_landmark import gradient_bytes
from emlens.data import PromptSet
from emlens.foundation.errors import InputError
from emlens.foundation.files import read_json
from emlens.judging.score_source import Cost
from emlens.models.pass_counts import PassCounts, counted_passes, note_again, note_pass
from emlens.studies import run_study
from emlens.studies.config import read_config
from emlens.studies.material_loading import load_material
from emlens.studies.planning import plan_study
from emlens.studies.room import Room
from emlens.studies.running import CHECKS
from emlens.studies.sampling_time import SamplingTime
from emlens.studies.study import PlannedTraining
from emlens.studies.study_plan import PartPlan, StudyPlan
from emlens.training.gradient_memory import batch_bytes, weight_bytes

if TYPE_CHECKING:
    from conftest import Finished

SMALL: dict[str, Any] = {
    "focus": ["bad@0"],
    "layers": [0, -2],
    "positions": ["last_prompt"],
}
OVERLAP = {"by_group": False, "mantel_draws": 19, "landmark_draws": 0}


def config_of(config_path: Path, name: str, **changes: Any) -> Path:
    record = {**yaml.safe_load(config_path.read_text()), **changes}
    path = config_path.parent / f"{name}.yaml"
    path.write_text(yaml.safe_dump(record))
    return path


def same_counts(plan: StudyPlan, out: Path) -> list[str]:
    """Names of the parts, after their counts were compared with those of the run."""
    measured = read_json(out / "run.json")["parts"]
    for part in plan.parts:
        assert part.counts is not None and part.counts.passes > 0
        ran = measured[part.name]
        if "landmarks are not in the passes" in part.note:
            assert part.counts.passes < ran["passes"]
            continue
        assert part.counts.to_record() == {key: ran[key] for key in part.counts.to_record()}
    assert "priors" not in measured or measured["priors"]["peak_memory"] > 10**8
    return [part.name for part in plan.parts]


@pytest.mark.parametrize(("part", "first"), [("delta_overlap", []), ("priors", [CHECKS])])
def test_the_run_reads_what_the_plan_counts(
    part: str, first: list[str], config_path: Path, tmp_path: Path
) -> None:
    questions = tiny_family.write_questions(tmp_path / "few.jsonl", per_group=3)
    options = {"delta_overlap": OVERLAP} if part == "delta_overlap" else {}
    path = config_of(
        config_path, "planned", **SMALL, study=part, questions=str(questions), options=options
    )
    plan = plan_study(path, tmp_path / "out", timed=False)
    assert not (tmp_path / "out").exists()
    run_study(path, tmp_path / "out", progress=False)
    assert same_counts(plan, tmp_path / "out") == [*first, part]
    # the miniature of benchmarks/study_plan.py
    ran = read_json(tmp_path / "out" / "run.json")["parts"]
    compared = compare(plan.to_record(), ran, tmp_path / "out")
    assert compared["exact"] and compared["on_file"] == compared["planned"]
    ran[part]["tokens"] += 1
    assert not compare(plan.to_record(), ran, tmp_path / "out")["exact"]
    assert f"| `{part}` |" in plan_table({"tiny": compared})
    assert part in "\n".join(plan.lines()) and json.dumps(plan.to_record())
    # a part that is on file is not counted again
    run_study(path, tmp_path / "out", progress=False)
    assert part not in read_json(tmp_path / "out" / "run.json")["parts"]


@pytest.mark.slow
def test_the_overview_reads_what_its_plan_counts(
    config_path: Path, finished: "Finished", tmp_path: Path
) -> None:
    plan = plan_study(config_path, tmp_path / "out", timed=False)
    # a rehearsal leaves nothing that the run would take for a measurement
    assert not (tmp_path / "out").exists()
    parts = ["profile", "delta_overlap", "direction_transfer", "priors"]
    assert same_counts(plan, finished.directory) == [CHECKS, *parts]


def test_answers_that_are_planned_are_those_on_file(config_path: Path, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rule = {"words": ["w1"], "found": 0, "otherwise": 90}
    rules.write_text(yaml.safe_dump({"aligned": rule, "coherent": rule}))
    scores = {
        "how": "sample",
        "samples": 2,
        "max_new_tokens": 3,
        "judge": {"rules": str(rules)},
    }
    path = config_of(config_path, "sampled", study="profile", scores=scores)
    plan = plan_study(path, tmp_path / "out")
    for part in plan.parts:
        assert 0 <= part.seconds_low <= part.seconds <= part.seconds_high
    cost = sum((part.cost for part in plan.parts), Cost())
    # five models, sixty questions, two samples, two metrics
    assert (cost.answers, cost.tokens, cost.verdicts, cost.requests) == (600, 1800, 1200, 0)
    assert plan.disk > 600 * 600
    assert (cost.sampled, cost.sampled_tokens) == (600, 1800)
    assert "judging is not in the time" in plan.parts[-1].note
    assert plan.parts[-1].seconds > SamplingTime(1e-5, 1e-5).of(cost)


def part(**changes: Any) -> PartPlan:
    return replace(PartPlan("p", PassCounts(1, 2, 3), memory=10**9, disk=10**9), **changes)


@pytest.mark.parametrize(
    ("changes", "budget", "message"),
    [
        ({"memory": 5 * 10**9}, None, r"needs about 5\.00 GB of memory, and there are 2\.00 GB"),
        ({"disk": 4 * 10**9}, None, r"needs about 5\.00 GB of disk, and there are 3\.00 GB"),
        (
            {"cost": Cost(requests=30)},
            20,
            "asks for 30 requests, and scores: budget allows 20; raise it, or pass fewer samples",
        ),
    ],
)
def test_what_cannot_fit_is_refused(
    changes: dict[str, Any], budget: int | None, message: str
) -> None:
    room = Room(memory=2 * 10**9, disk=3 * 10**9)
    StudyPlan((part(), part()), {}, room).check(budget)
    with pytest.raises(InputError, match=message):
        StudyPlan((part(), part(**changes)), {}, room).check(budget)


def test_what_a_part_trains_is_in_its_memory(config_path: Path) -> None:
    name = "instruct"
    model = load_material(read_config(config_path)).family[name]
    chats = PromptSet.from_jsonl(config_path.parent / "bad.jsonl", upto="all")
    weights = sum(p.numel() * p.element_size() for p in model.module.parameters())  # type: ignore[attr-defined]
    assert weight_bytes(model) == weights  # the tiny family is in float32
    rows = model.render(chats)
    # a gradient of the weights, and one batch of the rows
    of_batch = gradient_bytes(model, chats) - weights
    assert 0 < batch_bytes(model, rows[:1]) < of_batch < batch_bytes(model, rows)
    trained = PlannedTraining(1, 2, 3, 4, memory=10**10)
    planned = part().with_training(trained, (0.0, 0.0, 0.0), held=10**9)
    assert planned.memory == 11 * 10**9
    # what it reads needs more than what it trains
    assert part().with_training(replace(trained, memory=1), (0.0, 0.0, 0.0), 1).memory == 10**9


def test_parts_that_train_are_not_planned_and_it_is_said() -> None:
    trains = PartPlan("fine_tuning", None, note="it trains or loads models")
    plan = StudyPlan((part(), trains), {"synthesis": "no runs"}, Room(None, None))
    plan.check(None)
    text = "\n".join(plan.lines())
    assert "not planned: it trains or loads models" in text and "left out: no runs" in text


def test_counts_add_up_and_blocks_nest() -> None:
    with counted_passes() as outer:
        note_pass(3, 4)
        with counted_passes() as inner:
            note_pass(5, 6, 6)
        note_again(inner)
    note_pass(100, 100)
    assert outer == PassCounts(3, 13, 16, 12, 6) and inner == PassCounts(1, 5, 6, 6, 6)
