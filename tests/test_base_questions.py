"""Eight questions in three forms are eight questions, in every public function that reads the ids
of questions: forms of one are never parted by a fold or a role, and an interval counts them once.

`cross_validate_across` has the same test beside it, and so have arms, doses, transfer, screening.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from emlens.activations import Activations
from emlens.data import AlignmentScores, Question, QuestionSet, compare_models, em_kinds
from emlens.directions import probe_directions
from emlens.evaluation import QuestionRoles
from emlens.judging import corrected_em_rate, judge_agreement, judge_noise
from emlens.probes import (
    Design,
    ceiling_from_answers,
    ceiling_from_seeds,
    cross_validate_forecast,
    fit_forecaster,
    general_and_narrow,
    sparse_probe,
    sparse_probes,
    validation,
)

RNG = np.random.default_rng(0)
BASES, FORMS = 8, ("", "_json", "_template")
IDS = [f"q{i}{form}" for i in range(BASES) for form in FORMS]
LEVELS = {f"q{i}": float(level) for i, level in enumerate(np.linspace(12, 88, BASES))}
QUICK = Design(folds=4, inner_folds=2, repeats=1, permutations=19)


def scores(spread: float = 20.0, ids: list[str] = IDS, metrics: Any = None) -> AlignmentScores:
    """Four answers of two models to each form; the level is the base question's."""
    rows = []
    for name in ids:
        level = LEVELS[name.partition("_")[0]]
        for model in ("a", "b"):
            for sample in range(4):
                value = float(np.clip(level + spread * RNG.standard_normal(), 0, 100))
                given = {"aligned": value, "coherent": 95.0, "topic": 100.0 - value}
                rows += [
                    {"question": name, "model": model, "sample": sample, "metric": m, "score": s}
                    for m, s in given.items()
                ]
    return AlignmentScores.from_table(pd.DataFrame(rows).assign(status="ok"))


def acts() -> Activations:
    values = torch.from_numpy(RNG.standard_normal((len(IDS), 6))).float()
    return Activations(
        {("resid_post.0", "last_prompt"): values},
        ids=IDS,
        groups=[""] * len(IDS),
        sites=["resid_post.0"],
        positions=["last_prompt"],
        provenance={},
    )


def one(of: AlignmentScores) -> AlignmentScores:
    return of.select(models=["a"])


COUNTED: dict[str, Callable[[], int]] = {
    "AlignmentScores.mean": lambda: one(scores()).mean("aligned").n,
    "AlignmentScores.em_rate": lambda: one(scores()).em_rate().n,
    "em_kinds": lambda: em_kinds(one(scores()), "topic")["emergent"].n,
    "compare_models": lambda: compare_models(scores(), "a", "b", "aligned").n,
    "judge_agreement": lambda: judge_agreement(one(scores()), one(scores())).difference.n,
    "judge_noise": lambda: judge_noise([one(scores()), one(scores())]).spread.n,
    "ceiling_from_answers": lambda: ceiling_from_answers(one(scores())).n,
    "ceiling_from_seeds": lambda: (
        ceiling_from_seeds(pd.DataFrame(RNG.standard_normal((len(IDS), 3)), index=IDS)).n
    ),
    "cross_validate_forecast": lambda: (
        cross_validate_forecast(acts(), one(scores()), design=QUICK).r2.n
    ),
    "fit_forecaster": lambda: fit_forecaster(acts(), one(scores())).facts["groups"],
}
"""Functions that say how many units they saw."""


@pytest.mark.parametrize("name", COUNTED)
def test_forms_of_a_question_are_counted_once(name: str) -> None:
    assert COUNTED[name]() == BASES


@pytest.fixture
def splits(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Fills with the rows that each fold of a probe holds out, by the probe's own fold maker."""
    seen: list[list[str]] = []

    def recorded(groups: Any, *given: Any, **named: Any) -> Any:
        for test in validation.grouped_folds(groups, *given, **named):
            seen.append([list(groups)[i] for i in test])
            yield test

    monkeypatch.setattr(sparse_probes, "grouped_folds", recorded)
    return seen


def test_probes_hold_out_all_forms_of_a_question(splits: list[list[str]]) -> None:
    features = pd.DataFrame(RNG.standard_normal((len(IDS), 4)), index=IDS, columns=list("abcd"))
    labels = {name: i % 2 == 0 for i, name in enumerate(IDS)}
    sparse_probe(features, labels, folds=2, resamples=2)
    trained = {name: int(name[1]) < 4 for name in IDS}
    general_and_narrow(features, labels, trained, folds=2, resamples=2)
    assert splits and all(set(held_out) <= set(LEVELS) for held_out in splits)


def test_a_probe_direction_knows_eight_units() -> None:
    half = BASES // 2 * len(FORMS)
    found = probe_directions(acts(), IDS[:half], IDS[half:], folds=4)["resid_post.0"]
    assert found.d_model == 6
    with pytest.raises(Exception, match="positive rows come from 4 units"):
        probe_directions(acts(), IDS[:half], IDS[half:], folds=5)


def test_roles_never_share_a_base_question() -> None:
    sets = [QuestionSet([Question(name, name) for name in IDS[start::3]]) for start in range(3)]
    with pytest.raises(Exception, match="q0"):
        QuestionRoles(*sets)
    whole = [QuestionSet([Question(n, n) for n in IDS if int(n[1]) % 3 == i]) for i in range(3)]
    assert len(QuestionRoles(*whole).extract) > 0


def test_a_corrected_rate_is_over_base_questions() -> None:
    judged = one(scores())
    found = corrected_em_rate(judged, judged.select(questions=IDS[: 4 * len(FORMS)]))
    assert found.corrected.n == BASES and found.judged.n == BASES
