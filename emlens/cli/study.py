"""`emlens study` and `emlens demo`: run a study, write its report, print its verdict."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emlens.cli.printing import print_aligned, print_json, print_line
from emlens.foundation.errors import InputError

if TYPE_CHECKING:
    from emlens.results import StudyResult

DEMO: dict[str, Any] = {
    "study": "overview",
    "family": {"organism": "planted"},
    "focus": ["medicine-r8", "medicine-r1", "finance-r8"],
    "draws": 100,
    "repeats": 2,
}
"""The demonstration: the shipped organism, with few enough draws for a laptop."""

Out = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        help="Directory for tables, result.json and report.html; the same command resumes there.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]


def study(
    config: Annotated[
        Path,
        typer.Argument(
            help="YAML file that says which models, questions and settings (see docs/studies.md)."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Directory for tables, result.json and report.html; the same command resumes"
            " there. Needed to run the study.",
        ),
    ] = None,
    capture: Annotated[
        Path | None,
        typer.Option(
            help="Run nothing: capture what the study reads of each model into DIRECTORY/MODEL,"
            " so that the study can run elsewhere.",
            metavar="DIRECTORY",
        ),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Run nothing: say what each part would cost, and refuse what cannot fit.",
        ),
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the study a configuration file describes, and write its report.

    Killed at any moment, the same command finishes from where it was, with the same result.json.
    """
    if plan:
        _plan(config, out, json)
    elif capture is not None:
        _capture(config, capture, json, quiet)
    elif out is None:
        raise InputError("--out is missing; pass the directory for tables and report")
    else:
        run_and_report(config, out, json, quiet)


def _plan(config: Path, out: Path | None, json: bool) -> None:
    from emlens.studies.planning import plan_study

    plan = plan_study(config, Path("runs/study") if out is None else out)
    if json:
        print_json(plan.to_record())
        return
    for line in plan.lines():
        print_aligned(line)


def _capture(config: Path, directory: Path, json: bool, quiet: bool) -> None:
    from emlens.studies.capturing import capture_family

    stores = capture_family(config, directory, progress=not quiet)
    if json:
        print_json({"captures": {name: str(store) for name, store in stores.items()}})
        return
    print_line(f"captured; add to {config.name} where the study is to run, with paths as they are")
    print_line("there, and scores: {how: judged, files: ...}:")
    print_line("captures:")
    for name, store in stores.items():
        print_line(f"  {name}: {store}")


def demo(out: Out = Path("runs/demo"), json: Json = False, quiet: Quiet = False) -> None:
    """Run the whole study on the embedded organism: a tiny model family with planted misalignment.
    Needs no download.
    """
    run_and_report(DEMO, out, json, quiet)


def run_and_report(config: Any, out: Path, json: bool, quiet: bool) -> None:
    """Run a study into `out`, write its report, and print its verdict."""
    from emlens.report import write_report
    from emlens.studies import run_study

    result = run_study(config, out, progress=not quiet)
    report = write_report(result, out / "report.html")
    if json:
        print_json(_record(result, out, report))
    else:
        _print(result, report)


def _record(result: "StudyResult", out: Path, report: Path) -> dict[str, Any]:
    return {
        "study": result.study,
        "out": str(out),
        "report": str(report),
        "findings": [finding.to_record() for finding in result.findings],
        "warnings": list(result.warnings),
    }


def _print(result: "StudyResult", report: Path) -> None:
    if result.note:
        print_line(result.note)
        print_line("")
    summaries = [finding for finding in result.findings if finding.status == "summary"]
    for summary in summaries:
        print_line(f"* {summary.sentence}")
    print_line(
        f"{len(result.findings) - len(summaries)} statements with their controls,"
        f" and {len(result.warnings)} warnings, are in the report"
    )
    print_line(f"report: {report}")
