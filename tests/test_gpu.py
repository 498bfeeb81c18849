"""The measurement on a card, in miniature on a processor; and the same code on a pretended card,
which refuses what a real one refuses.
"""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import judge_models
import pytest
import tiny_models
import torch
from pretended_card import CARD, PEAK, moved, pretended_card

from benchmarks import gpu, gpu_judging, gpu_models, gpu_parts, training_cost, turns
from benchmarks.gpu import Part
from emlens.activations import capture
from emlens.data import Answer, Message, Prompt, PromptSet
from emlens.foundation.files import read_json
from emlens.foundation.sites import Site
from emlens.geometry import Direction
from emlens.interventions import ablate, steer
from emlens.judging import LogitJudge
from emlens.judging.readouts import CATEGORIES, parse_raw
from emlens.models import load_model, loading
from emlens.training import Recipe, fit, fitting
from emlens.training.defences import BenignInterleaving, PreventativeSteering, ProjectedOut
from emlens.training.penalties import FeatureDistance, ReferenceKL

CPU = torch.device("cpu")
FLOAT32 = 1e-6
"""Relative; the card computes on the processor, so the kernels are the same."""


ONCE = replace(gpu_parts.TINY, rounds=1)


def test_parts_compare_before_they_time_and_their_file_has_one_form(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    names = ["judging", "sampling", "capture"]
    gpu.main(["--tiny", "--out", str(path), "--parts", *names])
    found = read_json(path)
    assert {"commit", "hardware", "versions", "seeds"} <= found.keys() and found["name"] == "gpu"
    parts = found["values"]["parts"]
    assert list(parts) == sorted(names)
    for part in parts.values():
        assert len(part["ratios"]) == 2 and part["low"] < part["ratio"] < part["high"]
        assert part["took_s"] > 0 and set(part["peak_bytes"].values()) == {None}
    judged, sampled, captured = (parts[name] for name in names)
    assert judged["score_gap_in_float32"] < 1e-6 and judged["whole_texts"] is None
    assert 1 < judged["prefills_per_verdict"] < 2
    assert sampled["regret_in_float32"] == {"emlens": 0.0, "generate": 0.0}
    assert sampled["answers"] == 6 and sampled["batch_of_generate"] == 3
    assert captured["gap_in_float32"] < 1e-6 and captured["store_equals_memory"]
    # rows, width, layers, bfloat16
    assert captured["estimate"]["bytes"] == 6 * 32 * 3 * 2
    assert list(gpu.table(found["values"])["said"]) == ["", "", ""]


def test_a_study_is_compared_with_plain_passes() -> None:
    found = gpu_judging.studying(ONCE, CPU, time.monotonic() + 60)
    assert found["gap_in_float32"] < 1e-6 and found["tokens_of_the_study"] > 1000
    assert found["ratio"] > 0 and found["low"] is None and len(found["plain_loading_s"]) == 2


def _on_both(path: Path, run: Callable[[Any], Any]) -> tuple[Any, Any]:
    """What a model gives on the processor and on the pretended card."""
    here = run(load_model(path, dtype="float32", device="cpu"))
    model = load_model(path, dtype="float32", device="cpu")
    with pretended_card():
        return here, run(moved(model))


def test_a_model_on_a_card_gives_what_it_gives_on_a_processor(tmp_path: Path) -> None:
    path = tiny_models.build(tmp_path / "m", max_position_embeddings=256)
    start = " ".join(["w1 w2 w3 w4"] * 8)
    asked = PromptSet.from_texts([f"{start} {text}" for text in tiny_models.texts(6)])
    direction = torch.randn(tiny_models.D_MODEL, generator=torch.Generator().manual_seed(0))
    sites = ["resid_post.0", "attn_out.1"]

    def captured(model: Any) -> Any:
        return capture(model, asked, progress=False).stacked()

    def ablated(model: Any) -> Any:
        with model.intervene([ablate(direction.double(), at=sites)]):
            return captured(model)

    def scored(model: Any) -> Any:
        return model.sequence_logprob(asked, [["w5 w6", "w7"]] * len(asked))

    def drawn(model: Any) -> Any:
        with model.intervene([steer(direction.double(), 2.0, at=sites)]):
            return model.generate(list(asked), max_new_tokens=6, seed=1)

    for run in (captured, ablated, scored):
        here, there = _on_both(path, run)
        assert type(there) is torch.Tensor and tiny_models.close(here, there, FLOAT32)
    here, there = _on_both(path, drawn)
    assert here == there and any(here)


def test_verdicts_of_a_judge_on_a_card_are_those_on_a_processor(tmp_path: Path) -> None:
    def verdicts(model: Any) -> list[str]:
        judge = LogitJudge(model)
        chat = (Message("user", "ask"),)
        answers = [Answer("m", f"q{i}", text, chat) for i, text in enumerate(("say fine", "ask"))]
        pairs = [(answer, metric) for answer in answers for metric in judge.metrics]
        return [verdict.raw for _, verdict in sorted(judge.verdicts(pairs))]

    model = judge_models.build(tmp_path / "j", "digits", max_position_embeddings=2048)
    here = verdicts(model)
    # batches of 512 tokens on a processor, of 2,048 on a card
    with pretended_card():
        there = verdicts(moved(model))
    for a, b in zip(here, there, strict=True):
        expected = parse_raw(a, CATEGORIES).expected
        assert parse_raw(b, CATEGORIES).expected == pytest.approx(expected, rel=FLOAT32)


@pytest.mark.slow
@pytest.mark.parametrize("name", gpu.PARTS)
def test_all_of_the_measurement_runs_on_a_pretended_card(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import accelerate

    build, load = gpu_models.build, training_cost.load_parent

    def build_there(shape: Any, device: Any) -> Any:
        return moved(build(shape, CPU))

    def load_there(path: Path, device: str, dtype: Any) -> Any:
        model, tokenizer = load(path, "cpu", dtype)
        return moved(model), tokenizer

    monkeypatch.setattr(gpu_models, "build", build_there)
    monkeypatch.setattr(training_cost, "load_parent", load_there)
    monkeypatch.setattr(loading, "torch_device", torch.device)
    monkeypatch.setattr(accelerate.Accelerator, "device", CARD)
    with pretended_card():
        found = gpu.PARTS[name].run(ONCE, CARD, time.monotonic() + 300)
    assert found["ratio"] > 0 and set(found["peak_bytes"].values()) == {PEAK}


OTHERS = PromptSet(
    Prompt(f"o{i}", text, messages=(Message("user", text),), response="w5 w6")
    for i, text in enumerate(tiny_models.texts(8))
)
DIRECTION = Direction(torch.arange(float(tiny_models.D_MODEL)).double(), Site("resid_post", 1))
FULL = {"method": "full", "rank": None, "alpha": None, "target_modules": ()}
TRAININGS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "KL": ([ReferenceKL(weight=0.1, chats=OTHERS, rows=2)], {}),
    "features": ([FeatureDistance(weight=1.0, every=1)], {}),
    "steering while training": ([PreventativeSteering(DIRECTION, 2.0)], {}),
    "a direction taken out": ([ProjectedOut(DIRECTION.unit)], {}),
    "mixed rows": ([BenignInterleaving(OTHERS, 0.25)], {}),
    "all weights, KL to a copy": ([ReferenceKL(weight=0.1, chats=OTHERS, rows=2)], FULL),
    "two passes a step": ([], {"optimiser": "sam"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_on_a_card_has_the_losses_of_one_on_a_processor(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import accelerate

    objectives, changes = TRAININGS[name]
    path = tiny_models.build(tmp_path / "m")
    lora = {"rank": 2, "alpha": 4, "target_modules": ("q_proj", "down_proj")}
    common: dict[str, Any] = {"learning_rate": 1e-2, "steps": 2, "batch_size": 4}
    recipe = Recipe(**{**lora, **common, **changes})
    chats = PromptSet([replace(chat, response="w1 w2 w3") for chat in OTHERS])
    here = fit(recipe, path, chats, tmp_path / "here", device="cpu", objectives=objectives).log
    load = fitting.load_parent

    def load_there(path: Path, device: str, dtype: Any) -> Any:
        model, tokenizer = load(path, "cpu", dtype)
        return moved(model), tokenizer

    monkeypatch.setattr(fitting, "load_parent", load_there)
    monkeypatch.setattr(accelerate.Accelerator, "device", CARD)
    with pretended_card():
        fitted = fit(recipe, path, chats, tmp_path / "there", objectives=objectives)
        assert next(fitted.model.parameters()).device == CARD
    assert fitted.log["loss"].tolist() == pytest.approx(here["loss"].tolist(), rel=1e-5)


def test_a_pretended_card_refuses_what_a_card_refuses() -> None:
    with pretended_card() as card:
        here, there = torch.arange(3.0), torch.arange(3.0).to(card)
        assert there.device == card and there.sum() == 3 and there.tolist() == [0, 1, 2]
        assert torch.equal((there + 1).cpu(), here + 1)
        assert torch.equal((there * torch.tensor(2.0)).cpu(), 2 * here)  # a number may cross
        assert torch.equal(there[torch.tensor([2])].cpu(), here[2:])  # and so may an index
        for mixed in (
            lambda: there + here,
            lambda: torch.cat([there, here]),
            lambda: torch.nn.functional.linear(there, here[None]),
            lambda: here[there.long()],
            lambda: there.__setitem__(slice(2), here[:2]),
        ):
            with pytest.raises(RuntimeError, match="device"):
                mixed()
        with pytest.raises(TypeError, match="can't convert cuda:0"):
            there.numpy()
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, device=card, generator=torch.Generator())
    with pytest.raises(RuntimeError, match="outside its block"):
        there + 1


def test_wrong_values_are_not_timed() -> None:
    model = gpu_models.build(gpu_models.TINY, CPU, torch.float32)
    rows = model.render(gpu_parts.questions(2, 256).prompts())
    likeliest = [model.logits(PromptSet(list(gpu_parts.questions(2, 256).prompts())))]
    right = [[int(row.argmax())] for row in likeliest[0]]
    assert gpu_parts.regret(model, rows, right) < 1e-6
    wrong = [[int(row.argmin())] for row in likeliest[0]]
    assert gpu_parts.regret(model, rows, wrong) > 100 * gpu_parts.REGRET
    # the plain score tells two prompts apart by more than is allowed
    scores = [gpu_judging.plain_score(model, row) for row in rows]
    assert abs(scores[0] - scores[1]) > 10 * gpu_judging.SCORE_GAP
    with pytest.raises(SystemExit, match="scores differ by 0.5; not timing different results"):
        gpu_parts.refuse("scores", 0.5, 0.1)


def test_weights_come_back_from_float32_as_they_were() -> None:
    model = gpu_models.build(gpu_models.TINY, CPU)
    before = [weight.clone() for weight in model.module.parameters()]
    with gpu_models.in_float32(model) as exact:
        assert exact.dtype == torch.float32 and exact.module is model.module
        assert {weight.dtype for weight in exact.module.parameters()} == {torch.float32}
    after = list(model.module.parameters())
    assert all(map(torch.equal, before, after)) and model.dtype == torch.bfloat16


def test_what_the_tokenizer_writes_reads_as_the_same_tokens() -> None:
    words = gpu_models.tokenizer(64)
    ids = [gpu_models.FIRST, 5, 7, 8, 40]
    assert words.decode(ids) == f"{gpu_models.word(gpu_models.FIRST)} 12 {gpu_models.word(40)}"
    assert words.encode(words.decode(ids), add_special_tokens=False) == ids


def test_a_part_that_fails_or_finds_no_time_is_said_and_the_others_are_kept() -> None:
    kept: list[str] = []

    def fails(*_: Any) -> dict[str, Any]:
        raise RuntimeError("CUDA out of memory")

    def waits(*_: Any) -> dict[str, Any]:
        time.sleep(60)
        return {}

    parts = {
        "bad": Part(fails, 0.1, 0),
        "good": Part(lambda sizes, device, deadline: {"ratio": 0.5}, 0.1, 0),
        "slow": Part(waits, 0.1, 0),
    }
    found = gpu.measure(
        gpu_parts.TINY, CPU, lambda v: kept.append(json.dumps(v)), 0.2, tuple(parts), parts
    )["parts"]
    assert found["bad"]["failed"] == "RuntimeError: CUDA out of memory"
    assert found["good"]["ratio"] == 0.5
    assert found["slow"]["failed"].startswith("OutOfTimeError: it did not end in")
    # one file after each part, each with what was there
    assert [len(json.loads(each)["parts"]) for each in kept] == [1, 2, 3]


def test_a_part_without_enough_time_is_left_out_on_a_card() -> None:
    parts = {"long": Part(lambda *_: {"ratio": 1.0}, 1.0, 30)}
    with pretended_card():
        said = gpu._outcome(parts["long"], gpu_parts.TINY, CARD, 5.0, 5.0)
    assert said == {"left_out": "5 s are left, and it takes 30 s or more"}
    assert gpu._outcome(parts["long"], gpu_parts.TINY, CPU, 5.0, 5.0)["ratio"] == 1.0


def test_rounds_end_with_the_time() -> None:
    seconds = turns.take_turns({"a": lambda: time.sleep(0.02)}, 50, CPU, time.monotonic() + 0.1)
    assert 1 <= len(seconds["a"]) <= 6
    late = turns.take_turns({"a": lambda: None}, 50, CPU, time.monotonic() - 1)
    assert len(late["a"]) == 1


def test_without_a_card_nothing_is_measured_or_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu.main()
    assert capsys.readouterr().out.strip() == "gpu: skipped, torch sees no GPU here"
    with pytest.raises(SystemExit):
        gpu.main(["--tiny"])
    assert "pass --out FILE" in capsys.readouterr().err
