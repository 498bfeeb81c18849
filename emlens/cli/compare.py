"""`emlens compare`: two finished results beside each other."""

from pathlib import Path
from typing import Annotated

import typer

from emlens.cli.printing import as_json, line, table

Directory = Annotated[Path, typer.Argument(help="Directory that a study finished in.")]


def compare(
    a: Directory,
    b: Directory,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Directory for the tables and report.html of the comparison; default: print only."
        ),
    ] = None,
    anyway: Annotated[
        bool,
        typer.Option("--anyway", help="Compare results of different studies or questions too."),
    ] = False,
    rows: Annotated[
        int,
        typer.Option(
            help="Figures to print, those that differ most for their intervals first.", min=0
        ),
    ] = 20,
    json: Annotated[
        bool, typer.Option("--json", help="Print every matching figure as JSON.")
    ] = False,
) -> None:
    """B minus A for every figure that two results share, paired over questions where they can be,
    with intervals where there are any.
    """
    from emlens.report import write_report
    from emlens.studies.comparing import compare_results

    found = compare_results(a, b, anyway=anyway)
    report = None if out is None else write_report(found, found.save(out) / "report.html")
    if json:
        records = {name: part.to_dict(orient="records") for name, part in found.tables.items()}
        as_json(
            {
                "findings": [finding.to_record() for finding in found.findings],
                "warnings": list(found.warnings),
                "report": report and str(report),
                **records,
            }
        )
        return
    paired, figures = found.tables["paired"], found.tables["figures"]
    if len(paired):
        table(paired.drop(columns="model"), "scores of the same questions, B − A")
    half = (figures["difference_high"] - figures["difference_low"]) / 2
    clearest = figures.assign(
        clear=(figures["difference"].abs() / half.where(half > 0)).fillna(-1.0)
    ).sort_values("clear", ascending=False, kind="stable")
    if rows and len(figures):
        columns = [
            "table",
            "figure",
            "key",
            "a",
            "b",
            "difference",
            "difference_low",
            "difference_high",
        ]
        table(clearest[columns].head(rows), f"{min(rows, len(figures))} of {len(figures)} figures")
    for warning in found.warnings:
        line(f"! {warning}")
    for finding in found.findings:
        if finding.status == "summary":
            line(f"* {finding.sentence}")
    if report is not None:
        line(f"report: {report}")
