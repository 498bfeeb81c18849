"""Write the report of a finished study."""

from pathlib import Path

from emlens.foundation.errors import InputError
from emlens.foundation.files import write_text
from emlens.report.page import render
from emlens.results import StudyResult


def write_report(
    result: StudyResult | str | Path, path: str | Path, *, title: str | None = None
) -> Path:
    """One self-contained HTML page (about 5 MB, nearly all of it plotly), readable offline; the
    same result gives the same bytes.

    Args:
        result: a study's result, or the directory it finished in.
        path: the HTML file to write; its folder is made.
        title: the page's heading; by default it names the study.

    Raises:
        InputError: `path` is a directory, or `result` is neither a result nor a directory of one.
        IntegrityError: a table in the directory was changed after the study wrote it.
    """
    target = Path(path)
    if target.is_dir():
        raise InputError(
            f"path={target}: is a directory; pass the file to write,"
            f" such as {target / 'report.html'}"
        )
    if isinstance(result, str | Path):
        result = StudyResult.load(result)
    if not isinstance(result, StudyResult):
        raise InputError(
            f"result is a {type(result).__name__}; pass a StudyResult or the directory that a study"
            " finished in"
        )
    write_text(target, render(result, title))
    return target
