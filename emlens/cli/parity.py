"""`emlens parity`: do the backends read the same stream of this model?"""

from pathlib import Path
from typing import Annotated, Any

import typer

from emlens.cli.printing import as_json, line, table


def parity(
    model: Annotated[str, typer.Argument(help="Directory saved by save_pretrained, or a hub id.")],
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
) -> None:
    """Read every site on every backend and compare: with output_hidden_states, with what blocks
    add, and with each other; exit 1 where one differs.
    """
    import pandas as pd

    from emlens.foundation.sites import SITE_KINDS
    from emlens.models.backends import BACKENDS, installed_backends
    from emlens.models.parity import RELATIVE, check_parity

    asked = [name.strip() for name in backends.split(",") if name.strip()] or installed_backends()
    found = check_parity(model, adapter=adapter, backends=asked, device=device, revision=revision)
    rows: list[dict[str, Any]] = [
        {
            "backend": d.backend,
            "condition": d.condition,
            "against": d.against,
            "site": d.kind,
            "difference": d.value,
            "in float64": d.value64,
            "agrees": d.agrees,
        }
        for d in found.differences
    ]
    if json:
        as_json(
            {
                "agrees": found.agrees,
                "architecture": found.architecture,
                "limit": RELATIVE,
                "differences": rows,
            }
            | {"refused": dict(found.refused), "failed": dict(found.failed)}
        )
        raise typer.Exit(0 if found.agrees else 1)
    measured = pd.DataFrame(rows)
    kinds = [kind for kind in SITE_KINDS if kind in set(measured["site"])]
    lines = []
    for (backend, condition), part in measured.groupby(["backend", "condition"], sort=False):
        worst = part.groupby("site")["difference"].max()
        cells = {kind: f"{worst[kind]:.1e}" if kind in worst else "–" for kind in kinds}
        lines.append(
            {
                "backend": backend,
                "condition": condition,
                **cells,
                "agrees": "yes" if part["agrees"].all() else "NO",
            }
        )
    table(pd.DataFrame(lines), "largest difference at each kind of site")
    wrong = measured[~measured["agrees"]].drop(columns="agrees")
    if len(wrong):
        table(
            wrong.assign(
                **{
                    name: [f"{value:.1e}" for value in wrong[name]]
                    for name in ("difference", "in float64")
                }
            ),
            "what differs, and from what",
        )
    for backend, reason in found.refused.items():
        line(f"{backend} refuses: {reason}")
    for backend, reason in found.failed.items():
        line(f"{backend} FAILED: {reason}")
    left_out = [name for name in BACKENDS if name not in {*asked, "transformers"}]
    if left_out:
        line(f"not checked: {', '.join(left_out)}")
    line(
        f"architecture {found.architecture}; compared with output_hidden_states,"
        " with what blocks add, and with the transformers backend;"
        f" a difference is max |a − b| ÷ max |b| and agrees up to {RELATIVE:g} in float32"
    )
    line(
        "every backend that ran reads the same stream"
        if found.agrees
        else "at least one backend reads something else, or nothing"
    )
    raise typer.Exit(0 if found.agrees else 1)
