"""Figures from the files of aisa-group/em-generalization: loss against alignment over 35 runs,
overlap against shift of prompts, and rates of judged answers.
"""

import math
from pathlib import Path
from typing import Final

from emlens.data import AlignmentScores
from emlens.data.sweeps import read_sweep
from emlens.data.tables import read_csv_rows
from emlens.foundation.errors import InputError
from emlens.foundation.files import read_json
from emlens.replication.published_figures import Figure, Group, judged_rates
from emlens.stats import pearson, spearman

SWEEP: Final = "em-generalization/td_agg_df_fpq.csv"
SWEEP_AUTHORS: Final = "em-generalization/max_diffs_all_df.csv"
OVERLAP: Final = "em-generalization/finance_to_hbp.layer_32.last_prompt_token.k0.95.json"
FINANCE: Final = "em-generalization/eval_Qwen2.5-32B-Instruct_finance_all_resp_1e-05_fpq.csv"

_AUTHORS_ROW: Final = "fpq-harmless-train_final_avg_loss"
_OVERLAP_KEYS: Final = (
    "prompt_pca_projection_fraction",
    "random_projection_fraction",
    "mean_delta_cosine",
)


def _schedules(root: Path) -> list[Figure]:
    runs = read_sweep(root / SWEEP).table
    for name in ("train_loss", "eval_loss", "harmless", "aligned"):
        if name not in runs:
            raise InputError(f"{root / SWEEP}: has no {name}; pass the file as it was released")
    train, evaluation = runs["train_loss"], runs["eval_loss"]
    harmless, aligned = runs["harmless"], runs["aligned"]
    figures = [Figure(SWEEP, "runs", "35", len(train), True, function="read_sweep")]
    for name, published, value in (
        ("Pearson of training loss and harmless", ".8229", pearson(train, harmless)),
        ("Pearson of evaluation loss and harmless", ".8178", pearson(evaluation, harmless)),
        ("Pearson of training loss and aligned", ".8282", pearson(train, aligned)),
        ("Spearman of training loss and aligned", ".7509", spearman(train, aligned)),
    ):
        function = name.split()[0].lower()
        figures.append(Figure(SWEEP, name, published, value.value, function=function))
    return figures


def _schedules_authors(root: Path) -> list[Figure]:
    name = "Pearson of training loss and harmless, authors' own"
    note = "read from the authors' table, which has other runs"
    for _, row in read_csv_rows(root / SWEEP_AUTHORS):
        if _AUTHORS_ROW in row.values():
            try:
                value = float(row["pearsonr_stats"])
            except (KeyError, ValueError):
                value = math.nan
            return [
                Figure(SWEEP_AUTHORS, name, ".8286", value, note=note, function="read_csv_rows")
            ]
    raise InputError(f"{root / SWEEP_AUTHORS}: has no row {_AUTHORS_ROW!r}")


def _overlap_and_shift(root: Path) -> list[Figure]:
    content = read_json(root / OVERLAP)
    rows = content.get("per_example") if isinstance(content, dict) else None
    try:
        overlap, random, cosine = ([float(row[key]) for row in rows or ()] for key in _OVERLAP_KEYS)
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{root / OVERLAP}: an entry of per_example lacks a number under one of"
            f" {', '.join(_OVERLAP_KEYS)}"
        ) from None
    if not overlap:
        raise InputError(f"{root / OVERLAP}: has no entry under per_example")
    n = len(overlap)
    figures = [Figure(OVERLAP, "prompts", "320", n, True, function="read_json")]
    for name, published, value, function in (
        ("mean prompt overlap", ".8117", sum(overlap) / n, "read_json"),
        ("mean overlap with random directions", ".2268", sum(random) / n, "read_json"),
        ("mean cosine to the mean training delta", ".7726", sum(cosine) / n, "read_json"),
        ("Pearson of overlap and cosine", ".8868", pearson(overlap, cosine).value, "pearson"),
        ("Spearman of overlap and cosine", ".8515", spearman(overlap, cosine).value, "spearman"),
    ):
        figures.append(Figure(OVERLAP, name, published, value, function=function))
    return figures


def _judged_finance(root: Path) -> list[Figure]:
    scores = AlignmentScores.from_file(root / FINANCE)
    answers = len(scores.select(metrics=["aligned"]).table)
    return [
        Figure(FINANCE, "rows", "2400", answers, True, function="AlignmentScores.select"),
        Figure(
            FINANCE,
            "questions",
            "24",
            len(scores.questions),
            True,
            function="AlignmentScores.from_file",
        ),
        *judged_rates(FINANCE, "24 questions", scores, "23.67", "95.67"),
    ]


GROUPS: Final = (
    Group((SWEEP,), _schedules),
    Group((SWEEP_AUTHORS,), _schedules_authors),
    Group((OVERLAP,), _overlap_and_shift),
    Group((FINANCE,), _judged_finance),
)
