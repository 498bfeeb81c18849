"""Figures with a goal: captures, stores, executors and geometry, and what the nulls of an overlap
hold.
"""

from collections.abc import Sequence
from typing import Final

from benchmarks import overlap_calibration
from benchmarks.goals import Figure, Goal, Measured, Values, count, number


def _specific(rows: Sequence[Values]) -> int:
    """Worlds in which the harmful pair lies above permuted pairs and the benign one does not."""
    p = {
        (row["world"], row["pair"]): row["p"]
        for row in rows
        if row["position"] == "last_prompt" and row["pair"] != "permuted"
    }
    worlds = {world for world, _ in p}
    return sum(p[world, "r8"] <= 0.05 < p[world, "benign"] for world in worlds)


def _worst(cases: list[Values], against: str) -> Measured:
    return number(next(c["worst"] for c in cases if c["against"].startswith(against)), ".2f")


def _called(rows: list[Values], null: str) -> Measured:
    called, of = overlap_calibration.pooled(rows, null)
    return number(called / of, ".3f", f" ({called} of {of})")


def _found(rows: list[Values], shared: str, statistic: str) -> Measured:
    (row,) = [r for r in rows if (r["shared"], r["statistic"]) == (shared, statistic)]
    return number(row["share"], ".3f", f" [{row['low']:.3f}, {row['high']:.3f}]")


def _held(rows: list[Values]) -> Measured:
    held = [row["low"] <= 0.05 <= row["high"] for row in rows]
    return count(sum(held), len(held))


def _first_tries(tasks: list[Values]) -> Measured:
    return count(sum(not t["error"] and t["lines"] <= 3 for t in tasks), len(tasks))


FIGURES: Final[tuple[Figure, ...]] = (
    (
        "site_search",
        "questions that the site's search answers in its first three hits",
        (Goal("all"),),
        lambda v: count(v["found"], v["of"]),
    ),
    (
        "ten_tasks",
        "everyday tasks on SmolLM2 that run at the first try, in three lines each at most",
        (Goal("all"),),
        lambda v: _first_tries(v["tasks"]),
    ),
    (
        "capture_speed",
        "capture ÷ bare decoder on the same batches, both by oneDNN",
        (Goal("≤", "1.05"),),
        lambda v: _worst(v["goals"], "bare"),
    ),
    (
        "capture_speed",
        "capture ÷ the best tool as documented",
        (Goal("≤", ".20"),),
        lambda v: number(v["goals"][1]["worst"], ".2f"),
    ),
    (
        "capture_speed",
        "capture ÷ the best tool tuned, sorted",
        (Goal("≤", "1.0"),),
        lambda v: number(v["goals"][3]["worst"], ".2f"),
    ),
    (
        "real_sampling",
        "sampling 8 × 50 answers on SmolLM2 ÷ `generate`, its best batch: tokens a second",
        (Goal("≥", "2.0"),),
        lambda v: number(v["SmolLM2"]["ratio"], ".2f"),
    ),
    (
        "transfer_cost",
        "all of `direction_transfer` on SmolLM2, CPU time ÷ that of an earlier commit",
        (Goal("≤", ".5"),),
        lambda v: number(v["study"]["ratio"], ".2f"),
    ),
    (
        "transfer_cost",
        "the same: peak memory in GB",
        (Goal("≤", "2.5"),),
        lambda v: number(v["study"]["today"]["peak_gb"], ".1f"),
    ),
    (
        "training_cost",
        "training on SmolLM2: peak memory ÷ that of an earlier commit",
        (Goal("≤", ".7"),),
        lambda v: number(v["memory"]["ratio"], ".2f"),
    ),
    (
        "training_cost",
        "the same with gradient checkpointing",
        (Goal("≤", ".7"),),
        lambda v: number(v["memory"]["ratio_checkpointing"], ".2f"),
    ),
    (
        "transfer_cost",
        "a candidate of `direction_transfer` on SmolLM2, CPU time ÷ that of an earlier commit",
        (Goal("≤", ".5"),),
        lambda v: number(v["edits"]["ratio"], ".2f"),
    ),
    (
        "shared_work",
        "capture of 24 first-plot questions on SmolLM2 ÷ bare sorted decoder",
        (Goal("≤", ".75"),),
        lambda v: number(v["captures of first-plot questions"]["ratio"], ".2f"),
    ),
    (
        "shared_work",
        "the same of 200 general questions",
        (Goal("≤", ".55"),),
        lambda v: number(v["captures of general questions"]["ratio"], ".2f"),
    ),
    (
        "shared_work",
        "capture of a parent and its adapter on the upper half of SmolLM2's blocks ÷ two captures",
        (Goal("≤", ".8"),),
        lambda v: number(v["pair"]["ratio"], ".2f"),
    ),
    (
        "shared_work",
        "local judge, prompts of about 200 tokens: passes over its prompt for a verdict",
        (Goal("≤", "1.3"),),
        lambda v: number(v["judge"]["prefills_per_verdict"], ".2f"),
    ),
    (
        "training_cost",
        "a step of training ÷ that of a plain peft loop with the same output layer",
        (Goal("≤", "1.0"),),
        lambda v: number(v["time"]["mean"], ".2f"),
    ),
    (
        "scale",
        "covariance nulls of a fine-tune of 14B's shape (48 layers × 2 positions × 2), CPU minutes",
        (Goal("≤", "10"),),
        lambda v: number(v["covariance nulls"]["cpu_s"] / 60, ".1f"),
    ),
    (
        "overlap_calibration",
        "permuted-answer fine-tunes called shared by the training null",
        (Goal("≤", ".10"),),
        lambda v: _called(v["level"], "trained"),
    ),
    (
        "overlap_calibration",
        "the same by random updates",
        (),
        lambda v: _called(v["level"], "random update"),
    ),
    (
        "overlap_calibration",
        "the same by samples of one population",
        (),
        lambda v: _called(v["level"], "one population"),
    ),
    (
        "overlap_calibration",
        "cells in which the landmark's own code holds .05",
        (Goal("all"),),
        lambda v: _held(v["landmark"]),
    ),
    (
        "overlap_calibration",
        "power for one shared direction; for a common mean",
        (Goal("≥", ".8"), Goal("≥", ".8")),
        lambda v: (
            _found(v["power"], "direction", "variance_weighted"),
            _found(v["power"], "mean", "mean_cosine"),
        ),
    ),
    (
        "overlap_calibration",
        "coverage of the difference of updates, 11 domains",
        (Goal("≥", ".93"),),
        lambda v: number(v["difference"]["share"], ".3f"),
    ),
    (
        "null_cost",
        "on SmolLM2: one trained adapter, one gradient draw, in captures of both sides",
        (Goal("≤", "8"), Goal("≤", "3")),
        lambda v: tuple(
            number(row["captures"], ".1f")
            for name in ("adapter", "gradient")
            for row in v["rows"]
            if row["what"] == name
        ),
    ),
    (
        "overlap_worlds",
        "worlds in which harmful pairs across domains are specific to harm, last prompt token",
        (),
        lambda v: count(_specific(v["across"]), len({row["world"] for row in v["across"]})),
    ),
    (
        "overlap_calibration",
        "19 trained adapters on the organism, CPU seconds",
        (Goal("≤", "40"),),
        lambda v: number(v["cost"]["cpu_seconds"], ".0f"),
    ),
    (
        "capture_memory",
        "peak memory over 20,000 prompts ÷ over 2,000",
        (Goal("≤", "1.05"),),
        lambda v: number(v["ratio"], ".3f"),
    ),
    (
        "store_speed",
        "later reads of a site ÷ `numpy.memmap`",
        (Goal("≤", "1.25"),),
        lambda v: number(v["later_read_over_memmap"], ".2f"),
    ),
    (
        "store_speed",
        "store write ÷ the same bytes to plain files",
        (Goal("≤", "1.25"),),
        lambda v: number(v["write_over_durable_plain_files"], ".2f"),
    ),
    (
        "store_resume",
        "killed captures that end with the same bytes",
        (Goal("=", "25 of 25"),),
        lambda v: count(v["same_bytes"], v["kills"]),
    ),
    (
        "store_damage",
        "damages to a store that were missed",
        (Goal("=", "0 of 1,000"),),
        lambda v: count(v["missed"], v["damages"]),
    ),
    (
        "executors",
        "ranks killed: same bytes, every row once",
        (Goal("=", "25 of 25"),),
        lambda v: count(v["killed"]["same_bytes"], v["killed"]["kills"]),
    ),
    (
        "geometry_accuracy",
        "worst error of a principal angle, radians",
        (Goal("≤", "1e-13"),),
        lambda v: number(v["worst_planted"], ".1e"),
    ),
    (
        "randomised_svd",
        "randomised top 8: 1 − overlap",
        (Goal("≤", "1e-6"),),
        lambda v: number(v["worst_one_less_overlap"], ".1e"),
    ),
    (
        "randomised_svd",
        "the same at 5,000 × 5,120, times faster than exact",
        (Goal("≥", "8"),),
        lambda v: number(v["speed_up_of_the_largest_timed"], ".1f"),
    ),
    (
        "overlap_grid_speed",
        "grid of overlaps with nulls ÷ a loop over the cells",
        (),
        lambda v: number(v["over_loop"], ".4f"),
    ),
)
