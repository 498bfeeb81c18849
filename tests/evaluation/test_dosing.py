"""Doses: what a coefficient does, and where the model stays usable."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from emlens.data import AlignmentScores, Prompt, PromptSet, QuestionSet
from emlens.evaluation import dose_response, usable_window
from emlens.evaluation.trials import NamedScore
from emlens.foundation.errors import InputError
from emlens.interventions import steer
from emlens.judging import score_by_likelihood
from emlens.models import Family

NEUTRAL = PromptSet([Prompt("n1", "w1 w2 w3"), Prompt("n2", "w20 w4")])
VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(5))


def add(coefficient: float) -> list[Any]:
    return [steer(VECTOR, coefficient, at=["resid_post.1"])]


@pytest.fixture(scope="module")
def swept(family: Family, questions: QuestionSet) -> pd.DataFrame:
    return dose_response(
        family["bad"], questions, add, [2.0, 0.0, -1.0], neutral=NEUTRAL, progress=False
    )


def test_each_dose_is_what_the_edit_gives_alone(
    family: Family, questions: QuestionSet, swept: pd.DataFrame
) -> None:
    assert list(swept["coefficient"]) == [-1, 0, 2] and set(swept["n"]) == {12}
    plain = score_by_likelihood(family["bad"], questions)
    for row in swept.to_dict(orient="records"):
        with family["bad"].intervene(add(row["coefficient"])):
            scores = score_by_likelihood(family["bad"], questions)
        for metric in ("aligned", "coherent"):
            assert row[metric] == pytest.approx(scores.per_question(metric).mean())
            change = (scores.per_question(metric) - plain.per_question(metric)).mean()
            assert row[f"{metric}_change"] == pytest.approx(change, abs=1e-9)
            assert (
                row[f"{metric}_change_low"] <= change + 1e-12
                and change - 1e-12 <= row[f"{metric}_change_high"]
            )
    zero = swept.set_index("coefficient").loc[0.0]
    assert zero["kl"] == zero["aligned_change"] == zero["coherent_change"] == 0
    assert (
        swept.set_index("coefficient").loc[2.0, "kl"]
        > swept.set_index("coefficient").loc[-1.0, "kl"]
        > 0
    )


def test_a_stopped_sweep_goes_on(
    family: Family, questions: QuestionSet, swept: pd.DataFrame, tmp_path: Path
) -> None:
    calls: list[int] = []

    def score(model: Any, asked: QuestionSet) -> AlignmentScores:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score_by_likelihood(model, asked)

    def sweep() -> pd.DataFrame:
        doses = [2.0, 0.0, -1.0]
        return dose_response(
            family["bad"],
            questions,
            add,
            doses,
            neutral=NEUTRAL,
            score=NamedScore("likelihood", score),
            out=tmp_path,
            progress=False,
        )

    with pytest.raises(KeyboardInterrupt):
        sweep()
    pd.testing.assert_frame_equal(sweep(), swept)
    assert len(calls) == 5  # unedited and -1 were kept; 0 was cut off and came again, then 2


def sweep_table(
    coherent: list[float], kl: list[float] | None = None, width: float = 1.0
) -> pd.DataFrame:
    """Doses -2 to 2; the unedited model has a coherence of 90."""
    change = np.array(coherent) - 90.0
    table = pd.DataFrame(
        {"coefficient": np.arange(-2.0, 3.0), "coherent": coherent, "coherent_change": change}
    )
    table["coherent_change_low"], table["coherent_low"] = change - width, table["coherent"] - width
    if kl is not None:
        table["kl"], table["kl_high"] = kl, np.array(kl) * 1.5
    return table


def test_the_window_ends_where_coherence_or_damage_does() -> None:
    table = sweep_table([60, 85, 90, 84, 50], [1, 0.05, 0, 0.08, 0.9])
    window = usable_window(table)
    assert window.coefficients == (-1, 0, 1) and (window.low, window.high) == (-1, 1)
    assert window.ended == {
        "below": "coherent_change -31 at -2, bound -10",
        "above": "coherent_change -41 at 2, bound -10",
    }
    # the interval's end counts: .08 may be .12
    assert usable_window(table, max_kl=0.1).coefficients == (-1, 0)
    assert usable_window(table.drop(columns="kl_high"), max_kl=0.1).coefficients == (-1, 0, 1)
    assert usable_window(table, max_coherence_loss=None, min_coherent=55).coefficients == (
        -2,
        -1,
        0,
        1,
    )
    assert usable_window(table, max_coherence_loss=50).ended == {"below": "", "above": ""}
    assert usable_window(table.sample(frac=1, random_state=0)).coefficients == (-1, 0, 1)


def test_a_window_has_no_gap_and_may_be_empty() -> None:
    # -2 is fine alone, beyond a broken dose
    assert usable_window(sweep_table([90, 60, 90, 90, 90])).coefficients == (0, 1, 2)
    broken = usable_window(sweep_table([90, 90, 60, 90, 90]))
    assert (
        broken.coefficients == ()
        and np.isnan(broken.low)
        and np.isnan(broken.high)
        and "at 0" in broken.ended["below"]
    )
    unknown = sweep_table([90, 90, 90, 90, 90])
    unknown.loc[3, ["coherent_change", "coherent_change_low"]] = np.nan
    assert usable_window(unknown).high == 0  # what was not measured is not usable


def test_the_released_steering_sweep_is_usable_at_its_first_scale_only(released_data: Path) -> None:
    files = sorted((released_data / "clarifying-em" / "steering").glob("responses_scale_*.csv"))
    rows = [
        {
            "coefficient": float(f.stem.rpartition("_")[2]),
            "coherent": pd.read_csv(f)["coherent"].mean(),
        }
        for f in files
    ]
    table = pd.DataFrame(rows)
    assert len(table) == 5 and table.sort_values("coefficient")["coherent"].is_monotonic_decreasing
    window = usable_window(table, max_coherence_loss=None, min_coherent=50)
    assert window.coefficients == (1.0,) and window.ended == {
        "below": "",
        "above": "coherent 43.3 at 3, bound 50",
    }


def test_doses_that_cannot_be_compared_are_refused(family: Family, questions: QuestionSet) -> None:
    model = family["bad"]
    for coefficients in ([], [1.0, 1.0], [np.inf]):
        with pytest.raises(InputError, match="must be at least one finite number, none twice"):
            dose_response(model, questions, add, coefficients)

    def holed(model: Any, asked: QuestionSet) -> AlignmentScores:
        table = score_by_likelihood(model, asked).table
        gone = (table["question"] == "q3") & (table["metric"] == "aligned")
        table.loc[gone, "score"], table.loc[gone, "status"] = np.nan, "refused"
        return AlignmentScores.from_table(table)

    with pytest.raises(
        InputError,
        match="1 of 12 questions have no score at some coefficient, the first 'q3'; score them",
    ):
        dose_response(model, questions, add, [1.0], score=holed, progress=False)
    dropping = NamedScore("holed", holed, unscored="drop")
    dropped = dose_response(model, questions, add, [1.0], score=dropping, progress=False)
    assert dropped["n"].tolist() == [11] and np.isfinite(dropped["aligned_change"]).all()
    table = sweep_table([90] * 5)
    with pytest.raises(
        InputError, match="no bound was given; pass max_coherence_loss, min_coherent or max_kl"
    ):
        usable_window(table, max_coherence_loss=None)
    with pytest.raises(
        InputError, match="table lacks the column 'kl'; it has coefficient, coherent"
    ):
        usable_window(table, max_kl=0.1)
    with pytest.raises(
        InputError,
        match="table has 10 rows with 5 coefficients; pass one row per coefficient, at least one",
    ):
        usable_window(pd.concat([table, table]))
