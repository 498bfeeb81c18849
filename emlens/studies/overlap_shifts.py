"""Shifts of one fine-tune on equally many training and unrelated prompts, whole and at one place,
and what part of them is batching noise.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from emlens.activations import Activations, activation_deltas
from emlens.data import PromptSet
from emlens.foundation.seeds import numpy_rng
from emlens.geometry.shifts import components_above_rounding
from emlens.models import HookedModel
from emlens.studies.config import StudyConfig
from emlens.studies.material import Material
from emlens.studies.streams import Reading, read_streams

USUAL_BATCH, SMALL_BATCH = 4096, 512
"""Tokens per batch of the two captures whose difference is the noise floor."""


@dataclass(frozen=True)
class Place:
    """One site and position of one fine-tune."""

    model: str
    site: str
    position: str

    def __str__(self) -> str:
        return f"{self.model} at {self.site}, {self.position}"

    @property
    def columns(self) -> dict[str, Any]:
        """The columns with which every row about this place begins."""
        return {
            "model": self.model,
            "site": self.site,
            "layer": int(self.site.rsplit(".", 1)[1]),
            "position": self.position,
        }


@dataclass(frozen=True, eq=False)
class ShiftsAtPlace:
    """Shifts at one place, (row, d) each, and the parent's activations on the same prompts."""

    train: Tensor
    evaluation: Tensor
    before_train: Tensor
    before_evaluation: Tensor
    neutral: Tensor | None = None

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """Shifts on training and on evaluation prompts, whose overlap is measured."""
        return self.train, self.evaluation

    @property
    def before(self) -> Tensor:
        """The parent's activations on all prompts of both sides."""
        return torch.cat([self.before_train, self.before_evaluation])

    @property
    def components(self) -> int:
        """How many components above rounding both sides have; no larger k can be compared.

        Rounding is that of the captured activations, so everything stays in their dtype.
        """
        return min(
            components_above_rounding(self.train, self.before_train),
            components_above_rounding(self.evaluation, self.before_evaluation),
        )


@dataclass(frozen=True)
class SampledShifts:
    """Deltas of one fine-tune on equally many training and evaluation prompts, and the parent's
    activations on them.
    """

    train: Activations
    evaluation: Activations
    before_train: Activations
    before_evaluation: Activations
    neutral: Activations | None

    def at(self, site: str, position: str) -> ShiftsAtPlace:
        """The rows at one site and position."""
        key = site, position
        return ShiftsAtPlace(
            self.train[key],
            self.evaluation[key],
            self.before_train[key],
            self.before_evaluation[key],
            None if self.neutral is None else self.neutral[key],
        )

    @property
    def rendered(self) -> tuple[str, str]:
        """Hashes of the rendered prompts of both sides."""
        return (
            self.before_train.provenance["rendered_sha256"],
            self.before_evaluation.provenance["rendered_sha256"],
        )


def compared_prompts(material: Material, name: str, config: StudyConfig) -> dict[str, PromptSet]:
    """Prompts of each side: `train`, `evaluation` and, where there is some, `neutral` text.

    The larger of the first two is subsampled to the size of the smaller one.
    """
    train = material.training[name].without_responses()
    evaluation = material.outside(name).prompts()
    n = min(len(train), len(evaluation))
    sides = {
        "train": _subset(train, n, config.seed, "train"),
        "evaluation": _subset(evaluation, n, config.seed, "evaluation"),
    }
    neutral = material.neutral_as(name)
    if neutral is not None:
        sides["neutral"] = _subset(neutral, min(n, len(neutral)), config.seed, "neutral")
    return sides


def shift_readings(material: Material, name: str, config: StudyConfig) -> Iterator[Reading]:
    """What `sampled_shifts` reads."""
    models = material.parent(name).name, name
    for prompts in compared_prompts(material, name, config).values():
        yield Reading(models, prompts)


def sampled_shifts(material: Material, name: str, config: StudyConfig) -> SampledShifts:
    """Capture a fine-tune and its parent on training, evaluation and neutral prompts.

    The larger of the training and evaluation sets is subsampled to the size of the smaller one,
    since an overlap depends on how many prompts there are.
    """
    models = _before_and_after(material, name)
    sides = compared_prompts(material, name, config)
    before_train, delta_train = _before_and_deltas(models, sides["train"], config)
    before_evaluation, delta_evaluation = _before_and_deltas(models, sides["evaluation"], config)
    delta_neutral = None
    if "neutral" in sides:
        _, delta_neutral = _before_and_deltas(models, sides["neutral"], config)
    return SampledShifts(
        delta_train, delta_evaluation, before_train, before_evaluation, delta_neutral
    )


def untrained_shifts(material: Material, name: str, config: StudyConfig) -> Activations:
    """Shifts on every question that the fine-tune was not trained on, its own domain included."""
    questions = material.untrained(material.questions, name)
    return _before_and_deltas(_before_and_after(material, name), questions.prompts(), config)[1]


def untrained_reading(material: Material, name: str) -> Reading:
    """What `untrained_shifts` reads."""
    questions = material.untrained(material.questions, name)
    return Reading((material.parent(name).name, name), questions.prompts())


def noise_readings(material: Material, name: str) -> Iterator[Reading]:
    """What `noise_floor` reads: the same prompts in other batches, which no capture holds."""
    prompts, parent = material.outside(name).prompts(), material.parent(name).name
    for model, batch_tokens in ((parent, USUAL_BATCH), (parent, SMALL_BATCH), (name, USUAL_BATCH)):
        yield Reading((model,), prompts, batch_tokens=batch_tokens, captured=False)


def noise_floor(material: Material, name: str, config: StudyConfig) -> pd.DataFrame:
    """What part of a delta's length is batching noise, per site and position.

    The noise is how far the parent's activations move when the same prompts run in other batches.
    """
    prompts, parent = material.outside(name).prompts(), material.parent(name)
    usual = _captured(parent, prompts, config, USUAL_BATCH)
    small = _captured(parent, prompts, config, SMALL_BATCH)
    fine_tune = _captured(material.family[name], prompts, config, USUAL_BATCH)
    rows = []
    for site in usual.sites:
        for position in config.positions:
            noise = _mean_distance(usual[site, position], small[site, position])
            signal = _mean_distance(fine_tune[site, position], usual[site, position])
            rows.append(
                {
                    "site": site,
                    "position": position,
                    "noise_norm": noise,
                    "delta_norm": signal,
                    "ratio": noise / signal if signal else np.nan,
                    "n": len(prompts),
                }
            )
    return pd.DataFrame(rows)


def before_and_deltas(
    material: Material, name: str, prompts: PromptSet, config: StudyConfig
) -> tuple[Activations, Activations]:
    """The parent's activations on some prompts, and a fine-tune's shifts from them."""
    return _before_and_deltas(_before_and_after(material, name), prompts, config)


def _before_and_after(material: Material, name: str) -> dict[str, HookedModel]:
    return {"before": material.parent(name), "after": material.family[name]}


def _before_and_deltas(
    models: Mapping[str, HookedModel], prompts: PromptSet, config: StudyConfig
) -> tuple[Activations, Activations]:
    """The parent's activations, and the deltas from them."""
    captured = read_streams(models, prompts, config)
    return captured["before"], activation_deltas(captured["before"], captured["after"])


def _subset(prompts: PromptSet, n: int, seed: int, label: str) -> PromptSet:
    """n of the prompts, drawn without replacement, in their order."""
    order = numpy_rng(seed, "equal n", label).permutation(len(prompts))[:n]
    return prompts.select([prompts.ids[i] for i in sorted(order)])


def _captured(
    model: HookedModel, prompts: PromptSet, config: StudyConfig, batch_tokens: int
) -> Activations:
    captured = read_streams({model.name: model}, prompts, config, batch_tokens=batch_tokens)
    return captured[model.name]


def _mean_distance(first: Tensor, second: Tensor) -> float:
    """Mean over rows of the distance between two sets of activations of the same prompts."""
    return float((first.double() - second.double()).norm(dim=1).mean())
