"""Studies of runs over three seeds on SmolLM2: did the fall come at once, and is the general
solution cheaper than the narrow one?

`phase_transition` follows the harmful medicine runs whose checkpoints `real_guard` kept (every
second step). `general_vs_narrow` compares harmful and held-narrow medicine, a pair a seed. Both run
as `emlens study` in processes of their own, on one block, and are kept below the family's folder
(EMLENS_REAL_FAMILY). About 15 CPU minutes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from benchmarks.real_guard import SEEDS, watched_folder
from benchmarks.real_kept import KeptFamily
from benchmarks.real_studies import Case, Places, options, ran, rows_of
from benchmarks.records import record
from emlens.real.demonstration import study_name
from emlens.real.family import Member
from emlens.results import StudyResult

FOLLOWED: Final = "phase_transition"
PAIRED: Final = "general_vs_narrow"
SERIES: Final = ("aligned_others",)
"""Of the table of change points: what the claim is about."""
KEPT: Final[Mapping[str, Sequence[str]]] = {
    FOLLOWED: ("change_points_over_runs", "order_of_events", "trajectory_behaviour_summary"),
    PAIRED: ("efficiency", "stability", "significance"),
}
"""Tables that go into the evidence file."""
SOLUTIONS: Final[Mapping[str, Any]] = {
    "shares": [0.5, 1.0, 1.5],
    "significance_shares": [0.5, 1.0],
    "epsilons": [0.2, 0.4],
    "directions": 2,
    "points": [0.0, 1.0],
}


def cases(seeds: Sequence[int] = SEEDS) -> dict[str, Case]:
    """Both studies, each on one question of each of the twelve domains."""
    pairs = [
        [study_name(Member(kind, "medicine", seed)) for kind in ("harmful", "narrow")]
        for seed in seeds
    ]
    followed = options(phase_transition={"windows": [2, 3], "draws": 199})
    paired = options(general_vs_narrow={**SOLUTIONS, "pairs": pairs})
    return {
        FOLLOWED: Case(FOLLOWED, ("harmful",), followed, seeds),
        PAIRED: Case(PAIRED, ("harmful", "narrow"), paired, seeds, training_rows=24),
    }


def places_of(name: str, places: Places) -> Places:
    """Followed runs are those that kept their checkpoints."""
    if name != FOLLOWED:
        return places
    return replace(places, adapters=watched_folder(places.adapters))


def measure(places: Places, chosen: Mapping[str, Case]) -> dict[str, Any]:
    """Findings and tables of each study."""
    found = {}
    for name, case in chosen.items():
        result = ran(name, case, places_of(name, places))
        study = StudyResult.load(result)
        found[name] = {
            "findings": [finding.to_record() for finding in study.findings],
            "warnings": list(study.warnings),
            "tables": {t: rows_of(result, t) for t in KEPT[name] if t in study.tables},
        }
    return found


def change_points_table(values: Mapping[str, Any]) -> str:
    """Markdown for docs/real_model.md: when content outside medicine changed, over the runs."""
    lines = [
        "| series | event | step [95 % over runs] | located in | p ≤ .05 in | median p |",
        "|---|---|---|---|---|---|",
    ]
    for row in values[FOLLOWED]["tables"]["change_points_over_runs"]:
        if row["series"] not in SERIES:
            continue
        runs = row["runs"]
        tested = "–" if row["p_below_05"] is None else f"{row['p_below_05']:.0f} of {runs}"
        median = "–" if row["p_median"] is None else f"{row['p_median']:.3f}"
        cells = [row["series"], row["test"], _place(row), f"{row['located']} of {runs}"]
        lines.append(f"| {' | '.join([*cells, tested, median])} |")
    return "\n".join(lines)


def _place(row: Mapping[str, Any]) -> str:
    if row["location"] is None:
        return "–"
    if row["location_low"] is None:
        return f"{row['location']:.1f}"
    return f"{row['location']:.1f} [{row['location_low']:.1f}, {row['location_high']:.1f}]"


def followed_table(values: Mapping[str, Any]) -> str:
    """Markdown for docs/real_model.md: what `phase_transition` says."""
    return _findings_table(values[FOLLOWED])


def paired_table(values: Mapping[str, Any]) -> str:
    """Markdown for docs/real_model.md: what `general_vs_narrow` says."""
    return _findings_table(values[PAIRED])


def _findings_table(study: Mapping[str, Any]) -> str:
    lines = ["| what the study says | |", "|---|---|"]
    for finding in study["findings"]:
        sentence = finding["sentence"].replace("|", "\\|")
        lines.append(f"| {sentence} | {finding['status']} |")
    return "\n".join(lines)


def main() -> None:
    family = KeptFamily.found([])
    places = Places(family.parent, family.folder, family.folder / "over_seeds")
    values = measure(places, cases())
    print(change_points_table(values), followed_table(values), paired_table(values), sep="\n\n")
    record("real_over_seeds", list(SEEDS), values)
