"""`emlens compare`: two finished results beside each other."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emlens.cli.printing import print_json, print_line, print_table

if TYPE_CHECKING:
    import pandas as pd

    from emlens.results import StudyResult

Directory = Annotated[Path, typer.Argument(help="Directory that a study finished in.")]
COLUMNS = ["table", "figure", "key", "a", "b", "difference", "difference_low", "difference_high"]


def compare(
    a: Directory,
    b: Directory,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Directory for the tables and report.html of the comparison; default: print only.",
        ),
    ] = None,
    anyway: Annotated[
        bool,
        typer.Option("--anyway", help="Compare results of different studies or questions too."),
    ] = False,
    rows: Annotated[
        int,
        typer.Option(
            help="Numbers to print, those that differ most for their intervals first.", min=0
        ),
    ] = 20,
    json: Annotated[
        bool, typer.Option("--json", help="Print every matching number as JSON.")
    ] = False,
) -> None:
    """B minus A for every number that two results share, paired over questions where they can be,
    with intervals where there are any.
    """
    from emlens.foundation.files import require_writable
    from emlens.report import write_report
    from emlens.studies.comparing import compare_results

    if out is not None:
        require_writable(out)
    comparison = compare_results(a, b, anyway=anyway)
    report = None
    if out is not None:
        report = write_report(comparison, comparison.save(out) / "report.html")
    if json:
        print_json(_record(comparison, report))
    else:
        _print(comparison, report, rows)


def _record(comparison: "StudyResult", report: Path | None) -> dict[str, Any]:
    tables = {name: table.to_dict(orient="records") for name, table in comparison.tables.items()}
    return {
        "findings": [finding.to_record() for finding in comparison.findings],
        "warnings": list(comparison.warnings),
        "report": None if report is None else str(report),
        **tables,
    }


def _print(comparison: "StudyResult", report: Path | None, rows: int) -> None:
    paired, numbers = comparison.tables["paired"], comparison.tables["figures"]
    if len(paired):
        print_table(paired.drop(columns="model"), "scores of the same questions, B − A")
    if rows and len(numbers):
        title = f"{min(rows, len(numbers))} of {len(numbers)} numbers"
        print_table(_clearest_first(numbers)[COLUMNS].head(rows), title)
    for warning in comparison.warnings:
        print_line(f"! {warning}")
    for finding in comparison.findings:
        if finding.status == "summary":
            print_line(f"* {finding.sentence}")
    if report is not None:
        print_line(f"report: {report}")


def _clearest_first(numbers: "pd.DataFrame") -> "pd.DataFrame":
    """Numbers by their difference in halves of its interval; those without an interval last."""
    half = (numbers["difference_high"] - numbers["difference_low"]) / 2
    clearness = (numbers["difference"].abs() / half.where(half > 0)).fillna(-1.0)
    return numbers.assign(clear=clearness).sort_values("clear", ascending=False, kind="stable")
