"""A table is as it was declared, or the first fault is named, with the line to write."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from emlens.foundation.errors import IntegrityError, UnknownNameError
from emlens.foundation.estimate import Estimate
from emlens.results import Column, Finding, Measure, StudyResult, Table
from emlens.results.estimates import estimates_of
from emlens.results.tables import check_tables
from emlens.results.vocabulary import BESIDE, PLACE, VALUE, VOCABULARY, measures, word

RHO = Measure(Column("rho", "number", "correlation", low=-1, high=1))
DECLARED = {
    "t": Table(
        "One row per model and layer.",
        ["model layer", RHO, "p chosen n"],
        optional=["kl"],
    )
}


def table(**cells: object) -> pd.DataFrame:
    columns = {
        "model": ["a", "b"],
        "layer": [0, 1],
        "rho": [0.5, np.nan],
        "rho_low": [-1.5, np.nan],
        "rho_high": [1.5, np.nan],
        "p": [0.0, 1.0],
        "chosen": [True, False],
        "n": [3.0, 4.0],
    }
    return pd.DataFrame({**columns, **cells})


def test_a_table_as_declared_passes() -> None:
    check_tables({"t": table()}, DECLARED)
    check_tables({"t": table(kl=[0.1, np.nan])}, DECLARED)
    check_tables({"t": table().iloc[:0]}, DECLARED)
    check_tables({"t": pd.DataFrame()}, DECLARED)  # no row, so nothing named the columns
    check_tables({"t": table(rho=[1 + 1e-12, -1.0])}, DECLARED)  # rounding


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (
            table(extra=[1, 2]),
            'column \'extra\' is not declared; .*Column\\("extra", "integer", "W',
        ),
        (table().drop(columns="p"), "table 't': column 'p' is missing; fill it, or declare it"),
        (table(p=[0.5, 1.5]), "table 't', column 'p': row 1 holds 1.5, but the range is 0 to 1"),
        (table(n=[-1, 2]), "table 't', column 'n': row 0 holds -1, but the range is ≥ 0"),
        (
            table(n=[1.5, 2]),
            "column 'n': row 0 holds 1.5, .* declared as an integer",
        ),
        (table(layer=["x", "y"]), "column 'layer': row 0 holds 'x', .* declared as an integer"),
        (table(model=[1, 2]), "column 'model': row 0 holds 1, .* declared as text"),
        (
            table(model=["a", np.nan]),
            "column 'model': row 1 is empty, .* names the row",
        ),
        (table(chosen=[1, 0]), "column 'chosen': row 0 holds 1, .* declared as True or False"),
        (table(rho=[True, False]), "column 'rho': row 0 holds True, .* declared as a number"),
    ],
)
def test_the_first_fault_is_named(frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        check_tables({"t": frame}, DECLARED)


def test_an_undeclared_table_is_refused_with_the_line_to_write() -> None:
    frame = pd.DataFrame({"x": [1], "y": [0.5], "z": [True], "w": ["a"]})
    with pytest.raises(
        IntegrityError, match="table 'new' is not declared; add to the sec"
    ) as found:
        check_tables({"new": frame}, DECLARED)
    line = str(found.value).partition('"new": ')[2]
    written = eval(line, {"Table": Table, "Column": Column})
    check_tables({"new": frame}, {"new": written})


def test_further_columns_are_let_through_where_the_table_says_so() -> None:
    declared = {"t": Table("One row per run.", ["run loss"], further="settings of the run")}
    check_tables({"t": pd.DataFrame({"run": ["a"], "loss": [1.0], "mine": [2]})}, declared)


def test_a_slip_of_the_library_is_a_line_in_the_log_for_users(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = {"t": table(p=[0.5, 1.5])}
    with pytest.raises(IntegrityError):
        check_tables(broken, DECLARED, own=True)
    monkeypatch.delenv("EMLENS_STRICT_TABLES")
    with caplog.at_level(logging.WARNING, "emlens"):
        check_tables(broken, DECLARED, own=True)
    assert "row 1 holds 1.5" in caplog.text
    with pytest.raises(IntegrityError):
        check_tables(broken, DECLARED)


def test_groups_and_measures_are_columns_of_the_vocabulary() -> None:
    declared = Table("", [PLACE, VALUE, BESIDE, *measures("aligned coherent")])
    assert list(declared.all_columns) == [
        *("model", "site", "layer", "position", "value", "low", "high"),
        *("null_mean", "null_q95", "p"),
        *("aligned", "aligned_low", "aligned_high", "coherent", "coherent_low", "coherent_high"),
    ]
    assert VALUE.cells(Estimate(1.0, 0.5, 1.5, 3, "")) == {"value": 1.0, "low": 0.5, "high": 1.5}
    assert declared.all_columns["aligned_low"].unit == "points of 100"
    with pytest.raises(UnknownNameError, match=r"column 'alligned' is not in the vocabulary"):
        word("alligned")


def test_a_word_of_the_vocabulary_has_a_meaning_and_a_range_that_is_one() -> None:
    for name, column in VOCABULARY.items():
        assert column.name == name and column.meaning and column.low < column.high
        assert not name.endswith(("_low", "_high")) or name.startswith(("dose", "null")), name
    assert VOCABULARY["p"].range == "0 to 1" and VOCABULARY["n"].range == "≥ 0"
    assert VOCABULARY["r2"].range == "≤ 1" and VOCABULARY["difference"].range == ""


def test_declared_columns_are_in_the_result_and_come_back(tmp_path: Path) -> None:
    result = StudyResult(
        "x", {}, {"t": table()}, [Finding("x", "It is.")], [], {}, declared=DECLARED
    )
    loaded = StudyResult.load(result.save(tmp_path)).declared["t"]
    assert loaded.row == "One row per model and layer." and loaded.measures == [
        Measure(RHO.value, "rho_low", "rho_high")
    ]
    assert loaded.all_columns == DECLARED["t"].all_columns
    assert loaded.required_columns == DECLARED["t"].required_columns


def test_estimates_are_the_measures_that_a_table_declares() -> None:
    declared = {
        "t": Table(
            "",
            ["model k text", Measure(word("overlap"), null="null_mean"), "null_mean loss"],
        )
    }
    frame = pd.DataFrame(
        {
            "model": ["a", "b"],
            "k": [3, 3],
            "text": ["long", "longer"],
            "loss": [1.0, 2.0],
            "overlap": [0.5, np.nan],
            "overlap_low": [0.4, np.nan],
            "overlap_high": [0.6, np.nan],
            "null_mean": [0.1, 0.1],
        }
    )
    (row,) = estimates_of({"t": frame, "other": frame}, declared).to_dict("records")
    assert row == {
        "table": "t",
        "figure": "overlap",
        "key": "model=a, k=3",
        "value": 0.5,
        "low": 0.4,
        "high": 0.6,
        "null": 0.1,
    }
    assert estimates_of({}, declared).empty
