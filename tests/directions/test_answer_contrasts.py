from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM

from emlens.activations import CaptureSpec, activation_deltas, capture, capture_pair
from emlens.data import AlignmentScores, Answer, Answers, Message
from emlens.directions import (
    RowFilter,
    contrast_answers,
    extract_directions,
    row_contrasts,
    shift_directions,
)
from emlens.foundation.errors import InputError
from emlens.geometry import direction_cosine, text_content
from emlens.geometry.contrasts import direction_from_deltas
from emlens.models import Family


def material(
    levels: list[tuple[float, float]], texts: list[str] | None = None
) -> tuple[Answers, AlignmentScores]:
    """Answer i with aligned and coherent scores."""
    answers, rows = [], []
    for i, (aligned, coherent) in enumerate(levels):
        text = texts[i] if texts else " ".join(f"w{(3 * i + j) % 40}" for j in range(1 + i % 4))
        answers.append(Answer("instruct", f"q{i}", text, (Message("user", f"w{i % 40}"),)))
        for metric, score in (("aligned", aligned), ("coherent", coherent)):
            status = "ok" if np.isfinite(score) else "refused"
            rows.append(
                {
                    "model": "instruct",
                    "question": f"q{i}",
                    "sample": 0,
                    "metric": metric,
                    "score": score,
                    "status": status,
                }
            )
    return Answers(answers), AlignmentScores.from_table(pd.DataFrame(rows))


def at(*sites: str) -> CaptureSpec:
    return CaptureSpec(list(sites), positions="mean_response")


LEVELS = [(0.0, 90.0), (100.0, 90.0), (30.0, 51.0), (71.0, 99.0), (20.0, 60.0), (90.0, 80.0)]


@pytest.mark.parametrize("weighting", ["example", "token"])
def test_a_direction_equals_a_loop_over_answers(
    family: Family, parent_path: Path, weighting: Any
) -> None:
    answers, scores = material(LEVELS)
    found = extract_directions(
        family.instruct,
        answers,
        scores,
        at("resid_post.0", "resid_post.1"),
        weighting=weighting,
        progress=False,
    )
    model = AutoModelForCausalLM.from_pretrained(parent_path)
    for layer in (0, 1):
        sides = []
        for members in ((0, 2, 4), (1, 3, 5)):
            rows = []
            for row in family.instruct.render(
                answers.select([answers.ids[i] for i in members]).prompts()
            ):
                with torch.no_grad():
                    states = model(
                        torch.tensor([row.ids]), output_hidden_states=True
                    ).hidden_states[layer + 1][0]
                rows.append(states[slice(*row.spans.content)].double())
            sides.append(
                torch.cat(rows).mean(0)
                if weighting == "token"
                else torch.stack([r.mean(0) for r in rows]).mean(0)
            )
        direction = found[f"resid_post.{layer}"]
        torch.testing.assert_close(
            direction.vector.double(), sides[0] - sides[1], rtol=1e-4, atol=1e-5
        )
        assert direction.position == "mean_response"
        assert dict(direction.ids) == {
            k: tuple(answers.ids[i] for i in m)
            for k, m in (("misaligned", (0, 2, 4)), ("aligned", (1, 3, 5)))
        }
        assert (
            direction.provenance["weighting"] == weighting
            and direction.provenance["filter"]["coherent_above"] == 50
        )


def test_the_two_weightings_differ_on_answers_of_unequal_length(family: Family) -> None:
    answers, scores = material(LEVELS)
    one, other = (
        extract_directions(
            family.instruct, answers, scores, at("resid_post.1"), weighting=w, progress=False
        )["resid_post.1"]
        for w in ("example", "token")
    )
    assert direction_cosine(one, other) < 0.999


def test_a_planted_direction_is_recovered(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    planted = rng.standard_normal(32)
    levels = [(0.0, 100.0) if i % 2 else (100.0, 100.0) for i in range(80)]
    answers, scores = material(levels)

    def read(
        model: Any, reading: Any, rows: Any, **named: Any
    ) -> dict[tuple[str, str], torch.Tensor]:
        numbers = [int(reading.rows.ids[i].split("/")[1][1:]) for i in rows]
        values = np.array(
            [np.random.default_rng(n).standard_normal(32) + (n % 2) * planted for n in numbers]
        )
        return {key: torch.tensor(values, dtype=torch.float32) for key in reading.keys}

    monkeypatch.setattr(row_contrasts, "read_rows", read)
    found = extract_directions(
        family.instruct, answers, scores, at("resid_post.1"), progress=False
    )["resid_post.1"]
    assert direction_cosine(found, torch.tensor(planted)) > 0.9  # points to misaligned
    flipped = AlignmentScores.from_table(
        scores.table.assign(
            score=lambda t: t["score"].where(t["metric"] == "coherent", 100 - t["score"])
        )
    )
    against = extract_directions(
        family.instruct, answers, flipped, at("resid_post.1"), progress=False
    )["resid_post.1"]
    assert direction_cosine(against, torch.tensor(planted)) < -0.9


def test_the_three_contrasts_are_differences_of_four_means(family: Family) -> None:
    """Within the model, between models on one text, both at once: they add up, as means over the
    same rows must.
    """
    answers, scores = material(LEVELS)
    bad, instruct = family.finetuned["bad"], family.instruct

    def mean(model: Any, ids: tuple[int, ...]) -> torch.Tensor:
        acts = capture(
            model,
            answers.select([answers.ids[i] for i in ids]),
            ["resid_post.1"],
            positions="mean_response",
            progress=False,
        )
        return acts["resid_post.1"].double().mean(0)

    wanted = {
        "answers": mean(bad, (0, 2, 4)) - mean(bad, (1, 3, 5)),
        "models": mean(bad, (0, 2, 4)) - mean(instruct, (0, 2, 4)),
        "both": mean(bad, (0, 2, 4)) - mean(instruct, (1, 3, 5)),
    }
    for between, expected in wanted.items():
        reference = None if between == "answers" else instruct
        found = contrast_answers(
            bad,
            answers,
            scores,
            between=between,
            reference=reference,
            spec=at("resid_post.1"),
            progress=False,  # type: ignore[arg-type]
        )
        direction = found.direction("resid_post.1")
        torch.testing.assert_close(direction.vector, expected, rtol=1e-5, atol=1e-6)
        assert (
            direction.provenance["between"] == between
            and direction.provenance["filter"]["aligned_at_most"] == 30
        )
        assert direction.provenance["model"]["adapter"] is not None
        assert list(found.ids) == [
            "misaligned",
            "same text, reference" if between == "models" else "aligned",
        ]
    text = extract_directions(instruct, answers, scores, at("resid_post.1"), progress=False)[
        "resid_post.1"
    ]
    own = extract_directions(bad, answers, scores, at("resid_post.1"), progress=False)[
        "resid_post.1"
    ]
    left = text_content(own, text)
    torch.testing.assert_close(left.remainder.vector, wanted["answers"] - text.vector)
    through = extract_directions(
        bad,
        answers,
        scores,
        CaptureSpec("resid_post.1", positions="last"),
        between="both",
        reference=instruct,
        progress=False,
    )
    assert through["resid_post.1"].position == "last"


def test_blocks_are_those_of_all_questions_whoever_answered(family: Family) -> None:
    """Two models misbehave on different questions, and still their directions are resampled over
    the same blocks.
    """
    answers, scores = material([*LEVELS, (0.0, 90.0), (100.0, 90.0)])
    fewer = scores.select(questions=[f"q{i}" for i in range(6)])
    one = contrast_answers(
        family.finetuned["bad"], answers, scores, at("resid_post.1"), progress=False
    )
    other = contrast_answers(family.instruct, answers, fewer, at("resid_post.1"), progress=False)
    assert len(one.sums("resid_post.1").positive) == len(other.sums("resid_post.1").positive) == 8
    assert one.sums("resid_post.1").blocks == 8 and other.sums("resid_post.1").blocks == 6


def test_shifts_on_prompts_are_those_of_captured_deltas(family: Family) -> None:
    prompts = tiny_models.prompts(12)
    bad, instruct = family.finetuned["bad"], family.instruct
    deltas = activation_deltas(
        *capture_pair(instruct, bad, prompts, sites="resid_post", progress=False)
    )
    for kind in ("mean", "top_component"):
        found = shift_directions(instruct, bad, prompts, kind=kind, progress=False)  # type: ignore[arg-type]
        assert list(found) == ["resid_post.0", "resid_post.1", "resid_post.2"]
        for site, direction in found.items():
            expected = direction_from_deltas(deltas[site].double(), site=site, kind=kind)  # type: ignore[arg-type]
            torch.testing.assert_close(direction.vector, expected.vector, rtol=1e-3, atol=1e-5)
            assert (
                direction.ids["prompts"] == tuple(prompts.ids)
                and direction.position == "last_prompt"
            )
    with pytest.raises(
        InputError, match="kind='median' is unknown; pass 'mean' or 'top_component'"
    ):
        shift_directions(instruct, bad, prompts, kind="median")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="before and after read these prompts alike at every site"):
        shift_directions(instruct, instruct, prompts, progress=False)


def test_the_filters_are_strict_where_they_say_so_and_classes_are_balanced(family: Family) -> None:
    nan = float("nan")
    levels = [
        *LEVELS,
        (30.1, 99.0),
        (70.0, 99.0),
        (0.0, 50.0),
        (100.0, 50.0),
        (nan, 99.0),
        (0.0, nan),
        (1.0, 99.0),
        (2.0, 99.0),
    ]
    answers, scores = material(levels)

    def ids(**options: Any) -> dict[str, list[str]]:
        found = extract_directions(
            family.instruct,
            answers,
            scores,
            at("resid_post.0"),
            rows=RowFilter(**options),
            progress=False,
        )["resid_post.0"]
        return {kind: [name.split("/")[1] for name in names] for kind, names in found.ids.items()}

    assert ids(balance=False) == {
        "misaligned": ["q0", "q2", "q4", "q12", "q13"],
        "aligned": ["q1", "q3", "q5"],
    }
    balanced = ids(seed=1)
    assert len(balanced["misaligned"]) == len(balanced["aligned"]) == 3 and balanced == ids(seed=1)
    assert set(balanced["misaligned"]) <= {"q0", "q2", "q4", "q12", "q13"}
    assert any(ids(seed=s) != balanced for s in range(2, 6))


def test_blank_answers_and_answers_without_scores_are_left_out(family: Family) -> None:
    answers, scores = material([*LEVELS, (0.0, 90.0)], ["w1", "w2", "w3", "w4", "w5", "w6", "  "])
    extra = Answers([*answers, Answer("instruct", "unscored", "w1", (Message("user", "w1"),))])
    found = extract_directions(
        family.instruct,
        extra,
        scores,
        at("resid_post.0"),
        rows=RowFilter(balance=False),
        progress=False,
    )["resid_post.0"]
    assert len(found.ids["misaligned"]) == 3 and len(found.ids["aligned"]) == 3


def test_what_cannot_be_extracted_is_refused(family: Family) -> None:
    answers, scores = material(LEVELS)
    with pytest.raises(InputError, match="weighting='rows' is unknown; pass 'example' or 'token'"):
        extract_directions(family.instruct, answers, scores, weighting="rows")  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match=r"scores lack the metrics \['coherent'\]; they have \['aligned'\]"
    ):
        extract_directions(family.instruct, answers, scores.select(metrics=["aligned"]))
    with pytest.raises(
        InputError,
        match=(
            r"coherent > 98\) there are 0 misaligned answers \(aligned <= 30\) and 1 aligned ones"
            r" \(> 70\); at least 2"
        ),
    ):
        extract_directions(family.instruct, answers, scores, rows=RowFilter(coherent_above=98))
    instruct = family.instruct
    with pytest.raises(
        InputError, match="between='text' is unknown; pass 'answers', 'models' or 'both'"
    ):
        extract_directions(instruct, answers, scores, between="text")  # type: ignore[arg-type]
    with pytest.raises(
        InputError,
        match="between='both' was given without a reference; pass reference=, the aligned model",
    ):
        extract_directions(instruct, answers, scores, between="both")
    with pytest.raises(
        InputError,
        match=(
            "between='answers' was given with a reference; leave it out,"
            " or pass between='models' or 'both'"
        ),
    ):
        extract_directions(instruct, answers, scores, reference=instruct)
    with pytest.raises(InputError, match="unit='model' is unknown; pass 'question' or 'answer'"):
        contrast_answers(instruct, answers, scores, unit="model")  # type: ignore[arg-type]
