"""Could misalignment after narrow fine-tuning have been forecast from activations before it? Three
worlds, five seeds a domain, both parents.

For each world, trained domain and parent: forecasts of every seed's scores on the other domains,
with whole domains of questions held out, and with questions held out; the gain over every baseline,
each run's with its own interval; and the noise ceiling, which is how well the other seeds' scores
forecast this seed's. Needs `python -m benchmarks organism_finetunes`. Some minutes on one core;
recorded after each world.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from benchmarks.organism_finetunes import RUNS, SEEDED, Corpus, corpus
from benchmarks.organism_worlds import KEPT, SEEDS
from benchmarks.records import EVIDENCE, record
from emlens.activations import Activations, capture
from emlens.probes import (
    Baselines,
    Design,
    Forecast,
    activation_cells,
    assert_different,
    cross_validate_forecasts,
)
from emlens.stats import t_interval

POSITIONS: Final = ("last_prompt", "mean_prompt")
PARENTS: Final = ("instruct", "base")
HELD_OUT: Final = {"domain": "group", "question": None}


def measure(
    found: Corpus,
    domains: Sequence[str] = SEEDED,
    runs: int = RUNS,
    *,
    folds: int = 5,
    inner_folds: int = 5,
) -> pd.DataFrame:
    """One row per trained domain, run, parent and kind of hold-out: R², Spearman, gains, and the
    ceiling from the other runs.
    """
    design = Design(folds=folds, inner_folds=inner_folds, repeats=1, permutations=0)
    acts = _captured(found, positions=list(POSITIONS))
    embedded = _captured(found, sites="resid_pre.0", positions="mean_prompt")
    assert_different(
        activation_cells(acts["instruct"]), activation_cells(acts["base"]), "instruct", "base"
    )
    texts = {prompt.id: prompt.text for prompt in found.organism.questions.prompts()}
    rows: list[dict[str, Any]] = []
    for domain in domains:
        is_harmful_of_domain = (found.facts["domain"] == domain) & ~found.facts["benign"]
        names = found.facts[is_harmful_of_domain]["name"].tolist()[:runs]
        outside = [q.id for q in found.organism.questions if q.group != domain]
        scores = {name: found.aligned.loc[outside, name].to_dict() for name in names}
        for held_out, groups in HELD_OUT.items():
            for parent in PARENTS:
                forecasts = cross_validate_forecasts(
                    acts[parent].select(outside),
                    scores,
                    design=replace(design, groups=groups),
                    baselines=Baselines(
                        texts={q: texts[q] for q in outside},
                        parent_scores=found.aligned[parent].loc[outside],
                        embedding=embedded[parent].select(outside),
                    ),
                )
                for name, forecast in forecasts.items():
                    other_runs = [other for other in names if other != name]
                    head = {"domain": domain, "run": name, "parent": parent, "held_out": held_out}
                    rows.append({**head, **_figures(forecast, found.aligned, other_runs)})
    return pd.DataFrame(rows)


def _captured(found: Corpus, **options: Any) -> dict[str, Activations]:
    """Parent → activations of all questions."""
    prompts = found.organism.questions.prompts()
    acts = {}
    for parent in PARENTS:
        acts[parent] = capture(found.organism.family[parent], prompts, progress=False, **options)
    return acts


def _figures(forecast: Forecast, aligned: pd.DataFrame, other_runs: list[str]) -> dict[str, Any]:
    """Figures of one forecast, beside the ceiling: the mean of other runs as a forecast."""
    table = forecast.predictions.set_index("id")
    mean_of_others = aligned.loc[table.index, other_runs].mean(axis=1)
    ceiling = np.nan
    if other_runs:
        floor = float(((table["mean"] - table["target"]) ** 2).sum())
        ceiling = 1 - float(((mean_of_others - table["target"]) ** 2).sum()) / floor
    row: dict[str, Any] = {
        "n": len(table),
        "r2": forecast.r2.value,
        "r2_low": forecast.r2.low,
        "r2_high": forecast.r2.high,
        "spearman": forecast.spearman.value,
        "ceiling": ceiling,
        "ceiling_spearman": mean_of_others.corr(table["target"], method="spearman"),
        "chosen": forecast.chosen[0],
    }
    for rival, gain in forecast.gain_over.items():
        row[f"gain over {rival}"] = gain.value
        row[f"gain over {rival} low"] = gain.low
        row[f"gain over {rival} high"] = gain.high
    for rival, r2 in forecast.baseline_r2.items():
        row[f"r2 of {rival}"] = r2.value
    return row


GAINS: Final = tuple(
    f"gain over {rival}"
    for rival in ("text", "mean embedding", "domain", "parent's own score", "random features")
)
FIGURES: Final = ("r2", "spearman", *GAINS, "ceiling", "ceiling_spearman")
LOWS: Final = {"r2": "r2_low"} | {figure: f"{figure} low" for figure in GAINS}
"""Column with the lower end of a run's own interval, over what was held out."""


def over_worlds(table: pd.DataFrame) -> pd.DataFrame:
    """Each figure: mean over runs and domains within a world, 95 % t interval over worlds, range of
    runs, how many lie above 0 with their own interval.
    """
    rows = []
    for (held_out, parent), cells in table.groupby(["held_out", "parent"], sort=False):
        for figure in FIGURES:
            means = cells.groupby("world")[figure].mean().to_numpy()
            low, high = np.nan, np.nan
            if len(means) > 1 and np.ptp(means) > 0:
                interval = t_interval(means)
                low, high = interval.low, interval.high
            above = None
            if figure in LOWS:
                above = int((cells[LOWS[figure]] > 0).sum())
            rows.append(
                {
                    "held_out": held_out,
                    "parent": parent,
                    "figure": figure,
                    "mean": float(means.mean()),
                    "low": low,
                    "high": high,
                    "lowest": float(cells[figure].min()),
                    "highest": float(cells[figure].max()),
                    "above": above,
                    "worlds": len(means),
                    "runs": len(cells),
                }
            )
    return pd.DataFrame(rows)


def page_table(summary: pd.DataFrame) -> str:
    """Markdown: a row per figure, a column per parent and kind of hold-out."""
    cells = summary.set_index(["held_out", "parent", "figure"])
    columns = list(dict.fromkeys(zip(summary["held_out"], summary["parent"], strict=True)))
    lines = [
        "| figure | "
        + " | ".join(f"from {parent}, {held}s held out" for held, parent in columns)
        + " |",
        "|" + "---|" * (1 + len(columns)),
    ]
    for figure in FIGURES:
        row_cells: list[Any] = [cells.loc[(held, parent, figure)] for held, parent in columns]  # type: ignore[index]
        texts = [_cell_text(cell) for cell in row_cells]
        lines.append(f"| {figure} | " + " | ".join(texts) + " |")
        if figure in LOWS:
            counts = [f"{c['above']:.0f} of {c['runs']:.0f}" for c in row_cells]
            lines.append(
                f"| {figure}: runs whose own interval lies above 0 | " + " | ".join(counts) + " |"
            )
    return "\n".join(lines)


def _cell_text(cell: Any) -> str:
    interval = f"[{cell['low']:.2f}, {cell['high']:.2f}]"
    return f"{cell['mean']:.2f} {interval}, {cell['lowest']:.2f} to {cell['highest']:.2f}"


def forecasts_table(values: Mapping[str, Any]) -> str:
    """`page_table` of the evidence file."""
    return page_table(pd.DataFrame(values["over_worlds"]))


def main(seeds: tuple[int, ...] = SEEDS, kept: Path = KEPT) -> None:
    parts = []
    for seed in seeds:
        parts.append(measure(corpus(kept / f"planted-{seed}")).assign(world=seed))
        table = pd.concat(parts, ignore_index=True)
        summary = over_worlds(table)
        path = record(
            "organism_forecasts",
            [*seeds[: len(parts)]],
            {
                "over_worlds": summary.to_dict(orient="records"),
                "runs": table.to_dict(orient="records"),
            },
        )
        print(f"\nafter {len(parts)} worlds\n{page_table(summary)}", flush=True)
    print(f"written: {path.relative_to(EVIDENCE.parent.parent)}")
