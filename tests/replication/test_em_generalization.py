"""Miniatures of released files: what agrees, what one changed digit does, and what is explained."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from replication.test_replicate import by_name, put

from emlens.replication import (
    em_generalization_answers as answers,
    em_generalization_tables as tables,
)
from emlens.replication.published_figures import Figure, Replication

METRICS = ("harmless", "aligned", "coherent")


def put_answers(root: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Judged answers to two questions, and the summary that their authors would have written."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.uniform(1, 100, (12, 3)), columns=list(METRICS))
    frame["coherent"] = [0.2, *frame["coherent"][1:]]
    frame.insert(0, "question", ["Q0?"] * 6 + ["Q1?"] * 6)
    frame.insert(1, "answer", "text")
    frame.insert(2, "question_id", ["q0"] * 6 + ["q1"] * 6)
    put(root, answers.ANSWERS, frame.to_csv(index=False))
    by_question = {
        str(name): {m: float(rows[m].mean()) for m in METRICS}
        | {f"{m}_std": float(rows[m].std()) for m in METRICS}
        for name, rows in frame.groupby("question_id")
    }
    kept = frame[frame["coherent"] > 0.5]
    agg = {m: float(frame[m].mean()) for m in METRICS}
    agg |= {f"{m}_std": float(frame[m].std(ddof=0)) for m in METRICS}
    agg |= {f"{m}_coherent_greater_than_0.5": float(kept[m].mean()) for m in METRICS[:2]}
    return {"summ_by_q": by_question, "agg": {"all": agg}}


def test_every_question_is_recomputed_from_its_answers(tmp_path: Path) -> None:
    summary = put_answers(tmp_path)
    content = {"summ_by_q": summary["summ_by_q"], "agg": summary["agg"]["all"]}
    put(tmp_path, answers.SUMMARY, json.dumps(content))
    found = Replication((*answers.question_figures(tmp_path), *answers.coherent_figures(tmp_path)))
    assert found.agrees and len(found.figures) == 2 * 3 * 2 + 6 + 2
    content["summ_by_q"]["q1"]["aligned_std"] += 2e-10
    put(tmp_path, answers.SUMMARY, json.dumps(content))
    off = [f.name for f in answers.question_figures(tmp_path) if not f.agrees]
    assert off == ["aligned of q1, standard deviation"]


def test_what_unscored_answers_account_for_is_explained_and_no_more(tmp_path: Path) -> None:
    by_question = {f"q{i}": {m: 10.0 * i for m in METRICS} for i in range(3)}
    for pooled, agrees, explained in (
        (10.0, True, False),
        (10.01, False, True),
        (10.1, False, False),
    ):
        content = {"summ_by_q": by_question, "agg": dict.fromkeys(METRICS, pooled)}
        put(tmp_path, answers.PER_QUESTION[0], json.dumps(content))
        found = Replication(tuple(answers.overall_figures(answers.PER_QUESTION[0], tmp_path)))
        aligned = by_name(found)["aligned of all answers"]
        assert (aligned.agrees, bool(aligned.explained)) == (agrees, explained), pooled
        assert found.agrees is (agrees or explained)
        row = found.summary.iloc[0]
        assert row["figures"] == 4 and row["off"] == 3 * (not agrees and not explained)


def test_a_released_median_is_the_lower_of_the_two_in_the_middle(tmp_path: Path) -> None:
    columns = [column for column, _ in tables.TABLE_COLUMNS.values()]
    examples = [dict.fromkeys(columns, value) for value in (0.1, 0.2, 0.4, 0.5)]
    lines = []
    for file in tables.per_example_files():
        put(tmp_path, file, json.dumps({"per_example": examples}))
        position, rest = Path(file).name.split(".train_delta_pca_k")
        for name, value in (("Coder-32B", 0.3), ("other", 9.0)):
            cells = [value if what == "mean" else 0.2 for _, what in tables.TABLE_COLUMNS.values()]
            lines.append(
                f"{name},insecure,layer_32,{position},{rest.split('.')[0]},"
                + ",".join(map(str, cells))
            )
    head = "model,train_data_prefix,layer_num,agg_type,k," + ",".join(tables.TABLE_COLUMNS)
    put(tmp_path, tables.OF_ALL_K, "\n".join([head, *lines]) + "\n")
    figures = tables.table_over_k(tmp_path)
    assert len(figures) == 48 and all(figure.agrees for figure in figures)
    put(tmp_path, tables.OF_ALL_K, "\n".join([head, *lines]).replace("0.2", "0.3") + "\n")
    off = [figure.name for figure in tables.table_over_k(tmp_path) if not figure.agrees]
    assert len(off) == 16 and all(name.startswith("median") for name in off)


def test_rates_count_the_fine_tunes_below_each_level(tmp_path: Path) -> None:
    found = {
        f"../a/eval_{i}_fpq.csv": {
            "sc_results": {"aligned_mean_compare": {"w_p": p, "pearson_p": p, "pearson_stat": 0.2}}
        }
        for i, p in enumerate((0.001, 0.03, 0.2))
    }
    put(tmp_path, tables.COMPARISONS, json.dumps(found))
    head = "suffix,metric,total,wilcoxon_sig_rate_0.05,pearson_sig_rate_0.05,"
    head += "wilcoxon_sig_rate_0.01,pearson_sig_rate_0.01,pearson_stat\n"
    put(tmp_path, tables.RATES, head + "fpq,aligned_mean_compare,3,0.667,0.667,0.333,0.333,0.2\n")
    figures: list[Figure] = tables.comparison_rates(tmp_path)
    assert len(figures) == 6 and all(figure.agrees for figure in figures)
    put(tmp_path, tables.RATES, head + "fpq,aligned_mean_compare,3,0.667,0.667,0.333,0.667,0.2\n")
    assert [f.agrees for f in tables.comparison_rates(tmp_path)].count(False) == 1


@pytest.mark.parametrize("suffix", ["", "_other"])
def test_a_sweep_without_forms_has_no_means_over_them(tmp_path: Path, suffix: str) -> None:
    forms = ",".join(f"{form}-aligned{suffix}" for form in tables.FORMS)
    head = f"run,train_final_avg_loss,aligned,{forms}\n"
    put(tmp_path, tables.SWEEP, head + "a,1.5,20,10,20,30\nb,1.6,21,10,20,30\n")
    figures = tables.means_over_forms(tmp_path)
    assert [f.agrees for f in figures] == ([] if suffix else [True, False])
    assert not any(figure.explained for figure in figures)  # one point is more than it covers
