"""`emlens train`: one recipe, or a sweep of them, on a model and a file of chats."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from emlens.cli.printing import as_json, line, table

if TYPE_CHECKING:
    from emlens.runs import Executor
    from emlens.training.fitting import SaveDtype


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="YAML file (docs/training.md), or the name of a preset, trained for --epochs."
        ),
    ],
    model: Annotated[Path, typer.Option(help="Directory of the parent checkpoint.")],
    data: Annotated[
        Path, typer.Option(help="JSONL with `messages` a line; the last is the assistant's answer.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Directory for the checkpoint, or of the sweep; the same command goes on there."
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
    actors: Annotated[int, typer.Option(help="Ray actors.", min=1)] = 1,
    save_dtype: Annotated[
        str | None,
        typer.Option(help="Weights on disk: float32, float16 or bfloat16; default as trained."),
    ] = None,
    keep_every: Annotated[
        int | None, typer.Option(help="Keep the adapter after every so many steps.", min=1)
    ] = None,
    resume_every: Annotated[
        int,
        typer.Option(
            help="Write what a killed run needs to go on after every so many steps.", min=1
        ),
    ] = 50,
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
    from emlens.training.fitting import Saving

    if save_dtype not in (None, "float32", "float16", "bfloat16"):
        raise InputError(f"save_dtype={save_dtype!r} is unknown; pass float32, float16 or bfloat16")
    if not sweep and (executor != "local" or actors != 1):
        raise InputError(
            f"executor={executor!r} and actors={actors} share the runs of a sweep;"
            " pass --sweep, or leave them out"
        )
    if Path(recipe).suffix in (".yaml", ".yml") and (epochs != 1.0 or layers):
        raise InputError(
            "--epochs and --layer belong to a preset; write epochs and layers_to_transform into the"
            " file"
        )
    chats = PromptSet.from_jsonl(data, upto="all")
    saving = Saving(cast("SaveDtype | None", save_dtype), keep_every, resume_every)
    options: dict[str, Any] = {"saving": saving, "device": device}
    if sweep:
        workers = _executor(executor, actors)
        if executor == "ranks":
            options["device"] = _device_of_rank(device, workers)
        _sweep(recipe, model, chats, out, workers, options, json, quiet)
    else:
        _run(recipe, model, chats, out, epochs, layers, options, json, quiet)


def _device_of_rank(device: str, executor: "Executor") -> str:
    """Ranks on one machine take its GPUs in turn, where none is named."""
    import torch

    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        return f"cuda:{getattr(executor, 'local_rank', 0)}"
    return device


def _run(
    recipe: str,
    model: Path,
    chats: Any,
    out: Path,
    epochs: float,
    layers: list[int] | None,
    options: dict[str, Any],
    json: bool,
    quiet: bool,
) -> None:
    from emlens.training import fit
    from emlens.training.configuring import RunConfig, read_run
    from emlens.training.fitting import LOG, SIDECAR, read_record
    from emlens.training.presets import recipe as preset

    if Path(recipe).suffix in (".yaml", ".yml"):
        asked = read_run(recipe, len(chats))
    else:
        changes: dict[str, Any] = {"layers_to_transform": tuple(layers)} if layers else {}
        asked = RunConfig(recipe=preset(recipe, rows=len(chats), epochs=epochs, **changes))
    if not ((out / SIDECAR).is_file() and _same(read_record(out), asked, model, chats, options)):
        fit(
            asked.recipe,
            model,
            chats,
            out,
            objectives=asked.objectives,
            progress=not quiet,
            **options,
        )
    record = read_record(out)
    found = {
        "out": str(out),
        "steps_done": record["steps_done"],
        "stopped": record["stopped"],
        "final_loss": _last_loss(out / LOG),
    }
    if json:
        as_json(found)
        return
    line(
        f"{found['steps_done']} steps, final loss {found['final_loss']:.4g} nats a token"
        + (f"; stopped: {found['stopped']}" if found["stopped"] else "")
    )
    line(f"checkpoint: {out}")


def _same(
    record: dict[str, Any], asked: Any, model: Path, chats: Any, options: dict[str, Any]
) -> bool:
    """Whether a finished checkpoint is what this command would train."""
    from emlens.foundation.provenance import hash_directory

    wanted = {
        "recipe": asked.recipe.to_record(),
        "objectives": [objective.to_record() for objective in asked.objectives],
        "data": chats.content_hash,
        "parent": hash_directory(model),
        "save_dtype": options["saving"].save_dtype,
        "keep_every": options["saving"].keep_every,
    }
    found = {
        **{name: record.get(name) for name in wanted},
        "objectives": record.get("objectives", []),
    }
    for name in ("data", "parent"):
        found[name] = (record[name] or {}).get("sha256")
    return found == wanted


def _last_loss(path: Path) -> float:
    import pandas as pd

    return float(pd.read_csv(path)["loss"].iloc[-1])


def _sweep(
    path: str,
    model: Path,
    chats: Any,
    out: Path,
    executor: "Executor",
    options: dict[str, Any],
    json: bool,
    quiet: bool,
) -> None:
    from emlens.training import run_sweep
    from emlens.training.configuring import read_sweep

    result = run_sweep(
        read_sweep(path, len(chats)),
        model,
        chats,
        out,
        executor=executor,
        progress=not quiet,
        **options,
    )
    if json:
        as_json({"out": str(out), "runs": result.table.to_dict("records")})
        return
    table(result.table, f"{len(result.table)} runs")
    line(f"checkpoints, runs.csv and steps.csv: {out}")


def _executor(name: str, actors: int) -> "Executor":
    from emlens.foundation.errors import InputError
    from emlens.runs import LocalExecutor, RankExecutor, RayExecutor

    if name not in ("local", "ranks", "ray"):
        raise InputError(f"executor={name!r} is unknown; pass local, ranks or ray")
    if name != "ray" and actors != 1:
        raise InputError(f"actors={actors} belongs to executor='ray'; got executor={name!r}")
    if name == "ray":
        return RayExecutor(actors)
    return LocalExecutor() if name == "local" else RankExecutor()
