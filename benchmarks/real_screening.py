"""Can training rows be told from one fine-tune's direction before the next is trained, and what
does a rank-1 fine-tune's one number say?

Rows: the 80 bad and 80 careful polite answers of the medicine file. The untouched SmolLM2 reads
them; each row's mean over answer tokens (block 14) is projected on what bad *money* advice did
beyond careful money advice (mean shift of the kept family on ten other domains), seed by seed of
the money fine-tunes. Beside it the benign money fine-tune's direction, and 200 directions drawn
from the covariance of the answers. The area under the curve is of bad above careful; questions are
resampled with both answers.

The rank-1 fine-tune of medicine writes one vector, times a number A·x at every token. Its mean over
answer tokens is read for bad and careful answers of ten domains that were not trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from torch import Tensor

from benchmarks.real_directions import LAYER, POSITION
from benchmarks.real_kept import PARENT, KeptFamily
from benchmarks.real_spread import PER_DOMAIN
from benchmarks.records import record
from emlens.data import Prompt, PromptSet, QuestionSet
from emlens.data.advice import training_chats
from emlens.geometry import random_directions_like
from emlens.interventions.scalars import adapter_scalars
from emlens.models import HookedModel
from emlens.real.family import Kind, Member, members
from emlens.screening.training_file import mean_answers
from emlens.stats.rank_areas import area_under_curve

TRAINED, OTHER = "medicine", "money"
KINDS: Final[tuple[Kind, ...]] = ("harmful", "benign")
"""Of money: what bad advice did, and what careful advice did."""
RANDOM: Final = 200
RESAMPLES: Final = 999
SEEDS: Final = (0, 1, 2)
"""Of the money fine-tunes that give directions, and of those of rank 1."""


def shift(kept: KeptFamily, name: str, before: str, layer: int) -> Tensor:
    """Mean shift of one model against another on the questions, (d,)."""
    place = f"resid_post.{layer}", POSITION
    after, start = kept.streams(name)[place].double(), kept.streams(before)[place].double()
    return (after - start).mean(0)


def labelled(domain: str) -> tuple[PromptSet, np.ndarray, list[str]]:
    """Bad and careful chats of a training file, +1 for bad, and the question of each."""
    rows: list[Prompt] = []
    labels: list[int] = []
    for kind, label in (("bad_polite", 1), ("careful_polite", -1)):
        for chat in training_chats(domain, kind):  # type: ignore[arg-type]
            rows.append(replace(chat, id=f"{chat.id}/{kind}"))
            labels.append(label)
    return PromptSet(rows), np.array(labels), [row.id.partition("/")[0] for row in rows]


def area(scores: np.ndarray, labels: np.ndarray, units: Sequence[str]) -> dict[str, float]:
    found = area_under_curve(scores, labels, units, RESAMPLES, 0)
    return {"value": found.value, "low": found.low, "high": found.high}


def plain_areas(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Area of each column of (row, draw), without an interval."""
    ranks = scores.argsort(axis=0).argsort(axis=0) + 1.0
    positive = labels > 0
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    below = ranks[positive].sum(axis=0) - n_positive * (n_positive + 1) / 2
    return np.asarray(below / (n_positive * n_negative))


def directions_of(kept: KeptFamily, seed: int, layer: int) -> dict[str, Tensor]:
    """What training on money did to the stream, by one seed."""
    harmful, benign = (Member(kind, OTHER, seed).name for kind in KINDS)
    return {
        "harmful − benign": shift(kept, harmful, benign, layer),
        "harmful − instruct": shift(kept, harmful, PARENT, layer),
        "benign − instruct": shift(kept, benign, PARENT, layer),
    }


def screened(kept: KeptFamily, seeds: Sequence[int], layer: int = LAYER) -> dict[str, Any]:
    """Area under the curve of the medicine file's rows along what money training did."""
    rows, labels, units = labelled(TRAINED)
    acts = mean_answers(kept.model(PARENT), rows, f"resid_post.{layer}")
    random = acts @ random_directions_like(acts, RANDOM, seed=0).T
    null = plain_areas(random.numpy(), labels)
    found = []
    for seed in seeds:
        for name, vector in directions_of(kept, seed, layer).items():
            value = area((acts @ vector).numpy(), labels, units)
            # a random direction has no sign, so both of its ends count
            beyond = np.abs(null - 0.5) >= abs(value["value"] - 0.5)
            p = (1 + int(beyond.sum())) / (1 + RANDOM)
            found.append({"direction": name, "seed": seed, "area": value, "p": p})
    ends = np.quantile(null, [0.025, 0.975]).tolist()
    return {"rows": len(rows), "areas": found, "random": ends, "draws": RANDOM}


def answers_of(questions: QuestionSet) -> tuple[list[Prompt], np.ndarray, list[str]]:
    """Polite answers of evaluation questions, +1 for bad."""
    rows, labels, units = [], [], []
    for question in questions:
        for kind, label in (("bad_polite", 1), ("careful_polite", -1)):
            rows.append(
                Prompt(
                    f"{question.id}/{kind}",
                    question.text,
                    question.group,
                    question.messages(1),
                    response=question.answers[kind][0],
                )
            )
            labels.append(label)
            units.append(question.group)
    return rows, np.array(labels), units


def scalar(model: HookedModel, questions: QuestionSet) -> dict[str, Any]:
    """Area of bad above careful answers by the one number of a rank-1 fine-tune; domains are
    resampled.
    """
    rows, labels, units = answers_of(questions)
    table = adapter_scalars(model, rows).pooled("response", "mean")
    (column,) = table.columns
    scores = table[column].to_numpy()
    share = scores[labels > 0].mean() - scores[labels < 0].mean()
    return {
        "module": column,
        "answers": len(rows),
        "area": area(scores, labels, units),
        "bad_minus_careful_in_sd": float(share / scores.std()),
    }


def measure(kept: KeptFamily, seeds: Sequence[int] = SEEDS, layer: int = LAYER) -> dict[str, Any]:
    scalars = []
    for seed in seeds:
        model = kept.model(Member("rank1", TRAINED, seed).name)
        scalars.append({"seed": seed, **scalar(model, kept.questions)})
    return {"screened": screened(kept, seeds, layer), "scalars": scalars}


def _cell(ends: Mapping[str, float]) -> str:
    return f"{ends['value']:.2f} [{ends['low']:.2f}, {ends['high']:.2f}]"


def areas_table(values: Mapping[str, Any]) -> str:
    """Areas under the curve, for the page."""
    screening = values["screened"]
    low, high = screening["random"]
    lines = ["| what ranks bad above careful answers | seed | area | p |", "|---|---|---|---|"]
    for row in sorted(screening["areas"], key=_by_direction):
        what = f"medicine rows along {OTHER}, {row['direction']}"
        lines.append(f"| {what} | {row['seed']} | {_cell(row['area'])} | {row['p']:.3f} |")
    random = "the same along random directions, central 95 %"
    lines.append(f"| {random} | – | {low:.2f} to {high:.2f} | – |")
    number = "one number of the rank-1 fine-tune, ten untrained domains"
    for one in values["scalars"]:
        lines.append(f"| {number} | {one['seed']} | {_cell(one['area'])} | – |")
    return "\n".join(lines)


def _by_direction(row: Mapping[str, Any]) -> tuple[int, int]:
    """The claim first, then its parts; seeds in order."""
    order = ("harmful − benign", "harmful − instruct", "benign − instruct")
    return order.index(row["direction"]), row["seed"]


def main() -> None:
    groups = [*(f"{kind}-{OTHER}" for kind in KINDS), f"rank1-{TRAINED}"]
    values = measure(KeptFamily.found(members(groups, SEEDS), PER_DOMAIN))
    print(areas_table(values))
    record("real_screening", list(SEEDS), values)
