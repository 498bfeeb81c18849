"""Every table that a study writes is declared, and one word has one meaning in all of them."""

from typing import Any

from benchmarks.table_columns import tables_of_studies
from emlens.results.tables import check_tables
from emlens.results.vocabulary import VOCABULARY
from emlens.studies.registry import INCLUDED, all_studies


def test_every_table_of_a_finished_study_is_as_it_was_declared(finished: Any) -> None:
    result = finished.result
    assert set(result.tables) <= set(result.declared) and len(result.tables) > 20
    check_tables(result.tables, result.declared)
    declared = {}
    for name in ("profile", "delta_overlap", "direction_transfer", "priors"):
        section = all_studies()[name].section
        assert section is not None
        declared |= section.tables
    check_tables(result.tables, declared)


def test_every_study_of_the_library_declares_tables_in_words_of_the_vocabulary() -> None:
    assert set(tables_of_studies()) == {*INCLUDED, "screening"}
    for study, tables in tables_of_studies().items():
        assert tables, study
        for name, table in tables.items():
            ends = {end for measure in table.measures for end in measure.ends}
            for column in table.all_columns.values():
                is_word = VOCABULARY.get(column.name) == column
                assert is_word or column.name in ends, (study, name, column.name)


def test_a_word_of_the_vocabulary_stands_in_some_table() -> None:
    in_tables = set()
    for tables in tables_of_studies().values():
        for table in tables.values():
            in_tables |= set(table.all_columns)
    assert set(VOCABULARY) - in_tables == set()
