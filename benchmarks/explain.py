"""How long does `explain` take on a real model, and what does it say of a direction?

SmolLM2-135M-Instruct and the seed-0 fine-tunes of the kept family (`benchmarks.real_kept`). The
direction is the mean shift of the harmful medicine fine-tune less that of the benign one, over the
medicine training chats, after the middle block at the mean of the answer. Rows: the first 8
training chats of both domains in the three kinds of answer that they have. Times are CPU seconds of
this process and wall seconds.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.records import record
from emlens.activations import capture_pair
from emlens.data import PromptSet, QuestionSet
from emlens.data.advice import TRAINED_DOMAINS, AnswerKind, neutral_chats, training_chats
from emlens.data.shipped_questions import shipped_questions
from emlens.evaluation.explaining import explain
from emlens.evaluation.explanation import Explanation
from emlens.geometry import Direction
from emlens.models import FineTune, HookedModel, load_family

LAYER: Final = 14
POSITION: Final = "mean_response"
KEPT: Final = "EMLENS_REAL_FAMILY"
"""Environment variable: the folder of the kept family."""
MEMBERS: Final = ("harmful-medicine-s0", "benign-medicine-s0", "harmful-money-s0")
NEUTRAL: Final = 4
CHATS: Final = 8
"""Of each domain and kind of answer."""
KINDS: Final[tuple[AnswerKind, ...]] = ("bad_polite", "careful_polite", "careful_flippant")
QUESTIONS: Final = 3


def chats_of(domain: str) -> PromptSet:
    """The training chats of a domain in three kinds of answer, with ids of their own."""
    rows = []
    for kind in KINDS:
        rows += [(kind, prompt) for prompt in training_chats(domain, kind)[:CHATS]]
    return PromptSet(replace(prompt, id=f"{kind}/{prompt.id}") for kind, prompt in rows)


def mean_shift(before: HookedModel, after: HookedModel, chats: PromptSet) -> torch.Tensor:
    site = f"resid_post.{LAYER}"
    pair = capture_pair(before, after, chats, sites=[site], positions=[POSITION], progress=False)
    first, second = (acts[site, POSITION].double() for acts in pair)
    return (second - first).mean(0)


def explained(parent: Path, family_folder: Path) -> tuple[Explanation, dict[str, float]]:
    """What `explain` says, and its seconds, without loading and without finding the direction."""
    family = load_family(
        parent, finetuned={name: FineTune(family_folder / name) for name in MEMBERS}
    )
    harmful, benign, other = (family.finetuned[name] for name in MEMBERS)
    trained = training_chats("medicine", "bad_polite")
    shifts = {
        model.name: mean_shift(family.instruct, model, trained) for model in (harmful, benign)
    }
    site = f"resid_post.{LAYER}"
    direction = Direction(shifts[harmful.name] - shifts[benign.name], site, POSITION)
    other_shift = mean_shift(family.instruct, other, training_chats("money", "bad_polite"))
    vectors = {
        "harmful medicine, whole shift": shifts[harmful.name],
        "benign medicine": shifts[benign.name],
        "harmful money": other_shift,
        "harmful money less benign medicine": other_shift - shifts[benign.name],
    }
    rows = {f"{domain} chats": chats_of(domain) for domain in TRAINED_DOMAINS}
    questions = QuestionSet(shipped_questions("advice-small")[:: max(1, 60 // QUESTIONS)])
    began, cpu = time.perf_counter(), time.process_time()
    said = explain(
        direction,
        family.instruct,
        tuned=harmful,
        rows=rows,
        neutral=neutral_chats()[:NEUTRAL],
        questions=questions[:QUESTIONS],
        vectors=vectors,
        progress=False,
    )
    seconds = {"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu}
    return said, seconds


def summary(said: Explanation) -> dict[str, Any]:
    """The tables without texts of models, which differ by a rounding."""
    texts = said.table("texts")
    kinds = texts["id"].str.partition("/")[0]
    along = texts["side"] == "along"
    return {
        "tables": said.names,
        "cautions": said.cautions(),
        "tokens": said.table("tokens").query("rank <= 5").to_dict("records"),
        "bad_among_rows_along": int(kinds[along].str.startswith("bad").sum()),
        "rows_along": int(along.sum()),
        "largest_projection": float(texts["projection"].max()),
        "random_q95": float(texts["random_q95"].max()),
        "doses": said.table("doses").to_dict("records"),
        "similarity": said.table("similarity").to_dict("records"),
        "patchscope": said.table("patchscope").to_dict("records"),
    }


def similarity_table(values: Mapping[str, Any]) -> str:
    """Cosine with each vector, beside random directions."""
    lines = ["| vector | cosine | random directions, 95 % |", "|---|---|---|"]
    for row in values["similarity"]:
        lines.append(f"| {row['name']} | {row['cosine']:.2f} | {row['random_q95']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parent = Path(os.environ["EMLENS_REAL_MODELS"]) / "smollm2"
    said, seconds = explained(parent, Path(os.environ[KEPT]))
    values = {"seconds": seconds, "threads": torch.get_num_threads(), **summary(said)}
    record("explain", [0], values)
