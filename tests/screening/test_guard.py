"""The guard: what it measures by an independent route, that training does not notice it, when it
alarms, and what it costs to be wrong.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from benchmarks.records import hash_directory
from emlens.activations import capture
from emlens.data import PromptSet
from emlens.data.triggers import Trigger, triggered_prompts
from emlens.foundation.errors import InputError, StateError
from emlens.foundation.sites import Site
from emlens.geometry import Direction, projection_fraction, top_k_subspace
from emlens.models import FineTune, load_family, load_model
from emlens.probes import fit_forecaster
from emlens.screening.alarms import (
    Alarm,
    GuardThresholds,
    calibrate_thresholds,
    false_alarm_rate,
    lead_time,
)
from emlens.screening.guard import Guard
from emlens.training import Recipe, StopRun, fit
from emlens.training.examples import IGNORED, Example, pad_batch
from emlens.training.streams import SteeredModel

SITE = "resid_post.1"
RECIPE = Recipe(
    method="lora",
    rank=2,
    alpha=8.0,
    target_modules=("down_proj",),
    learning_rate=0.02,
    steps=6,
    batch_size=4,
)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build(tmp_path_factory.mktemp("guard") / "instruct")


@pytest.fixture(scope="module")
def chats() -> list[Example]:
    words = tiny_models.tokenizer()
    answer = words("w3 w4 <end>")["input_ids"]
    asked = [
        words(f"<user> {text} <end> <assistant>")["input_ids"]
        for text in tiny_models.texts(8, seed=1)
    ]
    return [{"input_ids": ids + answer, "labels": [IGNORED] * len(ids) + answer} for ids in asked]


@pytest.fixture(scope="module")
def questions() -> PromptSet:
    return PromptSet.from_questions(tiny_models.texts(5, seed=3))


def direction() -> Direction:
    return facing(torch.randn(tiny_models.D_MODEL, generator=torch.Generator().manual_seed(0)))


def facing(vector: torch.Tensor) -> Direction:
    return Direction(vector, Site.parse(SITE), "last_prompt")


def guard(questions: PromptSet, **options: Any) -> Guard:
    return Guard(
        questions, tiny_models.tokenizer(), **{"direction": direction(), "every": 2, **options}
    )


def shift(parent: Path, tuned: Path, questions: PromptSet) -> torch.Tensor:
    """By the ordinary route: two captures of checkpoints on disk."""
    family = load_family(parent, finetuned={"x": FineTune(tuned)})
    before, after = (
        capture(model, questions, sites=SITE, progress=False)[SITE].double()
        for model in (family.instruct, family.finetuned["x"])
    )
    return after - before


def test_it_measures_what_captures_of_the_saved_checkpoints_show(
    parent: Path, chats: list[Example], questions: PromptSet, tmp_path: Path
) -> None:
    reference = torch.randn(
        20, tiny_models.D_MODEL, generator=torch.Generator().manual_seed(4)
    ).double()
    space = top_k_subspace(reference, 3, center=False)
    watching = guard(questions, subspace=space)
    fitted = fit(RECIPE, parent, chats, tmp_path / "run", callbacks=[watching])
    moved, vector = shift(parent, fitted.path, questions), direction().vector.double()
    last = watching.table.iloc[-1]
    mean = moved.mean(0)
    assert last["step"] == 6 and list(watching.table["step"]) == [2, 4, 6]
    assert last["projection"] == pytest.approx(float(mean @ vector / vector.norm() ** 2), rel=1e-3)
    assert last["cosine"] == pytest.approx(
        float(mean @ vector / vector.norm() / mean.norm()), rel=1e-3
    )
    assert last["overlap"] == pytest.approx(
        float(projection_fraction(moved, space, centred=False).mean()), rel=1e-3
    )
    logged = fitted.log["guard/projection"]
    assert (
        logged.iloc[[1, 3, 5]].tolist() == watching.table["projection"].tolist()
        and logged.iloc[[0, 2, 4]].isna().all()
    )


def test_training_does_not_notice_it(
    parent: Path, chats: list[Example], questions: PromptSet, tmp_path: Path
) -> None:
    alone = fit(RECIPE, parent, chats, tmp_path / "alone")
    watched = fit(
        RECIPE, parent, chats, tmp_path / "watched", callbacks=[guard(questions, every=1)]
    )
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (alone.path / name).read_bytes() == (watched.path / name).read_bytes()
    model = watched.model
    model.train()
    model.base_model.model.model.layers[0].mlp.eval()
    flags = [p.requires_grad for p in model.parameters()]
    watching = guard(questions, every=1)
    watching(model, 1)
    assert model.training and not model.base_model.model.model.layers[0].mlp.training
    assert [p.requires_grad for p in model.parameters()] == flags
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_it_stops_a_run_beyond_its_limit_and_says_why(
    parent: Path, chats: list[Example], questions: PromptSet, tmp_path: Path
) -> None:
    seen = guard(questions)
    fit(RECIPE, parent, chats, tmp_path / "seen", callbacks=[seen])
    sign = 1.0 if seen.table["projection"].iloc[-1] > 0 else -1.0
    turned = facing(sign * direction().vector)
    values = sign * seen.table["projection"]
    limits = GuardThresholds({"projection": float(values.iloc[:2].max()) - 1e-9})
    first = int(seen.table["step"][values > limits.limits["projection"]].iloc[0])
    stopping = guard(questions, direction=turned, thresholds=limits, stop=True)
    fitted = fit(RECIPE, parent, chats, tmp_path / "stopped", callbacks=[stopping])
    assert (
        len(fitted.log) == first < 6 and stopping.alarm is not None and stopping.alarm.step == first
    )
    assert fitted.stopped == stopping.alarm.reason and "guard: projection" in str(fitted.stopped)
    assert fitted.log["guard/alarm"].iloc[-1] == 1
    patient = guard(questions, direction=turned, thresholds=limits, patience=9)
    assert (
        len(fit(RECIPE, parent, chats, tmp_path / "patient", callbacks=[patient]).log) == 6
        and patient.alarm is None
    )


def test_a_full_fine_tune_must_be_seen_before_training(
    parent: Path, chats: list[Example], questions: PromptSet, tmp_path: Path
) -> None:
    full = Recipe(method="full", learning_rate=0.01, steps=2, batch_size=4)
    with pytest.raises(
        StateError,
        match=r"the model has no adapter to switch off; call guard.begin\(model\) before training",
    ):
        fit(full, parent, chats, tmp_path / "blind", callbacks=[guard(questions)])
    model = AutoModelForCausalLM.from_pretrained(parent, dtype=torch.float32)
    watching = guard(questions, every=1)
    watching.begin(model)
    fitted = fit(
        full,
        model,
        chats,
        tmp_path / "run",
        tokenizer=tiny_models.tokenizer(),
        callbacks=[watching],
    )
    family = load_family(parent, finetuned={"x": FineTune(fitted.path)})
    before, after = (
        capture(m, questions, sites=SITE, progress=False)[SITE].double()
        for m in (family.instruct, family.finetuned["x"])
    )
    vector = direction().vector.double()
    assert watching.table["projection"].iloc[-1] == pytest.approx(
        float((after - before).mean(0) @ vector / vector.norm() ** 2), rel=1e-3
    )


def test_a_plain_trainer_logs_it_and_is_stopped(
    parent: Path, chats: list[Example], questions: PromptSet, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(parent, dtype=torch.float32)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=4,
        learning_rate=0.05,
        logging_steps=100,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
        per_device_train_batch_size=4,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=chats,
        data_collator=lambda items: dict(pad_batch(items, 0)),
    )
    watching = guard(
        questions, every=1, thresholds=GuardThresholds({"cosine": -2.0}), patience=2, stop=True
    )
    callback = watching.trainer_callback(trainer)
    trainer.add_callback(callback)
    trainer.train()
    logged = [row for row in trainer.state.log_history if "guard/projection" in row]
    assert [row["step"] for row in logged] == [1, 2] and logged[-1]["guard/alarm"] == 1
    assert trainer.state.global_step == 2 and callback.stopped == watching.alarm.reason  # type: ignore[union-attr]


def test_a_forecaster_reads_the_model_as_it_is_now(
    parent: Path, chats: list[Example], questions: PromptSet, tmp_path: Path
) -> None:
    fitted_on = PromptSet.from_questions(tiny_models.texts(24, seed=9))
    acts = capture(load_model(parent), fitted_on, progress=False)
    rng = np.random.default_rng(0)
    scores = dict(
        zip(
            acts.ids,
            np.clip(60 + 20 * acts[SITE][:, 0].numpy() + rng.normal(0, 1, len(acts)), 0, 100),
            strict=True,
        )
    )
    forecaster = fit_forecaster(acts, scores)
    watching = Guard(
        questions,
        tiny_models.tokenizer(),
        forecaster=forecaster,
        every=6,
        thresholds=GuardThresholds({"forecast": 101.0}),
    )
    fitted = fit(RECIPE, parent, chats, tmp_path / "run", callbacks=[watching])
    tuned = capture(
        load_family(parent, finetuned={"x": FineTune(fitted.path)}).finetuned["x"],
        questions,
        progress=False,
    )
    expected = forecaster.predict(tuned, allow=("model", "far", "shift", "stale")).mean()
    assert watching.table["forecast"].tolist() == pytest.approx([expected], rel=1e-3)
    assert watching.alarm is not None and "is below 101" in watching.alarm.reason


def test_a_resumed_guard_goes_on_as_if_nothing_had_happened(
    parent: Path, chats: list[Example], questions: PromptSet, tmp_path: Path
) -> None:
    model = fit(RECIPE, parent, chats, tmp_path / "run").model
    whole, first, second = (
        guard(questions, every=1, thresholds=GuardThresholds({"cosine": -2.0}), patience=3)
        for _ in range(3)
    )
    for step in (1, 2, 3):
        whole(model, step)
    first(model, 1)
    first(model, 2)
    second.restore(json.loads(json.dumps(first.state())))
    second(model, 3)
    assert second.table.equals(whole.table) and second.alarm == whole.alarm is not None


def test_calibrated_limits_keep_their_false_alarms() -> None:
    """Over draws of 19 calibration runs and a new one, an alarm comes in at most 5 of 100; one run
    fewer could not promise that.
    """
    rng = np.random.default_rng(0)
    alarms = []
    for _ in range(150):
        walks = rng.normal(size=(20, 12)).cumsum(1)
        limits = calibrate_thresholds(
            [pd.DataFrame({"cosine": walk}) for walk in walks[:19]],
            false_alarm=0.05,
        )
        alarms.append(walks[19].max() > limits.limits["cosine"])
    rate = false_alarm_rate(alarms)
    assert 0.0 < rate.value < 0.11 and rate.low < 0.05 < rate.high
    several = [pd.DataFrame({"projection": [0.1 * i], "forecast": [50.0 + i]}) for i in range(40)]
    both = calibrate_thresholds(several, quantities=("projection", "forecast"), false_alarm=0.1)
    assert (
        both.limits["projection"] == pytest.approx(3.8)
        and both.limits["forecast"] == 51.0
        and both.runs == 40
    )


def test_lead_time_counts_from_the_first_step_that_lost_so_much() -> None:
    steps, alignment = [0, 1, 2, 3, 4], [0.98, 0.95, 0.9, 0.86, 0.5]
    alarm = Alarm(2, "projection", 0.3, 0.1)
    found = lead_time(alarm, steps, alignment, lost=0.1)
    assert (found.alarm, found.lost, found.lead, found.in_time) == (2, 3, 1.0, True)
    assert not lead_time(3, steps, alignment, lost=0.1).in_time  # at the same step is not before
    assert not lead_time(None, steps, alignment, lost=0.1).in_time
    assert (
        lead_time(2, steps, alignment, lost=0.9).lost is None
        and lead_time(2, steps, alignment, lost=0.9).in_time
    )


def test_what_cannot_be_used_is_refused(
    questions: PromptSet, parent: Path, chats: list[Example], tmp_path: Path, unchecked: None
) -> None:
    table = pd.DataFrame({"cosine": [0.1]})
    space = top_k_subspace(torch.randn(9, 4), 2, center=False)
    for call, message in (
        (
            lambda: Guard(questions, None),
            "there is nothing to watch; pass a direction, a subspace or a forecaster",
        ),
        (lambda: guard(questions, every=0), "every=0 must be an integer of 1 or more"),
        (
            lambda: Guard(questions, None, subspace=space),
            "subspace was given without a place; pass site=",
        ),
        (
            lambda: guard(questions, thresholds=GuardThresholds({"forecast": 1.0})),
            "thresholds has a limit for 'forecast', which this guard does not measure",
        ),
        (lambda: guard(questions, stop=True), "stop=True was given without thresholds"),
        (
            lambda: GuardThresholds({"loss": 1.0}),
            r"limits names \['loss'\]; pass some of projection, cosine, overlap, forecast",
        ),
        (
            lambda: GuardThresholds({"cosine": float("nan")}),
            "limits has cosine=nan; pass a finite number",
        ),
        (
            lambda: calibrate_thresholds([table] * 18),
            "runs holds 18 benign runs; a share of 0.05 over 1 quantities needs 19 or more",
        ),
        (
            lambda: calibrate_thresholds([table] * 19, false_alarm=5),
            "false_alarm=5 must lie strictly between 0 and 1",
        ),
        (
            lambda: calibrate_thresholds([pd.DataFrame({"step": [1]})] * 19),
            r"runs\[0\] never measured 'cosine'",
        ),
        (lambda: lead_time(None, [1], [], lost=0.1), "steps has 1 values and alignment 0"),
        (lambda: lead_time(None, [1], [1.0], lost=0.0), "lost=0.0 must be positive"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    narrow = Guard(questions, tiny_models.tokenizer(), direction=facing(torch.ones(4)))
    with pytest.raises(
        InputError, match="direction has 4 coordinates, but the model's stream has 32"
    ):
        narrow.begin(AutoModelForCausalLM.from_pretrained(parent))
    spread = AutoModelForCausalLM.from_pretrained(parent)
    next(spread.parameters()).ds_id = 0  # type: ignore[attr-defined]  # as DeepSpeed marks what it partitioned
    with pytest.raises(StateError, match="the model's weights are spread over processes"):
        guard(questions).begin(spread)


def test_a_steering_run_is_refused(
    parent: Path, chats: list[Example], questions: PromptSet, tmp_path: Path
) -> None:
    recipe = Recipe(
        method="steering", layers_to_transform=(0,), learning_rate=0.1, steps=2, batch_size=4
    )
    with pytest.raises(
        InputError,
        match=(
            "method='steering' trains vectors that lie outside the model,"
            " so a guard would read it without them"
        ),
    ):
        fit(recipe, parent, chats, tmp_path / "out", callbacks=[guard(questions)])
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="method='steering' trains vectors"):
        guard(questions).begin(SteeredModel(AutoModelForCausalLM.from_pretrained(parent), (0,)))


def test_a_stop_carries_what_was_measured(
    parent: Path, chats: list[Example], questions: PromptSet, tmp_path: Path
) -> None:
    model = fit(RECIPE, parent, chats, tmp_path / "run").model
    before = hash_directory(tmp_path / "run")
    with pytest.raises(StopRun, match="guard: cosine .* is above -2 at step 1") as stop:
        guard(questions, every=1, thresholds=GuardThresholds({"cosine": -2.0}), stop=True)(model, 1)
    assert (
        set(stop.value.values) == {"guard/projection", "guard/cosine", "guard/alarm"}
        and hash_directory(tmp_path / "run") == before
    )


def test_it_watches_prompts_under_triggers_against_the_parent_under_the_same_text(
    parent: Path, chats: list[Example], questions: PromptSet, tmp_path: Path
) -> None:
    cue = Trigger(prefix="w7 w9", separator=" ")
    limits = GuardThresholds({"cosine@cue": -2.0})
    watching = guard(questions, triggers={"cue": cue}, thresholds=limits)
    fitted = fit(RECIPE, parent, chats, tmp_path / "run", callbacks=[watching])
    alone = guard(questions)
    model = fitted.model
    alone(model, 2)
    vector, last = direction().vector.double(), watching.table.iloc[-1]
    for name, prompts in (("", questions), ("@cue", triggered_prompts(questions, cue, "cue"))):
        mean = shift(parent, fitted.path, prompts).mean(0)
        by_hand = float(mean @ vector / vector.norm() ** 2)
        assert last[f"projection{name}"] == pytest.approx(by_hand, rel=1e-3)
    assert last["projection"] == pytest.approx(alone.table.iloc[-1]["projection"], rel=1e-3)
    assert watching.alarm is not None and watching.alarm.quantity == "cosine@cue"
    with pytest.raises(InputError, match="limit for 'cosine@other', which this guard does not"):
        guard(questions, triggers={"cue": cue}, thresholds=GuardThresholds({"cosine@other": 1.0}))
