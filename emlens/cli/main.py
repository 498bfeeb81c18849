"""The command line: thin, every command imports what it needs when it runs.

Exit codes are `EXIT_CODES`; docs/command_line.md has them for scripts, and tests hold page and
codes together.
"""

import errno
import os
import sys
import traceback
import warnings
from collections.abc import Mapping
from typing import Annotated, NoReturn

import typer

from emlens.cli import (
    advice,
    capture,
    compare,
    direction,
    doctor,
    init,
    judge,
    organism,
    parity,
    real,
    repair,
    replicate,
    sample,
    schema,
    score,
    screen,
    store,
    study,
    train,
    view,
)

app = typer.Typer(
    name="emlens",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help=(
        "Mechanistic study of emergent misalignment: residual streams before and after narrow"
        " fine-tuning, what their shifts share beyond chance,"
        " the direction that carries the misalignment, and how much could have been foreseen."
    ),
    epilog="Start with: emlens demo --out runs/demo",
)
app.command("demo")(study.demo)
app.command("study")(study.study)
app.command("init")(init.init)
app.command("compare")(compare.compare)
app.command("view")(view.view)
app.command("schema")(schema.schema)
app.command("replicate")(replicate.replicate)
app.command("sample")(sample.sample)
app.command("score")(score.score)
app.command("judge")(judge.judge)
app.command("rescore")(score.rescore)
app.command("repair")(repair.repair)
app.command("capture")(capture.capture)
app.command("direction")(direction.direction)
app.command("doctor")(doctor.doctor)
app.command("parity")(parity.parity)
app.command("train")(train.train)
app.add_typer(real.app, name="real")
app.add_typer(advice.app, name="advice")
app.add_typer(store.app, name="store")
app.add_typer(organism.app, name="organism")
app.add_typer(screen.app, name="screen")

EXIT_CODES: Mapping[int, str] = {
    0: "done",
    1: "done, but a check failed: a published number is off, a backend differs, a store is damaged",
    2: "bad input, a failing endpoint, or files that are full, read-only or gone, in one line on"
    " stderr; what was finished is kept",
    70: "a defect of emlens or a machine's failure, with its traceback",
    130: "interrupted; the same command goes on from where it was",
}
INTERRUPTED = EXIT_CODES[130]
READABLE = "pass a path that can be read and written"
ROOM = "make room there; the same command goes on from what is finished"
GONE = "it was there when the command began; the same command goes on from what is left"
REMEDIES: Mapping[int, str] = {
    errno.EACCES: READABLE,
    errno.EPERM: READABLE,
    errno.EROFS: READABLE,
    errno.ENOSPC: ROOM,
    errno.EDQUOT: ROOM,
    errno.EFBIG: ROOM,
    errno.ENOENT: GONE,
    errno.ENOTDIR: GONE,
    errno.ESTALE: GONE,
    errno.EIO: GONE,
}
"""What a file system answers where a user can help, and how."""


def _version(shown: bool) -> None:
    if shown:
        from emlens import __version__

        typer.echo(f"emlens {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: errors raised on purpose become one line on stderr and exit code 2.

    So does a path that may not be read or written. What was not foreseen exits with 70.
    """
    from emlens.foundation.errors import EmlensError

    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|torch)\.")
    try:
        app(prog_name="emlens")
    except EmlensError as error:
        _refuse(str(error))
    except KeyboardInterrupt:
        typer.echo(INTERRUPTED, err=True)
        sys.exit(130)
    except SystemExit as stop:
        if stop.code == 130:  # typer's own answer to Ctrl-C, which says nothing
            typer.echo(INTERRUPTED, err=True)
        raise
    except OSError as error:
        _refuse_file(error)
    except Exception as error:
        if _is_full_disk(error):
            _refuse(f"while writing: {error}; {ROOM}")
        _report_defect()


def _refuse_file(error: OSError) -> NoReturn:
    """One line about what a file system refused, where a user can help."""
    remedy = REMEDIES.get(error.errno or 0)
    if remedy is None or (remedy == GONE and error.filename is None):
        _report_defect()
    _refuse(f"{error.filename or 'while writing'}: {error.strerror}; {remedy}")


def _is_full_disk(error: Exception) -> bool:
    """Whether a library that writes weights found no room, which it says in words alone."""
    return any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EFBIG))


def _refuse(message: str) -> NoReturn:
    from emlens.foundation.files import one_line

    typer.echo(f"error: {one_line(message, 600)}", err=True)
    sys.exit(2)


def _report_defect() -> NoReturn:
    traceback.print_exc()
    sys.exit(70)
