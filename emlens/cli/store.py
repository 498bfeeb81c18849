"""`emlens store`: what an activation store holds, whether its bytes are as written, and exports."""

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emlens.cli.printing import print_json, print_line, print_table

if TYPE_CHECKING:
    from emlens.activations import ActivationStore

app = typer.Typer(
    no_args_is_help=True,
    help=(
        "Look into a directory that capture(store=...) or acts.save(...) wrote;"
        " check it; export it."
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

    is_planned = (directory / "plan.json").is_file()
    if is_planned and not (directory / "manifest.json").is_file():
        _print_unfinished(directory, json)
        return
    store = ActivationStore.open(directory)
    if json:
        print_json(_record(store))
    else:
        _print(store, directory)


def _print_unfinished(directory: Path, json: bool) -> None:
    from emlens.activations.capture_job import CaptureJob

    job = CaptureJob.open({"store": directory})
    shards, missing = len(job.units), len(job.missing())
    if json:
        rows = len(job.plan.rows)
        record = {"finished": False, "rows": rows, "shards": shards, "shards_missing": missing}
        print_json(record)
        return
    print_line(
        f"{directory}: not finished: {shards - missing} of {shards} shards are written;"
        " the same capture goes on from there"
    )


def _record(store: "ActivationStore") -> dict[str, Any]:
    return {
        "finished": True,
        "rows": len(store),
        "groups": sorted(set(store.groups)),
        "sites": store.sites,
        "positions": store.positions,
        "shards": store.shards,
        "bytes": store.nbytes,
        "provenance": store.provenance,
    }


def _print(store: "ActivationStore", directory: Path) -> None:
    import pandas as pd

    facts = {
        "rows": f"{len(store)} in {len(set(store.groups))} groups",
        "sites": ", ".join(store.sites),
        "positions": ", ".join(store.positions),
        "size": f"{store.nbytes / 1e6:.4g} MB in {store.shards} shards",
    }
    for name, value in _flat(store.provenance):
        facts[name] = _fact_text(value)
    rows = pd.DataFrame({"fact": list(facts), "value": list(facts.values())})
    print_table(rows, str(directory))


@app.command("verify")
def verify(directory: Directory, json: Json = False) -> None:
    """Read every byte and compare checksums; exit code 1 if anything is damaged."""
    from emlens.activations import ActivationStore
    from emlens.foundation.errors import IntegrityError

    size = 0
    try:
        store = ActivationStore.open(directory)
        damage, size = store.damage(), store.nbytes
    except IntegrityError as error:
        damage = [str(error)]
    if json:
        print_json({"whole": not damage, "damage": damage})
    elif damage:
        for fault in damage:
            print_line(fault)
        print_line(
            "run the capture again into this directory:"
            " it restores what is damaged and keeps the rest"
        )
    else:
        print_line(f"{directory}: every byte is as it was written ({size / 1e6:.4g} MB)")
    raise typer.Exit(1 if damage else 0)


@app.command("export")
def export(
    directory: Directory,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="File to write: .npz, or .safetensors for another tool's layout."
        ),
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
    from emlens.foundation.files import require_writable

    require_writable(out)
    store = ActivationStore.open(directory)
    path = export_activations(store, out, layout=layout.value, position=position)
    size = path.stat().st_size
    if json:
        print_json({"file": str(path), "bytes": size, "layout": layout.value})
    else:
        print_line(f"{path}: {size / 1e6:.4g} MB, {layout.value} layout")


def _flat(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Facts, the names of nested ones joined by dots; sites and positions have rows already."""
    for name, value in facts.items():
        if name in ("sites", "positions"):
            continue
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _fact_text(value: Any) -> str:
    return "—" if value is None or value in ({}, [], "") else str(value)
