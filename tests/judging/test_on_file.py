"""From file to file: the same bytes as in memory, with few answers in memory."""

import weakref
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import sizes
from benchmarks.sizes import QuickJudge, write_answers
from emlens.data import AlignmentScores, Answer, Answers, score_chunks as chunks
from emlens.data.score_chunks import scores_without_raw
from emlens.foundation.errors import IntegrityError, StateError
from emlens.foundation.files import write_text
from emlens.judging import judge_answers, on_file, rescore, scoring
from emlens.judging.answers_on_file import AnswersOnFile
from emlens.judging.judges import Verdict
from emlens.judging.on_file import judge_file, rescore_file

COUNT = 23


class FailingJudge(QuickJudge):
    """Every third answer fails as an endpoint does; `asked` counts."""

    def __init__(self, fails: bool = True):
        self.asked, self._fails = 0, fails

    def judge(self, answer):  # type: ignore[no-untyped-def]
        self.asked += 1
        if self._fails and self.asked % 3 == 0:
            return dict.fromkeys(self.metrics, Verdict(None, "endpoint: timeout"))
        return super().judge(answer)


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of answers, to be read and written in many small pieces."""
    monkeypatch.setattr(on_file, "HELD", 5)
    monkeypatch.setattr(scoring, "HELD", 5)
    monkeypatch.setattr(chunks, "ROWS", 7)
    write_answers(tmp_path / "a.jsonl", COUNT)
    return tmp_path / "a.jsonl"


def judged(answers: Path, judge: QuickJudge, **options: bool) -> Path:
    out = answers.with_name("s.csv")
    verdicts = answers.with_name("v.jsonl")
    judge_file(AnswersOnFile(answers), judge, out, verdicts=verdicts, progress=False, **options)
    return out


def test_the_same_journal_and_the_same_scores_as_in_memory(answers: Path, tmp_path: Path) -> None:
    scores = judge_answers(
        Answers.from_jsonl(answers), QuickJudge(), out=tmp_path / "w.jsonl", progress=False
    )
    scores.to_csv(tmp_path / "whole.csv")
    rescore(scores, mass=0.7).to_csv(tmp_path / "whole_again.csv")
    out = judged(answers, QuickJudge())
    before, after = rescore_file(out, tmp_path / "again.csv", mass=0.7)
    assert (tmp_path / "v.jsonl").read_bytes() == (tmp_path / "w.jsonl").read_bytes()
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "whole_again.csv").read_bytes()
    assert before["aligned", "ok"] == COUNT and after["aligned", "low mass"] == COUNT
    without = scores_without_raw(out).table
    assert set(without.pop("raw")) == {""}
    pd.testing.assert_frame_equal(without, scores.table.drop(columns="raw"), check_dtype=False)


def test_a_second_call_asks_for_what_is_missing_alone(answers: Path, tmp_path: Path) -> None:
    judged(answers, first := FailingJudge())
    lines = (tmp_path / "v.jsonl").read_text().splitlines()
    assert first.asked == COUNT and len(lines) == 1 + 2 * COUNT
    # killed after some verdicts, in the middle of a line
    write_text(tmp_path / "v.jsonl", "\n".join(lines[:20]) + '\n{"answer": "m')
    judged(answers, second := FailingJudge(fails=False))
    assert second.asked == COUNT - 9  # the head, and two verdicts an answer but for the last
    judged(answers, third := FailingJudge(fails=False))
    assert third.asked == 0
    judged(answers, fourth := FailingJudge(fails=False), again=True)
    assert fourth.asked == 3
    assert AlignmentScores.from_file(tmp_path / "s.csv").unscored_share() == 0


def test_what_does_not_fit_is_refused_by_line(answers: Path, tmp_path: Path) -> None:
    out = judged(answers, QuickJudge())
    content, scores = answers.read_text(), out.read_text()
    first, second, *rest = content.splitlines(keepends=True)
    write_text(answers, first + second.replace("so it is", "so it was") + "".join(rest))
    with pytest.raises(IntegrityError, match="line 4: answer 'm0/q1/p1/s0' has another text now"):
        judged(answers, QuickJudge())
    for changed, message in (
        (content + second, "line 24: answer id 'm0/q1/p1/s0' was given before at line 2"),
        (content + second.replace('"sample"', '"group": "g", "sample"'), "'q1' comes in groups"),
        ("\n", "holds no answer"),
    ):
        write_text(answers, changed)
        refused(lambda: AnswersOnFile(answers), message)
    _, row, *others = scores.splitlines(keepends=True)
    last = "".join(others[-4:])  # the last piece of seven rows
    for changed, message in (
        (scores + row, "line 48: question 'q0', sample 0, metric 'aligned' is scored a second"),
        (scores + row.replace('"",1', '"g",1'), "question 'q0' comes in groups"),
        (scores.replace(last, last.replace("100.0", "101.0")), "'aligned' is on two scales"),
    ):
        write_text(out, changed)
        refused(lambda: rescore_file(out, tmp_path / "again.csv"), message)
    assert not (tmp_path / "again.csv").exists()


def refused(read: Callable[[], object], message: str) -> None:
    with pytest.raises(Exception, match=message):
        read()


class Meddling(QuickJudge):
    """Something writes to a file while it judges."""

    def __init__(self, path: Path, content: str):
        self._path, self._content = path, content

    def judge(self, answer):  # type: ignore[no-untyped-def]
        write_text(self._path, self._content)
        return super().judge(answer)


def test_files_that_change_meanwhile_are_noticed(answers: Path, tmp_path: Path) -> None:
    content, verdicts = answers.read_text(), tmp_path / "v.jsonl"
    with pytest.raises(IntegrityError, match="changed while it was being read; start again"):
        judged(answers, Meddling(answers, content.replace("it", "this")))
    write_text(answers, content)
    head = verdicts.read_text().partition("\n")[0] + "\n"
    verdicts.unlink()
    with pytest.raises(IntegrityError, match="became shorter while it was being read"):
        judged(answers, Meddling(answers, content[: content.rindex('{"model"')]))
    write_text(answers, content)
    verdicts.unlink()
    with pytest.raises(StateError, match="v.jsonl: lost verdicts while they were written"):
        judged(answers, Meddling(verdicts, head))


def test_a_line_that_does_not_end_is_refused_in_little_memory(tmp_path: Path) -> None:
    for name, found in sizes.long_line(tmp_path, 2**27).items():
        assert found["outcome"].startswith("refused: FILE, line 1: is longer than"), name
        assert found["bytes"] < 2**26, name


class CountingJudge(QuickJudge):
    """Counts the answers that it was given and that are still in memory."""

    def __init__(self) -> None:
        self.most = 0
        self._seen: list[weakref.ref[Answer]] = []

    def judge(self, answer):  # type: ignore[no-untyped-def]
        self._seen.append(weakref.ref(answer))
        self.most = max(self.most, sum(seen() is not None for seen in self._seen))
        return super().judge(answer)


def test_few_answers_are_in_memory_at_a_time(answers: Path) -> None:
    judged(answers, on_disk := CountingJudge())
    judge_answers(Answers.from_jsonl(answers), in_memory := CountingJudge(), progress=False)
    assert on_disk.most <= on_file.HELD
    assert in_memory.most >= COUNT
