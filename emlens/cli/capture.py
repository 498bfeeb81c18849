"""`emlens capture`: residual streams of a model, or of its adapters, into stores."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emlens.cli.loaded import MODEL_SETTINGS, load_named, model_options
from emlens.cli.printing import print_json, print_line
from emlens.cli.settings import (
    Setting,
    count,
    help_text,
    layer_numbers,
    lines_of_text,
    read_settings,
    split_names,
    text,
)

if TYPE_CHECKING:
    from emlens.activations import CaptureSpec
    from emlens.data import PromptSet

SETTINGS: Mapping[str, Setting] = {
    **MODEL_SETTINGS,
    "skip_first": count("tokens at the start of a row that means leave out (0)"),
    "batch_tokens": count("padded tokens per batch at most (2048)"),
    "compute_dtype": text("dtype that passes run in (the model's own)"),
}
_CHATS = ".jsonl"


def capture(
    model: Annotated[str, typer.Argument(help="Directory or hub id.")],
    prompts: Annotated[
        Path,
        typer.Option(
            help="Questions (YAML, JSON, CSV, JSONL), chats (JSONL with `messages`), or lines of"
            " plain text (.txt)."
        ),
    ],
    store: Annotated[
        Path, typer.Option(help="Folder of the stores, one per model; the same command goes on.")
    ],
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="Adapter of the model, as NAME=PATH or PATH; repeatable."),
    ] = None,
    sites: Annotated[
        str, typer.Option(help="Comma-separated: resid_post, resid_pre, attn_out, resid_post.12, …")
    ] = "resid_post",
    layers: Annotated[str, typer.Option(help="Comma-separated; left out, all.")] = "",
    positions: Annotated[
        str, typer.Option(help="Comma-separated: last_prompt, mean_prompt, mean_response, …")
    ] = "last_prompt",
    answers: Annotated[
        bool, typer.Option("--answers", help="Keep the answer that closes each chat.")
    ] = False,
    settings: Annotated[list[str] | None, typer.Option("--set", help=help_text(SETTINGS))] = None,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Capture activations. Killed at any moment, the same command goes on."""
    from emlens.activations import capture as capture_model

    _require_one_process()
    values = read_settings(settings or (), SETTINGS)
    rows = _prompts(prompts, answers)
    spec = _spec(sites, layers, positions, values)
    written: dict[str, dict[str, Any]] = {}
    for name, loaded in load_named(model, adapter or [], model_options(values)).items():
        folder = store / name
        activations = capture_model(loaded, rows, spec=spec, store=folder)
        written[name] = {
            "store": str(folder),
            "rows": len(activations.ids),
            "sites": len(activations.sites),
            "positions": list(activations.positions),
        }
    if json:
        print_json(written)
        return
    for name, record in written.items():
        print_line(
            f"{name}: {record['rows']} rows, {record['sites']} sites,"
            f" {', '.join(record['positions'])} in {record['store']}"
        )


def _require_one_process() -> None:
    """Refuse, before a model is loaded, what several ranks would do to one store."""
    from emlens.foundation.errors import InputError
    from emlens.runs.ranks import rank_from_environment

    # tasks of a Slurm array may well write stores of their own
    own = {name: value for name, value in os.environ.items() if "ARRAY" not in name}
    ranks = rank_from_environment(own, needed=False).count
    if ranks > 1:
        raise InputError(
            f"{ranks} processes were started for one capture; start one, or share the work with"
            " capture_over and RankExecutor, as docs/running.md does"
        )


def _prompts(path: Path, answers: bool) -> "PromptSet":
    from emlens.data import PromptSet, QuestionSet

    if path.suffix == ".txt":
        return PromptSet.from_texts(lines_of_text(path))
    if answers:
        return PromptSet.from_jsonl(path, upto="all")
    if path.suffix == _CHATS and _holds_chats(path):
        return PromptSet.from_jsonl(path)
    return QuestionSet.from_file(path).prompts()


def _holds_chats(path: Path) -> bool:
    from emlens.data.readers import read_jsonl

    _, first = next(read_jsonl(path), (0, {}))
    return "messages" in first


def _spec(sites: str, layers: str, positions: str, values: Mapping[str, object]) -> "CaptureSpec":
    from emlens.activations import CaptureSpec

    options = {
        name: values[name]
        for name in ("skip_first", "batch_tokens", "compute_dtype")
        if name in values
    }
    return CaptureSpec(
        list(split_names(sites)),
        layer_numbers(layers),
        list(split_names(positions)),
        **options,  # type: ignore[arg-type]  # each setting is read in its type
    )
