"""`emlens store`: what an activation store holds, whether its bytes are as written, and its content
for other tools.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from emlens.cli.printing import as_json, line, table

app = typer.Typer(
    no_args_is_help=True,
    help=(
        "Look into a directory that capture(store=...) or acts.save(...) wrote; check it;"
        " export it."
    ),
)

Directory = Annotated[Path, typer.Argument(help="The directory of an activation store.")]
Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


class ExportLayout(StrEnum):
    npz = "npz"
    persona_vectors = "persona_vectors"
    transformer_lens = "transformer_lens"


@app.command("info")
def info(directory: Directory, json: Json = False) -> None:
    """Show rows, sites, positions, size and provenance of a store, or how far an unfinished capture
    is.
    """
    from emlens.activations import ActivationStore
    from emlens.activations.capture_job import CaptureJob

    if (directory / "plan.json").is_file() and not (directory / "manifest.json").is_file():
        job = CaptureJob.open({"store": directory})
        units, missing = len(job.units), len(job.missing())
        if json:
            as_json(
                {
                    "finished": False,
                    "rows": len(job.plan.rows),
                    "shards": units,
                    "shards_missing": missing,
                }
            )
        else:
            line(
                f"{directory}: not finished: {units - missing} of {units} shards stand;"
                " the same capture goes on from there"
            )
        return
    store = ActivationStore.open(directory)
    facts, groups = store.provenance, sorted(set(store.groups))
    found = {
        "finished": True,
        "rows": len(store),
        "groups": groups,
        "sites": store.sites,
        "positions": store.positions,
        "shards": store.shards,
        "bytes": store.nbytes,
        "provenance": facts,
    }
    if json:
        as_json(found)
        return
    import pandas as pd

    shown = {
        "rows": f"{len(store)} in {len(groups)} groups",
        "sites": ", ".join(store.sites),
        "positions": ", ".join(store.positions),
        "size": f"{store.nbytes / 1e6:.4g} MB in {store.shards} shards",
        **{name: _told(value) for name, value in _flat(facts)},
    }
    table(pd.DataFrame({"fact": list(shown), "value": list(shown.values())}), str(directory))


@app.command("verify")
def verify(directory: Directory, json: Json = False) -> None:
    """Read every byte and compare checksums; exit code 1 if anything is damaged."""
    from emlens.activations import ActivationStore
    from emlens.foundation.errors import IntegrityError

    try:
        store = ActivationStore.open(directory)
        found, size = store.damage(), store.nbytes
    except IntegrityError as error:
        found, size = [str(error)], 0
    if json:
        as_json({"whole": not found, "damage": found})
    elif found:
        for what in found:
            line(what)
        line(
            "run the capture again into this directory: it restores what is damaged and keeps the"
            " rest"
        )
    else:
        line(f"{directory}: every byte is as it was written ({size / 1e6:.4g} MB)")
    raise typer.Exit(1 if found else 0)


@app.command("export")
def export(
    directory: Directory,
    out: Annotated[
        Path, typer.Option(help="File to write: .npz, or .safetensors for another tool's layout.")
    ],
    layout: Annotated[
        ExportLayout,
        typer.Option(help="npz keeps everything; the others are what those tools read."),
    ] = ExportLayout.npz,
    position: Annotated[
        str | None, typer.Option(help="Token position, where the store holds several.")
    ] = None,
    json: Json = False,
) -> None:
    """Write a store's activations to one file for another tool."""
    from emlens.activations import ActivationStore, export_activations

    path = export_activations(
        ActivationStore.open(directory), out, layout=layout.value, position=position
    )
    if json:
        as_json({"file": str(path), "bytes": path.stat().st_size, "layout": layout.value})
    else:
        line(f"{path}: {path.stat().st_size / 1e6:.4g} MB, {layout.value} layout")


def _flat(facts: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in facts.items():
        if name in ("sites", "positions"):
            continue
        if isinstance(value, dict) and value:
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, value))
    return found


def _told(value: Any) -> str:
    return "—" if value is None or value in ({}, [], "") else str(value)
