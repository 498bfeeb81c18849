"""One direction among many: bounds, ties, missing numbers and the released rule."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from emlens.data import Prompt, PromptSet, QuestionSet
from emlens.evaluation import (
    select_candidate,
    select_direction,
    text_damage,
    unembedding_contrast,
)
from emlens.evaluation.damage import token_damage
from emlens.evaluation.selecting import (
    last_block_read,
    score_candidates,
)
from emlens.foundation.errors import InputError
from emlens.foundation.sites import Site
from emlens.geometry import Direction
from emlens.interventions import ablate, steer
from emlens.models import Family

NEUTRAL = PromptSet([Prompt("n1", "w1 w2 w3"), Prompt("n2", "w20 w4")])
CANDIDATES = pd.DataFrame(
    {
        "restoration": [0.9, 0.5, 0.7, np.nan, 0.7],
        "kl": [0.5, 0.01, 0.05, 0.01, 0.05],
        "layer": [1, 0, 1, 1, 2],
    },
    index=list("abcde"),
)


def test_bounds_come_first_and_the_best_of_the_rest_is_taken() -> None:
    assert select_candidate(CANDIDATES, highest="restoration").label == "a"
    found = select_candidate(CANDIDATES, highest="restoration", at_most={"kl": 0.1})
    assert found.label == "c" and found.allowed == 3  # c and e are equal: the first of them
    assert found.table["left_out"].to_dict() == {
        "a": "not kl <= 0.1",
        "b": "",
        "c": "",
        "d": "restoration is undefined",
        "e": "",
    }
    assert found.rule == "highest restoration where kl <= 0.1"
    assert select_candidate(CANDIDATES, lowest="restoration").label == "b"
    assert select_candidate(CANDIDATES, highest="restoration", at_least={"layer": 2}).label == "e"
    assert (
        select_candidate(
            CANDIDATES, highest="restoration", at_most={"kl": 0.05}, below={"layer": 1}
        ).label
        == "b"
    )


def test_a_missing_number_satisfies_no_bound() -> None:
    table = CANDIDATES.assign(kl=[np.nan, 0.01, 0.05, 0.01, 0.05])
    for bounds in ({"at_most": {"kl": 9.0}}, {"at_least": {"kl": -9.0}}, {"below": {"kl": 9.0}}):
        assert select_candidate(table, highest="restoration", **bounds).label == "c"  # type: ignore[arg-type]


def test_the_released_selection_is_the_same_rule(released_data: Path) -> None:
    folder = released_data / "refusal-direction" / "gemma-2b-it"
    table = pd.DataFrame(json.loads((folder / "direction_evaluations.json").read_text()))
    rule: Any = {
        "lowest": "refusal_score",
        "at_most": {"kl_div_score": 0.1},
        "at_least": {"steering_score": 0},
        "below": {"layer": int(0.8 * 18)},
    }
    found = select_candidate(table, **rule)
    picked = table.loc[found.label]
    assert (len(table), found.allowed, picked["position"], picked["layer"]) == (90, 13, -2, 10)
    released = json.loads((folder / "direction_evaluations_filtered.json").read_text())
    allowed = found.table[found.table["allowed"]].sort_values("refusal_score")
    assert list(zip(allowed["position"], allowed["layer"], strict=True)) == [
        (r["position"], r["layer"]) for r in released
    ]


def test_a_rule_that_leaves_none_says_why() -> None:
    why = (
        r"'highest restoration where layer >= 2, kl < 0.01':"
        r" not layer >= 2 \(4\), not kl < 0.01 \(1\)"
    )
    with pytest.raises(InputError, match="none of 5 candidates is left by the rule " + why):
        select_candidate(
            CANDIDATES, highest="restoration", at_least={"layer": 2}, below={"kl": 0.01}
        )
    with pytest.raises(
        InputError,
        match="none of 0 candidates is left by the rule 'highest restoration': there are none",
    ):
        select_candidate(CANDIDATES.iloc[:0], highest="restoration")
    with pytest.raises(
        InputError,
        match="highest=None and lowest=None were given; pass the one column that decides",
    ):
        select_candidate(CANDIDATES)
    with pytest.raises(InputError, match="highest='kl' and lowest='kl' were given"):
        select_candidate(CANDIDATES, highest="kl", lowest="kl")
    with pytest.raises(
        InputError, match="candidates lack the column 'aligned'; they have restoration, kl, layer"
    ):
        select_candidate(CANDIDATES, highest="aligned")
    with pytest.raises(InputError, match="candidates have an index label that occurs twice"):
        select_candidate(pd.concat([CANDIDATES, CANDIDATES]), highest="kl")


def test_depth_is_what_lies_behind_a_site() -> None:
    depths = {
        "resid_pre.0": -1,
        "resid_pre.2": 1,
        "attn_out.2": 2,
        "mlp_out.2": 2,
        "resid_post.2": 2,
        "final_norm": float("inf"),
    }
    assert {name: last_block_read(Site.parse(name)) for name in depths} == depths


@pytest.fixture(scope="module")
def planted(
    family: Family, questions: QuestionSet, steered: Any
) -> tuple[Any, dict[str, Direction]]:
    """A fine-tune that is its parent plus one vector, and candidates of which one is that
    vector.
    """
    generator = torch.Generator().manual_seed(5)
    # harmful answers become likelier everywhere
    contrast = unembedding_contrast(family.instruct, questions)
    vector = 20 * contrast / contrast.norm()
    tuned = steered(family.instruct, vector, "resid_post.0")
    others = {
        f"other{i}": Direction(torch.randn(32, generator=generator), Site.parse("resid_post.0"))
        for i in range(3)
    }
    return tuned, {
        **others,
        "true": Direction(vector, Site.parse("resid_post.0")),
        "last": Direction(vector, Site.parse("resid_post.2")),
    }


def test_the_direction_that_restores_is_selected_below_the_last_layer(
    planted: Any, family: Family, questions: QuestionSet
) -> None:
    tuned, candidates = planted
    table = score_candidates(
        tuned, family.instruct, candidates, questions, neutral=NEUTRAL, progress=False
    )
    assert {"site", "position", "norm", "coherent_change", "kl", "n"} <= set(
        table.columns
    ) and list(table.index) == list(candidates)
    assert (
        table.loc["true", "restoration"]
        == table.loc["last", "restoration"]
        == table["restoration"].max()
    )
    harm = text_damage(
        token_damage(family.instruct, NEUTRAL, [ablate(candidates["other1"])])
    ).kl.value
    assert table.loc["other1", "instruct_kl"] == pytest.approx(harm, rel=1e-6) and harm > 0
    found = select_direction(table, n_layers=3, max_kl=50, max_coherence_loss=100)
    assert found.label == "true" and found.table.loc["last", "left_out"] == "not layer <= 1"
    assert (
        found.rule
        == "highest restoration where layer <= 1, instruct_kl <= 50, coherent_change >= -100"
    )
    assert (
        select_direction(
            table.loc[["last"]], n_layers=3, last_layer=2, max_kl=None, max_coherence_loss=100
        ).label
        == "last"
    )
    # the only block there is
    assert (
        select_direction(table.loc[["true"]], n_layers=1, max_kl=None, max_coherence_loss=100).label
        == "true"
    )
    with pytest.raises(InputError, match="none of 5 candidates is left by the rule"):
        select_direction(table, n_layers=3, max_kl=0.0, max_coherence_loss=100)


def test_selection_sees_no_question_of_the_extraction(
    planted: Any, family: Family, questions: QuestionSet
) -> None:
    tuned, candidates = planted
    leaking = {
        "x": Direction(torch.ones(32), Site.parse("resid_post.0"), ids={"after": ["q3"]}),
        **candidates,
    }
    with pytest.raises(InputError, match="was extracted from question 'q3', which is to select it"):
        score_candidates(tuned, family.instruct, leaking, questions)
    with pytest.raises(InputError, match="candidates is empty; pass at least one direction"):
        score_candidates(tuned, family.instruct, {}, questions)


def test_a_candidate_is_measured_under_the_edit_that_was_asked_for(
    planted: Any, family: Family, questions: QuestionSet
) -> None:
    tuned, candidates = planted
    undo = score_candidates(
        tuned,
        family.instruct,
        candidates,
        questions,
        edit=lambda d: [steer(d, -1.0, at=["resid_post.0"])],
        progress=False,
    )
    assert (
        undo.loc["true", "restoration"] == pytest.approx(1, abs=1e-4)
        and undo["instruct_kl"].isna().all()
    )
