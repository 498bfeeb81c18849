"""The demonstration on a real model: what is trained for it, and the study that reads it.

Three fine-tunes of SmolLM2 on medicine, one seed each: harmful, benign and tone-only. The study is
`overview` with scores by contrast on the first questions of each domain, cut so that it ends within
minutes on two cores: one position, two blocks, few draws, one landmark and no trained null of the
overlap. So it shows how a study of a real model looks; figures over seeds are on
docs/real_model.md.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from emlens.data.advice import neutral_chats
from emlens.foundation.files import write_text
from emlens.real.family import CONTROLS, Member, members

GROUPS: Final = ("harmful-medicine", "benign-medicine", "tone-medicine")
LAYERS: Final = (14, 20)
"""Blocks that are read, of SmolLM2's 30."""
NEUTRAL_ROWS: Final = 12
SETTINGS: Final[Mapping[str, Any]] = {
    "study": "overview",
    "questions": "advice-small",
    "scores": {"how": "contrast"},
    "positions": ["last_prompt"],
    "layers": list(LAYERS),
    "k": 4,
    "draws": 40,
    "random_directions": 1,
    "folds": 4,
    "repeats": 1,
    "permutations": 40,
    "options": {"delta_overlap": {"adapters": 0, "landmark_draws": 1}},
}
"""The study, without the family and the neutral text."""


def demonstration_members() -> list[Member]:
    """What is trained for it."""
    return members(GROUPS)


def study_name(member: Member) -> str:
    """What studies call a member: fine-tunes of one kind before `@`, its seed after."""
    return f"{member.group}@{member.seed}"


def write_study(
    chosen: Sequence[Member], paths: Mapping[str, Path], parent: Path, out: Path
) -> Path:
    """Write chats, neutral text and the configuration below `out`; gives the configuration.

    Args:
        paths: member's name → its adapter. parent: directory of the real model.
    """
    data = out / "data"
    data.mkdir(parents=True, exist_ok=True)
    finetuned = {}
    for member in chosen:
        chats = data / f"{member.group}.jsonl"
        member.chats().to_jsonl(chats)
        finetuned[study_name(member)] = {
            "path": str(paths[member.name].resolve()),
            "group": member.group,
            "seed": member.seed,
            "domain": member.domain,
            "benign": member.kind in CONTROLS,
            "training": str(chats.resolve()),
        }
    neutral = data / "neutral.jsonl"
    neutral_chats()[:NEUTRAL_ROWS].to_jsonl(neutral)
    config = {
        **SETTINGS,
        "family": {"instruct": str(parent.resolve()), "finetuned": finetuned},
        "neutral": str(neutral.resolve()),
        "focus": [study_name(member) for member in chosen if member.kind not in CONTROLS],
    }
    path = out / "study.yaml"
    write_text(path, yaml.safe_dump(config, sort_keys=False))
    return path
