"""Table `overlap_landmarks` of `delta_overlap`: what else overlaps, beside a fine-tune's shifts.
None of these is a test.

Random and gradient updates have the fine-tune's size and none of its content. One population: two
Gaussian samples with the covariance of the activations before. Before: the parent's own activations
on both sets of prompts. Isotropic: two samples without any preferred direction. All are means over
the layers at which the fine-tune is compared.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from emlens.activations import CaptureSpec
from emlens.controls.shift_statistics import statistics_of_rows
from emlens.controls.update_landmark import (
    UpdateLandmark,
    gradient_bytes,
    linear_update,
    update_null,
)
from emlens.foundation.errors import EmlensError
from emlens.foundation.seeds import torch_rng
from emlens.interventions.lora import LoraAdapter
from emlens.models import FineTune
from emlens.models.adapter_files import is_adapter
from emlens.models.families import local_copy
from emlens.studies.overlap_recipes import NotHad, NullNeeds, null_needs
from emlens.studies.overlap_shifts import SampledShifts, compared_prompts
from emlens.studies.study import StudyContext

RANDOM_UPDATE: Final = "random update"
GRADIENT_UPDATE: Final = "gradient update"
POPULATION: Final = "one population"
BEFORE: Final = "before activations"
ISOTROPIC: Final = "isotropic samples"
SHOWN: Final = ("variance_weighted", "mean_cosine", "mean_cos2")
_SAMPLES: Final = 5


def landmark_rows(
    context: StudyContext,
    name: str,
    sides: SampledShifts,
    needs: NullNeeds | str,
    draws: int,
    k: int,
) -> list[dict[str, Any]]:
    """Rows of one fine-tune: one per position, landmark and statistic.

    Args:
        needs: what its null is made from; a gradient update takes the careful answers. draws: of
            each update; 0 leaves the updates out.
    """
    rows = [*_of_samples(name, sides, k, context.config.seed)]
    if draws and context.material.parent(name).backend == "transformers":
        for landmark in _updates(context, name, needs, draws, k):
            rows += _of_updates(name, sides, landmark)
    return rows


def _row(name: str, position: str, landmark: str, measure: str, value: float) -> dict[str, Any]:
    return {
        "model": name,
        "position": position,
        "landmark": landmark,
        "measure": measure,
        "value": value,
        "scale": np.nan,
        "nats": np.nan,
        "parent_nats": np.nan,
        "comparable": True,
    }


def _compared_sites(sides: SampledShifts, position: str) -> list[str]:
    return [site for site in sides.train.sites if sides.at(site, position).components >= 2]


def _of_samples(name: str, sides: SampledShifts, k: int, seed: int) -> Iterator[dict[str, Any]]:
    """The landmarks that no update is needed for."""
    for position in sides.train.positions:
        sites = _compared_sites(sides, position)
        if not sites:
            continue
        pairs: dict[str, list[tuple[Tensor, Tensor]]] = {BEFORE: [], POPULATION: [], ISOTROPIC: []}
        for site in sites:
            first, second = (
                sides.before_train[site, position].double(),
                sides.before_evaluation[site, position].double(),
            )
            pairs[BEFORE].append((first, second))
            rng = torch_rng(seed, "landmarks", site, position)
            for _ in range(_SAMPLES):
                pairs[POPULATION].append(_population(first, second, rng))
                pairs[ISOTROPIC].append(_isotropic(first, second, rng))
        for landmark, of_landmark in pairs.items():
            values = [statistics_of_rows(*pair, k) for pair in of_landmark]
            for measure in SHOWN:
                if measure == "mean_cosine" and landmark != BEFORE:
                    continue  # samples about 0 have no mean
                mean = float(np.mean([each[measure] for each in values]))
                yield _row(name, position, landmark, measure, mean)


def _population(first: Tensor, second: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two Gaussian samples, as large as these, with the covariance of all their rows."""
    rows = torch.cat([first, second])
    centred = (rows - rows.mean(0)) / (len(rows) - 1) ** 0.5
    samples = []
    for side in (first, second):
        weights = torch.randn(len(side), len(rows), dtype=torch.float64, generator=rng)
        samples.append(weights @ centred)  # rows of covariance XᵀX / (n − 1)
    return samples[0], samples[1]


def _isotropic(first: Tensor, second: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    a, b = (torch.randn(*x.shape, dtype=torch.float64, generator=rng) for x in (first, second))
    return a, b


def _updates(
    context: StudyContext, name: str, needs: NullNeeds | str, draws: int, k: int
) -> Iterator[UpdateLandmark]:
    """Random and gradient updates of a fine-tune's size; none where its update cannot be read."""
    material, config = context.material, context.config
    parent = material.parent(name)
    try:
        update = _update_of(context, name)
    except EmlensError:
        return
    sides = compared_prompts(material, name, config)
    common: dict[str, Any] = {
        "neutral": sides.get("neutral"),
        "spec": CaptureSpec(
            sites=[str(site) for site in _sites(context, name)], positions=config.positions
        ),
        "draws": draws,
        "k": k,
        "seed": config.seed,
    }
    prompts = (sides["train"], sides["evaluation"])
    try:
        yield update_null(parent, update, prompts, **common)
        if not isinstance(needs, str):
            yield update_null(
                parent,
                update,
                prompts,
                kind="gradient",
                careful=needs.careful,
                tokenizer=parent.tokenizer,
                **common,
            )
    except EmlensError:
        return


def landmark_bytes(context: StudyContext, names: Sequence[str]) -> int:
    """Most bytes that the gradient updates of these fine-tunes take; for plans."""
    memory = 0
    for name in names:
        try:
            needs = null_needs(context, name, planned=True)
        except NotHad:
            continue
        memory = max(memory, gradient_bytes(context.material.parent(name), needs.careful))
    return memory


def _sites(context: StudyContext, name: str) -> Sequence[Any]:
    from emlens.studies.streams import read_sites

    return read_sites("resid_post", context.config, context.material.parent(name).n_layers)


def _update_of(context: StudyContext, name: str) -> LoraAdapter:
    """What a fine-tune adds to its parent's weights."""
    spec = context.family.specs[name]
    directory = local_copy(
        f"fine-tune {name!r}", FineTune(spec.path, subfolder=spec.subfolder)
    ).path
    if is_adapter(directory):
        return LoraAdapter.load(directory)
    return linear_update(context.material.parent(name), context.family[name])


def _of_updates(
    name: str, sides: SampledShifts, landmark: UpdateLandmark
) -> Iterator[dict[str, Any]]:
    """The rows of one kind of update."""
    label = RANDOM_UPDATE if landmark.kind == "haar" else GRADIENT_UPDATE
    for position in sides.train.positions:
        sites = _compared_sites(sides, position)
        means = landmark.means(position, sites)
        for measure in SHOWN:
            if measure not in means.columns:
                continue
            yield {
                **_row(name, position, label, measure, float(means[measure].mean())),
                "scale": float(landmark.draws["scale"].mean()),
                "nats": float(landmark.draws["nats"].mean()),
                "parent_nats": landmark.parent_nats,
                "comparable": landmark.comparable,
            }
