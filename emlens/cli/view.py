"""`emlens view`: the runs of a folder in the browser, or as a list."""

from pathlib import Path
from typing import Annotated

import typer

from emlens.cli.printing import print_json, print_line


def view(
    directory: Annotated[Path, typer.Argument(help="Folder that studies were run into.")],
    port: Annotated[int, typer.Option(help="Port on loopback; 0: any that is free.")] = 0,
    host: Annotated[
        str, typer.Option(help="Loopback address; others are refused, since results are private.")
    ] = "127.0.0.1",
    no_open: Annotated[
        bool, typer.Option("--no-open", help="Print the address; open no browser.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the list of runs as JSON, and serve nothing.")
    ] = False,
) -> None:
    """List the runs below a folder, compare them, open their reports: in a browser on this
    machine, until Ctrl-C. Nothing is written.
    """
    from emlens.report.found_runs import find_runs

    if json:
        found = find_runs(directory)
        print_json({"runs": [run.to_record() for run in found.runs], "is_whole": found.is_whole})
        return
    from emlens.report.serving import RunServer

    with RunServer(directory, host, port) as server:
        print_line(f"{directory}: served at {server.address} (Ctrl-C ends it)")
        if not no_open:
            typer.launch(server.address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print_line("ended")
