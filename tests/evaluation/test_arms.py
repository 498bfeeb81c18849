from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from emlens.activations import capture
from emlens.data import AlignmentScores, Prompt, PromptSet, Question, QuestionSet
from emlens.evaluation import (
    Arm,
    ablation_arms,
    arms,
    evaluate_arms,
    mean_kl,
    score_by_likelihood,
    unembedding_contrast,
)
from emlens.foundation.errors import InputError
from emlens.geometry import mean_difference_direction
from emlens.interventions import ablate, steer
from emlens.models import Family

NEUTRAL = PromptSet([Prompt("n1", "w1 w2 w3"), Prompt("n2", "w20")])


class Steered:
    """A "fine-tune" that is its parent plus one vector at one site: taking the vector away restores it exactly."""

    name = "steered"

    def __init__(self, inner: Any, vector: torch.Tensor, site: str):
        self.inner, self.edit = inner, steer(vector, 1.0, at=[site])

    @contextmanager
    def intervene(self, edits: Sequence[Any]) -> Iterator["Steered"]:
        self.added = tuple(edits)
        yield self
        self.added = ()

    added: tuple[Any, ...] = ()

    def sequence_logprob(self, *given: Any, **named: Any) -> torch.Tensor:
        with self.inner.intervene([self.edit, *self.added]):
            return self.inner.sequence_logprob(*given, **named)

    def token_logprobs(self, *given: Any) -> list[torch.Tensor]:
        with self.inner.intervene([self.edit, *self.added]):
            return self.inner.token_logprobs(*given)


@pytest.fixture(scope="module")
def compared(family: Family, questions: QuestionSet) -> tuple[pd.DataFrame, torch.Tensor]:
    vector = 2 * torch.randn(32, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    tuned = Steered(family.instruct, vector, "resid_post.1")
    undo = steer(vector, -1.0, at=["resid_post.1"])
    half = steer(vector, -0.5, at=["resid_post.1"])
    tried = [
        Arm("no ablation", ()),
        Arm("undo", (undo,), control=False),
        Arm("half", (half,)),
        Arm("draws", (half,)),
        Arm("draws", (undo,)),
        Arm("instruct, nothing", (), on="instruct"),
        Arm("instruct, half", (half,), on="instruct"),
    ]
    table = evaluate_arms(tuned, family.instruct, questions, tried, neutral=NEUTRAL, progress=False)  # type: ignore[arg-type]
    return table.set_index("arm"), vector


def test_no_ablation_restores_exactly_nothing_and_does_no_damage(compared: tuple[pd.DataFrame, torch.Tensor]) -> None:
    row = compared[0].loc["no ablation"]
    assert row["restoration"] == 0.0 and row["restoration_low"] == 0.0 and row["restoration_high"] == 0.0
    assert row["kl"] == 0.0 and compared[0].loc["instruct, nothing", "kl"] == 0.0
    assert compared[0].loc["half", "kl"] > 1e-3  # an edit is seen


def test_undoing_the_fine_tune_restores_all(compared: tuple[pd.DataFrame, torch.Tensor]) -> None:
    table, _ = compared
    assert table.loc["undo", "restoration"] == pytest.approx(1, abs=1e-4)
    assert table.loc["undo", "aligned"] == pytest.approx(table.loc["instruct, nothing", "aligned"], abs=1e-3)
    assert 0 < abs(table.loc["half", "restoration"]) < 1
    assert table.loc["undo", "lead"] == 0.0
    for name in ("no ablation", "half", "draws"):
        assert table.loc[name, "lead"] == pytest.approx(
            table.loc["undo", "restoration"] - table.loc[name, "restoration"], abs=1e-9
        )
        assert table.loc[name, "lead_low"] <= table.loc[name, "lead"] <= table.loc[name, "lead_high"]


def test_a_fine_tune_that_gained_has_lost_nothing_to_restore(
    family: Family, questions: QuestionSet, compared: tuple[pd.DataFrame, torch.Tensor]
) -> None:
    worse = Steered(family.instruct, compared[1], "resid_post.1")
    half = Arm("half", (steer(compared[1], 0.5, at=["resid_post.1"]),), control=False)
    row = evaluate_arms(family.instruct, worse, questions, [half], progress=False).iloc[0]  # type: ignore[arg-type]
    assert np.isnan(row["restoration"]) and np.isnan(row["lead"])
    assert row["method"] == "undefined: the fine-tune lost no alignment, so there is none to restore"


def test_arms_of_one_name_are_draws_of_one_control(compared: tuple[pd.DataFrame, torch.Tensor]) -> None:
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
    family: Family, questions: QuestionSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def spy(model: Any, kept: QuestionSet) -> AlignmentScores:
        asked.extend(kept.groups)
        return score_by_likelihood(model, kept)

    monkeypatch.setattr(arms, "score_by_likelihood", spy)
    table = evaluate_arms(
        family["bad"], family.instruct, questions, [Arm("no ablation", ())], exclude_groups=["a"], progress=False
    )
    assert set(asked) == {"b", "c"} and table["n"][0] == sum(g != "a" for g in questions.groups)
    assert np.isnan(table["kl"][0]) and np.isnan(table["lead"][0])


def test_restoration_is_undefined_where_nothing_was_lost(family: Family, questions: QuestionSet) -> None:
    direction = torch.randn(32)
    tried = [
        Arm("x", (ablate(direction),), control=False),
        Arm("y", (ablate(direction),)),
        Arm("y", (ablate(direction),)),
    ]
    table = evaluate_arms(family.instruct, family.instruct, questions, tried, progress=False)
    assert table["restoration"].isna().all() and table["restoration_max_draw"].isna().all()
    assert table["method"].str.startswith("undefined: the denominator's 95 % interval").all()


def test_mean_kl_equals_torch() -> None:
    a, b = (torch.randn(2, 5, 11).log_softmax(-1) for _ in range(2))
    expected = torch.nn.functional.kl_div(
        b.double().flatten(0, 1), a.double().flatten(0, 1), log_target=True, reduction="batchmean"
    )
    assert mean_kl(list(a), list(b)) == pytest.approx(float(expected), rel=1e-12)
    assert mean_kl(list(a), list(a)) == 0.0 and mean_kl(list(a), list(b)) > 0
    ragged = mean_kl([a[0], a[1, :1]], [b[0], b[1, :1]])  # a mean over tokens, not over rows
    both = torch.nn.functional.kl_div(
        torch.cat([b[0], b[1, :1]]).double(),
        torch.cat([a[0], a[1, :1]]).double(),
        log_target=True,
        reduction="batchmean",
    )
    assert ragged == pytest.approx(float(both), rel=1e-12)
    certain = torch.tensor([[0.0, -torch.inf]])
    assert mean_kl([certain], [torch.tensor([[0.5, 0.5]]).log()]) == pytest.approx(np.log(2), rel=1e-6)


def test_every_control_is_among_the_arms(family: Family, questions: QuestionSet) -> None:
    before, after = (
        capture(family[n], questions.prompts(), positions="last_prompt", progress=False)["resid_post.1"].double()
        for n in ("instruct", "bad")
    )
    direction = mean_difference_direction(after, before, site="resid_post.1", position="last_prompt")
    benign = mean_difference_direction(after.flip(1), before, site="resid_post.1")
    contrast = unembedding_contrast(family.instruct, questions)
    means = {f"resid_post.{i}": before.mean(0) + i for i in range(3)}
    found = ablation_arms(
        direction,
        instruct_activations=before,
        deltas=after - before,
        benign=benign,
        unembedding=contrast,
        instruct_means=means,
        random_draws=3,
    )
    names = [arm.name for arm in found]
    assert names.count("random, activation covariance") == 3 and len(names) == len(set(names)) + 2
    assert {arm.name for arm in found if not arm.control} == {"direction", "direction, affine form"}
    assert [arm.name for arm in found if arm.on == "instruct"] == [
        "instruct, direction",
        "instruct, direction, affine form",
    ]
    assert {
        "second component of the deltas",
        "benign fine-tune's direction",
        "unembedding contrast",
        "no ablation",
    } < set(names)
    plain, affine = (next(arm for arm in found if arm.name == name) for name in ("direction", "direction, affine form"))
    here = torch.ones(1, 1, dtype=torch.bool)
    for edit, (site, mean) in zip(affine.interventions, means.items(), strict=True):
        assert [str(place) for place in edit.targets(family.instruct.sites)] == [site]
        kept, moved = (e.apply(mean[None, None], here)[0, 0] for e in (edit, plain.interventions[0]))
        torch.testing.assert_close(kept, mean)  # each site's own mean is the fixed point of its edit
        assert (moved - mean).norm() > 1e-3
    bare = ablation_arms(direction, instruct_activations=before, deltas=after - before, random_draws=1)
    assert not {"benign fine-tune's direction", "unembedding contrast", "direction, affine form"} & {
        arm.name for arm in bare
    }
    one_line_of_shifts = torch.outer(torch.linspace(1, 2, len(before), dtype=torch.float64), (after - before)[0])
    flat = ablation_arms(direction, instruct_activations=before, deltas=one_line_of_shifts, random_draws=1)
    assert "second component of the deltas" not in {arm.name for arm in flat} and "second component of the deltas" in {
        arm.name for arm in bare
    }
    table = evaluate_arms(family["bad"], family.instruct, questions, found, neutral=NEUTRAL, progress=False)
    assert (table["kl"][1:] > 0).all() and table["kl"][0] == 0
    assert table["aligned"].between(0, 100).all() and len(table) == len(set(names))


def test_the_unembedding_contrast_is_harmful_minus_careful(family: Family, questions: QuestionSet) -> None:
    matrix = family.instruct.unembedding().double()
    index = family.instruct.tokenizer.convert_tokens_to_ids
    expected = matrix[[index(w) for w in ("w3", "w6", "w9")]].mean(0) - matrix[[index(w) for w in ("w1", "w5")]].mean(0)
    torch.testing.assert_close(unembedding_contrast(family.instruct, questions), expected)
    same = QuestionSet([Question("q", "x", answers={"careful": ("w1 w2",), "harmful": ("w1 w3",)})])
    for refused in (same, QuestionSet([Question("q", "x")])):
        with pytest.raises(
            InputError, match="reference answers 'careful' and 'harmful' start with the same tokens, or have none"
        ):
            unembedding_contrast(family.instruct, refused)


def test_what_cannot_be_compared_is_refused(family: Family, questions: QuestionSet) -> None:
    model = family.instruct
    with pytest.raises(
        InputError, match=r"questions outside \['a', 'b'\] span 1 groups; restoration resamples groups and needs 2"
    ):
        evaluate_arms(model, model, questions, [Arm("x", ())], exclude_groups=["a", "b"])
    with pytest.raises(InputError, match=r"questions outside \['a', 'b', 'c'\] span 0 groups"):
        evaluate_arms(model, model, questions, [Arm("x", ())], exclude_groups=["a", "b", "c"])
    with pytest.raises(InputError, match="arms is empty; pass at least one"):
        evaluate_arms(model, model, questions, [])
    with pytest.raises(InputError, match="arm 'x' is on 'base'; pass 'finetuned' or 'instruct'"):
        evaluate_arms(model, model, questions, [Arm("x", (), on="base")])
    with pytest.raises(
        InputError, match=r"rows have shapes \(2, 3\) and \(2, 4\); pass log-probabilities of the same prompts"
    ):
        mean_kl([torch.zeros(2, 3)], [torch.zeros(2, 4)])
    with pytest.raises(InputError, match="reference is empty; pass at least one prompt"):
        mean_kl([], [])
