"""What a training file shows before training: how surprising its answers are, where they point, and
what its prompts share with the questions.

Everything is read from the parent model alone. Rows are ranked by the projection of their answer on
a known direction, beside random directions as anisotropic as the answers. Where a reference answer
exists, they are ranked by the difference of the two projections (arXiv 2507.21509), which takes out
what the question alone contributes. Cost: a pass over the answers, and one over the prompts on both
sides.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from emlens.activations import Activations, capture
from emlens.data import PromptSet, QuestionSet
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.foundation.seeds import numpy_rng, torch_rng
from emlens.geometry import (
    Direction,
    covariance_overlap_null,
    overlap_null,
    prompt_overlap,
    random_directions_like,
    reference_overlap_null,
    subspace_overlap,
    top_k_subspace,
)
from emlens.geometry.components import ComponentCount
from emlens.models import HookedModel

MEAN_RESPONSE = "mean_response"
RANDOM_DIRECTIONS = 200
"""Random directions beside a known one."""


def sampled(prompts: PromptSet, most: int, seed: int) -> PromptSet:
    """At most `most` of the prompts, drawn by seed, in their order."""
    if len(prompts) <= most:
        return prompts
    numbers = sorted(numpy_rng(seed, "training rows").permutation(len(prompts))[:most])
    return PromptSet(prompts[int(i)] for i in numbers)


def require_answers(training: PromptSet) -> None:
    """Raises:
    InputError: a training row without an answer.
    """
    for prompt in training:
        if not prompt.response:
            raise InputError(
                f"training row {one_line(prompt.id, 60)!r} has no answer;"
                " pass chats that end with an assistant turn"
            )


def surprise(parent: HookedModel, training: PromptSet) -> pd.Series:
    """Nats per token of each answer under the parent, by id: what fine-tuning is about to lower.
    Range [0, ∞).

    Raises:
        InputError: a row without an answer.
    """
    require_answers(training)
    total = parent.response_logprob(training).numpy()
    counts = [len(row.spans.part("response")) for row in parent.render(training)]
    return pd.Series(-total / np.array(counts), index=training.ids, name="surprise")


def mean_answers(parent: HookedModel, chats: PromptSet, site: str) -> Tensor:
    """(row, d_model) mean activation over each answer's tokens, in float64."""
    acts = capture(parent, chats, sites=site, positions=MEAN_RESPONSE, progress=False)
    return acts[site].double()


def own_answers(parent: HookedModel, training: PromptSet, max_new_tokens: int = 200) -> PromptSet:
    """The same prompts with the parent's own greedy answers; rows to which it answers nothing are
    left out.
    """
    prompts = training.without_responses()
    texts = parent.generate(prompts, max_new_tokens=max_new_tokens, temperature=0.0)
    return PromptSet(
        replace(prompt, response=text)
        for prompt, text in zip(prompts, texts, strict=True)
        if text.strip()
    )


def ranked_rows(
    parent: HookedModel,
    training: PromptSet,
    direction: Direction,
    reference: PromptSet | None = None,
    *,
    draws: int = RANDOM_DIRECTIONS,
    seed: int = 0,
) -> pd.DataFrame:
    """Training rows by how far their answers point along the direction, largest first.

    Columns: id, text, answer, projection (of the mean over answer tokens on the unit direction, in
    units of the stream), reference_projection and difference where a reference answer of that id
    exists, rank_by, null_low and null_high (central 95 % of what random directions with the
    answers' covariance give this row for the quantity ranked by), percentile (of the row among
    those).

    Raises:
        InputError: a row without an answer; a direction of another width.
    """
    require_answers(training)
    site = str(direction.site)
    acts = mean_answers(parent, training, site)
    if acts.shape[1] != direction.d_model:
        raise InputError(
            f"direction has {direction.d_model} coordinates and the model {acts.shape[1]} at"
            f" {site}; pass a direction of this model"
        )
    unit = direction.unit.double()
    projection = acts @ unit
    reference_projection = torch.full_like(projection, float("nan"))
    # without references, rows are compared with the mean row, and the null lies around its value
    shifts, rank_by, offset = acts - acts.mean(0), "projection", float(acts.mean(0) @ unit)
    if reference is not None:
        rows = _rows_with_reference(training, reference)
        chats = reference.select([training.ids[i] for i in rows])
        reference_acts = mean_answers(parent, chats, site)
        reference_projection[rows] = reference_acts @ unit
        if len(rows) == len(training):
            shifts, rank_by, offset = acts - reference_acts, "difference", 0.0
    random = shifts @ random_directions_like(acts, draws, seed=seed).double().T
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = torch.quantile(random, ends, dim=1) + offset
    table = pd.DataFrame(
        {
            "id": training.ids,
            "text": [prompt.text for prompt in training],
            "answer": [prompt.response for prompt in training],
            "projection": projection.numpy(),
            "reference_projection": reference_projection.numpy(),
            "difference": (projection - reference_projection).numpy(),
            "rank_by": rank_by,
            "null_low": low.numpy(),
            "null_high": high.numpy(),
            "percentile": (random < (shifts @ unit)[:, None]).double().mean(1).numpy(),
        }
    )
    return table.sort_values(
        [rank_by, "id"], ascending=[False, True], kind="stable", ignore_index=True
    )


def _rows_with_reference(training: PromptSet, reference: PromptSet) -> list[int]:
    ids = set(reference.ids)
    rows = [i for i, prompt in enumerate(training) if prompt.id in ids]
    if not rows:
        raise InputError(
            "reference has no row with an id of the training file"
            f" (such as {one_line(training.ids[0], 60)!r});"
            " give rows the same ids, or the same order"
        )
    return rows


def overlap_tables(
    parent: HookedModel,
    training: PromptSet,
    questions: QuestionSet,
    neutral: PromptSet | None = None,
    *,
    position: str = "last_prompt",
    k: ComponentCount = 8,
    draws: int = 200,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What prompts of the training file and of the evaluation share before training: (by layer, by
    question at the middle layer).

    By layer: centred top-k overlap of as many prompts of each, beside the isotropic landmark,
    beside two samples of *one* distribution (their pooled covariance: what it would be if both were
    the same kind of prompt), and, with neutral text, beside two sets of that
    (`reference_overlap_null`) and the neutral text's own overlap with the questions. By question:
    the share of its length inside the training prompts' subspace of 95 % variance, beside a random
    subspace of that rank. A k that is a share of variance or the elbow is chosen at each layer on
    the training prompts; nulls have the same k.

    Raises:
        InputError: fewer prompts than k + 2 on a side; k is the elbow, and training prompts have
            none at some layer.
    """
    prompts = questions.prompts()
    sides = {"training": training.without_responses(), "evaluation": prompts}
    sizes = [len(training), len(prompts)]
    if neutral is not None:
        sides["neutral"] = neutral.without_responses()
        sizes.append(len(neutral) // 2)  # the null needs two sets of it
    n = min(sizes)
    if isinstance(k, int) and n < k + 2:
        raise InputError(
            f"k={k} needs at least {k + 2} prompts on a side, and there are {n};"
            " pass a smaller k, or more prompts"
        )
    acts, samples = {}, {}
    for name, side in sides.items():
        acts[name] = capture(parent, side, positions=position, progress=False)
        order = numpy_rng(seed, "equal n", name).permutation(len(side))
        samples[name] = torch.from_numpy(order[:n].copy())
    comparison = _Overlap(acts, samples, n, k, draws, seed)
    sites = acts["training"].sites
    by_layer = pd.DataFrame([comparison.row(site) for site in sites])
    return by_layer, _by_question(acts, sites[len(sites) // 2], seed)


@dataclass(frozen=True)
class _Overlap:
    """Captures of every side, and the rows of an equally large sample of each."""

    acts: dict[str, Activations]
    samples: dict[str, Tensor]
    n: int
    k: ComponentCount
    draws: int
    seed: int

    def row(self, site: str) -> dict[str, Any]:
        """Overlap of training and evaluation prompts at one site, beside its landmarks."""
        n, draws, seed = self.n, self.draws, self.seed
        sample = {}
        for name, acts in self.acts.items():
            sample[name] = acts[site].double()[self.samples[name]]
        k = min(top_k_subspace(sample["training"], self.k, center=True).k, n - 2)
        spaces = {name: top_k_subspace(rows, k, center=True) for name, rows in sample.items()}
        overlap = float(subspace_overlap(spaces["training"], spaces["evaluation"]))
        isotropic = overlap_null(sample["training"].shape[1], k, k, draws=draws, seed=seed)
        # what is tested is whether the two sets differ, so the pooled rows of both are the
        # reference by design
        pooled = torch.cat([sample["training"], sample["evaluation"]])
        alike = covariance_overlap_null(pooled, n, n, k, center=True, draws=draws, seed=seed)
        row: dict[str, Any] = {
            "site": site,
            "k": k,
            "n": n,
            "overlap": overlap,
            "isotropic": isotropic.mean,
            "isotropic_q95": isotropic.quantile(0.95),
            "one_distribution": alike.mean,
            "one_distribution_q05": alike.quantile(0.05),
        }
        if "neutral" in self.acts:
            neutral = self.acts["neutral"][site].double()
            null = reference_overlap_null(neutral, n, n, k, center=True, draws=draws, seed=seed)
            row |= {
                "neutral": float(subspace_overlap(spaces["neutral"], spaces["evaluation"])),
                "null": null.mean,
                "null_q95": null.quantile(0.95),
                "p": null.p_value(overlap),
            }
        return row


def _by_question(acts: dict[str, Activations], site: str, seed: int) -> pd.DataFrame:
    """Share of each question's length inside the training prompts' subspace at one site."""
    rows = acts["evaluation"][site].double()
    space = top_k_subspace(acts["training"][site].double(), 0.95, center=True)
    rng = torch_rng(seed, "random basis", site)
    draws = torch.randn(rows.shape[1], space.k, dtype=torch.float64, generator=rng)
    random = torch.linalg.qr(draws).Q
    centred = rows - space.mean
    return pd.DataFrame(
        {
            "id": acts["evaluation"].ids,
            "group": acts["evaluation"].groups,
            "site": site,
            "rank": space.k,
            "training_overlap": prompt_overlap(rows, space).numpy(),
            "null": ((centred @ random).norm(dim=1) / centred.norm(dim=1)).numpy(),
        }
    )
