"""What the tables of `direction_transfer` say, in sentences: a direction counts as shown only where
every control is beaten.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from emlens.evaluation.selecting import MAX_COHERENCE_LOSS, MAX_KL
from emlens.results.study_result import Finding, Part
from emlens.results.wording import counted, noun_for
from emlens.studies.material import Material
from emlens.studies.steering_findings import sufficiency_finding
from emlens.studies.verdicts import verdict

STUDY = "direction_transfer"
CONTRAST = "unembedding contrast"
NEGLIGIBLE = 0.1
"""Restoration whose interval ends below this is as good as none."""


def controls_of(arms: pd.DataFrame) -> pd.DataFrame:
    """The arms that could have restored as much as the direction."""
    return arms[arms["control"] & (arms["on"] == "finetuned") & (arms["arm"] != "no ablation")]


def nothing_chosen(name: str, candidates: pd.DataFrame) -> Finding:
    """That no direction of a fine-tune was chosen, since no candidate has a restoration.

    Args:
        candidates: the fine-tune's rows of the table `candidates`.
    """
    reason = str(candidates["method"].iloc[0]).removeprefix("undefined: ")
    sentence = (
        f"{name}: no direction was chosen, because restoration is undefined for"
        f" {_each_of(len(candidates))} ({reason}); nothing was removed, added or transferred."
    )
    return Finding(STUDY, sentence, "undecided")


def _each_of(n: int) -> str:
    return "its only candidate" if n == 1 else f"each of its {n} candidates"


def add_findings(part: Part, material: Material) -> None:
    """Add one finding per direction that was removed, one per direction that was added, one on
    transfer, and a summary before them.
    """
    arms = part.tables["arms"]
    first_role = str(arms["role"].iloc[0])
    removed, of_first_role = [], []
    for (name, site, role), table in arms.groupby(["model", "site", "role"], sort=False):
        domain = material.domain(str(name))
        finding = _direction_finding(str(name), f"{site} ({role})", table, domain)
        removed.append(finding)
        if role == first_role:
            of_first_role.append(finding.status)
    added = _sufficiency(part)
    part.findings += [*removed, *added]
    restored = arms[(arms["role"] == first_role) & (arms["arm"] == "direction")]["restoration"]
    if restored.notna().any():
        added_statuses = [finding.status for finding in added]
        where = "on held-out questions"
        if any(material.domain(str(name)) for name in arms["model"].unique()):
            where = "outside the training domain"
        summary = _summary(restored.dropna(), where, of_first_role.count("shown"), added_statuses)
        part.findings.insert(0, Finding(STUDY, summary, "summary"))
    _add_transfer_finding(part, part.tables["transfer"])


def _sufficiency(part: Part) -> list[Finding]:
    """One finding per direction that was added to the parent; none without a table of steering."""
    if "steering" not in part.tables:
        return []
    arms = part.tables["arms"]
    contrasts = arms[(arms["arm"] == CONTRAST) & (arms["role"] == arms["role"].iloc[0])]
    cosines = contrasts.set_index("model")["cosine"].to_dict()
    findings = []
    for name, steering in part.tables["steering"].groupby("model", sort=False):
        cosine = float(cosines.get(name, np.nan))
        findings.append(sufficiency_finding(str(name), steering, cosine))
    return findings


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
    damage = _damage(direction, harm)
    controls = controls_of(table).set_index("arm")
    rival = str(controls["restoration"].idxmax())
    best_single_draw = controls["restoration_max_draw"].max()
    # written as a negation, so that a missing draw (nan) counts as not reached
    no_draw_as_good = not best_single_draw >= direction["restoration"]
    status = verdict(
        shown=direction["restoration_low"] > 0
        and bool((controls["lead_low"] > 0).all())
        and no_draw_as_good
        and not damage,
        not_shown=bool((controls["lead_high"] < 0).any())
        or direction["restoration_high"] < NEGLIGIBLE,
    )
    where = "outside its domain" if domain else "(no training domain is named)"
    sentence = (
        f"{name}: removing its direction from {place} gives a restoration of"
        f" {_with_interval(direction, 'restoration')} (1: all lost alignment) on held-out questions"
        f" {where}; the strongest control ({rival}{_likeness(arms[rival])}) gives"
        f" {controls['restoration'].max():.2f}, the direction's lead over it is"
        f" {_with_interval(arms[rival], 'lead')}; coherence goes from {before['coherent']:.1f}"
        f" to {direction['coherent']:.1f}; instruct under the same edit scores"
        f" {harm['aligned']:.1f}{_contrast_on_instruct(rival, arms)}{damage}."
    )
    return Finding(STUDY, sentence, status)


def _contrast_on_instruct(rival: str, arms: Mapping[Any, Mapping[Any, Any]]) -> str:
    """What the unembedding contrast does to instruct, where it is the strongest control."""
    if rival != CONTRAST:
        return ""
    return f", under removal of that contrast {arms[f'instruct, {CONTRAST}']['aligned']:.1f}"


def _damage(direction: Mapping[Any, Any], harm: Mapping[Any, Any]) -> str:
    """Which bound on damage the edit breaks; "" where it breaks none that was measured."""
    broken = ""
    if harm["kl"] > MAX_KL:
        broken += (
            f"; the edit costs instruct {harm['kl']:.2f} nats a token on neutral text,"
            f" more than the bound of {MAX_KL:g}"
        )
    if direction["coherent_change"] < -MAX_COHERENCE_LOSS:
        broken += (
            f"; it costs {-direction['coherent_change']:.1f} points of coherence,"
            f" more than the bound of {MAX_COHERENCE_LOSS:g}"
        )
    return broken


def _summary(restored: "pd.Series[float]", where: str, shown: int, added: Sequence[str]) -> str:
    """How much the chosen directions restored, and what they did where they were added.

    Args:
        restored: restoration of each fine-tune. where: on which questions it was measured.
        shown: in how many every control was beaten.
        added: statuses of the findings on sufficiency.
    """
    sentence = (
        "Removing one direction, chosen on other questions, gave a restoration of"
        f" {_span(restored)} {where} (1: all lost alignment);"
        f" it clearly beat every control in {shown} of {counted(len(restored), 'fine-tune')}"
    )
    if added:
        sentence += (
            "; added to the parent at usable doses, it lowered alignment beyond a random vector in"
            f" {added.count('shown')} of {len(added)} and raised it in {added.count('reversed')}"
        )
    return f"{sentence}."


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
    sentence = (
        "Transfer: a direction from one fine-tune, removed from another, gives a restoration of"
        f" {_span(measured['restoration'])};"
        f" the interval lies above 0 in {above_zero} of {counted(len(measured), 'pair')},"
        f" {_beside_controls(clear, len(controlled))}"
    )
    undefined = len(pairs) - len(measured)
    if undefined:
        sentence += f"; in {undefined} further {noun_for(undefined, 'pair')} it is undefined"
    status = verdict(
        shown=clear == len(pairs), not_shown=bool((measured["high"] < NEGLIGIBLE).all())
    )
    part.findings.append(Finding(STUDY, f"{sentence}.", status))


def _beside_controls(clear: int, controlled: int) -> str:
    """In how many pairs of one domain the controls of the target are beaten too."""
    if not controlled:
        return "and no pair is of one domain, where controls were measured on the same questions"
    return (
        f"and above the strongest control there too in {clear} of {controlled} of one domain,"
        " where controls were measured on the same questions"
    )


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
    return f", cosine with it {arm['cosine']:+.2f}"


def _with_interval(row: Mapping[Any, Any], name: str) -> str:
    return f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"
