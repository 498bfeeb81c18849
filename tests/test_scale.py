"""The measurements of scale, in miniature."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_family
import tiny_models

from benchmarks import large_study, scale, transfer_cost, transfer_parts
from emlens.data import PromptSet, QuestionSet
from emlens.organisms.tokenizer import make_tokenizer
from emlens.organisms.world import make_world
from emlens.studies.config import read_config


def test_nulls_from_rows_are_compared_with_those_of_a_covariance() -> None:
    found = scale.covariance_nulls(layers=6, measured=2, n=12, d=60, k=3, draws=20)
    assert found["nulls"] == 24 and found["gap"] < 1e-9
    assert found["cpu_s"] == pytest.approx(3 * found["cpu_s_of_measured"])
    with pytest.raises(SystemExit, match="differ by"):
        scale.covariance_nulls(layers=1, measured=1, n=12, d=60, k=3, draws=20, same=0.0)


def test_plans_of_a_run_and_of_35_need_no_weights(tmp_path: Path) -> None:
    world = make_world(7, n_domains=2, n_topics=4)
    chats = world.chats("medicine", (0, 1), "harmful")
    sizes = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
    }
    found = scale.training_plans(chats, make_tokenizer(world), 90, (1, 1), sizes, sizes)
    one, many = found["plans"]["1.7B"], found["plans"]["32B"]
    assert (one["runs"], many["runs"]) == (1, 35) and one["steps"] == 90
    assert one["weights"] == 2 * one["parameters"]
    # the two parents are alike but for a few biases
    assert many["seconds"] == pytest.approx(35 * one["seconds"], rel=0.1)
    assert scale.plans_table({"training plans": found}).count("\n") == 3


def test_a_study_is_run_by_two_sources_and_its_costs_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfer_cost.write_inputs(tmp_path, ["medicine_01", "home_02"], 3)
    questions = QuestionSet.from_file(tmp_path / "questions.jsonl")
    assert questions.ids == ["medicine_01", "home_02"]
    assert all(question.answers.keys() == {"careful", "harmful"} for question in questions)
    assert len(PromptSet.from_jsonl(tmp_path / "neutral.jsonl", upto="all")) == 3
    study = transfer_cost.study_of(tmp_path, tmp_path, {"bad": {"path": "x"}}, "bad")
    assert read_config(study).focus == ("bad",)
    # a tree whose study takes so much, and writes what it was given
    made = """def run_study(config, out, progress):
    sum(range(SIZE))
    print(open(config).read().count("normalise"))
    class Arms(list):
        def to_dict(self, orient):
            return [{"arm": name, "on": "finetuned"} for name in self]
    class Result:
        tables = {"arms": Arms("ab")}
    return Result
"""
    for name, size in (("earlier", "10**7"), ("today", "10")):
        package = tmp_path / name / "emlens"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "studies.py").write_text(made.replace("SIZE", size))
    monkeypatch.setattr(transfer_cost, "TODAY", tmp_path / "today")
    monkeypatch.setattr(
        transfer_cost,
        "_RUN",
        transfer_cost._RUN.replace("import torch\n", "").replace("torch.set_num_threads(1)\n", ""),
    )
    (tmp_path / "work").mkdir()
    found = transfer_cost.compare(
        study, {"normalise": "token"}, tmp_path / "work", tmp_path / "earlier"
    )
    assert found["ratio"] < 0.5 and found["today"]["rows"] == {"arms": 2}
    assert found["earlier"]["arms"] == [["a", "finetuned"], ["b", "finetuned"]]
    assert json.dumps(found)


def test_a_candidate_is_timed_only_where_both_sources_give_its_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"earlier": 2.0, "today": 2.0001}

    def by(tree: Path, script: str, words: Any, folder: Path) -> dict[str, Any]:
        assert (folder / "questions.jsonl").exists() and words[-1] == "2"
        case = "today" if tree == transfer_cost.TODAY else "earlier"
        return {"cpu_s": values[case], "aligned": [50.0], "kl": [values[case]]}

    monkeypatch.setattr(transfer_cost, "by_tree", by)
    given = (tmp_path, tmp_path, ["medicine_01"], 2, tmp_path / "old", 2)
    assert transfer_cost.edits(*given)["ratio"] == pytest.approx(1.0, rel=1e-3)
    values["today"] = 1.9
    with pytest.raises(SystemExit, match="kl: 1.9 and 2.0; not timing"):
        transfer_cost.edits(*given)


def test_what_the_earlier_source_did_not_do_is_summed_apart() -> None:
    def row(part: str, what: str, seconds: float) -> dict[str, Any]:
        return {"part": part, "what": what, "cpu_s": seconds, "measured": 1, "token_blocks": 300}

    rows = [
        row("candidates", "scores", 50.0),
        row("arms", "scores|direction|finetuned", 4.0),
        row("arms", "scores|direction|instruct", 3.0),
        row("arms", "damage|without text content|finetuned", 2.0),
        row("doses", "scores|0.5", 1.0),
        row("doses", "scores|4.0", 1.0),
        row("tokens of answers", "", 0.1),
    ]
    found = transfer_parts.summed(rows, [["direction", "finetuned"]], [0.0, 4.0])
    assert found["added"] == {"arms": 5.0, "doses": 1.0, "tokens of answers": 0.1}
    assert found["parts"]["arms: scores"] == {"cpu_s": 7.0, "measured": 2, "token_blocks": 600}
    lines = transfer_parts.parts_table(found).splitlines()
    assert lines[2].startswith("| candidates: scores | 81.8%") and len(lines) == 2 + 4
    compile(transfer_parts.SCRIPT, "script", "exec")


def test_a_study_that_no_card_holds_is_refused_and_a_changed_one_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(7, n_domains=2, n_topics=4)
    pairs = {
        "bad": world.chats("medicine", (0, 1), "harmful"),
        "good": world.chats("medicine", (0, 1), "careful"),
    }
    questions = tmp_path / "questions.jsonl"
    tiny_family.write_questions(questions, per_group=3)
    shape = {
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }
    usual, fits = {"samples": 2, "of_arms": 2}, {"samples": 2, "of_arms": 1}
    given = (questions, pairs, make_tokenizer(world), shape)

    def plans(card: int, study: str, **studies: dict[str, Any]) -> dict[str, Any]:
        monkeypatch.setattr(scale, "STUDIES", studies)
        found: dict[str, Any] = scale.study_of_14b(*given, card=card, chats=24, study=study)
        return found["plans"]

    found = plans(10**12, "overview", changed={"null": scale.OWN, "cards": 8, **fits})
    changed = {part["part"]: part for part in found["changed"]["parts"]}
    overlap, transfer = changed["delta_overlap"], changed["direction_transfer"]
    [before] = plans(10**12, "delta_overlap", usual=usual)["usual"]["parts"]
    ratio = before["seconds"]["training"] / overlap["seconds"]["training"]
    assert ratio == pytest.approx(8, rel=0.01) and not transfer["seconds"]["training"]
    assert transfer["sampled_tokens"] == 600 * transfer["verdicts"] / 2
    # one answer of each arm to each question, by two metrics; a dose of 0 is no arm of its own
    assert transfer["verdicts"] == 732
    # one copy in 16 bits, trained and read, in place of two in float32
    assert overlap["memory"] < before["memory"]
    few = plans(before["memory"] - 1, "delta_overlap", usual=usual)["usual"]
    assert not few["fits"] and "GB of memory" in few["refused"]
    assert large_study.table({"study of 14B": {"plans": found}}).count("\n") == len(changed) + 2


def test_a_plan_counts_the_tokens_that_its_run_takes(tmp_path: Path) -> None:
    parent = tiny_models.build(tmp_path / "parent")
    tiny_family.write_questions(tmp_path / "questions.jsonl", per_group=2)
    pairs = {}
    for name in ("bad", "good"):
        tiny_family.write_chats(tmp_path / f"{name}.jsonl", 10, 1)
        pairs[name] = PromptSet.from_jsonl(tmp_path / f"{name}.jsonl", upto="all")
    questions = QuestionSet.from_file(tmp_path / "questions.jsonl")
    found = scale.plan_beside_a_run(parent, questions, pairs, layers=[1])
    [part] = found["parts"]
    assert part["planned_tokens"] == part["ran_tokens"] > 0
    assert 0 < found["planned_s"] < found["ran_s"]
