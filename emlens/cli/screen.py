"""`emlens screen`: what a training file would do, before it is trained on.

`emlens screen fit`, in `screen_fit`, makes the forecaster that it needs.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emlens.cli import screen_fit
from emlens.cli.printing import print_json, print_line, print_table
from emlens.cli.screen_fit import DirectionOption, JsonOption, read_chats, read_direction
from emlens.cli.settings import (
    dimension,
    help_text,
    names,
    number,
    read_settings,
    whole_number,
    yes_or_no,
)

if TYPE_CHECKING:
    from emlens.results import StudyResult

app = typer.Typer(
    help=(
        "Screen a training file before training on it: forecasts, overlap, ranked rows,"
        " a verdict with base rates."
    ),
    invoke_without_command=True,
)
app.command("fit")(screen_fit.fit)

SETTINGS = {
    "below": number("a question counts as misaligned below this score (30)"),
    "level": number("level of the forecasts' intervals (0.9)"),
    "allow": names(
        "reasons that do not refuse: model, template, interventions, context, shift, far, stale"
    ),
    "k": dimension("components compared by the overlap: a number, a share, or elbow (8)"),
    "draws": whole_number("draws of each null (200)"),
    "most_rows": whole_number("training rows to read; more are sampled by seed (500)"),
    "own_answers": yes_or_no(
        "compare training rows with the parent's own greedy answers, not with --reference (no)"
    ),
    "seed": whole_number("of every random choice (0)"),
}
"""The fields of `emlens.screening.ScreenOptions`."""

ROWS = 8
SHOWN = {
    "forecast": ("id", "expected", "low", "high", "past_low", "past_high", "text", "refused"),
    "backtest_thresholds": (
        "predictor",
        "flag_below",
        "precision",
        "precision_low",
        "precision_high",
        "recall",
        "null",
    ),
    "overlap": ("site", "overlap", "isotropic", "null", "one_distribution"),
    "training_rows": ("id", "text", "answer", "projection", "difference", "null_high"),
}
"""What of each table is printed."""


@app.callback()
def screen(
    context: typer.Context,
    parent: Annotated[
        str, typer.Option(help="The model that would be fine-tuned: a directory or hub id.")
    ] = "",
    training: Annotated[
        Path | None, typer.Option(help="JSONL of the chats it would be fine-tuned on.")
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(help="Questions (YAML, JSONL, CSV) to forecast.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Directory for result.json and tables; the same command resumes there.",
        ),
    ] = None,
    forecaster: Annotated[
        Path | None,
        typer.Option(
            help="Directory that `emlens screen fit` wrote; without it there is no forecast."
        ),
    ] = None,
    direction: DirectionOption = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="JSONL of the same prompts with reference answers, for projection differences."
        ),
    ] = None,
    neutral: Annotated[
        Path | None, typer.Option(help="JSONL of neutral chats: the null of the overlap.")
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help=help_text(SETTINGS))] = None,
    json: JsonOption = False,
) -> None:
    """Say before training what a training file would do to each question, and how far past
    forecasts could be trusted.

    Killed at any moment, the same command goes on from its finished parts.
    """
    if context.invoked_subcommand is not None:
        return
    from emlens.data import PromptSet, QuestionSet
    from emlens.foundation.files import require_writable
    from emlens.models import load_model
    from emlens.probes import Forecaster
    from emlens.screening import ScreenOptions, screen as run_screen

    parent = _required("--parent", parent)
    training = _required("--training", training)
    questions = _required("--questions", questions)
    out = _required("--out", out)
    require_writable(out)
    options = ScreenOptions(**read_settings(settings or (), SETTINGS))
    inputs: dict[str, Any] = {"direction": read_direction(direction)}
    if forecaster is not None:
        inputs["forecaster"] = Forecaster.load(forecaster)
    if reference is not None:
        inputs["reference"] = read_chats(reference)
    if neutral is not None:
        inputs["neutral"] = PromptSet.from_jsonl(neutral)
    chats, question_set = read_chats(training), QuestionSet.from_file(questions)
    result = run_screen(load_model(parent), chats, question_set, **inputs, options=options, out=out)
    if json:
        print_json(_record(result, out))
    else:
        _print(result, out)


def _required(name: str, value: Any) -> Any:
    """The value of an option that only `emlens screen fit` can do without."""
    from emlens.foundation import InputError

    if not value:
        raise InputError(
            f"{name} is missing; emlens screen needs --parent, --training, --questions and --out"
        )
    return value


def _record(result: "StudyResult", out: Path) -> dict[str, Any]:
    return {
        "out": str(out),
        "findings": [finding.to_record() for finding in result.findings],
        "warnings": list(result.warnings),
        "tables": {name: str(out / "tables" / f"{name}.csv") for name in result.tables},
    }


def _print(result: "StudyResult", out: Path) -> None:
    for finding in result.findings:
        print_line(f"* {finding.section}: {finding.sentence}")
    for warning in result.warnings:
        print_line(f"  ({warning})")
    for name, columns in SHOWN.items():
        if name in result.tables:
            table = result.tables[name]
            present = [column for column in columns if column in table]
            print_table(table[present].head(ROWS), f"{name} (first {ROWS} rows)")
    print_line(f"{len(result.tables)} tables under {out / 'tables'}")
