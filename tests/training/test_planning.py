"""What a training run will take, counted against the run itself."""

import json

import pytest
import torch

from emlens.foundation.errors import InputError, LoadError
from emlens.training import Recipe, fit
from emlens.training.planning import plan_training

RECIPE = Recipe(
    rank=2, alpha=4, target_modules=("q_proj",), learning_rate=1e-2, steps=3, batch_size=4, seed=3
)


def test_steps_tokens_and_trained_values_are_those_of_the_run(tiny, tokenizer, chats, tmp_path):
    seen = []

    def loss(model, batch):
        from emlens.training.objectives import answer_loss

        seen.append(batch["input_ids"].numel())
        return answer_loss(model, batch)

    recipe = RECIPE.changed(accumulation=2)
    [planned] = plan_training(recipe, tiny.config, chats, tokenizer=tokenizer).runs.values()
    parameters = sum(weight.numel() for weight in tiny.parameters())
    fitted = fit(recipe, tiny, chats, tmp_path / "out", tokenizer=tokenizer, loss=loss)
    trained = sum(w.numel() for w in fitted.model.parameters() if w.requires_grad)
    assert (planned.parameters, planned.trained) == (parameters, trained)
    assert planned.weights == 4 * parameters and planned.optimiser == 16 * trained
    assert (planned.steps, planned.tokens) == (len(fitted.log), sum(seen))
    assert planned.seconds is None


def test_memory_follows_dtype_checkpointing_and_parts(tiny, tokenizer, chats):
    config = tiny.config
    config.dtype = torch.bfloat16

    def of(**changes):
        recipe = RECIPE.changed(**changes)
        [run] = plan_training(
            recipe, config, chats, tokenizer=tokenizer, teraflops=1e-6
        ).runs.values()
        return run

    plain, own, again, parts = (
        of(),
        of(parent_dtype="own"),
        of(gradient_checkpointing=True),
        of(accumulation=2),
    )
    assert own.weights * 2 == plain.weights and own.optimiser == plain.optimiser
    assert again.kept < plain.kept and again.seconds == pytest.approx(1.5 * plain.seconds)
    assert parts.kept < plain.kept and parts.tokens <= plain.tokens
    assert plain.seconds == pytest.approx(4 * plain.parameters * plain.tokens / 1e6)
    full = of(method="full", rank=None, alpha=None, target_modules=())
    assert full.trained == full.parameters and full.optimiser == 12 * full.parameters


def test_a_sweep_is_planned_run_by_run_from_the_command_line(
    tiny, tokenizer, chats, tmp_path, monkeypatch, capsys
):
    from typer.testing import CliRunner

    from emlens.cli.main import app

    parent = tmp_path / "parent"
    tiny.config.save_pretrained(parent)
    tokenizer.save_pretrained(parent)
    chats.to_jsonl(tmp_path / "chats.jsonl")
    (tmp_path / "sweep.yaml").write_text(
        "base: {rank: 2, alpha: 4, target_modules: [q_proj], steps: 2, batch_size: 4}\n"
        "axes: {seed: [0, 1], rank: [2, 4]}\n"
    )
    words = [
        "train",
        str(tmp_path / "sweep.yaml"),
        "--sweep",
        "--set",
        "plan=yes",
        "--model",
        str(parent),
    ]
    words += ["--data", str(tmp_path / "chats.jsonl"), "--out", str(tmp_path / "out")]
    shown = CliRunner().invoke(app, [*words, "--set", "teraflops=100"])
    assert shown.exit_code == 0 and "4 runs, " in shown.output and "min one after" in shown.output
    assert not (tmp_path / "out").exists()
    record = json.loads(CliRunner().invoke(app, [*words, "--json"]).output)
    assert len(record["runs"]) == 4 and record["seconds"] is None
    assert len({run["trained"] for run in record["runs"].values()}) == 2


def test_what_cannot_be_planned_is_refused(tiny, tokenizer, chats, tmp_path):
    for given, error, message in (
        ({"parent": tmp_path}, LoadError, "has no config.json; pass the parent's directory"),
        ({"parent": tiny.config}, InputError, "parent is a configuration; pass its tokenizer too"),
        ({"parent": tmp_path, "teraflops": 0.0}, InputError, "teraflops=0.0 must be above 0"),
    ):
        with pytest.raises(error, match=message):
            plan_training(RECIPE, chats=chats, **given)
