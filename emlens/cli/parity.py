"""`emlens parity`: do the backends read the same stream of this model?"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emlens.cli.printing import print_json, print_line, print_table
from emlens.cli.settings import split_names
from emlens.foundation.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from emlens.models.parity import Parity


NUMBERS = ("difference", "in float64")


def parity(
    model: Annotated[
        str,
        typer.Argument(help="Directory saved by save_pretrained, or a hub id."),
    ] = "",
    adapter: Annotated[
        Path | None,
        typer.Option(help="A PEFT adapter of the model; also checks it switched on and off."),
    ] = None,
    backends: Annotated[
        str,
        typer.Option(
            help="Comma-separated; default: those installed here. transformers always runs."
        ),
    ] = "",
    device: Annotated[
        str,
        typer.Option(
            help=(
                "auto, cpu or cuda. The model runs in float32, and in float64 where that disagrees."
            )
        ),
    ] = "auto",
    revision: Annotated[str | None, typer.Option(help="Revision of a hub id.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
    all_architectures: Annotated[
        bool,
        typer.Option(
            "--all-architectures",
            help=(
                "Instead of a model: every causal architecture of the installed transformers,"
                " tiny, against plain transformers. Many minutes."
            ),
        ),
    ] = False,
    only: Annotated[
        str,
        typer.Option(help="With --all-architectures: comma-separated model types."),
    ] = "",
) -> None:
    """Read every site on every backend and compare: with output_hidden_states, with what blocks
    add, and with each other; exit 1 where one differs.
    """
    if all_architectures:
        if model:
            raise InputError("--all-architectures takes no model; leave one of the two out")
        raise typer.Exit(_survey(split_names(only), as_json=json))
    if not model:
        raise InputError("no model; pass a directory or a hub id, or --all-architectures")
    from emlens.models.backends import installed_backends
    from emlens.models.parity import check_parity

    names = list(split_names(backends)) or installed_backends()
    parity = check_parity(model, adapter=adapter, backends=names, device=device, revision=revision)
    if json:
        print_json(_record(parity))
    else:
        _print(parity, names)
    raise typer.Exit(0 if parity.agrees else 1)


def _survey(only: Sequence[str], *, as_json: bool) -> int:
    """Print a line for each model type as it is finished; the exit code is 1 where one is wrong."""
    from dataclasses import asdict

    from emlens.models.architecture_survey import causal_model_types, survey

    known = causal_model_types()
    for kind in only:
        if kind not in known:
            raise InputError(f"{kind!r} is no causal model type of the installed transformers")
    rows = []
    for row in survey(list(only) or None):
        rows.append(row)
        if not as_json:
            print_line(row.sentence())
    if as_json:
        print_json([asdict(row) for row in rows])
    else:
        right = sum(row.right for row in rows)
        print_line(f"{right} of {len(rows)} model types are right in every column")
    return int(any(row.wrong for row in rows))


def _rows(parity: "Parity") -> list[dict[str, Any]]:
    """One row per backend, condition, site, and what it was compared with."""
    rows = []
    for difference in parity.differences:
        row = {
            "backend": difference.backend,
            "condition": difference.condition,
            "against": difference.against,
            "site": difference.kind,
            "difference": difference.value,
            "in float64": difference.value64,
            "agrees": difference.agrees,
        }
        rows.append(row)
    return rows


def _record(parity: "Parity") -> dict[str, Any]:
    from emlens.models.parity import RELATIVE

    return {
        "agrees": parity.agrees,
        "architecture": parity.architecture,
        "limit": RELATIVE,
        "differences": _rows(parity),
        "refused": dict(parity.refused),
        "failed": dict(parity.failed),
    }


def _print(parity: "Parity", names: list[str]) -> None:
    import pandas as pd

    from emlens.models.backends import BACKENDS
    from emlens.models.parity import RELATIVE

    differences = pd.DataFrame(_rows(parity))
    print_table(_largest(differences), "largest difference at each kind of site")
    disagreeing = differences[~differences["agrees"]].drop(columns="agrees")
    if len(disagreeing):
        columns = {name: disagreeing[name].map("{:.1e}".format) for name in NUMBERS}
        print_table(disagreeing.assign(**columns), "what differs, and from what")
    for backend, reason in parity.refused.items():
        print_line(f"{backend} refuses: {reason}")
    for backend, reason in parity.failed.items():
        print_line(f"{backend} FAILED: {reason}")
    unchecked = [name for name in BACKENDS if name not in {*names, "transformers"}]
    if unchecked:
        print_line(f"not checked: {', '.join(unchecked)}")
    print_line(
        f"architecture {parity.architecture}; compared with output_hidden_states,"
        " with what blocks add, and with the transformers backend;"
        f" a difference is max |a − b| ÷ max |b| and agrees up to {RELATIVE:g} in float32"
    )
    if parity.agrees:
        print_line("every backend that ran reads the same stream")
    else:
        print_line("at least one backend reads something else, or nothing")


def _largest(differences: "pd.DataFrame") -> "pd.DataFrame":
    """One row per backend and condition, with the largest difference at each kind of site."""
    import pandas as pd

    from emlens.foundation.sites import SITE_KINDS

    kinds = [kind for kind in SITE_KINDS if kind in set(differences["site"])]
    rows = []
    for (backend, condition), part in differences.groupby(["backend", "condition"], sort=False):
        row = {"backend": backend, "condition": condition}
        largest = part.groupby("site")["difference"].max()
        for kind in kinds:
            row[kind] = f"{largest[kind]:.1e}" if kind in largest else "–"
        row["agrees"] = "yes" if part["agrees"].all() else "NO"
        rows.append(row)
    return pd.DataFrame(rows)
