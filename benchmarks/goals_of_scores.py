"""Figures with a goal: intervals, files, judging, sampling, interventions, adapters, and what the
report costs.
"""

from collections.abc import Iterable
from typing import Final

from benchmarks.goals import Figure, Goal, Measured, Values, count, number, of_all


def _gain(rows: list[Values], share: float, way: str) -> float:
    """Low end of the interval of a way's gain over random rows."""
    (row,) = [row for row in rows if row["share"] == share and row["way"] == way]
    return float(row["minus_random"]["low"])


def _against_random(rows: list[Values], way: str) -> float:
    """Low end of the interval of a way's difference from random rows."""
    (row,) = [row for row in rows if (row["first"], row["second"]) == (way, "random")]
    return float(row["low"])


def _with_text(values: Values) -> list[Values]:
    """The rows of the text model that shares questions."""
    rows = [row for rows in values["released"].values() for row in rows]
    return [row for row in rows if row["way"] == "text, answers held out"]


def _highest_damage(values: Values, model: str) -> float:
    """The most that removing a direction in the default form cost a model."""
    is_default = "affine, two means, first token left alone"
    return max(
        row["highest"]
        for row in values["rows"]
        if row["model"] == model and row["form"] == is_default
    )


def _first_figure(cost: Values) -> Measured:
    return number(cost["first_figure_desktop"]["median"], ".2f")


def _report(cost: Values) -> tuple[Measured, Measured]:
    return number(cost["bytes"] / 1e6, ".1f"), _first_figure(cost)


def _lost(values: Values) -> Measured:
    return Measured(
        values["lost"] + values["scored_more_than_once"],
        f"{values['lost']}, {values['scored_more_than_once']}",
    )


FAULTS = ("left", "changed", "under_other_edits")
"""Ends of the names of counts that must be 0."""


def _left_behind(backends: Iterable[Values]) -> Measured:
    return of_all(
        [{**b, "faults": sum(b[key] for key in b if key.endswith(FAULTS))} for b in backends],
        "faults",
        "programs",
    )


def _covered(rows: list[Values]) -> Measured:
    inside = [row for row in rows if row["design_range"] == "inside"]
    return count(sum(bool(row["reached"]) for row in inside), len(inside))


def _lowest_coverage(cells: list[Values]) -> Measured:
    return number(
        min(
            c["coverage"]
            for c in cells
            if c["rate"] >= 0.15 and c["estimand"] == "questions like these"
        ),
        ".3f",
    )


FIGURES: Final[tuple[Figure, ...]] = (
    (
        "interval_coverage",
        "cells inside their design range that cover .935 to .965",
        (Goal("all"),),
        lambda v: _covered(v["rows"]),
    ),
    (
        "ablation_damage",
        "random directions removed from SmolLM2 in the default form: highest KL",
        (Goal("≤", ".1"),),
        lambda v: number(_highest_damage(v, "smollm2"), ".3f"),
    ),
    (
        "ablation_damage",
        "the same from Gemma 3 270M",
        (Goal("≤", ".1"),),
        lambda v: number(_highest_damage(v, "gemma3-270m"), ".2f"),
    ),
    (
        "verdict_intervals",
        "verdict lines over 8 domains or more: lowest coverage over domains",
        (Goal("≥", ".93"),),
        lambda v: number(v["lowest_inside"], ".3f"),
    ),
    (
        "seeds_beside_nulls",
        "means over 2 to 5 seeds called beyond an exact null, largest share",
        (Goal("≤", ".035"),),
        lambda v: number(v["most_shown"], ".4f"),
    ),
    (
        "em_rate_coverage",
        "coverage of a 95 % interval of a rate, 15 % to 40 %",
        (Goal("≥", ".935"),),
        lambda v: _lowest_coverage(v["cells"]),
    ),
    (
        "prediction_powered",
        "coverage of a corrected rate, 30 labels or more, 2 % to 50 %",
        (Goal("≥", ".93"),),
        lambda v: number(min(cell["coverage"] for cell in v["cells"]), ".3f"),
    ),
    (
        "surrogate_judge",
        "a tenth of the labels of two released files: lowest coverage; width, of that part's own",
        (Goal("≥", ".93"), Goal("<", ".85")),
        lambda v: (
            number(min(row["coverage"] for row in _with_text(v)), ".3f"),
            number(max(row["of_alone"] for row in _with_text(v)), ".2f"),
        ),
    ),
    (
        "triggers",
        "worlds in which triggers find a hidden fine-tune; in which they accuse a careful one",
        (Goal("=", "3 of 3"), Goal("=", "0 of 3")),
        lambda v: (count(v["found"], v["worlds"]), count(v["false"], v["worlds"])),
    ),
    (
        "added_rows",
        "aligned rows by gradient minus random rows, a quarter of the batch: low end of the gain",
        (Goal("≥", "0"),),
        lambda v: number(_gain(v["differences"], 0.25, "gradient"), ".3f"),
    ),
    (
        "real_added_rows",
        "careful rows by gradient minus random rows on SmolLM2: content, low end of the gain",
        (Goal("≥", "0"),),
        lambda v: number(_against_random(v["differences"], "gradient"), ".3f"),
    ),
    (
        "explain",
        "seconds of `explain` on SmolLM2, one thread, beside other work",
        (Goal("≤", "120"),),
        lambda v: number(v["seconds"]["wall"], ".0f"),
    ),
    (
        "fuzzed_files",
        "damaged files read wrongly or refused without a place",
        (Goal("=", "0 of 5,000"),),
        lambda v: count(v["failures"], v["files"]),
    ),
    (
        "endpoint_judging",
        "answers lost, or scored twice, 30 % of calls failing",
        (Goal("=", "0"),),
        _lost,
    ),
    (
        "sampling_speed",
        "sampling, times as fast as plain batches of 50",
        (Goal("≥", "1.5"),),
        lambda v: number(v["50 at a time"]["speedup"], ".2f"),
    ),
    (
        "intervention_speed",
        "generation under an ablation ÷ plain, one row",
        (Goal("≤", "1.10"),),
        lambda v: number(v["goals"][0]["value"], ".2f"),
    ),
    (
        "report_cost",
        "report of the demonstration: first figure, seconds",
        (Goal("≤", "2"),),
        lambda v: _first_figure(v["reports"][0]),
    ),
    (
        "report_cost",
        "the same with 3 seeds: megabytes; first figure, seconds",
        (Goal("≤", "12"), Goal("≤", "2")),
        lambda v: _report(v["reports"][1]),
    ),
    (
        "architectures",
        "causal model types right at level one or two; wrong",
        (Goal("≥", "100"), Goal("=", "0")),
        lambda v: (number(v["right"], "d"), number(v["wrong"], "d")),
    ),
    (
        "adapter_kinds",
        "kinds of adapters, tiny model: cells within 1e-5 of PEFT's logits",
        (Goal("all"),),
        lambda v: of_all([v["goals"]["tiny"]], "within", "cells"),
    ),
    (
        "adapter_kinds",
        "on SmolLM2: unmerged; merged; merged, from PEFT's own merge",
        (Goal("≤", "1e-5"),) * 3,
        lambda v: tuple(
            number(v["goals"]["smollm2"][name], ".1e")
            for name in ("unmerged", "merged", "from_peft_merge")
        ),
    ),
    (
        "intervention_programs",
        "programs of edits that left something behind",
        (Goal("=", "0 of 1,500"),),
        lambda v: _left_behind(v.values()),
    ),
    (
        "interleaved_programs",
        "edits that overlap: programs that left or saw what was not theirs",
        (Goal("=", "0 of 2,000"),),
        lambda v: _left_behind([v["transformers"]]),
    ),
    (
        "planted_directions",
        "extractors within 2 % of theory, cells judged",
        (Goal("all"),),
        lambda v: of_all(v["goals"], "within_goal", "judged"),
    ),
    (
        "organism_rebuild",
        "weight files of a rebuilt organism: same bytes",
        (Goal("all"),),
        lambda v: of_all([v], "weight_files_identical", "weight_files"),
    ),
)
