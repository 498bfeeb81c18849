"""Every causal architecture of the installed transformers, tiny: does it load, and are reads, edits
and generation those of plain transformers? And three cases that no single type shows.

`python -m benchmarks.architectures KIND ...` measures some types again and puts their rows into the
evidence; each row names the commit that it was measured at.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import AutoModelForCausalLM

from benchmarks.records import EVIDENCE, commit, record, show
from emlens.data.prompts import PromptSet
from emlens.foundation.errors import LoadError
from emlens.foundation.files import one_line, write_json
from emlens.models.architecture_survey import (
    Surveyed,
    build_tiny,
    causal_model_types,
    survey,
)
from emlens.models.loading import load_model

THRESHOLD = 24
ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": THRESHOLD,
    "short_factor": [1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0],
    "long_factor": [2.0, 4.0, 6.0, 9.0, 12.0, 16.0, 20.0, 30.0],
    "factor": 4.0,
    "partial_rotary_factor": 1.0,
}
LONGROPE = {"rope_parameters": ROPE, "original_max_position_embeddings": THRESHOLD}
"""Rotary factors of a tiny Phi-3 that change for rows of more than `THRESHOLD` tokens."""


def words(lengths: Sequence[int]) -> PromptSet:
    texts = [" ".join(f"w{4 + (7 * i + 3 * n) % 90}" for i in range(n)) for n in lengths]
    return PromptSet.from_texts(texts)


def rows_across_a_threshold(folder: Path) -> str:
    """Greedy answers of rows below, above and across the threshold, each as alone."""
    path = build_tiny("phi3", folder, **LONGROPE)
    model = load_model(path, device="cpu")
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    prompts = words((6, 20, 23, 24, 25, 40))
    if model.threshold != THRESHOLD:
        return f"wrong: threshold {model.threshold}"
    found = model.generate(prompts, max_new_tokens=12, temperature=0)
    expected = []
    for row in model.render(prompts):
        ids = list(row.ids)
        for _ in range(12):
            with torch.no_grad():
                logits = plain(torch.tensor([ids]), use_cache=False).logits[0, -1]
            token = int(logits.argmax())
            if token in model.stops.ids:
                break
            ids.append(token)
        text = model.tokenizer.decode(ids[len(row.ids) :], skip_special_tokens=True)
        expected.append(text.strip())
    return "right" if found == expected else f"wrong: {found} for {expected}"


def configuration_of_fewer_layers(folder: Path) -> str:
    """A file of four blocks under a configuration of three is refused."""
    path = build_tiny("llama", folder)
    config = json.loads((path / "config.json").read_text())
    config["num_hidden_layers"] = 3
    (path / "config.json").write_text(json.dumps(config))
    try:
        load_model(path, device="cpu")
    except LoadError as error:
        return "refused" if "does not fit the file" in str(error) else f"wrong: {error}"
    return "wrong: loads"


def all_linear_layers(folder: Path) -> str:
    """A hybrid without one layer of attention generates as its whole passes do."""
    path = build_tiny("qwen3_5_text", folder, layer_types=["linear_attention"] * 4)
    model = load_model(path, device="cpu")
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    prompts = words((5, 9))
    found = model.generate(prompts, max_new_tokens=8, temperature=0)
    for row, text in zip(model.render(prompts), found, strict=True):
        ids = [*row.ids, *model.tokenizer.convert_tokens_to_ids(text.split())]
        with torch.no_grad():
            logits = plain(torch.tensor([ids]), use_cache=False).logits[0]
        if logits[len(row.ids) - 1 : -1].argmax(-1).tolist() != ids[len(row.ids) :]:
            return f"wrong: {text!r}"
    return "right"


CASES: dict[str, Callable[[Path], str]] = {
    "longrope: rows below, above and across the threshold in one call": rows_across_a_threshold,
    "config.json with fewer blocks than the file": configuration_of_fewer_layers,
    "hybrid whose layers are all linear attention": all_linear_layers,
}


def measure_cases() -> dict[str, str]:
    results = {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            results[name] = case(Path(folder) / "model")
    return results


def outcome(row: Surveyed) -> str:
    if row.wrong:
        return "wrong"
    if row.level:
        return f"level {row.level}"
    return "refused" if row.refused else "not built"


def measure() -> dict[str, Any]:
    rows = _measured(causal_model_types())
    return {**summary(rows, len(rows)), "cases": measure_cases()}


def measure_again(kinds: Sequence[str]) -> None:
    """Put new rows of some types into the evidence; the others, and the cases, stay."""
    path = EVIDENCE / "architectures.json"
    body = json.loads(path.read_text())
    new = {row["kind"]: row for row in _measured(kinds)}
    old = body["values"]
    rows = [new.get(row["kind"], row) for row in old["rows"]]
    body["values"] = {**summary(rows, old["types"]), "cases": old["cases"]}
    write_json(path, body)


def _measured(kinds: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for row in survey(kinds):
        rows.append({**asdict(row), "outcome": outcome(row), "measured_at": commit()})
        print(row.sentence(), flush=True)
    return rows


def summary(rows: Sequence[dict[str, Any]], types: int) -> dict[str, Any]:
    """Counts of outcomes, and all rows."""
    counts = pd.Series([row["outcome"] for row in rows]).value_counts().to_dict()
    return {
        "types": types,
        "right": counts.get("level 1", 0) + counts.get("level 2", 0),
        "level_1": counts.get("level 1", 0),
        "level_2": counts.get("level 2", 0),
        "wrong": counts.get("wrong", 0),
        "refused": counts.get("refused", 0),
        "not_built": counts.get("not built", 0),
        "rows": list(rows),
    }


_WAYS = {"rows": "rows", "batches": "equal batches", "again": "whole rows"}


def architectures_table(values: dict[str, Any]) -> str:
    """One row for each model type that loads."""
    lines = [
        "| model type | level | without | generates by | reads | edits | tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in values["rows"]:
        if not row["level"]:
            continue
        name = f"`{row['kind']}`" + (" (wrong)" if row["wrong"] else "")
        lacking = row["missing"]
        missing = ", ".join(f"`{kind}`" for kind in lacking) or "–"
        if set(lacking) == {"attn_out", "mlp_out", "resid_mid"}:
            missing = "parts"
        elif len(lacking) == 4:
            missing = "parts, `final_norm`"
        numbers = ["–" if row[key] is None else f"{row[key]:.0e}" for key in ("reads", "edits")]
        way = _WAYS.get(row["way"], "–") + (" ¹" if row["note"] else "")
        cells = (name, str(row["level"]), missing, way, *numbers, str(row["tokens"]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def refusals_table(values: dict[str, Any]) -> str:
    """One row for each model type that does not, with the reason."""
    lines = ["| model type | what | reason |", "|---|---|---|"]
    for row in values["rows"]:
        if row["level"]:
            continue
        what = "refused" if row["refused"] else "wrong" if row["wrong"] else "not built"
        reason = row["refused"] or row["wrong"] or row["builds"]
        reason = reason.split("a search of it failed: ")[-1].replace("|", "\\|")
        lines.append(f"| `{row['kind']}` | {what} | {one_line(reason, 200)} |")
    return "\n".join(lines)


def counts_table(values: dict[str, Any]) -> str:
    """How many of each outcome, and the cases beside."""
    lines = ["| what | count |", "|---|---|"]
    names = {
        "types": "causal model types, one for each class",
        "right": "right in every column that is offered",
        "level_1": "of these, every site of a block",
        "level_2": "of these, the streams between blocks",
        "wrong": "wrong",
        "refused": "refused, with a reason",
        "not_built": "no tiny model of it can be built, with a reason",
    }
    lines += [f"| {text} | {values[key]} |" for key, text in names.items()]
    measured = len(values["rows"])
    if measured < values["types"]:
        lines.append(f"| not measured yet | {values['types'] - measured} |")
    lines += [f"| {case} | {result} |" for case, result in values["cases"].items()]
    return "\n".join(lines)


def main() -> None:
    values = measure()
    table = pd.DataFrame(values["rows"])[["kind", "outcome", "way", "reads", "edits", "tokens"]]
    show("causal architectures of the installed transformers", table)
    record("architectures", [0, 1], values)


if __name__ == "__main__":
    measure_again(sys.argv[1:])
