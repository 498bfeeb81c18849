"""Sampling and judging over executors: the files of one process, from workers that come and go."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from judges_side_by_side import SideBySide
from travelling import Travels

from emlens.data import Question, QuestionSet
from emlens.foundation.errors import InputError, IntegrityError, UnknownNameError
from emlens.judging import WordJudge, executor_sampling, sample_answers
from emlens.judging.answers_on_file import AnswersOnFile
from emlens.judging.executor_judging import judge_over
from emlens.judging.executor_sampling import sample_over
from emlens.judging.on_file import judge_file
from emlens.models import load_model
from emlens.runs import Executor, LocalExecutor, RayExecutor

# 3 rows at once, so groups of 6 answers
SETTINGS: dict[str, Any] = {"samples": 3, "max_new_tokens": 4, "seed": 5, "batch_tokens": 30}
PARAPHRASED = Question("q2", "w2 w3", paraphrases=("w2 w3", "w1"))
QUESTIONS = QuestionSet(
    PARAPHRASED if i == 2 else Question(f"q{i}", f"w{i} w{i + 1}") for i in range(5)
)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("executors") / "instruct"
    tiny_models.build(path)
    return partial(load_model, path)


@pytest.fixture(scope="module")
def alone(load: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers and scores of one process."""
    directory = tmp_path_factory.mktemp("alone")
    sample_answers(load(), QUESTIONS, out=directory / "answers.jsonl", progress=False, **SETTINGS)
    _judge_alone(directory)
    return directory


def _judge_alone(directory: Path) -> Any:
    answers = AnswersOnFile(directory / "answers.jsonl")
    verdicts = directory / "scores.verdicts.jsonl"
    return judge_file(
        answers, open_judge(), directory / "scores.csv", verdicts=verdicts, progress=False
    )


def open_judge() -> WordJudge:
    return WordJudge("w1", ["w1"])


def _over(executor: Executor, load: Any, directory: Path) -> Any:
    out = directory / "answers.jsonl"
    sample_over(executor, load, QUESTIONS, out, progress=False, **SETTINGS)
    return judge_over(
        executor,
        open_judge,
        out,
        directory / "scores.csv",
        answers_per_unit=4,
        progress=False,
    )


def test_workers_write_the_files_of_one_process(load: Any, alone: Path, tmp_path: Path) -> None:
    statuses = _over(Travels(), load, tmp_path)
    names = ("answers.jsonl", "scores.csv", "scores.verdicts.jsonl")
    for name in names:
        assert (tmp_path / name).read_bytes() == (alone / name).read_bytes(), name
    assert statuses == _judge_alone(alone) and statuses.total() == 18
    parts = list((tmp_path / "answers.jsonl.units" / "parts").glob("*.jsonl"))
    assert len(parts) == 3
    # the same calls find all done; a damaged part is drawn again
    parts[1].write_text(parts[1].read_text()[:-20])
    assert _over(Travels(), load, tmp_path) == statuses
    for name in names:
        assert (tmp_path / name).read_bytes() == (alone / name).read_bytes(), name


def test_blocks_hold_whole_groups_of_what_is_judged_side_by_side(
    alone: Path, tmp_path: Path
) -> None:
    answers, scores = alone / "answers.jsonl", tmp_path / "scores.csv"
    judge_over(Travels(), SideBySide, answers, scores, answers_per_unit=5, progress=False)
    verdicts = tmp_path / "alone.jsonl"
    judge_file(
        AnswersOnFile(answers),
        SideBySide(),
        tmp_path / "alone.csv",
        verdicts=verdicts,
        progress=False,
    )
    assert scores.with_suffix(".verdicts.jsonl").read_bytes() == verdicts.read_bytes()
    assert scores.read_bytes() == (tmp_path / "alone.csv").read_bytes()
    assert len(list((tmp_path / "scores.csv.units" / "parts").glob("*.jsonl"))) == 3


def test_a_block_that_failed_is_drawn_later_and_the_others_stay(
    load: Any, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    real = executor_sampling.draw_group
    fails = {"q2"}

    def sampled(model: Any, blanks: Any, *rest: Any) -> Any:
        if fails & {blank.question for blank in blanks}:
            raise OSError("no memory")
        drawn.append(blanks[0].id)
        return real(model, blanks, *rest)

    monkeypatch.setattr(executor_sampling, "draw_group", sampled)
    with pytest.raises(Exception, match="no memory"):
        _over(LocalExecutor(attempts=1), load, tmp_path)
    assert not (tmp_path / "answers.jsonl").exists()
    fails.clear()
    # what a killed worker had drawn of a group is drawn anew, with the same rows side by side
    last = (alone / "answers.jsonl").read_text().splitlines()[-1]
    begun = json.dumps({**json.loads(last), "text": "drawn beside other rows"}) + "\n"
    (tmp_path / "answers.jsonl.units" / "parts" / "group-000002.jsonl").write_text(begun)
    (tmp_path / "answers.jsonl.units" / "answers" / "group-000002.json").unlink(missing_ok=True)
    drawn = [id for id in drawn if id != "instruct/q3/p1/s0"]
    _over(LocalExecutor(), load, tmp_path)
    # each group once
    assert sorted(drawn) == [f"instruct/{id}/p1/s0" for id in ("q0", "q2", "q3")]
    assert (tmp_path / "answers.jsonl").read_bytes() == (alone / "answers.jsonl").read_bytes()


def test_what_does_not_belong_together_is_refused(load: Any, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    call: dict[str, Any] = {"progress": False, **SETTINGS}
    with pytest.raises(InputError, match=r"load is a str; pass a function that loads the model"):
        sample_over(LocalExecutor(), "instruct", QUESTIONS, out, **call)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"open_judge is a WordJudge; pass a function"):
        judge_over(LocalExecutor(), open_judge(), out, tmp_path / "scores.csv")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="did you mean 'samples'"):
        sample_over(LocalExecutor(), load, QUESTIONS, out, sample=3)  # type: ignore[call-arg]
    sample_over(LocalExecutor(), load, QUESTIONS, out, **call)
    with pytest.raises(IntegrityError, match=r"answers\.jsonl\.units"):
        sample_over(LocalExecutor(), load, QUESTIONS, out, **{**call, "seed": 6})
    scores = tmp_path / "scores.csv"
    judge_over(LocalExecutor(), open_judge, out, scores, progress=False)
    stricter = partial(WordJudge, "w1", ["w1", "w2"], least=2)
    with pytest.raises(IntegrityError, match=r"scores\.csv\.units"):
        judge_over(LocalExecutor(), stricter, out, scores, progress=False)
    other = tmp_path / "other.jsonl"
    other.write_bytes(out.read_bytes())
    with pytest.raises(InputError, match="was not drawn by workers of an executor"):
        sample_over(LocalExecutor(), load, QUESTIONS, other, **call)


@pytest.mark.slow
def test_two_ray_actors_write_the_files_of_one_process(
    load: Any, alone: Path, tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: it runs the actors")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", f"{repository}:{repository / 'tests'}")
    _over(RayExecutor(2), load, tmp_path)
    for name in ("answers.jsonl", "scores.csv", "scores.verdicts.jsonl"):
        assert (tmp_path / name).read_bytes() == (alone / name).read_bytes(), name
