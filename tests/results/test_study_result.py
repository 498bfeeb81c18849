import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from emlens.foundation.errors import InputError, IntegrityError
from emlens.foundation.files import read_json
from emlens.results import Finding, StudyResult
from emlens.results.study_result import SCHEMA_VERSION
from emlens.results.table_files import read_table, text_columns, write_table


def result(tables: dict[str, pd.DataFrame]) -> StudyResult:
    return StudyResult(
        "profile",
        {"k": 1},
        tables,
        [Finding("a", "<b>bold</b> & co", "shown")],
        ["careful"],
        {"n": 1},
        "note",
    )


def test_tables_come_back_with_their_types(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "question": ["007", "1e5", "NA"],
            "group": ["", "", ""],
            "text": ['<script>alert("x")</script>, a', "line\nbreak", "carriage\rreturn"],
            "value": [1 / 3, np.nan, 1e-300],
            "n": [1, 2, 3],
            "flag": [True, False, True],
            "empty": [np.nan] * 3,
            "label": ["a", "", "NA"],
        }
    )
    write_table(tmp_path / "t.csv", table)
    found = read_table(tmp_path / "t.csv")
    assert list(found.columns) == list(table.columns)
    for name in ("question", "group", "text", "flag", "label"):
        assert found[name].tolist() == table[name].tolist(), name
    np.testing.assert_allclose(found["value"], table["value"], rtol=1e-9)
    assert found["n"].tolist() == [1, 2, 3] and found["empty"].isna().all()
    before = (tmp_path / "t.csv").read_bytes()
    write_table(tmp_path / "t.csv", found)
    assert (tmp_path / "t.csv").read_bytes() == before  # reading and writing loses nothing


def test_a_written_result_is_read_back_and_a_changed_table_is_not(tmp_path: Path) -> None:
    tables = {"models": pd.DataFrame({"model": ["a"], "value": [0.5]})}
    write_table(tmp_path / "tables" / "models.csv", tables["models"])
    result(tables).write(tmp_path)
    loaded = StudyResult.load(tmp_path)
    assert loaded.study == "profile" and loaded.findings == [
        Finding("a", "<b>bold</b> & co", "shown")
    ]
    assert loaded.warnings == ["careful"] and loaded.note == "note" and loaded.run == {}
    pd.testing.assert_frame_equal(loaded.tables["models"], tables["models"], check_dtype=False)
    assert loaded.table.to_dict("records") == [
        {"section": "a", "status": "shown", "sentence": "<b>bold</b> & co"}
    ]
    assert (
        "&lt;b&gt;bold&lt;/b&gt; &amp; co" in loaded._repr_html_()
        and "<b>" not in loaded._repr_html_()
    )
    table = tmp_path / "tables" / "models.csv"
    table.write_text(table.read_text().replace("0.5", "0.6"))
    with pytest.raises(
        IntegrityError,
        match=(
            r"models\.csv: is missing or was changed after the study wrote it; run the study again"
        ),
    ):
        StudyResult.load(tmp_path)
    table.unlink()
    with pytest.raises(IntegrityError, match=r"models\.csv: is missing"):
        StudyResult.load(tmp_path)
    with pytest.raises(
        InputError, match=r"holds no result\.json; pass a directory that a study finished in"
    ):
        StudyResult.load(tmp_path / "tables")


def saved(directory: Path) -> Path:
    tables = {"models": pd.DataFrame({"model": ["a"], "value": [0.5]})}
    return result(tables).save(directory) / "result.json"


def test_a_result_has_a_version_and_an_edited_one_is_found(tmp_path: Path) -> None:
    file = saved(tmp_path)
    record = read_json(file)
    assert record["schema_version"] == SCHEMA_VERSION == 1
    assert saved(tmp_path / "again").read_bytes() == file.read_bytes()
    file.write_text(file.read_text().replace("careful", "careless"))
    with pytest.raises(
        IntegrityError,
        match=r"result\.json: was changed after the study wrote it; run the study again",
    ):
        StudyResult.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", r"result\.json: holds a list, not a study's result; run the study again"),
        ("{}", r"result\.json: schema_version is missing or no int; run the study again"),
        ('{"schema_version": 1, "study": 3}', r"result\.json: study is missing or no str"),
        ('{"schema_version": 2}', "has schema_version 2, and this emlens reads up to 1; update"),
        ("{", r"result\.json, line 1: not valid JSON"),
        ("", r"result\.json, line 1: not valid JSON"),
    ],
)
def test_what_is_no_result_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = saved(tmp_path)
    file.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        StudyResult.load(tmp_path)
    assert "\n" not in str(caught.value)
    assert file.read_text() == text


@pytest.mark.parametrize("text", ["[]", '{"schema_version": 2}', "{", "", "{}", '{"study": 3}'])
def test_what_is_no_result_of_this_study_is_never_overwritten(tmp_path: Path, text: str) -> None:
    file = saved(tmp_path)
    file.write_text(text)
    with pytest.raises(InputError, match=r"result\.json|holds a result of study") as caught:
        saved(tmp_path)
    assert "\n" not in str(caught.value)
    assert file.read_text() == text


def test_a_result_of_an_earlier_build_is_replaced_when_its_study_runs_again(tmp_path: Path) -> None:
    file = saved(tmp_path)
    record = read_json(file)
    earlier = {"study": record["study"], "tables": []}  # without schema_version
    file.write_text(json.dumps(earlier))
    with pytest.raises(InputError, match="schema_version is missing"):
        StudyResult.load(tmp_path)
    assert read_json(saved(tmp_path)) == record


def test_text_stays_text_in_every_column_of_every_table(finished: Any, tmp_path: Path) -> None:
    unlisted = ("source", "cell", "family", "kind", "what", "direction", "arm", "key")
    tables = {"unlisted": pd.DataFrame({column: ["007", "1e3"] for column in unlisted})}
    for name, table in finished.result.tables.items():
        looks = itertools.cycle(["007", "1e3", "True", ""])
        tables[name] = table.assign(
            **{column: list(itertools.islice(looks, len(table))) for column in text_columns(table)}
        )
    loaded = StudyResult.load(result(tables).save(tmp_path))
    for name, table in tables.items():
        for column in text_columns(table):
            assert loaded.tables[name][column].tolist() == table[column].tolist(), (name, column)
    again = result(dict(loaded.tables)).save(tmp_path / "again")
    assert (again / "result.json").read_bytes() == (tmp_path / "result.json").read_bytes()


def test_a_part_that_is_read_back_keeps_the_types_of_its_columns(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "family": ["007", "1e3"],
            "flag": ["True", "False"],
            "some": [1.0, np.nan],
            "mixed": ["", 2.0],
        }
    )
    assert text_columns(table) == ["family", "flag"]
    write_table(tmp_path / "t.csv", table)
    found = read_table(tmp_path / "t.csv", text_columns(table))
    assert found["family"].tolist() == ["007", "1e3"] and found["flag"].tolist() == [
        "True",
        "False",
    ]
    assert (
        found["some"].iloc[0] == 1
        and found["mixed"].iloc[1] == 2
        and text_columns(found) == ["family", "flag"]
    )
