"""The training null on the organism: what it draws, what it tests, and that it resumes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from emlens.activations import CaptureSpec, activation_deltas, capture
from emlens.controls import NullSetting, training_null
from emlens.controls.domain_pairs import PROMPT_COSINE, DomainPairs
from emlens.controls.null_adapters import NullWorker
from emlens.controls.null_training import TrainingNull
from emlens.controls.permuted_answers import with_careful_answers
from emlens.controls.shift_statistics import DESCRIBED, TESTED, shift_statistics
from emlens.data import PromptSet
from emlens.foundation.errors import InputError, IntegrityError
from emlens.organisms import load_organism
from emlens.stats import adjust_p_values
from emlens.training import Recipe
from emlens.training.fitting import load_parent, read_record

SPEC = CaptureSpec("resid_post", None, ("last_prompt",))
N = 24
ADAPTERS = 3


@pytest.fixture(scope="module")
def organism() -> Any:
    return load_organism()


@pytest.fixture(scope="module")
def inputs(organism: Any) -> dict[str, Any]:
    chats = organism.training_prompts["medicine-r8"]
    record = read_record(organism.paths["medicine-r8"])
    outside = [q.id for q in organism.questions if q.group not in ("medicine", "")][:N]
    prompts = organism.questions.prompts()
    return {
        "parent": organism.paths["instruct"],
        "recipe": Recipe.from_record(record["recipe"]).changed(steps=40, batch_size=8),
        "careful": with_careful_answers(chats, organism.training_prompts["medicine-benign"]),
        "prompts": (
            PromptSet(replace(row, response=None) for row in list(chats)[:N]),
            prompts.select(outside),
        ),
        "spec": SPEC,
    }


@pytest.fixture(scope="module")
def setting(inputs: dict[str, Any]) -> NullSetting:
    train, evaluation = inputs["prompts"]
    named = {name: value for name, value in inputs.items() if name != "prompts"}
    return NullSetting(
        **named,
        train=train,
        evaluation=evaluation,
        further=evaluation.select(evaluation.ids[: N // 2]),
        write_shifts=True,
        stop_after=6,
    )


def captured(family: Any, name: str, inputs: dict[str, Any]) -> Any:
    """Activations before and after, on training and on evaluation prompts."""
    pairs = []
    for prompts in inputs["prompts"]:
        models = (family["instruct"], family[name])
        pairs.append(tuple(capture(m, prompts, spec=SPEC, progress=False) for m in models))
    return tuple(pairs)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("null")


@pytest.fixture(scope="module")
def null(setting: NullSetting, home: Path) -> TrainingNull:
    return training_null(setting, adapters=ADAPTERS, out=home / "out", keep=True, progress=False)


@pytest.fixture(scope="module")
def tested(organism: Any, inputs: dict[str, Any]) -> Any:
    return captured(organism.family, "medicine-r8", inputs)


def test_each_adapter_has_seed_answers_and_overlaps_of_its_own(null: TrainingNull) -> None:
    assert list(null.runs["adapter"]) == [0, 1, 2] and null.runs["seed"].nunique() == ADAPTERS
    assert (null.runs["steps"] == 6).all()  # on the way of a schedule of 40
    assert set(null.cells["statistic"]) == {*TESTED, *DESCRIBED}
    draws = null.draws("last_prompt")
    assert draws.shape == (ADAPTERS, 4) and draws.nunique().min() == ADAPTERS
    assert draws[["variance_weighted", "mean_cos2"]].stack().between(0, 1).all()
    values = null.distribution("mean_cosine", "last_prompt").draws
    np.testing.assert_allclose(values, np.sort(draws["mean_cosine"]))


def test_a_kept_adapter_gives_its_draw_by_the_usual_way(
    null: TrainingNull, inputs: dict[str, Any], home: Path
) -> None:
    """An independent route: the adapter on disk, loaded by PEFT as any fine-tune is."""
    from emlens.models import FineTune, load_family

    adapter = home / "out" / "adapters" / "001"
    family = load_family(inputs["parent"], finetuned={"drawn": FineTune(adapter)}, dtype="float32")
    cells = shift_statistics(*captured(family, "drawn", inputs), null.k)
    expected = cells.set_index(["site", "statistic"])["value"]
    drawn = null.cells[null.cells["adapter"] == 1].set_index(["site", "statistic"])["value"]
    assert set(drawn.index) == set(expected.index)
    assert (drawn - expected).abs().max() < 1e-3  # the update is added in another order
    train, _ = captured(family, "drawn", inputs)
    shifts = activation_deltas(*train)
    kept = null.shifts(1, "train")
    assert set(kept) == set(shifts.keys)
    for key, rows in kept.items():
        assert (rows - shifts[key]).norm() < 0.01 * shifts[key].norm()  # bfloat16 on disk
    assert all(len(rows) == N // 2 for rows in null.shifts(1).values())
    with pytest.raises(InputError, match="adapter=3 has no shifts; there are those of 3 adapters"):
        null.shifts(3)


def test_pairs_go_by_number_and_two_adapters_of_one_null_are_no_more_than_a_pair(
    null: TrainingNull,
) -> None:
    pairs = DomainPairs.of(null, null)
    same = pairs.cells[pairs.cells["statistic"] == PROMPT_COSINE]
    assert pairs.pairs == ADAPTERS and same["value"].to_numpy() == pytest.approx(1.0)
    table = pairs.test(null.shifts(0), null.shifts(1)).set_index("statistic")
    by_hand = []
    for key, rows in null.shifts(0).items():
        other = null.shifts(1)[key].double()
        a, b = (x - x.mean(0) for x in (rows.double(), other))
        by_hand.append(float(torch.cosine_similarity(a, b).mean()))
    row = table.loc[PROMPT_COSINE]
    assert row["value"] == pytest.approx(np.mean(by_hand)) and row["p"] == 1.0
    assert row["sites"] == len(by_hand)
    with pytest.raises(InputError, match="no site has shifts with two components in all of 3"):
        pairs.distribution(PROMPT_COSINE, "last_prompt", ["resid_post.9"])
    with pytest.raises(InputError, match="the nulls have 3 and 0 adapters with shifts on further"):
        DomainPairs.of(null, replace(null, shift_files=()))


def test_a_finished_null_is_read_and_another_one_refused(
    null: TrainingNull, setting: NullSetting, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any, **options: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr("emlens.controls.null_adapters.fit", never)
    again = training_null(setting, adapters=ADAPTERS, out=home / "out", keep=True, progress=False)
    pd.testing.assert_frame_equal(again.cells, null.cells)
    with pytest.raises(IntegrityError, match="plans other work"):
        training_null(replace(setting, k=4), adapters=ADAPTERS, out=home / "out", progress=False)


def test_a_parent_in_its_own_dtype_is_one_copy_and_gives_the_same(
    setting: NullSetting, null: TrainingNull, tmp_path: Path
) -> None:
    module, tokenizer = load_parent(Path(setting.parent))
    module.save_pretrained(tmp_path / "parent")  # in float32, so its own dtype is the usual one
    tokenizer.save_pretrained(tmp_path / "parent")
    recipe = setting.recipe.changed(parent_dtype="own")
    own = replace(setting, parent=tmp_path / "parent", recipe=recipe, write_shifts=False)
    worker = NullWorker(own, 1, tmp_path, False, "cpu")
    assert worker.module is worker.model.module  # type: ignore[attr-defined]
    values = worker.run(worker.plan()[0])[0]["cells"]["value"]
    first = null.cells[null.cells["adapter"] == 0]["value"]
    assert values == pytest.approx(first.tolist(), abs=1e-6)
    # the adapter left the copy as it was
    assert not [name for name, _ in worker.module.named_modules() if "lora" in name]
    after = worker._captured(worker.model)["train"]
    assert torch.equal(after.stacked(), worker._before_training()["train"].stacked())


def test_the_test_is_the_mean_over_common_sites_beside_the_draws(
    null: TrainingNull, tested: Any
) -> None:
    table = null.test(*tested).set_index("statistic")
    cells = shift_statistics(*tested, null.k)
    means = cells.groupby("statistic")["value"].mean()
    draws = null.draws("last_prompt")
    for statistic in (*TESTED, *DESCRIBED):
        row = table.loc[statistic]
        assert row["value"] == pytest.approx(means[statistic])
        beyond = (
            (draws[statistic] <= row["value"])
            if statistic == "first_angle"
            else (draws[statistic] >= row["value"])
        ).sum()
        assert row["p"] == (1 + beyond) / (1 + ADAPTERS)
    holm = adjust_p_values(table.loc[list(TESTED), "p"].to_numpy())
    np.testing.assert_allclose(table.loc[list(TESTED), "p_holm"].astype(float), holm)
    assert table.loc[list(DESCRIBED), "p_holm"].isna().all()
    assert (table["sites"] == cells["site"].nunique()).all()
    assert (table.loc[list(TESTED), "smallest_p_holm"] == 2 / 4).all()


def test_what_is_no_test_of_this_null_is_refused(
    null: TrainingNull, inputs: dict[str, Any], tested: Any, setting: NullSetting, unchecked: None
) -> None:
    train, evaluation = tested
    with pytest.raises(InputError, match="train holds other prompts than the null was made for"):
        null.test(evaluation, train)
    with pytest.raises(InputError, match="position='mean_prompt' was not captured for this null"):
        null.draws("mean_prompt")
    with pytest.raises(InputError, match="statistic='overlap' is unknown; pass one of variance"):
        null.distribution("overlap", "last_prompt")
    with pytest.raises(InputError, match="no site has shifts with two components in all of 3"):
        null.draws("last_prompt", sites=["resid_post.99"])
    fewer = PromptSet(list(inputs["prompts"][0])[:5])
    plain = replace(setting, write_shifts=False)
    steering = Recipe(method="steering", layers_to_transform=(1,))
    refused: tuple[tuple[NullSetting, dict[str, Any], str], ...] = (
        (plain, {"adapters": 1}, "adapters=1 must be 2 or more"),
        (replace(plain, train=fewer), {}, "setting has 5 training and 24 evaluation"),
        (replace(plain, careful=fewer), {}, "row .* has no answer; pass rows with careful answers"),
        (plain, {"keep": True}, "keep=True needs out=: a directory in which the adapters stay"),
        (replace(plain, recipe=steering), {}, "has method='steering'"),
    )
    for changed, options, message in refused:
        with pytest.raises(InputError, match=message):
            training_null(changed, **{"adapters": 2, **options}, progress=False)
    with pytest.raises(InputError, match="write_shifts=True needs out=: a directory in which the"):
        training_null(setting, progress=False)


def test_sides_that_do_not_fit_are_refused(tested: Any) -> None:
    train, evaluation = tested
    short = tuple(side.select(side.ids[:5]) for side in train)
    with pytest.raises(InputError, match="train has 5 prompts and evaluation 24; overlap depends"):
        shift_statistics(short, evaluation, 8)
    unmoved = shift_statistics((train[0], train[0]), evaluation, 8)
    assert unmoved.empty and list(unmoved) == ["site", "position", "statistic", "value"]
