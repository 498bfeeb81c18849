"""Where the numbers come from: models and their hashes, questions, versions, settings, and
the run.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from emlens.foundation.files import canonical_json
from emlens.report.escaping import escape, without_folders
from emlens.report.tables import html_table

HASH_SHOWN = 16


def provenance_section(
    config: Mapping[str, Any], facts: Mapping[str, Any], run: Mapping[str, Any]
) -> str:
    """The closing section. Absolute paths are cut to their last part; dates appear only if the run
    recorded them.
    """
    config, facts, run = (without_folders(dict(part)) for part in (config, facts, run))
    parts = ['<section id="provenance"><h2>Provenance</h2>']
    models = facts.get("models")
    if isinstance(models, Mapping) and models:
        table = pd.DataFrame([_model(str(name), record) for name, record in models.items()])
        parts.append(f"<h3>Models</h3>{html_table(table, 'models')}")
    pairs = list(_lines(facts, run))
    if pairs:
        rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in pairs)
        parts.append(f"<h3>Questions, software, run</h3><dl>{rows}</dl>")
    for title, value in (("Configuration", config), ("All recorded facts", facts)):
        lines = "\n".join(escape(line) for line in canonical_json(value).rstrip().split("\n"))
        parts.append(
            f'<details><summary>{title}</summary><pre tabindex="0">{lines}</pre></details>'
        )
    return "\n".join([*parts, "</section>"])


def _model(name: str, record: Any) -> dict[str, str]:
    known = record if isinstance(record, Mapping) else {}
    adapter = known.get("adapter") or {}
    kind = adapter.get("peft_type")
    words = "none"
    if adapter:
        rank, alpha = adapter.get("r", "?"), adapter.get("lora_alpha", "?")
        stabilised = ", rank-stabilised" if adapter.get("use_rslora") else ""
        words = f"{kind or 'adapter'}, r = {rank}, α = {alpha}{stabilised}"
    return {
        "model": name,
        "parent": str(known.get("parent") or "–"),
        "role": (
            "–" if "benign" not in known else "benign control" if known["benign"] else "fine-tune"
        ),
        "architecture": str(known.get("architecture") or "–"),
        "dtype": str(known.get("dtype") or "–"),
        "attention": str(known.get("attention") or "–"),
        "adapter": words,
        "weights (SHA-256)": _short(known.get("weights_sha256")),
        "adapter (SHA-256)": _short(adapter.get("sha256")),
    }


def _short(digest: object) -> str:
    return f"{str(digest)[:HASH_SHOWN]}…" if digest else "–"


def _lines(facts: Mapping[str, Any], run: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = []
    questions = facts.get("questions")
    if isinstance(questions, Mapping):
        lines.append(
            ("questions", f"{questions.get('n', '?')}, SHA-256 {_short(questions.get('sha256'))}")
        )
    versions = facts.get("versions")
    if isinstance(versions, Mapping):
        lines.append(
            (
                "versions",
                ", ".join(f"{name} {version}" for name, version in sorted(versions.items())),
            )
        )
    if "threads" in facts:
        lines.append(("threads", str(facts["threads"])))
    if run.get("finished"):
        lines.append(("finished", str(run["finished"])))
    hardware = run.get("hardware")
    if isinstance(hardware, Mapping):
        shown = [f"{key} {value}" for key, value in hardware.items() if value is not None]
        lines.append(("hardware", ", ".join(shown)))
    return lines
