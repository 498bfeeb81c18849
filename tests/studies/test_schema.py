"""The schema says yes to what `read_config` takes and no to what it refuses by type, name or bound;
every part's options are in it.
"""

import json
from typing import Any

import jsonschema
import pytest

from emlens.cli.study import DEMO
from emlens.foundation.errors import InputError
from emlens.studies import read_config
from emlens.studies.registry import all_studies, study_names
from emlens.studies.schema import config_schema, schema_text
from emlens.studies.study import NoOptions

JUDGED = {"how": "judged", "files": {"a": "a.csv"}}
FAMILY = {"instruct": "i", "finetuned": {"a": {"path": "p"}}}


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return config_schema()


def said_yes(schema: dict[str, Any], record: Any) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(json.loads(json.dumps(record)))


def test_it_is_a_schema_and_text_of_it(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    assert json.loads(schema_text()) == schema
    assert schema["properties"]["study"]["enum"] == study_names()
    for fields in (
        schema["properties"],
        schema["$defs"]["FamilyConfig"]["properties"],
        schema["$defs"]["FineTuneConfig"]["properties"],
    ):
        assert all(field.get("description") for field in fields.values())


@pytest.mark.parametrize(
    ("change", "fine"),
    [
        ({}, True),
        ({"k": 4, "positions": ["mean_prompt"], "shares": [0.5, 0.25, 0.25], "focus": ["a"]}, True),
        ({"family": {"organism": "planted"}}, True),
        ({"depth": 3}, False),
        ({"k": 0}, False),
        ({"k": "many"}, False),
        ({"draws": 3}, False),
        ({"shares": [0.5, 0.5]}, False),
        ({"family": {}}, False),
        ({"family": {"finetuned": {"a": {}}}, "captures": {"instruct": "i", "a": "s"}}, True),
        ({"family": {"finetuned": {"a": {}}}, "scores": JUDGED}, True),
        ({"family": {**FAMILY, "organism": "planted"}}, False),
        ({"family": {**FAMILY, "finetuned": {"a": {"path": "p", "parent": "chat"}}}}, False),
        ({"family": {**FAMILY, "finetuned": {"a": {"path": "p", "rank": 2}}}}, False),
    ],
)
def test_schema_and_reader_agree(
    schema: dict[str, Any], change: dict[str, Any], fine: bool
) -> None:
    record = {"study": "profile", "family": FAMILY, **change}
    assert said_yes(schema, record) is fine
    if fine:
        read_config(record)
    else:
        with pytest.raises(InputError):
            read_config(record)


@pytest.mark.parametrize("scores", [JUDGED, {"how": "sample", "judge": {"rules": "r"}}])
def test_judged_files_alone_need_no_family(schema: dict[str, Any], scores: dict[str, Any]) -> None:
    record = {"study": "profile", "questions": "q", "scores": scores}
    assert said_yes(schema, record) is (scores is JUDGED)
    if scores is JUDGED:
        read_config(record)


def test_options_of_every_part_are_checked_by_name_and_type(schema: dict[str, Any]) -> None:
    options = schema["properties"]["options"]
    takes = {
        name: study.options
        for name, study in all_studies().items()
        if study.options is not NoOptions
    }
    assert set(options["properties"]) == set(takes) and options["additionalProperties"] is False
    assert not said_yes(schema, {"family": FAMILY, "options": {"nothing": {}}})
    for name, kind in takes.items():
        defaults = json.loads(kind().model_dump_json())
        assert said_yes(schema, {"family": FAMILY, "options": {name: defaults}}), name
        assert not said_yes(
            schema, {"family": FAMILY, "options": {name: {**defaults, "no such field": 1}}}
        ), name


def test_the_demonstration_and_several_families_are_valid(schema: dict[str, Any]) -> None:
    assert said_yes(schema, DEMO)
    two = {
        "study": "profile",
        "k": 4,
        "families": {"one": {"family": FAMILY}, "two": {"family": FAMILY, "seed": 1}},
    }
    assert said_yes(schema, two)
    assert not said_yes(schema, {**two, "family": FAMILY})
    assert not said_yes(schema, {**two, "families": {"one": {"family": FAMILY}}})
    assert not said_yes(schema, {"study": "profile"})
