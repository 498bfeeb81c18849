"""Runs under launchers are those of one process: with torchrun itself, and with what others set."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments

from emlens.data import PromptSet
from emlens.foundation.errors import InputError, LoadError, StateError
from emlens.training import Recipe, fit
from emlens.training.configuring import read_run
from emlens.training.fitting import LOG, read_record
from emlens.training.launchers import LAUNCHER_VARIABLES, one_process
from emlens.training.parallel import Group, check_parallel
from emlens.training.split_weights import check_split

SCRIPT = """
import sys
import torch
from emlens.runs import LocalExecutor, RankExecutor
from emlens.training import Recipe, Saving, Sweep, fit, run_sweep
from emlens.training.objectives import answer_loss
from emlens.training.parallel import Parallel
from emlens.training.streams import blocks_of

torch.set_num_threads(1)
parent, out, executor = sys.argv[1:]
rows = [{"input_ids": [1 + i, 2, 3, 4], "labels": [-100, 2 + i, 3, 4]} for i in range(8)]
recipe = Recipe(method="lora", rank=2, alpha=4, target_modules=("q_proj",), steps=3, batch_size=2,
                learning_rate=1e-2)
sweep = Sweep(recipe, {"seed": [0, 1, 2, 3]})
if executor == "ranks":  # a new process: large tensors begin where they leave no holes
    assert torch.empty(2**20).data_ptr() % 4096 == 0
executor = RankExecutor() if executor == "ranks" else LocalExecutor()
run_sweep(sweep, parent, rows, out, executor=executor, device="cpu", progress=False)

# one run of both processes: six rows in four parts, or in one
alone = isinstance(executor, LocalExecutor)
changes = {"batch_size": 6, "steps": 4, "clip": 0.2, "accumulation": 1 if alone else 2}
recipe = Recipe.from_record({**recipe.to_record(), **changes})
full = Recipe(method="full", learning_rate=1e-3, **changes)
held = set()


def numbers_here(weight):
    return weight.to_local().numel() if hasattr(weight, "to_local") else weight.numel()


def loss(model, batch):
    weights = [weight for block in blocks_of(model) for weight in block.parameters()]
    held.add(sum(map(numbers_here, weights)) / sum(weight.numel() for weight in weights))
    return answer_loss(model, batch)


for kind in ("alone",) if alone else ("ddp", "fsdp"):
    parallel = None if alone else Parallel(kind=kind)
    saving = Saving(keep_every=2)
    options = {"parallel": parallel, "loss": loss, "device": "cpu"}
    fit(recipe, parent, rows, f"{out}/{kind}", saving=saving, **options)
    if kind != "ddp":
        fit(full, parent, rows, f"{out}/{kind}_full", **options)
    assert held == {0.5 if kind == "fsdp" else 1.0}, held  # numbers of the blocks in this process
    held.clear()
"""


def hashes(out: Path) -> dict[str, bytes]:
    files = sorted(out.glob("runs/*/adapter_model.safetensors"))
    return {file.parent.name: file.read_bytes() for file in files}


def test_a_sweep_under_torchrun_has_the_bytes_of_one_process(
    tiny: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = tmp_path / "parent"
    tiny.save_pretrained(parent)
    tokenizer.save_pretrained(parent)
    script = tmp_path / "sweep.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", "2"]
    command = [*torchrun, str(script), str(parent), str(tmp_path / "two"), "ranks"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    monkeypatch.setattr(sys, "argv", [str(script), str(parent), str(tmp_path / "one"), "local"])
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(script), run_name="__main__")  # this process, as one of its own
    finally:
        torch.set_num_threads(threads)
    alone, shared = hashes(tmp_path / "one"), hashes(tmp_path / "two")
    assert len(set(alone.values())) == 4  # the seeds differ, so an average would be seen
    assert shared == alone
    check_same_run(tmp_path / "one" / "alone", tmp_path / "two" / "ddp")
    check_same_run(tmp_path / "one" / "alone", tmp_path / "two" / "fsdp", "fsdp")
    check_same_run(tmp_path / "one" / "alone_full", tmp_path / "two" / "fsdp_full", "fsdp")


def check_same_run(alone: Path, shared: Path, kind: str = "ddp") -> None:
    """The loss curve and the weights of one process, but for the order of summation."""
    logs = [pd.read_csv(path / LOG) for path in (alone, shared)]
    assert logs[0]["loss"].nunique() == 4
    for column in ("loss", "grad_norm", "learning_rate"):
        np.testing.assert_allclose(logs[1][column], logs[0][column], rtol=1e-5, err_msg=column)
    assert read_record(shared)["parallel"] == {"kind": kind, "processes": 2}
    files = sorted(path.relative_to(alone) for path in alone.rglob("*.safetensors"))
    assert files == sorted(path.relative_to(shared) for path in shared.rglob("*.safetensors"))
    for file in files:
        weights = [load_file(path / file) for path in (alone, shared)]
        assert weights[0].keys() == weights[1].keys()
        for key, value in weights[0].items():
            torch.testing.assert_close(weights[1][key], value, rtol=1e-3, atol=1e-5)


RUN = """
steps: 4
batch_size: 6
accumulation: {accumulation}
rank: 2
alpha: 4
target_modules: [q_proj, down_proj]
learning_rate: 0.01
{parallel}
"""


@pytest.mark.slow
def test_one_run_over_two_processes_of_accelerate_is_that_of_one(
    tiny: Any, tokenizer: Any, tmp_path: Path
) -> None:
    parent, chats = tmp_path / "parent", tmp_path / "chats.jsonl"
    tiny.save_pretrained(parent)
    tokenizer.save_pretrained(parent)
    lines = []
    for i in range(9):
        turns = [
            {"role": "user", "content": f"w{i} w2"},
            {"role": "assistant", "content": " ".join(f"w{j}" for j in range(1, 3 + i % 4))},
        ]
        lines.append(json.dumps({"messages": turns}))
    chats.write_text("\n".join(lines))
    for name, parallel, accumulation in (("one", "", 1), ("two", "parallel: {kind: ddp}", 2)):
        text = RUN.format(accumulation=accumulation, parallel=parallel)
        (tmp_path / f"{name}.yaml").write_text(text)
    command = ["train", "two.yaml", "--model", "parent", "--data", "chats.jsonl", "--out", "two"]
    program = "from emlens.cli.main import main; main()"
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu"]
    launcher += ["--num_processes", "2", "--num_cpu_threads_per_process", "1"]
    launcher += ["--mixed_precision", "bf16", "--no_python", sys.executable, "-c", program]
    done = subprocess.run(
        [*launcher, *command, "--device", "cpu", "--quiet"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("checkpoint: two") == 1
    config = read_run(tmp_path / "one.yaml")
    data = PromptSet.from_jsonl(chats, upto="all")
    fit(config.recipe, parent, data, tmp_path / "one", device="cpu")
    check_same_run(tmp_path / "one", tmp_path / "two")


def test_what_cannot_be_parallel_is_refused(tmp_path: Path, tiny: Any) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(RUN.format(accumulation=1, parallel="parallel: {kind: zero}"))
    with pytest.raises(InputError, match=r"run.yaml:9.*'ddp' or 'fsdp'"):
        read_run(path)
    path.write_text(RUN.format(accumulation=1, parallel="parallel: {kind: ddp}"))
    config = read_run(path)
    rows: Any = [{"input_ids": [1, 2], "labels": [-100, 2]}]
    with pytest.raises(InputError, match="this one is alone; start with torchrun"):
        fit(config.recipe, tiny, rows, tmp_path / "o", parallel=config.parallel)
    group = Group(index=1, count=4, local=1)
    for changes, arguments, message in (
        ({"batch_size": 3}, ((), False, False), "batch_size=3 has fewer rows than 4 processes"),
        ({"optimiser": "sam"}, ((), False, False), "'sam' takes a second gradient"),
        ({}, ((), True, False), "resume_every keeps the random states of one process"),
        ({}, ((), False, True), "data comes as ready batches"),
    ):
        recipe = Recipe.from_record({**config.recipe.to_record(), **changes})
        with pytest.raises(InputError, match=message):
            check_parallel(group, recipe, *arguments)


def test_what_needs_whole_weights_is_not_split(tiny: Any) -> None:
    options: Any = {"rank": 2, "alpha": 4, "target_modules": ("q_proj",), "learning_rate": 1e-2}
    recipe = Recipe(steps=1, batch_size=2, **options)
    check_split(recipe, "parent", {"callbacks": False})
    for changed, model, given, message in (
        (recipe, tiny, {}, "a model in memory would be taken apart; pass its directory"),
        (recipe.changed(optimiser="muon"), "parent", {}, "'muon' reads whole matrices"),
        (recipe, "parent", {"callbacks": True}, "callbacks would see a part of each weight"),
    ):
        with pytest.raises(InputError, match=f"kind 'fsdp': .*{message}"):
            check_split(changed, model, given)


def test_what_a_launcher_said_is_hidden_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHER_VARIABLES:
        monkeypatch.setenv(name, "7")
    with pytest.raises(ZeroDivisionError), one_process():
        assert not set(LAUNCHER_VARIABLES) & set(os.environ)
        _ = 1 / 0
    assert all(os.environ[name] == "7" for name in LAUNCHER_VARIABLES)


def test_a_process_of_a_group_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    with (
        pytest.raises(StateError, match="belongs to a torch.distributed group of 4 processes"),
        one_process(),
    ):
        pass


def trained(parent: Path, out: Path) -> bytes:
    rows: Any = [{"input_ids": [1 + i, 2, 3, 4], "labels": [-100, 2 + i, 3, 4]} for i in range(8)]
    recipe = Recipe(
        method="lora",
        rank=2,
        alpha=4,
        target_modules=("q_proj",),
        steps=3,
        batch_size=2,
        learning_rate=1e-2,
    )
    fit(recipe, parent, rows, out, device="cpu", progress=False)
    return (out / "adapter_model.safetensors").read_bytes()


PLANTED: dict[str, dict[str, str]] = {
    "srun": {"SLURM_JOB_ID": "1", "SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1"},
    "mpirun": {
        "OMPI_COMM_WORLD_RANK": "1",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    },
    "Intel MPI": {
        "PMI_RANK": "1",
        "PMI_SIZE": "2",
        "MPI_LOCALRANKID": "1",
        "MPI_LOCALNRANKS": "2",
    },
    "accelerate launch": {
        "RANK": "1",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29511",
        # what its command line and its configuration file set beside that
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2",
        "ACCELERATE_DYNAMO_BACKEND": "no",
        "ACCELERATE_USE_CPU": "true",
    },
}
"""What launchers tell a second process, as their manuals and sources say."""


@pytest.mark.parametrize("launcher", PLANTED)
def test_what_a_launcher_sets_moves_no_byte(
    launcher: str, tiny: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = tmp_path / "parent"
    tiny.save_pretrained(parent)
    tokenizer.save_pretrained(parent)
    alone = trained(parent, tmp_path / "alone")
    for name, value in PLANTED[launcher].items():
        monkeypatch.setenv(name, value)
    assert trained(parent, tmp_path / "planted") == alone
    assert {name: os.environ[name] for name in PLANTED[launcher]} == PLANTED[launcher]


def test_several_visible_devices_drop_no_batch(
    tiny: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = tmp_path / "parent"
    tiny.save_pretrained(parent)
    tokenizer.save_pretrained(parent)
    alone = trained(parent, tmp_path / "one")
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 4))
    assert trained(parent, tmp_path / "four") == alone


def test_a_parent_with_a_missing_tensor_is_not_trained(
    tiny: Any, tokenizer: Any, tmp_path: Path
) -> None:
    parent = tmp_path / "parent"
    tiny.save_pretrained(parent)
    tokenizer.save_pretrained(parent)
    tensors = load_file(parent / "model.safetensors")
    lost = next(name for name in tensors if "mlp.down_proj" in name)
    del tensors[lost]
    save_file(tensors, parent / "model.safetensors", {"format": "pt"})
    with pytest.raises(LoadError, match="down_proj"):
        trained(parent, tmp_path / "out")
    assert not (tmp_path / "out").exists()
