"""What the tables of `direction_transfer` say, in sentences: a direction counts as shown only where
every control is beaten.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from emlens.results.study_result import Finding, Part
from emlens.studies.material import Material
from emlens.studies.verdicts import verdict

STUDY = "direction_transfer"
NEGLIGIBLE = 0.1
"""Restoration whose interval ends below this is as good as none."""


def controls_of(arms: pd.DataFrame) -> pd.DataFrame:
    """The arms that could have restored as much as the direction."""
    return arms[arms["control"] & (arms["on"] == "finetuned") & (arms["arm"] != "no ablation")]


def add_findings(part: Part, material: Material) -> None:
    """Add one finding per direction that was ablated, one on transfer, and a summary before
    them.
    """
    arms = part.tables["arms"]
    for (name, site, role), table in arms.groupby(["model", "site", "role"], sort=False):
        domain = material.domain(str(name))
        part.findings.append(_direction_finding(str(name), f"{site} ({role})", table, domain))
    _add_summary(part, arms)
    _add_transfer_finding(part, part.tables["transfer"])


def _direction_finding(name: str, place: str, table: pd.DataFrame, domain: str) -> Finding:
    """Whether one direction restores more than every control of it.

    Args:
        place: site and role of the direction. table: its arms. domain: the fine-tune's own.
    """
    arms: dict[Any, dict[Any, Any]] = table.set_index("arm").to_dict(orient="index")
    direction, harm, before = arms["direction"], arms["instruct, direction"], arms["no ablation"]
    if not np.isfinite(direction["restoration"]):
        sentence = f"{name}, {place}: restoration is {direction['method']}."
        return Finding(STUDY, sentence, "undecided")
    controls = controls_of(table).set_index("arm")
    rival = str(controls["restoration"].idxmax())
    best_single_draw = controls["restoration_max_draw"].max()
    # written as a negation, so that a missing draw (nan) counts as not reached
    no_draw_as_good = not best_single_draw >= direction["restoration"]
    status = verdict(
        shown=direction["restoration_low"] > 0
        and bool((controls["lead_low"] > 0).all())
        and no_draw_as_good,
        not_shown=bool((controls["lead_high"] < 0).any())
        or direction["restoration_high"] < NEGLIGIBLE,
    )
    where = "outside its domain" if domain else "(no training domain is named)"
    sentence = (
        f"{name}: removing its direction from {place} restores"
        f" {_with_interval(direction, 'restoration')} of lost alignment on held-out questions"
        f" {where}; the strongest control ({rival}{_likeness(arms[rival])}) restores"
        f" {controls['restoration'].max():.2f}, the direction's lead over it is"
        f" {_with_interval(arms[rival], 'lead')}; coherence goes from {before['coherent']:.1f}"
        f" to {direction['coherent']:.1f}; instruct under the same edit scores"
        f" {harm['aligned']:.1f}."
    )
    return Finding(STUDY, sentence, status)


def _add_summary(part: Part, arms: pd.DataFrame) -> None:
    """How much the chosen directions restored, over fine-tunes."""
    role = str(arms["role"].iloc[0])
    of_role = arms[(arms["role"] == role) & (arms["arm"] == "direction")]
    restored = of_role["restoration"].dropna()
    if not len(restored):
        return
    shown = sum(
        finding.section == STUDY and finding.status == "shown" and role in finding.sentence
        for finding in part.findings
    )
    sentence = (
        "Removing one direction, chosen on other questions,"
        f" restored {_span(restored)} of the lost alignment outside the training"
        f" domain; it clearly beat every control in {shown} of {len(restored)} fine-tunes."
    )
    part.findings.insert(0, Finding(STUDY, sentence, "summary"))


def _add_transfer_finding(part: Part, transfer: pd.DataFrame) -> None:
    """Whether directions work in other fine-tunes; nothing where no restoration is defined."""
    pairs = transfer[transfer["direction_of"] != transfer["ablated_in"]]
    measured = pairs[pairs["restoration"].notna()]
    if not len(measured):
        return
    # only pairs of one domain have controls that were measured on the same questions
    controlled = measured[measured["strongest_control"].notna()]
    beats_control = (controlled["low"] > 0) & (controlled["low"] > controlled["strongest_control"])
    clear = int(beats_control.sum())
    above_zero = int((measured["low"] > 0).sum())
    restoration = measured["restoration"]
    sentence = (
        "Transfer: a direction from one fine-tune restores a median"
        f" {restoration.median():.2f} (range {restoration.min():.2f} to"
        f" {restoration.max():.2f}) in another;"
        f" the interval lies above 0 in {above_zero} of {len(measured)} pairs,"
        f" and above the strongest control there too in {clear} of the {len(controlled)} of one"
        " domain, whose controls were measured on the same questions"
    )
    if len(measured) < len(pairs):
        sentence += f"; in {len(pairs) - len(measured)} further pairs it is undefined"
    status = verdict(
        shown=clear == len(pairs), not_shown=bool((measured["high"] < NEGLIGIBLE).all())
    )
    part.findings.append(Finding(STUDY, f"{sentence}.", status))


def _span(values: "pd.Series[float]") -> str:
    if len(values) == 1:
        return f"{values.min():.2f}"
    return f"{values.min():.2f} to {values.max():.2f} (median {values.median():.2f})"


def _likeness(arm: Mapping[Any, Any]) -> str:
    """How alike a control's direction is to the one under test; a control that is nearly the same
    direction is not a rival.
    """
    if not np.isfinite(arm["cosine"]):
        return ""
    return f", |cosine| with it {arm['cosine']:.2f}"


def _with_interval(row: Mapping[Any, Any], name: str) -> str:
    return f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"
