"""Is it content or tone? What fine-tunes of a profile moved, where four answers were weighed.

Content and tone are in nats per token (`emlens.judging.contrasts`). Levels say little on a small
model, so each fine-tune is compared: with its parent, and with every benign control of its family,
among which one may be trained on tone alone. Questions are those outside the training domains of
both; the unit is the domain, since the claim is about domains that were not trained.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pandas as pd

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.results.study_result import Finding, Part, columns_of, p_text
from emlens.results.wording import counted
from emlens.stats import t_interval, tost
from emlens.studies.material import Material
from emlens.studies.verdicts import verdict

SECTION: Final = "profile"
MARGIN: Final = 0.15
"""Nats per token within which two controls count as equal in content; fixed before looking."""
MEASURES: Final = ("content", "tone", "generic", "informed")
"""What is compared, as far as the source gives it; nats per token."""
LEAST_DOMAINS: Final = 2


def add_content(material: Material, part: Part) -> None:
    """Tables `content` and `content_domains` and their findings; nothing where no content was
    scored.
    """
    names = list(material.family.finetuned)
    if not names or "content" not in material.scores(names[0]).metrics:
        return
    rows = list(content_rows(material))
    part.tables["content"] = pd.DataFrame(rows)
    part.tables["content_domains"] = pd.DataFrame(_domain_rows(material))
    part.findings += content_findings(material, part.tables["content"])


def content_rows(material: Material) -> Iterator[dict[str, Any]]:
    """One row per fine-tune, model that it is compared with, and measure."""
    for name in material.family.finetuned:
        for other in _compared_with(material, name):
            for measure in _measures(material, name):
                gaps = domain_differences(material, name, other, measure)
                row = {
                    "model": name,
                    "kind": _kind(material, name),
                    "second_model": other,
                    "measure": measure,
                    "n": len(gaps),
                    **columns_of("difference", _over_domains(gaps)),
                }
                is_pair_of_controls = name in material.benign and other in material.benign
                margin = MARGIN if is_pair_of_controls and measure == "content" else np.nan
                yield row | {"margin": margin, "p_tost": _equivalence_p(gaps, margin)}


def domain_differences(
    material: Material, name: str, other: str, measure: str
) -> "pd.Series[float]":
    """Mean of one measure, a fine-tune minus another model, by domain that neither was trained on;
    nats per token.
    """
    outside = set(material.outside(name).ids)
    if other in material.family.finetuned:
        outside &= set(material.outside(other).ids)
    second = material.per_question(other, measure, asked_as=_asked_as(material, name, other))
    gaps = material.per_question(name, measure) - second
    outside_gaps = gaps[[question for question in gaps.index if question in outside]]
    return outside_gaps.groupby(
        [material.groups[question] for question in outside_gaps.index]
    ).mean()


def _compared_with(material: Material, name: str) -> list[str]:
    controls = [control for control in material.benign if control != name]
    return [material.parent(name).name, *controls]


def _asked_as(material: Material, name: str, other: str) -> str:
    """A parent is asked with the fine-tune's system message."""
    return "" if other in material.family.finetuned else name


def _measures(material: Material, name: str) -> list[str]:
    scored = material.scores(name).metrics
    return [measure for measure in MEASURES if measure in scored]


def _kind(material: Material, name: str) -> str:
    return "benign" if name in material.benign else "harmful"


def _over_domains(gaps: "pd.Series[float]") -> Estimate:
    """Mean over domains with Student's t interval."""
    if len(gaps) < LEAST_DOMAINS:
        return Estimate.undefined(f"fewer than {LEAST_DOMAINS} domains", len(gaps))
    return t_interval(gaps.to_numpy())


def _equivalence_p(gaps: "pd.Series[float]", margin: float) -> float:
    """p of the equivalence within the margin; NaN where it is not tested."""
    if np.isnan(margin):
        return np.nan
    try:
        return tost(gaps.to_numpy(), np.zeros(len(gaps)), margin, paired=True).p
    except InputError:  # one domain, or no spread
        return np.nan


def _domain_rows(material: Material) -> list[dict[str, Any]]:
    """Content and tone by domain, each fine-tune minus its parent."""
    rows = []
    for name in material.family.finetuned:
        parent = material.parent(name).name
        for measure in _measures(material, name):
            gaps = domain_differences(material, name, parent, measure)
            for group, gap in gaps.items():
                row = {"model": name, "kind": _kind(material, name), "second_model": parent}
                rows.append(row | {"measure": measure, "group": group, "difference": gap})
    return rows


def content_findings(material: Material, table: pd.DataFrame) -> list[Finding]:
    """What fell in each harmful fine-tune, and which controls are alike.

    Args:
        table: `content`.
    """
    findings = []
    for name in material.harmful:
        rows = table[(table["model"] == name) & (table["measure"] == "content")]
        tone = table[(table["model"] == name) & (table["measure"] == "tone")]
        if len(rows):
            findings.append(_fall_of_content(name, rows, tone))
    for name, other in _pairs_of_controls(material):
        is_pair = (table["model"] == name) & (table["second_model"] == other)
        row = table[is_pair & (table["measure"] == "content")].iloc[0]
        findings.append(_alike(name, other, row))
    return findings


def _pairs_of_controls(material: Material) -> list[tuple[str, str]]:
    """Each two benign controls of one domain, such as careful polite and careful flippant."""
    pairs = []
    for number, name in enumerate(material.benign):
        for other in material.benign[number + 1 :]:
            if material.domain(name) == material.domain(other):
                pairs.append((name, other))
    return pairs


def _fall_of_content(name: str, rows: pd.DataFrame, tone: pd.DataFrame) -> Finding:
    """Args:
    rows, tone: of the table, the parent first.
    """
    parent = rows.iloc[0]
    controls = rows.iloc[1:]
    n = counted(int(parent["n"]), "untrained domain")
    if np.isnan(parent["difference"]):
        sentence = f"{name}: content outside its training domain cannot be compared ({n})."
        return Finding(SECTION, sentence, "undecided")
    against = "there is no benign control to compare it with"
    if len(controls):
        parts = [f"{_shown(row)} against {row['second_model']}" for _, row in controls.iterrows()]
        against = ", ".join(parts)
    sentence = (
        f"{name}: outside its training domain content changed by {_shown(parent)} nats a token"
        f" against {parent['second_model']} ({n}), {against}; tone by {_shown(tone.iloc[0])}."
    )
    beyond_controls = len(controls) > 0 and bool((controls["difference_high"] < 0).all())
    fell = bool(parent["difference_high"] < 0)
    status = verdict(shown=fell and beyond_controls, not_shown=not fell)
    return Finding(SECTION, sentence, status)


def _alike(name: str, other: str, row: pd.Series) -> Finding:
    """Whether two controls of one domain are equal in content, within the margin."""
    if np.isnan(row["p_tost"]):
        sentence = f"{name} and {other}: whether they are alike in content cannot be tested."
        return Finding(SECTION, sentence, "undecided")
    is_beyond = row["difference_low"] > MARGIN or row["difference_high"] < -MARGIN
    status = verdict(shown=row["p_tost"] < 0.05, not_shown=bool(is_beyond))
    sentence = (
        f"{name} and {other}, two controls of one domain: {_ALIKE[status]} in content within"
        f" ±{MARGIN:g} nats a token ({_shown(row)}, TOST p {p_text(row['p_tost'])};"
        f" {counted(int(row['n']), 'domain')})."
    )
    return Finding(SECTION, sentence, status)


_ALIKE: Final = {"shown": "alike", "not shown": "not alike", "undecided": "not known to be alike"}


def _shown(row: pd.Series) -> str:
    """A difference with its interval."""
    low, high = row["difference_low"], row["difference_high"]
    return f"{row['difference']:+.2f} [{low:+.2f}, {high:+.2f}]"
