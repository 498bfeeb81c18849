"""Where the numbers come from: models and their hashes, questions, versions, settings, the run."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from emlens.foundation.files import canonical_json
from emlens.report.escaping import escape, without_folders
from emlens.report.tables import html_table

HASH_SHOWN = 16


def provenance_section(
    config: Mapping[str, Any], facts: Mapping[str, Any], run: Mapping[str, Any]
) -> str:
    """The closing section.

    Absolute paths are cut to their last part; dates appear only if the run recorded them.
    """
    config = without_folders(dict(config))
    facts = without_folders(dict(facts))
    run = without_folders(dict(run))
    parts = [
        '<details class="part" id="provenance"><summary><h3>Provenance</h3></summary>',
        '<p><button type="button" id="download-all">Download all tables</button></p>',
    ]
    models = facts.get("models")
    if isinstance(models, Mapping) and models:
        table = pd.DataFrame([_model_row(str(name), record) for name, record in models.items()])
        parts.append(f"<h4>Models</h4>{html_table(table, 'models')}")
    terms = []
    for key, value in _facts(facts, run):
        terms.append(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>")
    if terms:
        parts.append(f"<h4>Questions, software, run</h4><dl>{''.join(terms)}</dl>")
    parts.append(_json_details("Configuration", config))
    parts.append(_json_details("All recorded facts", facts))
    return "\n".join([*parts, "</details>"])


def _json_details(title: str, value: Any) -> str:
    # Line by line: escaping replaces what separates lines.
    lines = map(escape, canonical_json(value).rstrip().split("\n"))
    text = "\n".join(lines)
    return f'<details><summary>{title}</summary><pre tabindex="0">{text}</pre></details>'


def _model_row(name: str, record: Any) -> dict[str, str]:
    """What is recorded of one model; a dash for what is not."""
    if not isinstance(record, Mapping):
        record = {}
    adapter = record.get("adapter") or {}
    return {
        "model": name,
        "parent": _or_dash(record.get("parent")),
        "role": _role(record),
        "architecture": _or_dash(record.get("architecture")),
        "dtype": _or_dash(record.get("dtype")),
        "attention": _or_dash(record.get("attention")),
        "adapter": _adapter(adapter),
        "weights (SHA-256)": _short(record.get("weights_sha256")),
        "adapter (SHA-256)": _short(adapter.get("sha256")),
    }


def _or_dash(value: object) -> str:
    return str(value or "–")


def _role(record: Mapping[str, Any]) -> str:
    if "benign" not in record:
        return "–"
    return "benign control" if record["benign"] else "fine-tune"


def _adapter(adapter: Mapping[str, Any]) -> str:
    if not adapter:
        return "none"
    kind = adapter.get("peft_type") or "adapter"
    rank, alpha = adapter.get("r", "?"), adapter.get("lora_alpha", "?")
    words = f"{kind}, r = {rank}, α = {alpha}"
    if adapter.get("use_rslora"):
        words += ", rank-stabilised"
    return words


def _short(digest: object) -> str:
    return f"{str(digest)[:HASH_SHOWN]}…" if digest else "–"


def _facts(facts: Mapping[str, Any], run: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    questions = facts.get("questions")
    if isinstance(questions, Mapping):
        digest = _short(questions.get("sha256"))
        yield "questions", f"{questions.get('n', '?')}, SHA-256 {digest}"
    versions = facts.get("versions")
    if isinstance(versions, Mapping):
        yield "versions", _pairs(sorted(versions.items()))
    if "threads" in facts:
        yield "threads", str(facts["threads"])
    if run.get("finished"):
        yield "finished", str(run["finished"])
    hardware = run.get("hardware")
    if isinstance(hardware, Mapping):
        yield "hardware", _pairs([pair for pair in hardware.items() if pair[1] is not None])


def _pairs(pairs: list[tuple[str, Any]]) -> str:
    return ", ".join(f"{key} {value}" for key, value in pairs)
