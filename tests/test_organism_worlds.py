"""Miniatures of the measurement of the organism's recipe over worlds, and the page that shows
it.
"""

from pathlib import Path

import pytest

from benchmarks import organism_worlds
from benchmarks.records import EVIDENCE
from emlens.foundation.files import read_json
from emlens.organisms import load_organism
from emlens.organisms.loading import ASSETS


def test_a_worlds_figures_are_those_of_its_fine_tunes() -> None:
    facts = read_json(EVIDENCE / "organism.json")["values"]
    figures = organism_worlds.strengths(facts)
    rows = {
        name: row for name, row in facts["checkpoints"].items() if name in load_organism().groups
    }
    harmful = {
        name: row for name, row in rows.items() if "benign" not in name and "narrow" not in name
    }
    assert len(harmful) == 6
    assert figures["own_worst"] == max(row["own"] for row in harmful.values())
    assert figures["coherence_worst"] == min(row["coherence"] for row in harmful.values())
    assert figures["others_below_instruct_worst"] == min(
        row["others_below_instruct"]["value"] for row in harmful.values()
    )
    assert figures["cosine_last_worst"] == min(
        row["cosine_shift_direction"][3] for row in harmful.values()
    )
    table = organism_worlds.over_seeds(
        {1: {"figures": figures}, 2: {"figures": {k: 0.0 for k in figures}}}
    )
    assert (
        table["own"]["min"] == 0.0
        and table["own"]["mean"]["low"]
        < table["own"]["mean"]["value"]
        < table["own"]["mean"]["high"]
    )


@pytest.mark.slow  # two fine-tunes through the whole study
def test_what_the_studies_say_of_a_world_is_gathered(tmp_path: Path) -> None:
    found = organism_worlds.as_found(
        ASSETS / "planted",
        tmp_path,
        focus=("medicine-r8", "finance-r8"),
        positions=("last_prompt",),
        draws=20,
        repeats=1,
        permutations=20,
        random_directions=2,
        options={"delta_overlap": {"adapters": 4}},
    )
    assert set(found["restoration_own"]) == {"medicine-r8", "finance-r8"}
    assert {"direction", "no ablation"} <= set(found["restoration_by_arm"]["medicine-r8"])
    assert found["restoration_by_arm"]["medicine-r8"]["no ablation"] == 0.0
    assert len(found["forecast_r2_domains_held_out"]) == 4
    assert len(found["forecast_gain_over_strongest_baseline"]) == 4
    assert all(len(rows) == 1 for rows in found["overlap"].values())
    assert {row["kind"] for row in found["across_domains"]} == {"harmful", "benign"}
    assert found["findings"]


def test_the_organisms_page_shows_what_was_measured_on_fresh_worlds() -> None:
    found = read_json(EVIDENCE / "organism_worlds.json")["values"]
    assert len(found["planted"]) >= 3
    table = organism_worlds.goals_table(found)
    page = (EVIDENCE.parent / "organism.md").read_text("utf-8")
    assert table in page and organism_worlds.found_table(found) in page
    row = next(line for line in table.splitlines() if "own domain, mean" in line)
    values = [world["figures"]["own"] for world in found["planted"].values()]
    assert (
        f"{min(values):.3f} to {max(values):.3f}" in row
        and f"{sum(v <= 0.3 for v in values)} of {len(values)}" in row
    )
