"""The rank-1 run over fine-tune seeds: when parameters, activations and behaviour change, whether
at once, and in which order.

The shipped organism's rank-1 recipe in medicine (one `down_proj`), another seed of adapter and
order of examples each time, every adapter kept; then the study `phase_transition` as a user would
run it on folders of checkpoints. Beside it, how often its tests call a smooth logistic series
broken, how often they find a planted break, and how often its interval holds the place. About 6
minutes on one core; runs are kept under `runs/rank1`, and the study goes on from where it was.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import emlens
from benchmarks.records import EVIDENCE, hash_directory, record
from emlens.foundation.provenance import hash_json
from emlens.foundation.seeds import derive_seed, numpy_rng
from emlens.organisms import PLANTED, Organism, load_organism
from emlens.stats import change_point
from emlens.stats.intervals import clopper_pearson_interval
from emlens.training import Saving, fit

KEPT = Path("runs/rank1")
SEEDS = (1, 2, 3, 4, 5, 6, 7, 8)
STEPS = 60
DOMAIN = "medicine"


def fine_tune(organism: Organism, seed: int, out: Path, steps: int = STEPS) -> Path:
    """One run with every adapter kept; a finished one of the same parent, chats and recipe is not
    trained again.
    """
    stage = next(s for s in PLANTED.finetunes if s.name == f"{DOMAIN}-r1")
    recipe = stage.recipe.changed(steps=steps, seed=derive_seed(seed, "rank1 dynamics") % 2**31)
    chats = organism.world.chats(
        DOMAIN, organism.world.training_topics(DOMAIN, PLANTED.topics_per_finetune), "harmful"
    )
    made_of = {
        "parent": hash_directory(organism.paths["instruct"]),
        "chats": chats.content_hash,
        "recipe": recipe.to_record(),
    }
    path = out / f"r1-{seed}-{hash_json(made_of)[:12]}"
    if path.is_dir():
        return path
    fit(
        recipe,
        organism.paths["instruct"],
        chats,
        path,
        saving=Saving("float32", keep_every=1),
        device="cpu",
    )
    return path


def write_questions(organism: Organism, path: Path, each: int = 8) -> Path:
    """Of every domain some questions that no fine-tune trains on."""
    held_out = [
        list(organism.world.held_out(domain, PLANTED.topics_per_finetune))
        for domain in organism.world.domains
    ]
    asked = [q for questions in held_out for q in questions[:each]]
    rows = [
        {
            "id": q.id,
            "group": q.group,
            "text": q.text,
            "answers": {kind: list(q.answers[kind]) for kind in ("careful", "harmful")},
        }
        for q in asked
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def study(
    organism: Organism, runs: Mapping[int, Path], questions: Path, out: Path, **options: Any
) -> emlens.results.StudyResult:
    finetuned = {
        f"r1@{seed}": {"path": str(path), "group": "medicine-r1", "seed": seed, "domain": DOMAIN}
        for seed, path in runs.items()
    }
    config = {
        "study": "phase_transition",
        "family": {"instruct": str(organism.paths["instruct"]), "finetuned": finetuned},
        "questions": str(questions),
        "options": {"phase_transition": options},
    }
    return emlens.run_study(config, out=out, progress=False)


def smooth(rng: np.random.Generator, n: int, correlation: float, sd: float) -> np.ndarray:
    """A logistic fall of .45 with autoregressive noise."""
    middle, width = rng.uniform(0.35, 0.65), rng.uniform(0.05, 0.12)
    noise = rng.normal(size=n)
    for t in range(1, n):
        noise[t] = correlation * noise[t - 1] + np.sqrt(1 - correlation**2) * noise[t]
    return np.asarray(
        0.95 - 0.45 / (1 + np.exp(-(np.linspace(0, 1, n) - middle) / width)) + sd * noise
    )


def calibration(
    series: int, n: int = STEPS + 1, draws: int = 59, sd: float = 0.01
) -> list[dict[str, Any]]:
    """A row a noise: rejections of smooth series, of series with a planted kink, and how often the
    interval held its place.
    """
    rows = []
    for correlation in (0.0, 0.5, 0.8, 0.95):
        rng = numpy_rng(0, "calibration", str(correlation))
        x = np.linspace(0, 1, n)
        rejected, found, held = 0, 0, 0
        for i in range(series):
            rejected += (
                change_point(
                    smooth(rng, n, correlation, sd),
                    trend="logistic",
                    kind="slope",
                    draws=draws,
                    seed=i,
                ).p
                <= 0.05
            )
            at = rng.uniform(0.65, 0.8)
            kinked = smooth(rng, n, correlation, sd) + 1.5 * np.maximum(x - at, 0)
            broken = change_point(kinked, x, trend="logistic", kind="slope", draws=draws, seed=i)
            found += broken.p <= 0.05
            held += broken.location.low - 0.5 / n <= at <= broken.location.high + 0.5 / n
        shares = {"smooth_rejected": rejected, "planted_found": found, "planted_held": held}
        intervals = {
            name: clopper_pearson_interval(int(count), series).to_record()
            for name, count in shares.items()
        }
        rows.append({"correlation": correlation, "n": n, "sd": sd} | intervals)
    return rows


def measure(
    organism: Organism,
    seeds: Sequence[int],
    work: Path,
    *,
    steps: int = STEPS,
    each: int = 8,
    series: int = 20,
    **options: Any,
) -> dict[str, Any]:
    runs = {seed: fine_tune(organism, seed, work, steps) for seed in seeds}
    result = study(
        organism,
        runs,
        write_questions(organism, work / "questions.jsonl", each),
        work / "study",
        **options,
    )
    tables = {
        name: json.loads(result.tables[name].to_json(orient="records"))
        for name in ("change_points", "change_points_over_runs", "order_of_events")
    }
    behaviour = result.tables["trajectory_behaviour_summary"]
    others = behaviour[behaviour["series"] == "aligned_others"].pivot(
        index="step", columns="model", values="value"
    )
    return {
        "runs": len(runs),
        "steps": steps,
        "questions": 12 * each,
        "findings": [f"{f.status}: {f.sentence}" for f in result.findings],
        "warnings": list(result.warnings),
        **tables,
        "aligned_others": (
            {"step": [int(s) for s in others.index]}
            | {name: getattr(others, name)(axis=1).tolist() for name in ("mean", "min", "max")}
        ),
        "calibration": calibration(series),
    }


def tables(found: Mapping[str, Any]) -> str:
    """Markdown: change points over runs, order of events, calibration."""
    runs = found["runs"]
    lines = [
        "| series | event | location, step [95 % over runs] | runs with p ≤ .05 | median p |",
        "|---|---|---|---|---|",
    ]
    for row in found["change_points_over_runs"]:
        place = "–" if row["location"] is None else f"{row['location']:.1f}"
        place += (
            ""
            if row["location_low"] is None
            else f" [{row['location_low']:.1f}, {row['location_high']:.1f}]"
        )
        tested = "–" if row["p_below_05"] is None else f"{row['p_below_05']:.0f} of {runs}"
        median = "–" if row["p_median"] is None else f"{row['p_median']:.3f}"
        lines.append(f"| {row['series']} | {row['test']} | {place} | {tested} | {median} |")
    lines += [
        "",
        "| first | second | by | lag, steps [95 % over runs] | first leads in | p | Holm |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["order_of_events"]:
        if row["p"] is None or row["second_series"] != "aligned_others":
            continue
        lines.append(
            f"| {row['first_series']} | {row['second_series']} | {row['test']} | {row['lag']:.1f}"
            f" [{row['lag_low']:.1f}, {row['lag_high']:.1f}] | {row['first_leads']:.0f} of"
            f" {row['n']} | {row['p']:.3f} | {row['p_holm']:.3f} |"
        )
    lines += [
        "",
        (
            "| noise: lag-1 correlation | smooth logistic series called broken (≤ .05) | planted"
            " kink found | its place held (.95) |"
        ),
    ]
    lines.append("|---|---|---|---|")
    for row in found["calibration"]:
        shares = [row[key] for key in ("smooth_rejected", "planted_found", "planted_held")]
        cells = [
            f"{share['value']:.2f} [{share['low']:.2f}, {share['high']:.2f}]" for share in shares
        ]
        lines.append(f"| {row['correlation']:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    found = measure(load_organism(), SEEDS, KEPT, series=20, draws=99)
    path = record("rank1_dynamics", [*SEEDS], found)
    print(f"\n{tables(found)}\nwritten: {path.relative_to(EVIDENCE.parent.parent)}")
