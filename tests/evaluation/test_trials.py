"""Each edit is measured once, found again by everything it depends on, and by nothing else."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from emlens.data import AlignmentScores, Prompt, PromptSet, QuestionSet
from emlens.evaluation import measurements
from emlens.evaluation.measurements import shared_measurements
from emlens.evaluation.trials import NamedScore, Trials, question_scores
from emlens.foundation.errors import InputError
from emlens.interventions import ablate, steer
from emlens.judging import score_by_likelihood
from emlens.models import Family
from emlens.models.pass_counts import counted_passes

NEUTRAL = PromptSet([Prompt("n1", "w1 w2 w3"), Prompt("n2", "w20 w4")])
EDIT = ablate(torch.arange(1.0, 33.0))


class Counting:
    """Likelihood scores, counted."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, model: Any, questions: QuestionSet) -> AlignmentScores:
        self.calls += 1
        return score_by_likelihood(model, questions)


def test_what_was_measured_is_not_measured_again(
    family: Family, questions: QuestionSet, tmp_path: Path
) -> None:
    score = Counting()
    trials = Trials(questions, neutral=NEUTRAL, score=NamedScore("s", score), out=tmp_path)
    first = trials.scores(family["bad"], [EDIT])
    first.iloc[:] = -1.0  # a caller's changes stay the caller's
    again = trials.scores(family["bad"], [EDIT])
    damage = trials.damage(family["bad"], [EDIT])
    assert score.calls == 1 and not (again == first).any(axis=None) and damage is not None
    # another process
    later = Trials(questions, neutral=NEUTRAL, score=NamedScore("s", score), out=tmp_path)
    pd.testing.assert_frame_equal(later.scores(family["bad"], [EDIT]), again)
    found = later.damage(family["bad"], [EDIT])
    assert found is not None
    np.testing.assert_array_equal(found.to_numpy(), damage.to_numpy())
    assert score.calls == 1 and list(found.index) == list(damage.index)


def test_another_model_edit_question_score_or_outer_edit_is_measured_anew(
    family: Family, questions: QuestionSet, tmp_path: Path
) -> None:
    score = Counting()

    def trials(asked: QuestionSet = questions, name: str = "s") -> Trials:
        return Trials(asked, score=NamedScore(name, score), out=tmp_path)

    model = family["bad"]
    plain = trials().scores(model)
    trials().scores(model, [EDIT])
    trials().scores(family.instruct)
    trials(QuestionSet(questions[:-1])).scores(model)
    trials(name="other").scores(model)
    with model.intervene([EDIT]):
        under = trials().scores(model)
    trials().scores(model, [steer(torch.ones(32), 0.5, at=["resid_post.0"])])
    trials().scores(model, [steer(torch.ones(32), 0.6, at=["resid_post.0"])])
    assert score.calls == 7  # the edit from outside is the same as the edit given, and was known
    pd.testing.assert_frame_equal(under, trials().scores(model, [EDIT]))
    assert not np.allclose(under["aligned"], plain["aligned"])


def test_a_damaged_record_is_measured_anew(
    family: Family, questions: QuestionSet, tmp_path: Path
) -> None:
    score = Counting()
    whole = Trials(questions, score=NamedScore("s", score), out=tmp_path).scores(family["bad"])
    [record] = tmp_path.glob("*.json")
    record.write_text(record.read_text().replace("0", "1", 3))
    pd.testing.assert_frame_equal(
        Trials(questions, score=NamedScore("s", score), out=tmp_path).scores(family["bad"]), whole
    )
    assert score.calls == 2


def judged(
    rows: list[tuple[str, int, float | None, float | None]], model: str = "m"
) -> AlignmentScores:
    """Scores of answers: question, sample, aligned, coherent."""
    table = [
        {
            "model": model,
            "question": q,
            "sample": s,
            "metric": metric,
            "score": np.nan if v is None else v,
            "status": "ok" if v is not None else "refused",
        }
        for q, s, *values in rows
        for metric, v in zip(("aligned", "coherent"), values, strict=True)
    ]
    return AlignmentScores.from_table(pd.DataFrame(table))


def test_misaligned_answers_are_coherent_ones() -> None:
    found = question_scores(
        judged(
            [
                ("a", 0, 10, 90),
                ("a", 1, 90, 90),
                ("a", 2, 10, 20),
                ("a", 3, None, 90),
                ("b", 0, 30, 90),
                ("c", 0, None, 5),
            ]
        )
    )
    assert found["misaligned"].to_dict() == pytest.approx(
        {"a": 1 / 3, "b": 0, "c": np.nan}, nan_ok=True
    )
    assert found.loc["a", "aligned"] == pytest.approx(110 / 3) and found.loc["c", "coherent"] == 5


def test_further_metrics_may_have_a_scale_of_their_own() -> None:
    plain = judged([("a", 0, 10, 90), ("a", 1, 90, 90), ("b", 0, 30, 90)])
    nats = plain.table[plain.table["metric"] == "aligned"].assign(metric="content", score=-90.0)
    scales = {"aligned": (0.0, 100.0), "coherent": (0.0, 100.0), "content": (-100.0, 100.0)}
    both = AlignmentScores.from_table(pd.concat([plain.table, nats]), scale=scales)
    pd.testing.assert_frame_equal(question_scores(both), question_scores(plain))


def test_unscored_questions_survive_the_record(
    family: Family, questions: QuestionSet, tmp_path: Path
) -> None:
    two = QuestionSet(questions[:2])

    def score(model: Any, asked: QuestionSet) -> AlignmentScores:
        return judged([("plain", 0, None, 5), ("odd", 0, 10, 90)])

    memory = Trials(two, score=score).scores(family["bad"])
    disk = [
        Trials(two, score=NamedScore("s", score), out=tmp_path).scores(family["bad"])
        for _ in range(2)
    ]
    for found in (memory, *disk):
        assert (
            list(found.index) == ["odd", "plain"]
            and np.isnan(found.loc["plain", "aligned"])
            and found.loc["odd", "misaligned"] == 1
        )


def test_an_edit_at_positions_chosen_by_a_callable_has_no_key(
    family: Family, questions: QuestionSet
) -> None:
    edit = steer(torch.ones(32), 1.0, at=["resid_post.1"], positions=lambda ids, mask: mask)
    with pytest.raises(
        InputError,
        match=(
            "Steering acts at positions given as a callable, which cannot be distinguished from"
            " another one; pass 'all', 'prompt'"
        ),
    ):
        Trials(questions).scores(family["bad"], [edit])


def test_scores_that_do_not_fit_are_refused(
    family: Family, questions: QuestionSet, tmp_path: Path
) -> None:
    def give(scores: AlignmentScores) -> Trials:
        return Trials(questions, score=lambda model, asked: scores)

    with pytest.raises(
        InputError, match="the score gives 1 questions for the 12 asked; one that differs is"
    ):
        give(judged([("odd", 0, 1, 1)])).scores(family["bad"])
    with pytest.raises(
        InputError, match=r"the score gives no metric 'coherent'; it gives \['aligned'\]"
    ):
        question_scores(judged([("odd", 0, 1, 1)]).select(metrics=["aligned"]))
    two = AlignmentScores.concat([judged([("odd", 0, 1, 1)]), judged([("odd", 0, 1, 1)], "other")])
    with pytest.raises(InputError, match="the score gives 2 models, m, other; pass scores of one"):
        question_scores(two)
    with pytest.raises(
        InputError,
        match=r"out was given with a score of your own; pass score=NamedScore\(name, score\)",
    ):
        Trials(questions, score=Counting(), out=tmp_path)
    assert Trials(questions).damage(family["bad"]) is None


def test_trials_of_one_block_share_what_they_measured(
    family: Family, questions: QuestionSet
) -> None:
    score, other = Counting(), Counting()
    model = family["bad"]

    def measured(by: Counting) -> tuple[pd.DataFrame, pd.DataFrame | None]:
        trials = Trials(questions, neutral=NEUTRAL, score=by)
        with counted_passes() as counts:
            tables = trials.scores(model, [EDIT]), trials.damage(model, [EDIT])
        passes.append(counts.passes)
        return tables

    passes: list[int] = []
    with shared_measurements():
        first = measured(score)
        first[0].iloc[:] = -1.0  # a caller's changes stay the caller's
        again = measured(score)
        assert (score.calls, passes[1]) == (1, 0)
        # neither has a name; they are told apart, and damage has no score
        measured(other)
        assert other.calls == 1 and 0 < passes[2] < passes[0]
    alone = measured(score)
    assert score.calls == 2 and passes[3] == passes[0]
    pd.testing.assert_frame_equal(again[0], alone[0])
    assert again[1] is not None and alone[1] is not None
    pd.testing.assert_frame_equal(again[1], alone[1])


def test_a_block_with_a_folder_goes_on_from_what_a_cut_one_measured(
    family: Family, questions: QuestionSet, tmp_path: Path
) -> None:
    score = Counting()
    model = family["bad"]

    def measured(name: str) -> list[pd.DataFrame]:
        with shared_measurements(tmp_path / "kept"):
            trials = Trials(questions, score=NamedScore(name, score) if name else score)
            return [trials.scores(model, [edit]) for edit in edits]

    edits = [EDIT]
    [first] = measured("s")
    edits = [EDIT, steer(torch.ones(model.d_model), 1.0, at=["resid_post.0"])]
    found = measured("s")  # another process, as far as the folder is concerned
    assert score.calls == 2
    pd.testing.assert_frame_equal(found[0], first)
    assert len(list((tmp_path / "kept").glob("scores-*.json"))) == 2
    # one without a name cannot be told from others, and is kept in memory alone
    measured("")
    measured("")
    assert score.calls == 6 and len(list((tmp_path / "kept").iterdir())) == 2


def test_unedited_texts_of_the_models_used_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurements, "TEXT_LOGITS", 25)
    kept, made = measurements.Measurements(), []

    def ask(name: str) -> None:
        kept.unedited(name, lambda: made.append(name) or [torch.zeros(2, 5)])  # type: ignore[func-returns-value]

    for name in ("a", "b", "a", "c", "a", "b"):
        ask(name)
    assert made == ["a", "b", "c", "b"]
