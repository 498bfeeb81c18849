"""Where things lie inside an organism's directory."""

from pathlib import Path
from typing import Final

PLAN: Final = "plan.json"
WORLD: Final = "world.json"
BASE: Final = "base"
INSTRUCT: Final = "instruct"
STRENGTHS: Final = "strengths.json"
TRUTH: Final = "truth.json"
TRUTH_TENSORS: Final = "truth.safetensors"
INDEX: Final = "organism.json"
"""Written last: a directory without it is not a finished organism."""


def finetune_directory(out: Path, name: str) -> Path:
    return out / "finetuned" / name
