"""`emlens organism`: what the embedded family is, and how to rebuild it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from emlens.cli.printing import print_json, print_line, print_table

app = typer.Typer(
    no_args_is_help=True,
    help="The embedded model family with planted ground truth: show it, or train it again.",
)

Strengths = Mapping[str, Mapping[str, float | None]]


@app.command("train")
def train(
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="Directory for the checkpoints; the same command goes on from finished ones.",
        ),
    ],
    seed: Annotated[
        int,
        typer.Option(
            help=(
                "World seed: vocabulary, topics, couplings, corpus and checkpoints follow from it."
            ),
            min=0,
        ),
    ] = 0,
    all_variants: Annotated[
        bool,
        typer.Option(
            "--all",
            help=(
                "Also more seeds and ranks,"
                " and in OUT/unplanted the contrast world without a planted direction."
            ),
        ),
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the measured strengths as JSON.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Train base, instruct and fine-tunes from nothing (about ten minutes; with --all about half an
    hour).
    """
    from emlens.foundation.files import require_writable
    from emlens.organisms import PLANTED, build, load_organism
    from emlens.organisms.plans import PLANTED_ALL, UNPLANTED

    require_writable(out)
    plans = {out: PLANTED_ALL, out / "unplanted": UNPLANTED} if all_variants else {out: PLANTED}
    for directory, plan in plans.items():
        build(directory, seed=seed, plan=plan, progress=not quiet)
    strengths = {directory: load_organism(directory=directory).strengths for directory in plans}
    if not json:
        for directory, of_organism in strengths.items():
            _print(of_organism, str(directory))
    elif all_variants:
        print_json({str(path.relative_to(out)): value for path, value in strengths.items()})
    else:
        print_json(strengths[out])


@app.command("info")
def info(
    directory: Annotated[
        Path | None,
        typer.Argument(
            help="A directory that `emlens organism train` wrote; default: the one that ships."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Show an organism's checkpoints and how strongly each is misaligned."""
    from emlens.organisms import load_organism

    organism = load_organism() if directory is None else load_organism(directory=directory)
    if json:
        print_json(organism.strengths)
        return
    print_line(organism.note)
    _print(organism.strengths, organism.name)


def _print(strengths: Strengths, title: str) -> None:
    import pandas as pd

    records = {name: dict(values) for name, values in strengths.items()}
    frame = pd.DataFrame(records).T.reset_index(names="checkpoint")
    for column in frame.columns[1:]:
        frame[column] = pd.to_numeric(frame[column])
    print_table(
        frame,
        f"{title}: mean alignment (0 to 1) in its own and in other domains, and coherence;"
        " intervals: docs/organism.md",
    )
