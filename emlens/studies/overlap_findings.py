"""What the tables of `delta_overlap` say, in sentences: one number with its landmarks, then whether
it is more than any training on these prompts gives, then whether something specific to harm is
shared across domains. What cannot be answered says what is missing.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from emlens.controls.shift_statistics import TESTED
from emlens.results.study_result import Finding, Part
from emlens.results.wording import counted
from emlens.studies.overlap_answers import (
    CEILING_ANSWER,
    IDENTITY_ANSWER,
    NO,
    SPECIFIC,
    UNSPECIFIC,
    YES,
)

STUDY: Final = "delta_overlap"
_NAMES: Final = {
    "variance_weighted": "variance-weighted overlap",
    "mean_cosine": "cosine of mean shifts",
}
_STATUS: Final = {YES: "shown", NO: "not shown", SPECIFIC: "shown", UNSPECIFIC: "not shown"}
"""Answer → status of its finding; every other answer is undecided."""


def add_findings(part: Part, models: Sequence[str], position: str, no_third: str) -> None:
    """Add a summary and one finding for each question that can be put, and warnings of what is
    missing.

    Args:
        models: that were studied. position: the one that findings are about. no_third: why no two
            domains can be compared; "" where they can.
    """
    tests = _at(part, "overlap_test", position)
    pairs = _at(part, "overlap_domains", position)
    beside = _at(part, "overlap_landmarks", position)
    part.findings.append(Finding(STUDY, _summary(tests, pairs, position), "summary"))
    for model in models:
        rows = [row for row in tests if row["model"] == model and row["measure"] in TESTED]
        if rows:
            landmarks = [row for row in beside if row["model"] == model]
            part.findings.append(_more_than_training(model, rows, landmarks, position))
    for row in pairs:
        if row["kind"] == "harmful":
            part.findings.append(_across_domains(row, pairs, position))
    if no_third:
        part.warnings.append(
            f"whether something specific to harm is shared across domains is undecided: {no_third}"
        )
    overlap = part.tables["overlap"]
    if "comparison" not in overlap or not (overlap["comparison"].str.startswith("benign")).any():
        part.warnings.append("the benign control is missing from the overlap comparison")


def _at(part: Part, table: str, position: str) -> list[dict[str, Any]]:
    """Rows of a table at one position; none where the part has no such table."""
    if table not in part.tables:
        return []
    frame = part.tables[table]
    return [
        {str(name): value for name, value in row.items()}
        for row in frame[frame["position"] == position].to_dict(orient="records")
    ]


def _summary(tests: list[dict[str, Any]], pairs: list[dict[str, Any]], position: str) -> str:
    """The three questions in one sentence each."""
    tested = [row for row in tests if row["measure"] in TESTED]
    identities = _models(tested, IDENTITY_ANSWER)
    rows = [row for row in tested if row["answered"] != IDENTITY_ANSWER]
    sentences = []
    if rows:
        numbers = " and ".join(
            f"{_range([row for row in rows if row['measure'] == measure])} in {_NAMES[measure]}"
            for measure in TESTED
        )
        sentences.append(
            f"Shifts on training and on unrelated prompts overlap by {numbers}"
            f" (means over layers at {position})."
        )
        sentences.append(_count_sentence(rows))
    else:
        sentences.append("No overlap of shifts on training and on unrelated prompts was tested.")
    if identities:
        names = ", ".join(identities)
        sentences.append(f"Not tested, since it is an identity: {names}.")
    harmful = [row for row in pairs if row["kind"] == "harmful"]
    if harmful:
        decided = [row["answered"] for row in harmful if row["answered"] in _STATUS]
        if decided:
            sentences.append(
                "Two harmful fine-tunes of different domains shift prompts of a third domain alike,"
                " and benign ones are not shown to, in"
                f" {decided.count(SPECIFIC)} of {counted(len(decided), 'pair')} that could be"
                " decided."
            )
        else:
            sentences.append(
                "Whether something specific to harm is shared across domains is undecided."
            )
    return " ".join(sentences)


def _count_sentence(asked: list[dict[str, Any]]) -> str:
    """In how many fine-tunes the overlap is more than training gives."""
    decided = [row for row in asked if row["answered"] in (YES, NO)]
    n_decided = len(set(row["model"] for row in decided))
    if not n_decided:
        return "Whether that is more than any training on these prompts gives is undecided."
    more = len(_models(asked, YES))
    return (
        f"It is more than any training on these prompts gives in {more} of"
        f" {counted(n_decided, 'fine-tune')} that could be tested."
    )


def _models(rows: list[dict[str, Any]], answer: str) -> list[str]:
    return list(dict.fromkeys(row["model"] for row in rows if row["answered"] == answer))


def _range(rows: list[dict[str, Any]]) -> str:
    values = [row["value"] for row in rows]
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{min(values):.2f}–{max(values):.2f}"


def _more_than_training(
    model: str, rows: list[dict[str, Any]], landmarks: list[dict[str, Any]], position: str
) -> Finding:
    """Question two for one fine-tune, with the landmarks of question one."""
    answer, why = rows[0]["answered"], rows[0]["why"]
    numbers = "; ".join(_number(row) for row in rows)
    layers = f"mean over {rows[0]['layers']} layers at {position}"
    status = _STATUS.get(answer, "undecided")
    if answer == IDENTITY_ANSWER:
        return Finding(STUDY, f"{model}: {why}.", status)
    said = {
        YES: "share more than any training on these prompts gives",
        NO: "are not shown to share more than any training on these prompts gives",
        CEILING_ANSWER: (
            "cannot be shown to share more than any training on these prompts gives,"
            " because the ceiling lies below the null"
        ),
    }.get(answer)
    if said is None:
        return Finding(
            STUDY,
            f"{model}: whether shifts on training and unrelated prompts share more than any"
            f" training on these prompts gives is undecided: {why}. Measured: {numbers}"
            f" ({layers}).{_landmarks(landmarks)}",
            status,
        )
    adapters = rows[0]["adapters"]
    sentence = (
        f"{model}: shifts on training and unrelated prompts {said}: {numbers}"
        f" ({layers}; beside {adapters} adapters of the same recipe on permuted careful answers)."
    )
    return Finding(STUDY, sentence + _landmarks(landmarks), status)


def _landmarks(rows: list[dict[str, Any]]) -> str:
    """The landmarks of the variance-weighted overlap in one sentence; "" where there are none."""
    clauses = []
    for row in rows:
        if row["measure"] != "variance_weighted":
            continue
        text = f"{row['landmark']} {row['value']:.2f}"
        if not np.isnan(row["scale"]):
            text += f" (ΔW × {row['scale']:.1f}{_damage(row)})"
        clauses.append(text)
    if not clauses:
        return ""
    return f" Landmarks of the variance-weighted overlap, no tests: {', '.join(clauses)}."


def _damage(row: dict[str, Any]) -> str:
    """What an update costs on neutral text."""
    if np.isnan(row["nats"]):
        return ", damage not measured"
    comparable = "" if row["comparable"] else ", not comparable"
    return f", {row['nats']:.2f} nats against {row['parent_nats']:.2f}{comparable}"


def _number(row: dict[str, Any]) -> str:
    """A statistic beside its null."""
    name = _NAMES[row["measure"]]
    if np.isnan(row["null_mean"]):
        return f"{name} {row['value']:.2f}"
    benign = ""
    if not np.isnan(row["benign_p"]):
        benign = f", the benign fine-tune {row['benign_value']:.2f}, p {row['benign_p']:.2f}"
    return (
        f"{name} {row['value']:.2f} against {row['null_mean']:.2f}"
        f" [{row['null_low']:.2f}, {row['null_q95']:.2f}], p {row['p_holm']:.2f} (Holm){benign}"
    )


def _across_domains(row: dict[str, Any], pairs: list[dict[str, Any]], position: str) -> Finding:
    """Question three for one pair of harmful fine-tunes."""
    names = f"{row['model']} and {row['second_model']}"
    answer = row["answered"]
    status = _STATUS.get(answer, "undecided")
    value = f"centred cosine of their shifts on prompts of third domains {row['value']:.2f}"
    if not np.isnan(row["null_mean"]):
        value += (
            f" against {row['null_mean']:.2f} [95 % below {row['null_q95']:.2f}] in"
            f" {row['null_pairs']} pairs on permuted careful answers, p {row['p_holm']:.2f}"
        )
    benign = _benign_sentence(row, pairs)
    said = {
        SPECIFIC: (
            "share something specific to harm across domains"
            " (benign fine-tunes are not shown to share it)"
        ),
        UNSPECIFIC: "share something across domains, but benign fine-tunes do too",
        NO: "are not shown to share more across domains than permuted careful answers give",
    }.get(answer)
    where = f"mean over {row['layers']} layers at {position}"
    if said is None:
        return Finding(
            STUDY,
            f"{names}: whether they share something specific to harm across domains is undecided:"
            f" {row['why']}. Measured: {value}{benign} ({where}).",
            status,
        )
    return Finding(STUDY, f"{names} {said}: {value}{benign} ({where}).", status)


def _benign_sentence(row: dict[str, Any], pairs: list[dict[str, Any]]) -> str:
    """The benign pair beside a harmful one."""
    for other in pairs:
        if other["kind"] == "benign" and other["domain_pair"] == row["domain_pair"]:
            p = "" if np.isnan(other["p"]) else f", p {other['p']:.2f}"
            return f"; the benign pair {other['value']:.2f}{p}"
    return "; there is no benign pair beside it"
