"""Two results: what is planted in one is found as a difference, equal results differ nowhere, and
unlike ones are refused.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from emlens.foundation.errors import InputError
from emlens.report import write_report
from emlens.results import StudyResult
from emlens.results.estimates import estimates_of
from emlens.stats import bootstrap_mean
from emlens.studies import run_study
from emlens.studies.comparing import compare_results, difference_interval
from emlens.studies.overlap_section import SECTION as OVERLAP
from emlens.studies.profile_section import SECTION as PROFILE


def result(
    shift: float = 0.0, seed: int = 0, study: str = "profile", questions: str = "q", k: int = 8
) -> StudyResult:
    rng = np.random.default_rng(seed)
    rows = []
    for model in ("instruct", "bad"):
        for i in range(40):
            down = shift if model == "bad" and i >= 10 else 0.0
            group = "north" if i < 10 else "south"
            row = {
                "model": model,
                "question": f"{i:03d}",
                "group": group,
                "text": f"t{i}",
                "trained": i == 0,
            }
            rows.append({**row, "aligned": 80 + rng.normal() / 3 - down, "coherent": 90.0})
    asked = pd.DataFrame(rows)
    models = []
    for model, domain in (("instruct", ""), ("bad", "north")):
        mine = asked[(asked["model"] == model) & (asked["group"] != domain)]["aligned"]
        found = bootstrap_mean(mine.to_numpy(), seed=0)
        models.append(
            {
                "model": model,
                "domain": domain,
                "aligned_others": found.value,
                "aligned_others_low": found.low,
                "aligned_others_high": found.high,
            }
        )
    ends = {"low": [0.4, np.nan], "high": [0.6, np.nan], "null_mean": [0.1, 0.2]}
    overlap = pd.DataFrame(
        {
            "model": ["bad"] * 2,
            "layer": [0, 1],
            "null_kind": ["a", "a"],
            "value": [0.5, 0.6],
            **ends,
        }
    )
    tables = {"models": pd.DataFrame(models), "questions": asked, "overlap": overlap}
    facts = {
        "questions": {"n": 40, "sha256": questions},
        "models": {},
        "versions": {},
        "threads": 1,
    }
    declared = {**PROFILE.tables, **OVERLAP.tables}
    config = {"study": study, "k": k}
    return StudyResult(study, config, tables, [], [], facts, declared=declared)


def test_a_result_does_not_differ_from_itself() -> None:
    same = compare_results(result(), result())
    assert (same.tables["figures"]["difference"] == 0).all() and not len(same.tables["unmatched"])
    assert all(f.status != "shown" for f in same.findings)


def test_what_was_planted_in_one_is_found_where_it_was_planted() -> None:
    found = compare_results(result(), result(shift=5.0, seed=1))
    paired = found.tables["paired"].set_index(["what", "metric"])
    moved = paired.loc[("bad, other domains", "aligned")]
    assert moved["difference_low"] < -5 < moved["difference_high"] < 0 and moved["n"] == 30
    for still in ("instruct, all questions", "bad, its own domain"):
        row = paired.loc[(still, "aligned")]
        assert abs(row["difference"]) < 1
    # not the question it was trained on
    assert paired.loc[("bad, its own domain", "aligned"), "n"] == 9
    assert "shown" in [
        f.status for f in found.findings if f.sentence.startswith("bad, other domains")
    ]


def test_figures_carry_value_interval_and_null_by_name() -> None:
    figures = estimates_of(result().tables, result().declared).set_index(["table", "figure", "key"])
    row = figures.loc[("overlap", "value", "model=bad, layer=0, null_kind=a")]
    assert (row["value"], row["low"], row["high"], row["null"]) == (0.5, 0.4, 0.6, 0.1)
    assert ("models", "aligned_others", "model=bad, domain=north") in figures.index
    assert "questions" not in figures.index.get_level_values("table")
    assert estimates_of({}, {}).empty


def test_the_interval_of_a_difference_of_independent_means_is_the_usual_one() -> None:
    low, high = difference_interval(1.0, 0.0, 2.0, 4.0, 2.0, 6.0)
    assert (low, high) == pytest.approx((3 - 5**0.5, 3 + 5**0.5))
    assert all(np.isnan(difference_interval(1.0, np.nan, np.nan, 4.0, 2.0, 6.0)))


def test_unlike_results_are_refused_unless_told_otherwise() -> None:
    other = result(study="overview", questions="p", k=4)
    said = (
        r"not comparable: A is a result of study 'profile', B of 'overview';"
        r" they asked different questions \(hashes q and p\)\. Pass --anyway"
    )
    with pytest.raises(InputError, match=said):
        compare_results(result(), other)
    found = compare_results(result(), other, anyway=True)
    assert "k is 8 in A and 4 in B" in found.warnings and len(found.warnings) == 3
    bare = StudyResult(
        "profile", {}, {"empty": pd.DataFrame()}, [], [], {"questions": {"sha256": "q"}}
    )
    with pytest.raises(
        InputError, match="the results share no number: no table, model and place is in both"
    ):
        compare_results(result(), bare)


def test_it_is_saved_read_and_drawn(tmp_path: Path) -> None:
    found = compare_results(result(), result(shift=5.0))
    directory = found.save(tmp_path / "c")
    again = StudyResult.load(directory)
    assert [f.sentence for f in again.findings] == [f.sentence for f in found.findings] and len(
        again.tables["figures"]
    ) == len(found.tables["figures"])
    page = write_report(again, directory / "report.html").read_text()
    assert "bad, other domains" in page
    with pytest.raises(
        InputError,
        match=(
            "holds a result of study 'compare', which study 'profile' would replace;"
            " pass another --out"
        ),
    ):
        result().save(directory)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: is a file; pass a directory for --out"):
        found.save(tmp_path / "file")


def test_a_comparison_is_no_study_to_run(config_path: Path, tmp_path: Path) -> None:
    text = config_path.read_text().replace("study: overview", "study: compare")
    path = config_path.with_name("compare.yaml")
    path.write_text(text)
    with pytest.raises(
        InputError,
        match="compare was left out: it compares two finished results; run: emlens compare A B",
    ):
        run_study(path, tmp_path / "out", progress=False)
