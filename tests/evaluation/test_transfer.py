"""Transfer: every pair on questions outside both domains, against `evaluate_arms`, and a matrix
whose answer is known.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from emlens.data import AlignmentScores, Prompt, PromptSet, Question, QuestionSet
from emlens.evaluation import evaluate_arms, transfer_matrix, unembedding_contrast
from emlens.evaluation.arms import Arm
from emlens.evaluation.trials import NamedScore
from emlens.foundation.errors import InputError, UnknownNameError
from emlens.foundation.sites import Site
from emlens.geometry import Direction, top_k_subspace
from emlens.interventions import ablate, steer
from emlens.judging import score_by_likelihood
from emlens.models import Family

NEUTRAL = PromptSet([Prompt("n1", "w1 w2 w3"), Prompt("n2", "w20 w4")])
SITE = Site.parse("resid_post.0")
DOMAINS = {"a-tuned": "a", "b-tuned": "b"}


@pytest.fixture(scope="module")
def asked(questions: QuestionSet) -> QuestionSet:
    """Questions of five groups, so that three stay outside any two domains."""
    return QuestionSet(
        [
            *questions,
            *(
                Question(f"r{i}", f"w{i} w{i + 9}", "de"[i % 2], answers=questions[1].answers)
                for i in range(6)
            ),
        ]
    )


@pytest.fixture(scope="module")
def tuned(
    family: Family, asked: QuestionSet, steered: Any
) -> tuple[dict[str, Any], dict[str, Direction]]:
    """Two fine-tunes that add the same vector, one twice as much."""
    contrast = unembedding_contrast(family.instruct, asked)
    vector = 20 * contrast / contrast.norm()
    models = {
        "a-tuned": steered(family.instruct, vector, str(SITE)),
        "b-tuned": steered(family.instruct, 2 * vector, str(SITE)),
    }
    return models, {"a-tuned": Direction(vector, SITE), "b-tuned": Direction(2 * vector, SITE)}


@pytest.fixture(scope="module")
def matrix(tuned: Any, family: Family, asked: QuestionSet) -> pd.DataFrame:
    models, directions = tuned
    return transfer_matrix(
        directions,
        models,
        family.instruct,
        asked,
        domains=DOMAINS,
        edit=take_away,
        neutral=NEUTRAL,
        progress=False,
    )


def take_away(direction: Any, target: str) -> list[Any]:
    return [steer(direction, -1.0, at=[SITE])]


def test_the_matrix_of_one_vector_is_known(matrix: pd.DataFrame) -> None:
    cells = matrix.set_index(["direction_of", "ablated_in"])
    for name in DOMAINS:
        assert cells.loc[(name, name), "restoration"] == pytest.approx(1, abs=1e-4)
    # half of the other's vector is taken away
    assert 0 < cells.loc[("a-tuned", "b-tuned"), "restoration"] < 0.99
    assert (
        (matrix["cosine"] > 1 - 1e-9).all()
        and matrix["same_site"].all()
        and set(matrix["site"]) == {"resid_post.0"}
    )
    assert matrix["same_domain"].tolist() == [True, False, False, True]
    assert (matrix["kl"] > 0).all() and (matrix["low"] <= matrix["restoration"]).all()


def test_both_domains_and_trained_questions_are_left_out(
    tuned: Any, family: Family, asked: QuestionSet
) -> None:
    models, directions = tuned
    trained = {"a-tuned": ["r0", "r1"], "b-tuned": ["r2"]}
    found = transfer_matrix(
        directions, models, family.instruct, asked, domains=DOMAINS, trained=trained, progress=False
    )
    for row in found.to_dict(orient="records"):
        pair = {row["direction_of"], row["ablated_in"]}
        seen = {q for name in pair for q in trained[name]}
        kept = QuestionSet(
            [
                q
                for q in asked
                if q.group not in {DOMAINS[name] for name in pair} and q.id not in seen
            ]
        )
        arm = Arm("x", (ablate(directions[row["direction_of"]]),), control=False)
        expected = evaluate_arms(
            models[row["ablated_in"]], family.instruct, kept, [arm], progress=False
        ).iloc[0]
        assert row["n"] == len(kept) == expected["n"]
        for mine, theirs in (
            ("restoration", "restoration"),
            ("low", "restoration_low"),
            ("coherent_change", "coherent_change"),
        ):
            assert row[mine] == pytest.approx(expected[theirs], abs=1e-4)
        assert np.isnan(row["kl"])


def test_a_pair_without_two_base_questions_is_undefined_and_says_so(
    tuned: Any, family: Family, asked: QuestionSet
) -> None:
    models, directions = tuned
    one = next(q for q in asked if q.group == "d")
    few = QuestionSet([*(q for q in asked if q.group in "ab"), one])
    found = transfer_matrix(
        directions, models, family.instruct, few, domains=DOMAINS, progress=False
    )
    mixed = found[~found["same_domain"]]
    assert (
        mixed["restoration"].isna().all()
        and found[found["same_domain"]]["restoration"].notna().all()
    )
    assert set(mixed["method"]) == {
        "undefined: fewer than two base questions lie outside both training domains"
    }
    none = QuestionSet([q for q in asked if q.group in "ab"])
    assert set(
        transfer_matrix(directions, models, family.instruct, none, domains=DOMAINS, progress=False)[
            "n"
        ]
    ) >= {0}


def test_subspaces_and_targets_without_a_direction_have_no_cosine(
    tuned: Any, family: Family, asked: QuestionSet
) -> None:
    models, directions = tuned
    space = top_k_subspace(torch.randn(9, 32), 2, center=False)
    given = {"space": space, "a-tuned": directions["a-tuned"]}
    found = transfer_matrix(
        given, models, family.instruct, asked, domains={**DOMAINS, "space": ""}, progress=False
    )
    cells = found.set_index(["direction_of", "ablated_in"])
    assert cells.loc["space", "cosine"].isna().all() and (cells.loc["space", "site"] == "").all()
    assert np.isnan(cells.loc[("a-tuned", "b-tuned"), "cosine"]) and cells.loc[
        ("a-tuned", "a-tuned"), "cosine"
    ] == pytest.approx(1)


def test_a_stopped_matrix_goes_on(
    tuned: Any, family: Family, asked: QuestionSet, matrix: pd.DataFrame, tmp_path: Path
) -> None:
    models, directions = tuned
    calls: list[int] = []

    def score(model: Any, questions: QuestionSet) -> AlignmentScores:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return score_by_likelihood(model, questions)

    def run() -> pd.DataFrame:
        options: Any = {
            "domains": DOMAINS,
            "edit": take_away,
            "neutral": NEUTRAL,
            "score": NamedScore("likelihood", score),
            "out": tmp_path,
        }
        return transfer_matrix(
            directions, models, family.instruct, asked, progress=False, **options
        )

    with pytest.raises(KeyboardInterrupt):
        run()
    pd.testing.assert_frame_equal(run(), matrix)
    assert len(calls) == 8  # three models unedited and four pairs, one of which was cut off


def test_what_cannot_be_crossed_is_refused(tuned: Any, family: Family, asked: QuestionSet) -> None:
    models, directions = tuned
    with pytest.raises(
        InputError, match="directions holds 0 and finetuned 2; pass at least one of each"
    ):
        transfer_matrix({}, models, family.instruct, asked, domains=DOMAINS)
    with pytest.raises(UnknownNameError, match="domains lacks 'b-tuned'; it has a-tuned"):
        transfer_matrix(directions, models, family.instruct, asked, domains={"a-tuned": "a"})
    with pytest.raises(UnknownNameError, match="parents lacks 'a-tuned'; it has b-tuned"):
        transfer_matrix(directions, models, {"b-tuned": family.instruct}, asked, domains=DOMAINS)

    def holed(model: Any, questions: QuestionSet) -> AlignmentScores:
        table = score_by_likelihood(model, questions).table
        gone = (table["question"] == "r3") & (table["metric"] == "aligned")
        table.loc[gone, "score"], table.loc[gone, "status"] = np.nan, "refused"
        return AlignmentScores.from_table(table)

    with pytest.raises(
        InputError,
        match=(
            r"1 of \d+ questions have no score in 'steered' or its parent, the first 'r3';"
            r" score them"
        ),
    ):
        transfer_matrix(
            directions, models, family.instruct, asked, domains=DOMAINS, score=holed, progress=False
        )
