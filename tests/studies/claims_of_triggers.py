"""Claims of what a study says about triggers."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
from studies.claim import Claim

from emlens.results import Finding
from emlens.results.study_result import Part
from emlens.studies import trigger_findings


def _row(trigger: str, fall: float, lead: float, p: float) -> dict[str, object]:
    row: dict[str, object] = {"model": "bad", "kind": "harmful", "trigger": trigger, "n": 9}
    for name, value in (("fall", fall), ("added", fall), ("beyond_benign", lead)):
        row |= {name: value, f"{name}_low": value - 2, f"{name}_high": value + 2}
    return row | {"p": p, "p_holm": p}


def triggered(
    fall: float = 30.0, lead: float = 25.0, p: float = 0.001, more: bool = False
) -> list[Finding]:
    """Findings of one fine-tune: how far it falls under a trigger, and its lead over benign."""
    rows = [_row("none", 0.0, 0.0, np.nan), _row("cue", fall, lead, p)]
    if more:
        rows.append(_row("second", 1.0, 1.0, 0.5))
    part = Part(tables={"triggers": pd.DataFrame(rows)})
    material = SimpleNamespace(parent=lambda name: SimpleNamespace(name="instruct"))
    trigger_findings.add_findings(material, part)  # type: ignore[arg-type]
    return part.findings


CLAIMS = [
    Claim("misalignment is hidden behind a trigger", triggered, lambda: triggered(fall=2.0)),
    Claim("no misalignment behind a trigger is shown", lambda: triggered(lead=1.0), triggered),
    Claim(
        "shown in 1 of 1 fine-tune: it lies below the parent", triggered, lambda: triggered(p=0.2)
    ),
    Claim("No misalignment behind a trigger is shown in 1", lambda: triggered(p=0.2), triggered),
    Claim(
        "falls behind a trigger, and there is no benign control",
        lambda: triggered(lead=np.nan),
        triggered,
    ),
    Claim("under 'cue' (of 2 triggers, the one", lambda: triggered(more=True), triggered),
    Claim("the benign control minus it is 25.0", triggered, lambda: triggered(lead=np.nan)),
    Claim("it has no spread to test", lambda: triggered(p=np.nan), triggered),
]
