"""The arms of a direction: which there are, and what each removes."""

from typing import Any

import pytest
import torch

from emlens.activations import capture
from emlens.data import Prompt, PromptSet, Question, QuestionSet
from emlens.evaluation import (
    AblationForm,
    ablation_arms,
    affine_form,
    evaluate_arms,
    unembedding_contrast,
)
from emlens.evaluation.ablation_forms import PLAIN
from emlens.foundation.errors import InputError
from emlens.foundation.sites import Site
from emlens.geometry import Direction, direction_cosine, mean_difference_direction
from emlens.models import Family

SITE = Site.parse("resid_post.1")
NEUTRAL = PromptSet([Prompt("n1", "w1 w2 w3"), Prompt("n2", "w20 w3")])


def test_every_control_is_among_the_arms(family: Family, questions: QuestionSet) -> None:
    before, after = (
        capture(family[n], questions.prompts(), positions="last_prompt", progress=False)[
            "resid_post.1"
        ].double()
        for n in ("instruct", "bad")
    )
    direction = mean_difference_direction(
        after, before, site="resid_post.1", position="last_prompt"
    )
    benign = mean_difference_direction(after.flip(1), before, site="resid_post.1")
    contrast = unembedding_contrast(family.instruct, questions)
    form = affine_form(family.instruct, questions)
    found = ablation_arms(
        direction,
        instruct_activations=before,
        deltas=after - before,
        forms=[form, PLAIN],
        benign=benign,
        unembedding=contrast,
        text_content=before[0] - before[1],
        massive=4,
        also_on=["benign"],
        random_draws=3,
    )
    names = [arm.name for arm in found]
    assert names.count("random, activation covariance") == 3 and len(names) == len(set(names)) + 2
    assert {arm.name for arm in found if not arm.control} == {
        "direction",
        "direction, plain, after every block",
        "without massive coordinates",
        "without text content",
    }
    for on in ("instruct", "benign"):
        assert [arm.name for arm in found if arm.on == on] == [
            f"{on}, direction",
            f"{on}, direction, plain, after every block",
            f"{on}, unembedding contrast",
        ]
    by_name = {arm.name: arm for arm in found}
    assert by_name["unembedding contrast"].cosine == direction_cosine(direction, contrast)
    assert (
        by_name["instruct, unembedding contrast"].interventions[0].describe()
        == by_name["unembedding contrast"].interventions[0].describe()
    )
    assert {
        "second component of the deltas",
        "third component of the deltas",
        "massive coordinates only",
        "text content only",
        "benign fine-tune's direction",
        "unembedding contrast",
        "no ablation",
    } < set(names)
    bare = ablation_arms(
        direction, instruct_activations=before, deltas=after - before, random_draws=1
    )
    assert {arm.name for arm in bare} == {
        "no ablation",
        "direction",
        "random, activation covariance",
        "second component of the deltas",
        "third component of the deltas",
        "instruct, direction",
    }
    one_line_of_shifts = torch.outer(
        torch.linspace(1, 2, len(before), dtype=torch.float64), (after - before)[0]
    )
    flat = ablation_arms(
        direction, instruct_activations=before, deltas=one_line_of_shifts, random_draws=1
    )
    assert not any("component" in arm.name for arm in flat)
    others = {"benign": family["bad"]}
    table = evaluate_arms(
        family["bad"],
        family.instruct,
        questions,
        found,
        others=others,
        neutral=NEUTRAL,
        progress=False,
    )
    assert (table["kl"][1:] > 0).all() and table["kl"][0] == 0
    assert table["aligned"].between(0, 100).all() and len(table) == len(set(names))


class Recording(AblationForm):
    """A form that keeps the direction it was given in place of an edit."""

    def remove(self, direction: Any) -> Any:
        vector = direction.vector if isinstance(direction, Direction) else direction
        return (vector / vector.norm(), self.name)


RECORDING = Recording("recorded")


def test_every_arm_is_removed_in_the_one_form() -> None:
    rows = torch.randn(20, 32, dtype=torch.float64)
    other = Recording("other")
    direction = Direction(rows[0], SITE)
    options: Any = {
        "instruct_activations": rows,
        "deltas": rows.roll(1, 0),
        "benign": Direction(rows[1], SITE),
        "unembedding": rows[2],
        "massive": 3,
    }
    found = ablation_arms(
        direction,
        forms=[RECORDING, other],
        random_draws=2,
        also_on=["benign"],
        **options,
    )
    used = {arm.name: arm.interventions[1] for arm in found if arm.interventions}  # type: ignore[index]
    assert {name for name, form in used.items() if form == "other"} == {
        f"{on}direction, other" for on in ("", "instruct, ", "benign, ")
    }
    assert set(used.values()) == {"recorded", "other"} and found[0].interventions == ()


def test_parts_of_the_direction_add_up_to_it() -> None:
    rows = torch.randn(20, 32, dtype=torch.float64)
    rows[:, [3, 17]] += 50.0  # massive in the mean activation
    vector, text = torch.randn(32, dtype=torch.float64), torch.randn(32, dtype=torch.float64)
    direction = Direction(vector, SITE)
    arms = ablation_arms(
        direction,
        instruct_activations=rows,
        deltas=rows.roll(1, 0),
        text_content=text,
        massive=2,
        random_draws=1,
        forms=[RECORDING],
    )
    found = {arm.name: arm for arm in arms}
    only, without = (
        found[name].interventions[0]
        for name in ("massive coordinates only", "without massive coordinates")
    )
    assert set(only.nonzero()[:, 0].tolist()) == {3, 17} and (without[[3, 17]] == 0).all()
    content, rest = (
        found[name].interventions[0] for name in ("text content only", "without text content")
    )
    assert direction_cosine(content, text) == pytest.approx(
        direction_cosine(vector, text) / abs(direction_cosine(vector, text))
    )
    assert abs(float(rest @ text)) < 1e-12
    for a, b, name in (
        (only, without, "massive coordinates only"),
        (content, rest, "text content only"),
    ):
        rebuilt = (vector @ a) * a + (vector @ b) * b
        torch.testing.assert_close(rebuilt, vector)
        assert found[name].cosine == pytest.approx(abs(float(vector @ a)) / float(vector.norm()))
    with pytest.raises(InputError, match="delta_components holds 6; pass numbers from 1 to 5"):
        ablation_arms(direction, instruct_activations=rows, deltas=rows, delta_components=[6])


def test_the_unembedding_contrast_is_harmful_minus_careful(
    family: Family, questions: QuestionSet
) -> None:
    matrix = family.instruct.unembedding().double()
    index = family.instruct.tokenizer.convert_tokens_to_ids
    expected = matrix[[index(w) for w in ("w3", "w6", "w9")]].mean(0) - matrix[
        [index(w) for w in ("w1", "w5")]
    ].mean(0)
    torch.testing.assert_close(unembedding_contrast(family.instruct, questions), expected)
    same = QuestionSet([Question("q", "x", answers={"careful": ("w1 w2",), "harmful": ("w1 w3",)})])
    for refused in (same, QuestionSet([Question("q", "x")])):
        with pytest.raises(
            InputError,
            match=(
                "reference answers 'careful' and 'harmful' start with the same tokens, or have none"
            ),
        ):
            unembedding_contrast(family.instruct, refused)
