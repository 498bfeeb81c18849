"""The configuration of a study as JSON Schema (draft 2020-12), made from the records that check it,
with every part's own options.

An editor that reads it completes fields and marks wrong ones. What no schema can say (a fine-tune
that the family lacks, shares that sum to 1) `read_config` and `run_study` still refuse. Cost: it
imports every study.
"""

import json
from typing import Any

from emlens.studies.config import StudyConfig
from emlens.studies.registry import all_studies, study_names
from emlens.studies.study import NoOptions

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def config_schema() -> dict[str, Any]:
    """JSON Schema of what `emlens study` reads; of `options`, each part's fields with types, bounds
    and defaults.
    """
    schema = StudyConfig.model_json_schema(ref_template="#/$defs/{model}")
    definitions: dict[str, Any] = schema["$defs"]
    options: dict[str, Any] = {}
    for name, study in all_studies().items():
        if study.options is NoOptions:
            continue
        own = study.options.model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
        definitions.update({f"{name}.{key}": value for key, value in own.pop("$defs", {}).items()})
        definitions[name] = {**own, "title": f"options of {name}"}
        options[name] = {"$ref": f"#/$defs/{name}"}
    fields = schema["properties"]
    fields["study"]["enum"] = study_names()
    said = fields["options"].get("description", "")
    fields["options"] = {
        "type": "object",
        "description": said,
        "properties": options,
        "additionalProperties": False,
        "default": {},
    }
    members = [name for name in fields if name != "study"]
    definitions["Member"] = {
        "type": "object",
        "description": "One family of several: what differs from the fields beside `families`.",
        "properties": {name: fields[name] for name in members},
        "additionalProperties": False,
    }
    fields["families"] = {
        "type": "object",
        "description": "Several families side by side, by name, instead of `family`.",
        "additionalProperties": {"$ref": "#/$defs/Member"},
        "minProperties": 2,
    }
    definitions["FamilyConfig"]["oneOf"] = [
        {"required": ["organism"]},
        # captures and judged files stand for the instruct model, so that it may be left out
        {"required": ["finetuned"]},
    ]
    schema.pop("required", None)
    is_judged = {"properties": {"how": {"const": "judged"}}, "required": ["how"]}
    sources = ("family", "families", "released", "captures")
    schema["anyOf"] = [
        *({"required": [name]} for name in sources),
        {"required": ["scores"], "properties": {"scores": is_judged}},
    ]
    schema["not"] = {"required": ["family", "families"]}
    return {
        "$schema": DRAFT,
        "title": "emlens study",
        **{key: value for key, value in schema.items() if key != "title"},
    }


def schema_text() -> str:
    """The schema as indented JSON."""
    return json.dumps(config_schema(), indent=2, ensure_ascii=False) + "\n"
