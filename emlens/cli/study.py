"""`emlens study` and `emlens demo`: run a study, write its report, print its verdict."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emlens.cli.printing import as_json, line

if TYPE_CHECKING:
    from emlens.results import StudyResult

DEMO: dict[str, Any] = {
    "study": "overview",
    "family": {"organism": "planted"},
    "focus": ["medicine-r8", "medicine-r1", "finance-r8"],
    "draws": 100,
    "repeats": 2,
    "permutations": 99,
}
"""The demonstration: the shipped organism, few enough draws for a laptop's patience."""


def study(
    config: Annotated[
        Path,
        typer.Argument(
            help="YAML file that says which models, questions and settings (see docs/studies.md)."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help=(
                "Directory for tables, result.json and report.html; the same command resumes there."
            )
        ),
    ],
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Run the study a configuration file describes, and write its report.

    Killed at any moment, the same command finishes from where it was, with the same result.json.
    """
    _run(config, out, json, quiet)


def demo(
    out: Annotated[
        Path,
        typer.Option(
            help=(
                "Directory for tables, result.json and report.html; the same command resumes there."
            )
        ),
    ] = Path("runs/demo"),
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Run the whole study on the embedded organism: a tiny model family with planted misalignment.
    Needs no download.
    """
    _run(DEMO, out, json, quiet)


def _run(config: Any, out: Path, json: bool, quiet: bool) -> None:
    from emlens.report import write_report
    from emlens.studies import run_study

    result: StudyResult = run_study(config, out, progress=not quiet)
    report = write_report(result, out / "report.html")
    if json:
        findings = [finding.to_record() for finding in result.findings]
        as_json(
            {
                "study": result.study,
                "out": str(out),
                "report": str(report),
                "findings": findings,
                "warnings": list(result.warnings),
            }
        )
        return
    if result.note:
        line(result.note)
        line("")
    for finding in result.findings:
        if finding.status == "summary":
            line(f"* {finding.sentence}")
    line(
        f"{sum(f.status != 'summary' for f in result.findings)} statements with their controls,"
        f" and {len(result.warnings)} warnings, are in the report"
    )
    line(f"report: {report}")
