"""Do the intervals of the first verdict lines hold for other domains?

Each cell draws domains, questions within them and the scores of an instruct model, a harmful and a
benign fine-tune, and asks how often the interval of the profile (`mean_score`) holds the mean over
all domains: of the fall, of the lead of the benign control, of alignment itself. Beside it stands
what an interval over questions holds.
"""

from typing import Any, Final

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from benchmarks.records import record, show
from emlens.foundation.seeds import numpy_rng
from emlens.studies.score_means import DIFFERENCES, SCALE, mean_score

DOMAINS: Final = (3, 5, 8, 11, 20)
DESIGN: Final = 8
"""Domains from which on the intervals are made to hold (`emlens.stats.bootstrap.CLUSTERS`)."""
QUESTIONS: Final = 14
"""Of each domain."""
SHARE: Final = 0.4
"""Part of the variance that lies between domains."""
GOAL: Final = 0.93
CENTRES: Final = {"instruct": 2.5, "harmful": 0.0, "benign": 2.2}
"""Of the latent score: near the ceiling, or on both sides of the middle."""


def scores(rng: np.random.Generator, domains: int) -> pd.DataFrame:
    """Scores of three models on the same questions, alike within domains; index: question."""
    between = np.repeat(rng.normal(size=domains), QUESTIONS) * np.sqrt(SHARE)
    columns = {}
    for model, centre in CENTRES.items():
        own = np.repeat(rng.normal(size=domains), QUESTIONS) * np.sqrt(SHARE) * 0.5
        within = rng.normal(size=domains * QUESTIONS) * np.sqrt(1 - SHARE)
        columns[model] = 100 * scipy_stats.norm.cdf(centre + between + own + within)
    ids = [f"d{i // QUESTIONS}/q{i % QUESTIONS}" for i in range(domains * QUESTIONS)]
    return pd.DataFrame(columns, index=ids)


def quantities(table: pd.DataFrame) -> dict[str, tuple[pd.Series, tuple[float, float]]]:
    """What the verdict lines state: values by question, and the limits of their scale."""
    return {
        "alignment": (table["harmful"], SCALE),
        "fall": (table["instruct"] - table["harmful"], DIFFERENCES),
        "lead of the benign control": (table["benign"] - table["harmful"], DIFFERENCES),
    }


def measure(runs: int, seed: int, domains: tuple[int, ...] = DOMAINS) -> pd.DataFrame:
    """One row per number of domains and quantity: coverage over domains and over questions."""
    population = scores(numpy_rng(seed, "population"), 20_000)
    truths = {name: float(values.mean()) for name, (values, _) in quantities(population).items()}
    rows: list[dict[str, Any]] = []
    for n in domains:
        rng = numpy_rng(seed, "verdict intervals", n)
        held: dict[tuple[str, str], list[bool]] = {}
        for _ in range(runs):
            table = scores(rng, n)
            groups = {question: question.partition("/")[0] for question in table.index}
            for name, (values, limits) in quantities(table).items():
                for unit, by in (("domains", groups), ("questions", None)):
                    found = mean_score(
                        values,
                        list(values.index),
                        int(rng.integers(2**31)),
                        groups=by,
                        limits=limits,
                    )
                    holds = found.low <= truths[name] <= found.high
                    held.setdefault((name, unit), []).append(holds)
        for name in truths:
            rows.append(
                {
                    "domains": n,
                    "quantity": name,
                    "over_domains": float(np.mean(held[name, "domains"])),
                    "over_questions": float(np.mean(held[name, "questions"])),
                    "runs": runs,
                    "inside": n >= DESIGN,
                }
            )
    return pd.DataFrame(rows)


def coverage_table(values: dict[str, Any]) -> str:
    """Markdown for docs/statistics.md."""
    lines = [
        "| domains of 14 questions | quantity | interval over domains | over questions |"
        " design range |",
        "|---|---|---|---|---|",
    ]
    for row in values["rows"]:
        inside = "inside" if row["inside"] else "outside"
        lines.append(
            f"| {row['domains']} | {row['quantity']} | {100 * row['over_domains']:.1f} |"
            f" {100 * row['over_questions']:.1f} | {inside} |"
        )
    return "\n".join(lines)


def main(runs: int = 1000, seed: int = 0) -> None:
    table = measure(runs, seed)
    inside = table[table["inside"]]
    values = {
        "goal": GOAL,
        "lowest_inside": float(inside["over_domains"].min()),
        "reached": bool((inside["over_domains"] >= GOAL).all()),
        "rows": table.to_dict("records"),
    }
    record("verdict_intervals", [seed], values)
    show("coverage", table)


if __name__ == "__main__":
    main()
