"""Both sides of an overlap: shifts of one fine-tune on equally many training and unrelated prompts,
and what of them is batching noise.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import Tensor

from emlens.activations import (
    Activations,
    CaptureSpec,
    activation_deltas,
    capture,
    capture_many,
)
from emlens.data import PromptSet
from emlens.foundation.seeds import numpy_rng
from emlens.studies.config import StudyConfig
from emlens.studies.material import Material


@dataclass(frozen=True)
class Sides:
    """Deltas of one fine-tune on two equally large prompt sets, and the parent's activations on
    them.
    """

    train: Activations
    evaluation: Activations
    before_train: Activations
    before_evaluation: Activations
    neutral: Activations | None

    def pairs(self, site: str, position: str) -> list[tuple[Tensor, Tensor]]:
        """(shifts, parent's activations) of both prompt sets at one place."""
        return [
            (self.train[site, position], self.before_train[site, position]),
            (self.evaluation[site, position], self.before_evaluation[site, position]),
        ]


def _equal(prompts: PromptSet, n: int, seed: int, label: str) -> PromptSet:
    order = numpy_rng(seed, "equal n", label).permutation(len(prompts))[:n]
    return prompts.select([prompts.ids[i] for i in sorted(order)])


def sides_of(material: Material, name: str, config: StudyConfig) -> Sides:
    train = material.training[name].without_responses()
    evaluation = material.outside(name).prompts()
    n = min(len(train), len(evaluation))
    models = {"before": material.parent(name), "after": material.family[name]}

    def pair(prompts: PromptSet) -> tuple[Activations, Activations]:
        found = capture_many(models, prompts, positions=config.positions, progress=False)
        return found["before"], activation_deltas(found["before"], found["after"])

    before_train, delta_train = pair(_equal(train, n, config.seed, "train"))
    before_evaluation, delta_evaluation = pair(_equal(evaluation, n, config.seed, "evaluation"))
    neutral = (
        None
        if material.neutral is None
        else pair(_equal(material.neutral, min(n, len(material.neutral)), config.seed, "neutral"))[
            1
        ]
    )
    return Sides(delta_train, delta_evaluation, before_train, before_evaluation, neutral)


def shifts_everywhere(material: Material, name: str, config: StudyConfig) -> Activations:
    """Shifts on every question that the fine-tune was not trained on, its own domain's included."""
    models = {"before": material.parent(name), "after": material.family[name]}
    found = capture_many(
        models,
        material.untrained(material.questions, name).prompts(),
        positions=config.positions,
        progress=False,
    )
    return activation_deltas(found["before"], found["after"])


def noise_floor(material: Material, name: str, config: StudyConfig) -> pd.DataFrame:
    """The same parent on the same prompts in other batches: what part of a delta's length is
    batching noise.
    """
    prompts = material.outside(name).prompts()
    parent = material.parent(name)
    one, other = (
        capture(
            parent,
            prompts,
            spec=CaptureSpec(positions=config.positions, batch_tokens=size),
            progress=False,
        )
        for size in (4096, 512)
    )
    tuned = capture(
        material.family[name],
        prompts,
        spec=CaptureSpec(positions=config.positions, batch_tokens=4096),
        progress=False,
    )
    rows = []
    for site in one.sites:
        for position in config.positions:
            noise = float(
                (one[site, position].double() - other[site, position].double()).norm(dim=1).mean()
            )
            signal = float(
                (tuned[site, position].double() - one[site, position].double()).norm(dim=1).mean()
            )
            ratio = noise / signal if signal else np.nan
            rows.append(
                {
                    "site": site,
                    "position": position,
                    "noise_norm": noise,
                    "delta_norm": signal,
                    "ratio": ratio,
                    "n": len(prompts),
                }
            )
    return pd.DataFrame(rows)
