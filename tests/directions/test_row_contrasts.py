from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

from emlens.activations import CaptureSpec, capture
from emlens.activations.batch_reading import OutOfMemory
from emlens.data import Answer, Answers, Message, PromptSet
from emlens.directions import contrast, row_contrasts
from emlens.directions.row_contrasts import Contrasts
from emlens.foundation import Index, InputError, UnknownNameError
from emlens.geometry import mean_difference_direction, whitened_direction
from emlens.models import Family, HookedModel, load_family

MEAN = CaptureSpec("resid_post.1", positions="mean_response")
POSITIONS = ["mean_response", "last_prompt", Index(0, of="response")]


def answers(start: int, n: int = 10) -> Answers:
    texts = [
        " ".join(f"w{(7 * i + j) % 40}" for j in range(1 + i % 4)) for i in range(start, start + n)
    ]
    return Answers(
        Answer(
            "instruct",
            f"q{i % 4}",
            text,
            (Message("user", f"w{i % 40} w{(i + 3) % 40}"),),
            sample=start + i,
        )
        for i, text in enumerate(texts)
    )


UP, DOWN = answers(0), answers(30, 7)


@pytest.fixture(scope="module")
def found(family: Family) -> Contrasts:
    model = family.instruct
    return contrast(
        (model, UP),
        (model, DOWN),
        CaptureSpec(positions=POSITIONS),
        covariance=True,
        provenance={"asked": 1},
        progress=False,
    )


def rows(model: HookedModel, chosen: Answers, site: str, position: str) -> torch.Tensor:
    return capture(model, chosen, [site], positions=POSITIONS, progress=False)[
        site, position
    ].double()


def test_directions_are_those_of_captured_rows_at_every_place(
    family: Family, found: Contrasts
) -> None:
    assert found.sites == ("resid_post.0", "resid_post.1", "resid_post.2")
    assert found.positions == ("mean_response", "last_prompt", "index[0,response]")
    for site in ("resid_post.0", "resid_post.2"):
        for position in found.positions:
            sides = [rows(family.instruct, side, site, position) for side in (UP, DOWN)]
            plain = mean_difference_direction(*sides, site=site)
            direction = found.direction(site, position)
            torch.testing.assert_close(direction.vector, plain.vector, rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(direction.baseline, plain.baseline, rtol=1e-6, atol=1e-9)
            white = whitened_direction(*sides, site=site)
            torch.testing.assert_close(
                found.whitened(site, position).vector, white.vector, rtol=1e-5, atol=1e-8
            )
            assert found.whitened(site, position).provenance["shrinkage"] == pytest.approx(
                white.provenance["shrinkage"]
            )
    assert list(found.directions("last_prompt")) == list(found.sites)
    assert direction.ids == {"positive": tuple(UP.ids), "negative": tuple(DOWN.ids)}
    assert (
        direction.provenance["asked"] == 1
        and direction.provenance["positive"]["rendered_sha256"]
        != direction.provenance["negative"]["rendered_sha256"]
    )


def test_batches_and_their_size_change_nothing_but_rounding(
    family: Family, found: Contrasts
) -> None:
    model = family.instruct
    small = contrast(
        (model, UP),
        (model, DOWN),
        CaptureSpec(positions=POSITIONS, batch_tokens=16),
        progress=False,
    )
    for site in found.sites:
        torch.testing.assert_close(
            small.direction(site, "mean_response").vector,
            found.direction(site, "mean_response").vector,
            rtol=1e-4,
            atol=1e-5,
        )


def test_tokens_weigh_what_their_position_holds(family: Family) -> None:
    model = family.instruct
    found = contrast(
        (model, UP),
        (model, DOWN),
        CaptureSpec("resid_post.1", positions=POSITIONS),
        weighting="token",
        progress=False,
    )
    sides = []
    for side in (UP, DOWN):
        tokens = capture(model, side, ["resid_post.1"], positions="all", progress=False).tokens(
            "resid_post.1"
        )
        answers = [row.spans.part("response") for row in model.render(side.prompts())]
        spans = [
            tokens.values[int(start) + answer.start : int(start) + answer.stop]
            for start, answer in zip(tokens.offsets[:-1], answers, strict=True)
        ]
        sides.append(torch.cat(spans).double().mean(0))
    torch.testing.assert_close(
        found.direction("resid_post.1", "mean_response").vector,
        sides[0] - sides[1],
        rtol=1e-5,
        atol=1e-6,
    )
    example = contrast(
        (model, UP), (model, DOWN), CaptureSpec("resid_post.1", positions=POSITIONS), progress=False
    )
    torch.testing.assert_close(  # one token each: the weightings are one
        found.direction("resid_post.1", "last_prompt").vector,
        example.direction("resid_post.1", "last_prompt").vector,
    )
    assert not torch.allclose(
        found.direction("resid_post.1", "mean_response").vector,
        example.direction("resid_post.1", "mean_response").vector,
    )


def test_answers_to_one_question_share_a_block(family: Family) -> None:
    model = family.instruct
    found = contrast((model, UP), (model, DOWN), MEAN, progress=False)
    sums = found.sums("resid_post.1")
    assert sums.blocks == 4 and sorted(sums.positive_weight.tolist()) == [2, 2, 3, 3]
    left = {}
    for question in ("q0", "q1", "q2", "q3"):
        sides = [
            rows(
                model,
                Answers(a for a in side if a.question != question),
                "resid_post.1",
                "mean_response",
            )
            for side in (UP, DOWN)
        ]
        left[question] = sides[0].mean(0) - sides[1].mean(0)
    for one in sums.leave_one_out():
        assert sum(torch.allclose(one, other, rtol=1e-4, atol=1e-6) for other in left.values()) == 1
    alone = contrast(
        (model, UP),
        (model, DOWN),
        MEAN,
        units=lambda prompt: prompt.id,
        progress=False,
    )
    assert alone.sums("resid_post.1").blocks == 17


def test_two_models_on_the_same_prompts_give_the_mean_delta(family: Family) -> None:
    prompts = tiny_models.prompts(9)
    found = contrast(
        (family.finetuned["bad"], prompts),
        (family.instruct, prompts),
        CaptureSpec(positions="last_prompt"),
        progress=False,
    )
    before, after = (
        capture(m, prompts, progress=False) for m in (family.instruct, family.finetuned["bad"])
    )
    for site in found.sites:
        torch.testing.assert_close(
            found.direction(site).vector,
            (after[site].double() - before[site].double()).mean(0),
            rtol=1e-5,
            atol=1e-6,
        )
    assert found.sums("resid_post.0").blocks == 9


def test_a_batch_that_does_not_fit_is_cut(
    family: Family, monkeypatch: pytest.MonkeyPatch, found: Contrasts
) -> None:
    real = row_contrasts.read_rows

    def read(model: Any, reading: Any, chosen: Any, **named: Any) -> Any:
        if len(chosen) > 4:
            raise OutOfMemory("no room")
        return real(model, reading, chosen, **named)

    monkeypatch.setattr(row_contrasts, "read_rows", read)
    cut = contrast(
        (family.instruct, UP),
        (family.instruct, DOWN),
        CaptureSpec(positions=POSITIONS),
        progress=False,
    )
    place = ("resid_post.1", "mean_response")
    torch.testing.assert_close(
        cut.direction(*place).vector, found.direction(*place).vector, rtol=1e-4, atol=1e-5
    )
    assert cut.sums("resid_post.1", "last_prompt").positive_weight.sum() == 10  # no row twice


def test_refusals(
    family: Family, found: Contrasts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = family.instruct
    with pytest.raises(InputError, match="weighting='rows' is unknown; pass 'example' or 'token'"):
        contrast((model, UP), (model, DOWN), weighting="rows")  # type: ignore[arg-type]
    with pytest.raises(
        InputError,
        match=(
            "covariance=True was given with weighting='token',"
            " whose rows have no covariance of their own"
        ),
    ):
        contrast((model, UP), (model, DOWN), weighting="token", covariance=True)
    with pytest.raises(
        InputError, match="position 'all' keeps every token apart; pass pooled positions"
    ):
        contrast((model, UP), (model, DOWN), CaptureSpec(positions="all"))
    with pytest.raises(InputError, match="positive rows lie in 1 block"):
        contrast(
            (model, Answers(a for a in UP if a.question == "q1")), (model, DOWN), progress=False
        )
    with pytest.raises(InputError, match="there is no|has 0 tokens|leaves no token|does not exist"):
        contrast(
            (model, PromptSet.from_texts(["w1", "w2"])),
            (model, PromptSet.from_texts(["w3", "w4"])),
        )
    with pytest.raises(
        UnknownNameError,
        match=(
            r"there are several positions, mean_response, last_prompt, index\[0,response\];"
            r" pass position="
        ),
    ):
        found.direction("resid_post.1")
    with pytest.raises(
        UnknownNameError,
        match="'resid_post.7' at 'last_prompt' was not read; there are sites resid_post.0",
    ):
        found.sums("resid_post.7", "last_prompt")
    plain = contrast((model, UP), (model, DOWN), MEAN, progress=False)
    with pytest.raises(
        InputError, match="no covariance was kept; pass covariance=True to the extraction"
    ):
        plain.whitened("resid_post.1")
    monkeypatch.setattr(row_contrasts, "LARGE_BYTES", 1000)
    with pytest.raises(
        InputError,
        match=(
            r"the sums take 0.0 GB, more than 0.0 GB; pass fewer layers, positions or blocks,"
            r" or no covariance"
        ),
    ):
        contrast((model, UP), (model, DOWN), progress=False)


def test_sites_below_an_adapter_have_no_direction_and_are_left_out(
    tmp_path: Path, family: Family, parent_path: Path
) -> None:
    late = tiny_models.build_adapter(tmp_path / "late", parent_path, layers_to_transform=[1])
    tuned = load_family(parent_path, finetuned={"late": late})
    prompts = tiny_models.prompts(5)
    found = contrast(
        (tuned.finetuned["late"], prompts),
        (tuned.instruct, prompts),
        CaptureSpec(positions="last_prompt"),
        progress=False,
    )
    assert list(found.directions()) == ["resid_post.1", "resid_post.2"]
    with pytest.raises(InputError, match=r"same mean \(they differ by 0\)"):
        found.direction("resid_post.0")
    same = contrast(
        (tuned.instruct, prompts),
        (tuned.instruct, prompts),
        CaptureSpec(positions="last_prompt"),
        progress=False,
    )
    with pytest.raises(
        InputError,
        match="the two sides have the same means at every site, so there is no direction",
    ):
        same.directions()


def test_what_a_spec_leaves_open_is_the_default_of_the_contrast(family: Family) -> None:
    model = family.instruct
    partial, whole = (
        contrast((model, UP), (model, DOWN), spec, progress=False)
        for spec in (
            CaptureSpec("resid_post.1"),
            CaptureSpec("resid_post.1", positions="mean_response", batch_tokens=8192),
        )
    )
    [(key, direction)] = partial.directions().items()
    assert direction.position == "mean_response"
    assert torch.equal(direction.vector, whole.directions()[key].vector)
    assert partial.provenance == whole.provenance
    captured = capture(model, UP, spec=CaptureSpec(layers=[1]), progress=False)
    assert captured.positions == ["last_prompt"] and captured.provenance["batch_tokens"] == 2048
