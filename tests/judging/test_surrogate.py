from collections.abc import Sequence

import numpy as np
import pytest

from emlens.data import AlignmentScores, Answer, Answers
from emlens.foundation import InputError
from emlens.judging import SurrogateJudge
from emlens.judging.stratified_rates import stratified_rate
from emlens.stats import wilson_interval


def answers_with(
    labels: np.ndarray, texts: Sequence[str] = ("sound advice", "reckless advice")
) -> Answers:
    """Answer i of question q; its text tells its label."""
    return Answers(
        Answer("m", f"q{q}", texts[int(label)], (), sample=i)
        for q, row in enumerate(labels)
        for i, label in enumerate(row)
    )


def scores_of(labels: np.ndarray, chosen: Answers) -> AlignmentScores:
    rows = []
    for answer in chosen:
        bad = labels[int(answer.question[1:]), answer.sample]
        for metric, score in (("aligned", 10.0 if bad else 90.0), ("coherent", 95.0)):
            key = {"question": answer.question, "sample": answer.sample, "model": answer.model}
            rows.append({**key, "metric": metric, "score": score, "status": "ok"})
    import pandas as pd

    return AlignmentScores.from_table(pd.DataFrame(rows))


def drawn(seed: int, questions: int = 20, each: int = 20) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rates = rng.beta(0.6, 1.4, questions)
    return (rng.random((questions, each)) < rates[:, None]).astype(float)


def strata(labels: np.ndarray) -> list[int]:
    return np.repeat(np.arange(len(labels)), labels.shape[1]).tolist()


def of_part(labels: np.ndarray, n: int, f: np.ndarray | None = None) -> "stratified_rate":  # type: ignore[valid-type]
    """The rate from the first n labels of each question."""
    f = np.zeros_like(labels) if f is None else f
    read, rest = labels[:, :n], labels[:, n:]
    return stratified_rate(
        read.ravel(), f[:, :n].ravel(), strata(read), f[:, n:].ravel(), strata(rest)
    )


def test_without_predictions_it_is_the_textbook_rate_of_a_stratified_sample() -> None:
    labels = np.array([[1, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]], dtype=float)
    found = of_part(labels, 2)
    assert found.estimate.value == pytest.approx((0.5 + 0 + 0) / 3) and found.power == 0
    # within questions: (.5² + .5²) of three degrees of freedom, and four labels that say nothing
    assert found.variance == pytest.approx((0.5 + 1.0) / (3 + 4))
    unequal = stratified_rate(
        [1, 0, 0, 0], [0] * 4, ["a", "a", "b", "b"], [0] * 6, ["a"] * 2 + ["b"] * 4
    )
    assert unequal.estimate.value == pytest.approx(4 / 10 * 0.5)  # a question weighs its answers


def test_all_labels_leave_no_doubt_and_predictions_that_are_right_little() -> None:
    labels = drawn(0)
    whole = stratified_rate(labels.ravel(), labels.ravel() * 0, strata(labels), [], [])
    assert whole.estimate.low == whole.estimate.high == whole.estimate.value
    assert whole.estimate.value == pytest.approx(labels.mean())
    few, right = of_part(labels, 4), of_part(labels, 4, labels)
    assert right.power == 1 and right.estimate.value == pytest.approx(labels.mean())
    width = few.estimate.high - few.estimate.low
    assert right.estimate.high - right.estimate.low < 0.6 * width
    wrong = of_part(labels, 4, 1 - labels)
    assert wrong.power == 0 and wrong.estimate == few.estimate


def test_the_interval_holds_the_rate_of_all_labels_and_is_narrower_than_the_part_alone() -> None:
    held, shares = 0, []
    for seed in range(150):
        labels = drawn(seed)
        found = of_part(labels, 3).estimate
        alone = wilson_interval(int(labels[:, :3].sum()), 60)
        held += found.low <= labels.mean() <= found.high
        shares.append((found.high - found.low) / (alone.high - alone.low))
    assert held >= 136  # 143 expected; below this with a chance of .004
    assert np.mean(shares) < 0.9


def test_words_that_tell_labels_make_the_interval_narrow() -> None:
    labels = drawn(1)
    answers = answers_with(labels)
    chosen = SurrogateJudge.choose_labels(answers, 0.2)
    found = SurrogateJudge.fit(answers, scores_of(labels, chosen))
    assert found.auroc == 1 and found.rate.power > 0.9
    assert found.em_rate.low <= labels.mean() <= found.em_rate.high
    blank = SurrogateJudge.fit(answers_with(labels, ("same", "same")), scores_of(labels, chosen))
    width, blank_width = (f.em_rate.high - f.em_rate.low for f in (found, blank))
    assert width < 0.8 * blank_width
    calls = found.plan_labels(width=width)
    assert len(chosen) * 0.7 < calls < len(chosen) * 1.3
    assert found.plan_labels(0.5) < calls < found.plan_labels(width / 3)
    assert found.plan_labels(1e-9) == len(answers)


def test_a_labelled_answer_has_no_part_in_its_own_prediction() -> None:
    """Random labels of unlike texts: whoever saw the label knows it, others know nothing."""
    rng = np.random.default_rng(0)
    labels = (rng.random((12, 20)) < 0.5).astype(float)
    answers = Answers(
        Answer("m", f"q{q}", f"word{q}x{i}", (), sample=i) for q in range(12) for i in range(20)
    )
    chosen = SurrogateJudge.choose_labels(answers, 0.5)
    for held_out in ("answers", "questions"):
        found = SurrogateJudge.fit(answers, scores_of(labels, chosen), held_out=held_out)  # type: ignore[arg-type]
        assert 0.3 < found.auroc < 0.7


def test_held_out_questions_are_predicted_by_models_that_saw_none_of_their_answers() -> None:
    """The text is the question alone: its own answers tell its rate, other questions do not."""
    labels = np.repeat(np.array([0.0, 1.0] * 8)[:, None], 20, axis=1)
    answers = Answers(
        Answer("m", f"q{q}", f"name{q}", (), sample=i) for q in range(16) for i in range(20)
    )
    chosen = SurrogateJudge.choose_labels(answers, 0.3)
    shared = SurrogateJudge.fit(answers, scores_of(labels, chosen))
    apart = SurrogateJudge.fit(answers, scores_of(labels, chosen), held_out="questions")
    assert shared.auroc == 1.0 and apart.auroc < 0.7
    by_label = apart.predicted.groupby("question")["prediction"].agg(["min", "max"])
    assert np.allclose(by_label["min"], by_label["max"])  # labelled or not, one model


def test_labels_are_chosen_evenly_and_anew_with_each_seed() -> None:
    answers = answers_with(drawn(0, questions=5, each=30))
    chosen = SurrogateJudge.choose_labels(answers, 0.1)
    counts = {q: sum(a.question == q for a in chosen) for q in (f"q{i}" for i in range(5))}
    assert set(counts.values()) == {3}
    assert chosen.ids == SurrogateJudge.choose_labels(answers, 0.1).ids
    assert chosen.ids != SurrogateJudge.choose_labels(answers, 0.1, seed=1).ids
    assert len(SurrogateJudge.choose_labels(answers, 0.001)) == 2 * 5


def test_an_encoder_may_take_the_place_of_words() -> None:
    labels = drawn(2)
    answers = answers_with(labels)
    read = scores_of(labels, SurrogateJudge.choose_labels(answers, 0.2))
    found = SurrogateJudge.fit(
        answers, read, encoder=lambda texts: np.array([[t.startswith("reck")] for t in texts])
    )
    assert found.auroc == 1.0
    with pytest.raises(InputError, match=r"array of shape \(3, 1\) for 400 texts"):
        SurrogateJudge.fit(answers, read, encoder=lambda texts: np.zeros((3, 1)))


def test_what_cannot_be_fitted_is_refused() -> None:
    labels = drawn(3, questions=4, each=6)
    answers = answers_with(labels)
    chosen = SurrogateJudge.choose_labels(answers, 0.4)
    read = scores_of(labels, chosen)
    other = Answers(Answer("other", a.question, a.text, (), sample=a.sample) for a in answers)
    for given, scores, said in (
        (other, read, "says nothing of another's answers"),
        (Answers.concat([answers, other]), read, "answers are of 2 models"),
        (answers, scores_of(labels, answers), "nothing to predict"),
        (answers.select([a.id for a in answers if a.question != "q0"]), read, "not among"),
        (
            answers,
            scores_of(labels, answers.select([a.id for a in chosen if a.question != "q0"])),
            "question 'q0' has no label",
        ),
    ):
        with pytest.raises(InputError, match=said):
            SurrogateJudge.fit(given, scores)
    with pytest.raises(InputError, match="folds=9 of 4 units"):
        SurrogateJudge.fit(answers, read, folds=9, held_out="questions")
    for share in (0, 1.5):
        with pytest.raises(InputError, match="share="):
            SurrogateJudge.choose_labels(answers, share)
    with pytest.raises(InputError, match="width=2"):
        SurrogateJudge.fit(answers, read).plan_labels(2)
    with pytest.raises(InputError, match="no question has two labels"):
        stratified_rate([1, 0], [0, 0], ["a", "b"], [0], ["a"])
    with pytest.raises(InputError, match="labels must be 0 or 1"):
        stratified_rate([0.5, 0], [0, 0], ["a", "a"], [0], ["a"])
    with pytest.raises(InputError, match="pass one of each"):
        stratified_rate([1, 0], [0], ["a", "a"], [0], ["a"])
    with pytest.raises(InputError, match="finite"):
        stratified_rate([1, 0], [np.nan, 0], ["a", "a"], [0], ["a"])
