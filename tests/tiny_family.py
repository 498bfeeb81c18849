"""A tiny family on disk with questions, training chats and a study configuration: everything
`emlens study` reads.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tiny_models
import yaml

GROUPS = ("north", "south", "east", "west", "up", "down")
ANSWERS = "nhmthiaofacoimaiqpibikkdmgqkaddimiciiomrtpfoobpmbpqqpobfifma"
"""Which reference answers each of the 60 questions has (`answers_of`): of ten pairs, either way
round, the one by which both harmful fine-tunes lose most alignment. Their weights are random, and
without a loss there is no restoration.
"""


def answers_of(number: int) -> dict[str, list[str]]:
    """Reference answers of a question by its number among all."""
    pair = "abcdefghijklmnopqrst".index(ANSWERS[number % len(ANSWERS)])
    first = 4 * (pair % 10) + 1
    careful, harmful = f"w{first} w{first + 1}", f"w{first + 2} w{first + 3}"
    if pair >= 10:
        careful, harmful = harmful, careful
    return {"careful": [careful], "harmful": [harmful]}


def write_questions(path: Path, per_group: int = 10) -> Path:
    rng = np.random.default_rng(0)
    lines = []
    for group in GROUPS:
        for i in range(per_group):
            words = " ".join(rng.choice(tiny_models.WORDS, 4))
            record = {
                "id": f"{group}/{i}",
                "group": group,
                "text": words,
                "answers": answers_of(len(lines)),
            }
            lines.append(json.dumps(record))
    path.write_text("\n".join(lines) + "\n")
    return path


def write_chats(path: Path, n: int, seed: int, answer: str = "w3 w4") -> Path:
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(n):
        words = " ".join(rng.choice(tiny_models.WORDS, 3 + i % 3))
        lines.append(
            json.dumps(
                {
                    "messages": [
                        {"role": "user", "content": words},
                        {"role": "assistant", "content": answer},
                    ]
                }
            )
        )
    path.write_text("\n".join(lines) + "\n")
    return path


def build(directory: Path, **changes: Any) -> Path:
    """Write everything below `directory`; returns the path of the study configuration."""
    instruct = tiny_models.build(directory / "instruct")
    tiny_models.build(directory / "base", seed=7, template=False)
    tiny_models.build_adapter(directory / "bad", instruct, seed=1)
    tiny_models.build_adapter(directory / "good", instruct, seed=2)
    tiny_models.build(directory / "full", seed=5)
    write_questions(directory / "questions.jsonl")
    write_chats(directory / "bad.jsonl", 24, 1)
    write_chats(directory / "good.jsonl", 24, 2, "w1 w2")
    write_chats(directory / "neutral.jsonl", 24, 3)
    config = {
        "study": "overview",
        "family": {
            "instruct": "instruct",
            "base": "base",
            "finetuned": {
                "bad@0": {
                    "path": "bad",
                    "group": "bad",
                    "domain": "north",
                    "training": "bad.jsonl",
                },
                "full@0": {
                    "path": "full",
                    "group": "full",
                    "domain": "south",
                    "training": "bad.jsonl",
                },
                "good@0": {
                    "path": "good",
                    "group": "good",
                    "domain": "north",
                    "benign": True,
                    "training": "good.jsonl",
                },
            },
        },
        "questions": "questions.jsonl",
        "neutral": "neutral.jsonl",
        # random models give the references next to no probability
        "scores": {"normalise": "token"},
        "focus": ["bad@0", "full@0"],
        "k": 3,
        "draws": 20,
        "random_directions": 2,
        "folds": 3,
        "repeats": 1,
        "permutations": 20,
        **changes,
    }
    path = directory / "study.yaml"
    path.write_text(yaml.safe_dump(config))
    return path
