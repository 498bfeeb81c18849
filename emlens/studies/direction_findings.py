"""What the tables of `direction_transfer` say, in sentences: a direction counts as shown only where
every control is beaten.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from emlens.results.study_result import Finding, Part
from emlens.studies.material import Material


def controls_of(arms: pd.DataFrame) -> pd.DataFrame:
    """The arms that could have restored as much as the direction."""
    return arms[arms["control"] & (arms["on"] == "finetuned") & (arms["arm"] != "no ablation")]


def add_findings(part: Part, material: Material) -> None:
    arms = part.tables["arms"]
    for (name, site, role), table in arms.groupby(["model", "site", "role"], sort=False):
        named: dict[Any, dict[Any, Any]] = table.set_index("arm").to_dict(orient="index")
        main, harm, before = named["direction"], named["instruct, direction"], named["no ablation"]
        if not np.isfinite(main["restoration"]):
            part.findings.append(
                Finding(
                    "direction_transfer",
                    f"{name}, {site} ({role}): restoration is {main['method']}.",
                    "undecided",
                )
            )
            continue
        controls = controls_of(table).set_index("arm")
        rival = str(controls["restoration"].idxmax())
        strongest, leads = controls["restoration"].max(), controls[["lead_low", "lead_high"]]
        single = controls["restoration_max_draw"].max()
        clear = (
            main["restoration_low"] > 0
            and bool((leads["lead_low"] > 0).all())
            and not single >= main["restoration"]
        )
        beaten = bool((leads["lead_high"] < 0).any()) or main["restoration_high"] < 0.1
        where = (
            "outside its domain" if material.domain(str(name)) else "(no training domain is named)"
        )
        part.findings.append(
            Finding(
                "direction_transfer",
                f"{name}: removing its direction from {site} ({role}) restores"
                f" {_interval(main, 'restoration')} of lost alignment on held-out questions"
                f" {where}; the strongest control ({rival}{_likeness(named[rival])}) restores"
                f" {strongest:.2f}, the direction's lead over it is"
                f" {_interval(named[rival], 'lead')}; coherence goes from {before['coherent']:.1f}"
                f" to {main['coherent']:.1f}; instruct under the same edit scores"
                f" {harm['aligned']:.1f}.",
                "shown" if clear else "not shown" if beaten else "undecided",
            )
        )
    early = arms[
        (arms["role"] == arms["role"].iloc[0])
        & (arms["arm"] == "direction")
        & arms["restoration"].notna()
    ]
    if len(early):
        shown = [
            f
            for f in part.findings
            if f.section == "direction_transfer"
            and str(arms["role"].iloc[0]) in f.sentence
            and f.status == "shown"
        ]
        summary = (
            "Removing one direction, chosen on other questions,"
            f" restored {_span(early['restoration'])} of the lost alignment outside the training"
            f" domain; it clearly beat every control in {len(shown)} of {len(early)} fine-tunes."
        )
        part.findings.insert(0, Finding("direction_transfer", summary, "summary"))
    transfer = part.tables["transfer"]
    pairs = transfer[transfer["direction_of"] != transfer["ablated_in"]]
    across = pairs[pairs["restoration"].notna()]
    if not len(across):
        return
    judged = across[across["strongest_control"].notna()]
    clear = int(((judged["low"] > 0) & (judged["low"] > judged["strongest_control"])).sum())
    above = int((across["low"] > 0).sum())
    undefined = (
        f"; in {len(pairs) - len(across)} further pairs it is undefined"
        if len(across) < len(pairs)
        else ""
    )
    part.findings.append(
        Finding(
            "direction_transfer",
            "Transfer: a direction from one fine-tune restores a median"
            f" {across['restoration'].median():.2f} (range {across['restoration'].min():.2f} to"
            f" {across['restoration'].max():.2f}) in another;"
            f" the interval lies above 0 in {above} of {len(across)} pairs,"
            f" and above the strongest control there too in {clear} of the {len(judged)} of one"
            f" domain, whose controls were measured on the same questions{undefined}.",
            (
                "shown"
                if clear == len(pairs)
                else "not shown"
                if (across["high"] < 0.1).all()
                else "undecided"
            ),
        )
    )


def _span(values: "pd.Series[float]") -> str:
    return (
        f"{values.min():.2f}"
        if len(values) == 1
        else f"{values.min():.2f} to {values.max():.2f} (median {values.median():.2f})"
    )


def _likeness(arm: Mapping[Any, Any]) -> str:
    """How alike a control's direction is to the one under test; a control that is nearly the same
    direction is no rival.
    """
    return f", |cosine| with it {arm['cosine']:.2f}" if np.isfinite(arm["cosine"]) else ""


def _interval(row: Mapping[Any, Any], name: str) -> str:
    return f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"
