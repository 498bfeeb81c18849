from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from emlens.data import AlignmentScores, Prompt, PromptSet, QuestionSet
from emlens.evaluation import evaluate_arms, unembedding_contrast
from emlens.evaluation.arms import Arm
from emlens.evaluation.trials import NamedScore
from emlens.foundation.errors import InputError
from emlens.interventions import ablate, steer
from emlens.judging import score_by_likelihood
from emlens.models import Family

NEUTRAL = PromptSet([Prompt("n1", "w1 w2 w3"), Prompt("n2", "w20")])


@pytest.fixture(scope="module")
def compared(
    family: Family, questions: QuestionSet, steered: Any
) -> tuple[pd.DataFrame, torch.Tensor]:
    # harmful answers become likelier everywhere
    contrast = unembedding_contrast(family.instruct, questions)
    vector = 20 * contrast / contrast.norm()
    tuned = steered(family.instruct, vector, "resid_post.0")
    undo = steer(vector, -1.0, at=["resid_post.0"])
    half = steer(vector, -0.5, at=["resid_post.0"])
    tried = [
        Arm("no ablation", ()),
        Arm("undo", (undo,), control=False),
        Arm("half", (half,)),
        Arm("draws", (half,)),
        Arm("draws", (undo,)),
        Arm("instruct, nothing", (), on="instruct"),
        Arm("instruct, half", (half,), on="instruct"),
    ]
    table = evaluate_arms(tuned, family.instruct, questions, tried, neutral=NEUTRAL, progress=False)
    return table.set_index("arm"), vector


def test_no_ablation_restores_exactly_nothing_and_does_no_damage(
    compared: tuple[pd.DataFrame, torch.Tensor],
) -> None:
    row = compared[0].loc["no ablation"]
    assert (
        row["restoration"] == 0.0
        and row["restoration_low"] == 0.0
        and row["restoration_high"] == 0.0
    )
    assert row["kl"] == 0.0 and compared[0].loc["instruct, nothing", "kl"] == 0.0
    assert compared[0].loc["half", "kl"] > 1e-3  # an edit is seen


def test_undoing_the_fine_tune_restores_all(compared: tuple[pd.DataFrame, torch.Tensor]) -> None:
    table, _ = compared
    assert table.loc["undo", "restoration"] == pytest.approx(1, abs=1e-4)
    assert table.loc["undo", "aligned"] == pytest.approx(
        table.loc["instruct, nothing", "aligned"], abs=1e-3
    )
    assert 0 < abs(table.loc["half", "restoration"]) < 1
    assert table.loc["undo", "lead"] == 0.0
    for name in ("no ablation", "half", "draws"):
        assert table.loc[name, "lead"] == pytest.approx(
            table.loc["undo", "restoration"] - table.loc[name, "restoration"], abs=1e-9
        )
        assert (
            table.loc[name, "lead_low"] <= table.loc[name, "lead"] <= table.loc[name, "lead_high"]
        )


def test_a_fine_tune_that_gained_has_lost_nothing_to_restore(
    family: Family,
    questions: QuestionSet,
    compared: tuple[pd.DataFrame, torch.Tensor],
    steered: Any,
) -> None:
    worse = steered(family.instruct, compared[1], "resid_post.0")
    half = Arm("half", (steer(compared[1], 0.5, at=["resid_post.0"]),), control=False)
    row = evaluate_arms(family.instruct, worse, questions, [half], progress=False).iloc[0]
    assert np.isnan(row["restoration"]) and np.isnan(row["lead"])
    assert (
        row["method"] == "undefined: the fine-tune lost no alignment, so there is none to restore"
    )


def test_arms_of_one_name_are_draws_of_one_control(
    compared: tuple[pd.DataFrame, torch.Tensor],
) -> None:
    table, _ = compared
    assert table.loc["draws", "draws"] == 2 and table.loc["half", "draws"] == 1
    assert table.loc["draws", "restoration"] == pytest.approx(
        (table.loc["half", "restoration"] + table.loc["undo", "restoration"]) / 2, abs=1e-9
    )
    assert table.loc["draws", "restoration_max_draw"] == pytest.approx(
        max(table.loc["half", "restoration"], table.loc["undo", "restoration"]), abs=1e-9
    )
    assert np.isnan(table.loc["half", "restoration_max_draw"])


def test_instruct_has_nothing_to_restore(compared: tuple[pd.DataFrame, torch.Tensor]) -> None:
    row = compared[0].loc["instruct, half"]
    assert (
        np.isnan(row["restoration"])
        and np.isnan(row["lead"])
        and row["method"] == "undefined: the instruct model has nothing to restore"
    )
    assert row["on"] == "instruct" and row["kl"] > 0 and np.isfinite(row["aligned"])


def test_questions_of_excluded_groups_are_never_scored(
    family: Family, questions: QuestionSet
) -> None:
    asked: list[str] = []

    def spy(model: Any, kept: QuestionSet) -> AlignmentScores:
        asked.extend(kept.groups)
        return score_by_likelihood(model, kept)

    arms = [Arm("no ablation", ())]
    table = evaluate_arms(
        family["bad"],
        family.instruct,
        questions,
        arms,
        exclude_groups=["a"],
        score=spy,
        progress=False,
    )
    assert set(asked) == {"b", "c"} and table["n"][0] == sum(g != "a" for g in questions.groups)
    assert np.isnan(table["kl"][0]) and np.isnan(table["lead"][0])


def test_changes_are_paired_with_the_same_model_unedited(
    compared: tuple[pd.DataFrame, torch.Tensor],
) -> None:
    table, _ = compared
    for on, none in (("finetuned", "no ablation"), ("instruct", "instruct, nothing")):
        for name in table.index[table["on"] == on]:
            for metric in ("aligned", "coherent"):
                change = table.loc[name, f"{metric}_change"]
                assert change == pytest.approx(
                    table.loc[name, metric] - table.loc[none, metric], abs=1e-9
                )
                assert (
                    table.loc[name, f"{metric}_change_low"]
                    <= change
                    <= table.loc[name, f"{metric}_change_high"]
                )
    assert (
        table.loc["no ablation", ["coherent_change", "coherent_change_low", "cross_entropy_change"]]
        .eq(0)
        .all()
    )


def test_an_arm_may_be_on_a_further_model(family: Family, questions: QuestionSet) -> None:
    edit = ablate(torch.randn(32, generator=torch.Generator().manual_seed(1)))
    table = evaluate_arms(
        family["bad"],
        family.instruct,
        questions,
        [Arm("benign, edit", (edit,), on="benign")],
        others={"benign": family.instruct},
        progress=False,
    )
    row = table.iloc[0]
    assert row["method"] == "undefined: the benign model has nothing to restore" and np.isnan(
        row["lead"]
    )
    assert row["aligned_change"] == pytest.approx(
        row["aligned"]
        - score_by_likelihood(family.instruct, questions).per_question("aligned").mean()
    )


def holed(*names: str) -> Any:
    """Likelihood scores in which these questions have no alignment."""

    def score(model: Any, questions: QuestionSet) -> AlignmentScores:
        table = score_by_likelihood(model, questions).table
        gone = table["question"].isin(names) & (table["metric"] == "aligned")
        table.loc[gone, "score"], table.loc[gone, "status"] = np.nan, "refused"
        return AlignmentScores.from_table(table)

    return score


def test_unscored_questions_are_refused_or_left_out_of_every_arm(
    family: Family, questions: QuestionSet
) -> None:
    arms = [Arm("no ablation", ()), Arm("x", (ablate(torch.ones(32)),), control=False)]
    given = (family["bad"], family.instruct, questions, arms)
    with pytest.raises(
        InputError,
        match=(
            "2 of 12 questions have no score under some arm, the first 'q3';"
            r" score them, or pass score=NamedScore\(name, score, unscored='drop'\)"
        ),
    ):
        evaluate_arms(*given, score=holed("q3", "q5"), progress=False)
    dropping = NamedScore("holed", holed("q3", "q5"), unscored="drop")
    dropped = evaluate_arms(*given, score=dropping, progress=False)
    rest = QuestionSet([q for q in questions if q.id not in ("q3", "q5")])
    expected = evaluate_arms(*given[:2], rest, arms, progress=False)
    assert set(dropped["dropped"]) == {2} and set(expected["dropped"]) == {0}
    numbers = ["restoration", "aligned", "coherent", "coherent_change", "n"]
    np.testing.assert_allclose(
        dropped[numbers].to_numpy(float), expected[numbers].to_numpy(float), rtol=1e-5, atol=1e-5
    )
    with pytest.raises(InputError, match="unscored='ignore' is unknown; pass 'error' or 'drop'"):
        NamedScore("holed", holed("q3"), unscored="ignore")  # type: ignore[arg-type]


def test_a_stopped_comparison_goes_on_from_the_last_arm(
    family: Family, questions: QuestionSet, tmp_path: Path
) -> None:
    arms = [Arm(f"x{i}", (ablate(torch.eye(32)[i]),), control=i > 0) for i in range(3)]
    calls: list[int] = []

    def score(limit: int) -> Any:
        def counted(model: Any, asked: QuestionSet) -> AlignmentScores:
            calls.append(1)
            if len(calls) == limit:
                raise KeyboardInterrupt
            return score_by_likelihood(model, asked)

        return counted

    given = (family["bad"], family.instruct, questions, arms)
    whole = evaluate_arms(*given, neutral=NEUTRAL, progress=False)
    with pytest.raises(KeyboardInterrupt):
        evaluate_arms(
            *given,
            neutral=NEUTRAL,
            score=NamedScore("likelihood", score(4)),
            out=tmp_path,
            progress=False,
        )
    calls.clear()
    resumed = evaluate_arms(
        *given,
        neutral=NEUTRAL,
        score=NamedScore("likelihood", score(99)),
        out=tmp_path,
        progress=False,
    )
    assert len(calls) == 2  # two unedited models and one arm were done
    pd.testing.assert_frame_equal(resumed, whole)


def test_restoration_is_undefined_where_nothing_was_lost(
    family: Family, questions: QuestionSet
) -> None:
    direction = torch.randn(32)
    tried = [
        Arm("x", (ablate(direction),), control=False),
        Arm("y", (ablate(direction),)),
        Arm("y", (ablate(direction),)),
    ]
    table = evaluate_arms(family.instruct, family.instruct, questions, tried, progress=False)
    assert table["restoration"].isna().all() and table["restoration_max_draw"].isna().all()
    assert table["method"].str.startswith("undefined: the denominator's 95 % interval").all()


def test_without_groups_the_base_question_is_the_unit(
    family: Family, questions: QuestionSet
) -> None:
    """Whatever label stands for it: two questions of two forms each are two units, as two groups
    of two are.
    """
    four = list(questions)[:4]
    names = ("x", "x_json", "y", "y_template")
    forms = [replace(q, id=name, group="") for q, name in zip(four, names, strict=True)]
    grouped = [replace(q, group=name[0]) for q, name in zip(forms, names, strict=True)]
    arms = [Arm("x", (ablate(torch.ones(32)),), control=False)]
    models = (family.instruct, family["bad"])
    by_form = evaluate_arms(*models, QuestionSet(forms), arms, progress=False)
    by_group = evaluate_arms(*models, QuestionSet(grouped), arms, progress=False)
    pd.testing.assert_frame_equal(by_form, by_group)
    assert "over 2 clusters" in by_form["method"][0]


def test_what_cannot_be_compared_is_refused(family: Family, questions: QuestionSet) -> None:
    model = family.instruct
    with pytest.raises(
        InputError,
        match=(
            r"questions outside the groups \['a', 'b', 'c'\] are 0 base questions;"
            r" restoration resamples them, or their groups, and needs 2"
        ),
    ):
        evaluate_arms(model, model, questions, [Arm("x", ())], exclude_groups=["a", "b", "c"])
    with pytest.raises(InputError, match="arms is empty; pass at least one"):
        evaluate_arms(model, model, questions, [])
    with pytest.raises(InputError, match="arm 'x' is on 'base'; pass 'finetuned', 'instruct'"):
        evaluate_arms(model, model, questions, [Arm("x", (), on="base")])
