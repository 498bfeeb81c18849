"""Figures from the tables of aisa-group/em-generalization: overlap by number of components, rates
of significant relations with the base model, and means over the forms of a question.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from emlens.data.sweeps import read_sweep
from emlens.data.tables import read_csv_rows
from emlens.foundation.errors import InputError
from emlens.foundation.files import read_json
from emlens.replication.published_figures import Figure, Group

KS: Final = (1, 2, 4, 8, 16, 32, 64, 128)
OF_ALL_K: Final = "em-generalization/all_k_delta_comparison_metrics.csv"
BY_K: Final = "em-generalization/k_comparison_summary.csv"
RATES: Final = "em-generalization/comparison_rates.csv"
COMPARISONS: Final = "em-generalization/pretrained_comparison_output_orig.json"
SWEEP: Final = "em-generalization/td_agg_df_fpq.csv"
POSITIONS: Final = ("last_prompt_token", "mean_prompt")
TABLE_COLUMNS: Final = {
    "mean_pca_projection_fraction": ("pca_projection_fraction", "mean"),
    "median_pca_residual_fraction": ("pca_residual_fraction", "median"),
    "mean_pca_cosine_reconstructed_eval_delta": ("pca_cosine_reconstructed_eval_delta", "mean"),
}
"""Column of the table → column of a file's rows, and what is taken of it."""
CONSTANT: Final = "mean_cosine_eval_delta_train_mean_delta"
"""The same for every k."""
FORMS: Final = ("raw", "json", "template")
UNSCORED: Final = "the file pools answers, so a form with unscored answers counts less there"
UNSCORED_COVERS: Final = 0.05
"""Points of 100 that unscored answers account for."""


def per_example_files() -> tuple[str, ...]:
    """The files with one row per question, of one k and position each."""
    return tuple(
        f"em-generalization/deltas_by_k/{position}.train_delta_pca_k{k}.eval_delta_compare.json"
        for position in POSITIONS
        for k in KS
    )


def _table(root: Path, file: str) -> pd.DataFrame:
    return pd.DataFrame([row for _, row in read_csv_rows(root / file)])


def _number(cell: Any, file: str) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError):
        raise InputError(f"{file}: {cell!r} is no number; pass the file as released") from None


def _examples(root: Path, file: str) -> pd.DataFrame:
    content = read_json(root / file)
    rows = content.get("per_example") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{root / file}: has no rows under 'per_example'")
    return pd.DataFrame(rows)


def table_over_k(root: Path) -> list[Figure]:
    """Cells of the table over k from the rows of the sixteen files that made them."""
    table = _table(root, OF_ALL_K)
    of_pair = table[
        table["model"].str.contains("Coder")
        & (table["train_data_prefix"] == "insecure")
        & (table["layer_num"] == "layer_32")
    ]
    figures = []
    for file in per_example_files():
        position, rest = Path(file).name.split(".train_delta_pca_k")
        k = rest.split(".")[0]
        [row] = of_pair[(of_pair["agg_type"] == position) & (of_pair["k"] == k)].to_dict(
            orient="records"
        )
        rows = _examples(root, file)
        for name, (column, what) in TABLE_COLUMNS.items():
            figures.append(
                Figure(
                    OF_ALL_K,
                    f"{name}, {position}, k {k}",
                    # sums of the released table are float32, which leaves five decimals
                    f"{_number(row[name], OF_ALL_K):.5f}",
                    float(rows[column].mean() if what == "mean" else _lower_median(rows[column])),
                    function="read_csv_rows",
                )
            )
    return figures


def _lower_median(values: "pd.Series[float]") -> float:
    """The lower of the two middle values, which is what torch calls the median."""
    return float(values.quantile(0.5, interpolation="lower"))


def summary_by_k(root: Path) -> list[Figure]:
    """Means over the settings of the table, by k."""
    table, summary = _table(root, OF_ALL_K), _table(root, BY_K)
    names = [name for name in summary.columns if name not in ("k", CONSTANT)]
    means = table[names].astype(float).groupby(table["k"]).mean()
    figures = []
    for row in summary.to_dict(orient="records"):
        for name in names:
            value = float(means.loc[row["k"], name])
            figures.append(
                Figure(BY_K, f"{name}, k {row['k']}", row[name], value, function="read_csv_rows")
            )
    return figures


def comparison_rates(root: Path) -> list[Figure]:
    """How often a fine-tune's questions differ from the base model's, or go with them."""
    compared = _comparisons(root)
    figures = []
    for row in _table(root, RATES).to_dict(orient="records"):
        of_pair = compared[
            (compared["suffix"] == row["suffix"]) & (compared["metric"] == row["metric"])
        ]
        where = f"{row['metric']}, {row['suffix']}"
        figures.append(Figure(RATES, f"{where}: fine-tunes", row["total"], len(of_pair), True))
        for test, p in (("wilcoxon", "w_p"), ("pearson", "pearson_p")):
            for level in ("0.05", "0.01"):
                column = f"{test}_sig_rate_{level}"
                share = float((of_pair[p] < float(level)).mean())
                figures.append(_rate(f"{where}: {column}", row[column], share))
        mean = float(of_pair["pearson_stat"].mean())
        figures.append(
            Figure(RATES, f"{where}: mean Pearson", row["pearson_stat"], mean, function="read_json")
        )
    return figures


def _rate(name: str, printed: str, share: float) -> Figure:
    """A share, which its authors printed with three decimals and without trailing zeros."""
    return Figure(RATES, name, f"{float(printed):.3f}", share, function="read_json")


def _comparisons(root: Path) -> pd.DataFrame:
    content = read_json(root / COMPARISONS)
    rows: list[dict[str, Any]] = []
    for name, entry in content.items() if isinstance(content, dict) else ():
        suffix = Path(str(name)).stem.rpartition("_")[2]
        results: Mapping[str, Mapping[str, float]] = entry.get("sc_results", {})
        rows += [{"suffix": suffix, "metric": metric, **found} for metric, found in results.items()]
    if not rows:
        raise InputError(f"{root / COMPARISONS}: has no results under 'sc_results'")
    return pd.DataFrame(rows)


def means_over_forms(root: Path) -> list[Figure]:
    """Scores of every run of the sweep as the mean over three forms of the same questions."""
    runs = read_sweep(root / SWEEP).table
    figures = []
    for metric in ("harmless", "aligned"):
        forms = [f"{form}-{metric}" for form in FORMS]
        if not {metric, *forms} <= set(runs.columns):
            continue  # a sweep whose questions have one form
        for run in runs.to_dict(orient="records"):
            name = str(run["run"]).removeprefix("eval_Qwen2.5-32B-Instruct_").removesuffix("_fpq")
            figures.append(
                Figure(
                    SWEEP,
                    f"{metric} of {name}, mean over forms",
                    f"{run[metric]:.10f}",
                    float(np.mean([run[form] for form in forms])),
                    function="read_sweep",
                    reason=UNSCORED,
                    reason_covers=UNSCORED_COVERS,
                )
            )
    return figures


GROUPS: Final = (
    Group((OF_ALL_K, *per_example_files()), table_over_k),
    Group((OF_ALL_K, BY_K), summary_by_k),
    Group((RATES, COMPARISONS), comparison_rates),
    Group((SWEEP,), means_over_forms),
)
