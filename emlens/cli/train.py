"""`emlens train`: one recipe, or a sweep of them, on a model and a file of chats."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emlens.cli.printing import print_json, print_line, print_table
from emlens.cli.settings import (
    Setting,
    count,
    help_text,
    names,
    number,
    read_settings,
    text,
    yes_or_no,
)

if TYPE_CHECKING:
    from emlens.data import PromptSet
    from emlens.runs import Executor
    from emlens.training.configuring import RunConfig
    from emlens.training.fitting import Saving

SAVE_DTYPES = ("float32", "float16", "bfloat16")
SETTINGS: Mapping[str, Setting] = {
    "save_dtype": text("weights on disk: float32, float16 or bfloat16 (as trained)"),
    "keep_every": count("keep the adapter after every N steps (never)"),
    "resume_every": count("write what a killed run resumes from after every N steps (50)"),
    "report_to": names("trackers told of every step, such as tensorboard,wandb (none)"),
    "empty": text("chats whose answer is empty: error, or drop, which says how many (error)"),
    "actors": count("Ray actors, with --executor ray (1)"),
    "plan": yes_or_no("say what it will take, memory and time, and train nothing (no)"),
    "teraflops": number("with plan: 10¹² operations a second that the device keeps up (no time)"),
}


@dataclass(frozen=True)
class _Job:
    """What is trained, on what, and where to.

    Args:
        recipe: a file, or the name of a preset.
        model: directory of the parent checkpoint.
        chats: the data.
        out: directory of the checkpoint, or of the sweep.
        saving: what a run writes, and when.
        device: where to train.
        progress: whether a bar is shown.
    """

    recipe: str
    model: Path
    chats: "PromptSet"
    out: Path
    saving: "Saving"
    device: str
    progress: bool


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="YAML file (docs/training.md), or the name of a preset, trained for --epochs."
        ),
    ],
    model: Annotated[Path, typer.Option(help="Directory of the parent checkpoint.")],
    data: Annotated[
        Path,
        typer.Option(help="JSONL with `messages` per line; the last is the assistant's answer."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="Directory for the checkpoint, or of the sweep; the same command goes on there.",
        ),
    ],
    sweep: Annotated[
        bool, typer.Option("--sweep", help="The file is a sweep: `base` and `axes`.")
    ] = False,
    epochs: Annotated[
        float, typer.Option(help="Passes over the data, for a preset.", min=0.0)
    ] = 1.0,
    layers: Annotated[
        list[int] | None,
        typer.Option("--layer", help="Block to train, for a preset of one block; repeatable."),
    ] = None,
    executor: Annotated[
        str, typer.Option(help="Who trains a sweep: local; ranks (torchrun, Slurm); ray.")
    ] = "local",
    settings: Annotated[list[str] | None, typer.Option("--set", help=help_text(SETTINGS))] = None,
    device: Annotated[
        str,
        typer.Option(help="Where to train: auto (a GPU if there is one), cpu, cuda, cuda:1."),
    ] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Train by a recipe, or every run of a sweep, and write checkpoints with their records and
    logs.

    Killed at any moment, the same command goes on, inside a run too, and ends with the same bytes.
    """
    from emlens.data import PromptSet
    from emlens.foundation.errors import InputError

    values = read_settings(settings or (), SETTINGS)
    actors = values.pop("actors", 1)
    empty = values.pop("empty", "error")
    plan, teraflops = values.pop("plan", False), values.pop("teraflops", None)
    if teraflops is not None and not plan:
        raise InputError(f"teraflops={teraflops} belongs to plan=yes; pass it, or leave it out")
    saving = _saving(values)
    if not sweep and (executor != "local" or actors != 1):
        raise InputError(
            f"executor={executor!r} and actors={actors} share the runs of a sweep;"
            " pass --sweep, or leave them out"
        )
    if _is_file(recipe) and (epochs != 1.0 or layers):
        raise InputError(
            "--epochs and --layer belong to a preset;"
            " write epochs and layers_to_transform into the file"
        )
    chats = PromptSet.from_jsonl(data, upto="all", empty=empty)
    if plan:
        job = _Job(recipe, model, chats, out, saving, device, False)
        _plan(job, None if sweep else _run_config(job, epochs, layers), teraflops, json)
        return
    if sweep:
        workers = _executor(executor, actors)
        if executor == "ranks":
            device = _device_of_rank(device, workers)
        job = _Job(recipe, model, chats, out, saving, device, not quiet)
        _sweep(job, workers, json)
    else:
        job = _Job(recipe, model, chats, out, saving, device, not quiet)
        _run(job, _run_config(job, epochs, layers), json)


def _is_file(recipe: str) -> bool:
    return Path(recipe).suffix in (".yaml", ".yml")


def _saving(values: dict[str, Any]) -> "Saving":
    from emlens.foundation.errors import InputError
    from emlens.training.fitting import Saving

    save_dtype = values.get("save_dtype")
    if save_dtype not in (None, *SAVE_DTYPES):
        raise InputError(
            f"save_dtype={save_dtype!r} is unknown; pass float32, float16 or bfloat16",
            name=save_dtype,
            known=("float32", "float16", "bfloat16"),
        )
    return Saving(**{"resume_every": 50, **values})


def _device_of_rank(device: str, executor: "Executor") -> str:
    """Ranks on one machine take its GPUs in turn, where none is named."""
    import torch

    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        return f"cuda:{getattr(executor, 'local_rank', 0)}"
    return device


def _executor(name: str, actors: int) -> "Executor":
    from emlens.foundation.errors import InputError
    from emlens.runs import LocalExecutor, RankExecutor, RayExecutor

    if name not in ("local", "ranks", "ray"):
        raise InputError(
            f"executor={name!r} is unknown; pass local, ranks or ray",
            name=name,
            known=("local", "ranks", "ray"),
        )
    if name == "ray":
        return RayExecutor(actors)
    if actors != 1:
        raise InputError(f"actors={actors} belongs to executor='ray'; got executor={name!r}")
    return LocalExecutor() if name == "local" else RankExecutor()


def _run_config(job: _Job, epochs: float, layers: list[int] | None) -> "RunConfig":
    """The run of a file, or of a preset."""
    from emlens.training.configuring import RunConfig, read_run
    from emlens.training.presets import recipe as preset

    if _is_file(job.recipe):
        return read_run(job.recipe, len(job.chats))
    changes: dict[str, Any] = {"layers_to_transform": tuple(layers)} if layers else {}
    return RunConfig(recipe=preset(job.recipe, rows=len(job.chats), epochs=epochs, **changes))


def _saving_of(saving: "Saving", config: "RunConfig") -> "Saving":
    """Several processes keep no state to resume from."""
    if config.parallel is None:
        return saving
    return replace(saving, resume_every=None)


def _run(job: _Job, config: "RunConfig", json: bool) -> None:
    from emlens.training import fit
    from emlens.training.fitting import LOG, SIDECAR, read_record

    if (job.out / SIDECAR).is_file():
        _require_same_run(read_record(job.out), job, config)
    else:
        fit(
            config.recipe,
            job.model,
            job.chats,
            job.out,
            objectives=config.objectives,
            progress=job.progress,
            saving=_saving_of(job.saving, config),
            parallel=config.parallel,
            device=job.device,
        )
    if config.parallel is not None and os.environ.get("RANK", "0") != "0":
        return  # the first process says it
    record = read_record(job.out)
    result = {
        "out": str(job.out),
        "steps_done": record["steps_done"],
        "stopped": record["stopped"],
        "final_loss": _last_loss(job.out / LOG),
        "cut_rows": sum((record["data"].get("cut_rows") or {}).values()),
    }
    if json:
        print_json(result)
        return
    sentence = f"{result['steps_done']} steps, final loss {result['final_loss']:.4g} nats per token"
    if result["stopped"]:
        sentence += f"; stopped: {result['stopped']}"
    if result["cut_rows"]:
        sentence += f"; max_length cut {result['cut_rows']} rows"
    print_line(sentence)
    print_line(f"checkpoint: {job.out}")


def _require_same_run(record: dict[str, Any], job: _Job, config: "RunConfig") -> None:
    """Refuse a finished checkpoint that is not what this command would train.

    Raises:
        InputError: it was trained from something else; the message names it.
    """
    from emlens.foundation.errors import InputError
    from emlens.foundation.provenance import differences
    from emlens.models.checkpoint_files import checkpoint_hashes

    hashes = checkpoint_hashes(job.model)
    of_command = {
        "recipe": config.recipe.to_record(),
        "objectives": [objective.to_record() for objective in config.objectives],
        "data": job.chats.content_hash,
        "parent": hashes,
        "save_dtype": job.saving.save_dtype,
        "keep_every": job.saving.keep_every,
    }
    of_checkpoint = {name: record.get(name) for name in of_command}
    of_checkpoint["objectives"] = record.get("objectives", [])
    of_checkpoint["data"] = (record["data"] or {}).get("sha256")
    recorded = record["parent"] or {}
    of_checkpoint["parent"] = {kind: recorded.get(kind) for kind in hashes}
    changed = differences(of_checkpoint, of_command)
    if changed:
        raise InputError(
            f"out={str(job.out)!r} is there already; pass a new directory"
            f" (it was trained with another {', '.join(changed)})"
        )


def _last_loss(path: Path) -> float:
    import pandas as pd

    return float(pd.read_csv(path)["loss"].iloc[-1])


def _plan(job: _Job, config: "RunConfig | None", teraflops: float | None, json: bool) -> None:
    """What the run, or without one the sweep, will take."""
    from emlens.training.configuring import read_sweep
    from emlens.training.planning import plan_training

    if config is None:
        planned = plan_training(
            read_sweep(job.recipe, len(job.chats)), job.model, job.chats, teraflops=teraflops
        )
    else:
        planned = plan_training(
            config.recipe,
            job.model,
            job.chats,
            objectives=config.objectives,
            teraflops=teraflops,
        )
    if json:
        print_json(planned.to_record())
        return
    for line in planned.lines():
        print_line(line)


def _sweep(job: _Job, executor: "Executor", json: bool) -> None:
    from emlens.training import run_sweep
    from emlens.training.configuring import read_sweep

    result = run_sweep(
        read_sweep(job.recipe, len(job.chats)),
        job.model,
        job.chats,
        job.out,
        executor=executor,
        progress=job.progress,
        saving=job.saving,
        device=job.device,
    )
    if json:
        print_json({"out": str(job.out), "runs": result.table.to_dict("records")})
        return
    print_table(result.table, f"{len(result.table)} runs")
    print_line(f"checkpoints, runs.csv and steps.csv: {job.out}")
