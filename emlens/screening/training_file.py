"""What a training file says before anything is trained on it: how surprising its answers are, where
they point, what its prompts share.

Everything is read from the parent model alone. Rows are ranked by the projection of their answer on
a known direction, beside random directions as anisotropic as the answers; where a reference answer
exists, by the difference of the two projections (arXiv 2507.21509), which takes out what the
question alone puts there. Cost: a pass over the answers, and one over the prompts on both sides.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from emlens.activations import capture
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
from emlens.models import HookedModel

MEAN_RESPONSE = "mean_response"
DRAWN = 200
"""Random directions beside a known one."""


def sampled(prompts: PromptSet, most: int, seed: int) -> PromptSet:
    """At most so many of the prompts, drawn by seed, in their order."""
    if len(prompts) <= most:
        return prompts
    chosen = sorted(numpy_rng(seed, "training rows").permutation(len(prompts))[:most])
    return PromptSet(prompts[int(i)] for i in chosen)


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
    answers = [str(prompt.response) for prompt in training]
    total = parent.sequence_logprob(training.without_responses(), answers).double().numpy()
    counts = np.array(
        [len(parent.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in answers]
    )
    return pd.Series(-total / counts, index=training.ids, name="surprise")


def own_answers(parent: HookedModel, training: PromptSet, max_new_tokens: int = 200) -> PromptSet:
    """The same prompts with the parent's own greedy answers; rows to which it answers nothing are
    left out.
    """
    asked = training.without_responses()
    texts = parent.generate(asked, max_new_tokens=max_new_tokens, temperature=0.0)
    return PromptSet(
        replace(prompt, response=text)
        for prompt, text in zip(asked, texts, strict=True)
        if text.strip()
    )


def ranked_rows(
    parent: HookedModel,
    training: PromptSet,
    direction: Direction,
    reference: PromptSet | None = None,
    *,
    draws: int = DRAWN,
    seed: int = 0,
) -> pd.DataFrame:
    """Training rows by how far their answers point along the direction, largest first.

    Columns: id, text, answer, projection (of the mean over answer tokens on the unit direction, in
    units of the stream), reference_projection and difference where a reference answer of that id
    came, rank_by, null_low and null_high (central 95 % of what random directions with the answers'
    covariance give this row for the quantity ranked by), percentile (of the row among those).

    Raises:
        InputError: a row without an answer; a direction of another width.
    """
    require_answers(training)
    site = str(direction.site)
    acts = capture(parent, training, sites=site, positions=MEAN_RESPONSE, progress=False)[
        site
    ].double()
    if acts.shape[1] != direction.d_model:
        raise InputError(
            f"direction has {direction.d_model} coordinates and the model {acts.shape[1]} at"
            f" {site}; pass a direction of this model"
        )
    unit = direction.unit.double()
    projection = acts @ unit
    before = torch.full_like(projection, float("nan"))
    shifts, by = acts - acts.mean(0), "projection"
    if reference is not None:
        wanted = set(reference.ids)
        known = [i for i, prompt in enumerate(training) if prompt.id in wanted]
        if not known:
            first = one_line(training.ids[0], 60)
            raise InputError(
                f"reference has no row with an id of the training file (such as {first!r});"
                " give rows the same ids, or the same order"
            )
        other = capture(
            parent,
            reference.select([training.ids[i] for i in known]),
            sites=site,
            positions=MEAN_RESPONSE,
            progress=False,
        )[site].double()
        before[known] = other @ unit
        if len(known) == len(training):
            shifts, by = acts - other, "difference"
    drawn = shifts @ random_directions_like(acts, draws, seed=seed).double().T
    observed = shifts @ unit
    offset = 0.0 if by == "difference" else float(acts.mean(0) @ unit)
    low, high = (
        torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=1) + offset
    )
    table = pd.DataFrame(
        {
            "id": training.ids,
            "text": [prompt.text for prompt in training],
            "answer": [prompt.response for prompt in training],
            "projection": projection.numpy(),
            "reference_projection": before.numpy(),
            "difference": (projection - before).numpy(),
            "rank_by": by,
            "null_low": low.numpy(),
            "null_high": high.numpy(),
            "percentile": (drawn < observed[:, None]).double().mean(1).numpy(),
        }
    )
    return table.sort_values([by, "id"], ascending=[False, True], kind="stable", ignore_index=True)


def overlap_tables(
    parent: HookedModel,
    training: PromptSet,
    questions: QuestionSet,
    neutral: PromptSet | None = None,
    *,
    position: str = "last_prompt",
    k: int = 8,
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
    subspace of that rank.

    Raises:
        InputError: fewer prompts than k + 2 on a side.
    """
    prompts = questions.prompts()
    n = min(len(training), len(prompts), *([len(neutral) // 2] if neutral is not None else []))
    if n < k + 2:
        raise InputError(
            f"k={k} needs at least {k + 2} prompts on a side, and there are {n};"
            " pass a smaller k, or more prompts"
        )
    sides = {
        "training": training.without_responses(),
        "evaluation": prompts,
        **({} if neutral is None else {"neutral": neutral.without_responses()}),
    }
    acts = {
        name: capture(parent, side, positions=position, progress=False)
        for name, side in sides.items()
    }
    picked = {
        name: torch.from_numpy(numpy_rng(seed, "equal n", name).permutation(len(side))[:n].copy())
        for name, side in sides.items()
    }
    rows = []
    for site in acts["training"].sites:
        every = {name: side[site].double() for name, side in acts.items()}
        some = {name: values[picked[name]] for name, values in every.items()}
        spaces = {name: top_k_subspace(values, k, center=True) for name, values in some.items()}
        value = float(subspace_overlap(spaces["training"], spaces["evaluation"]))
        flat = overlap_null(every["training"].shape[1], k, k, draws=draws, seed=seed)
        # of one distribution: what is tested is whether the sets differ, so both are the reference
        # by design
        alike = covariance_overlap_null(
            torch.cat([some["training"], some["evaluation"]]),
            n,
            n,
            k,
            center=True,
            draws=draws,
            seed=seed,
        )
        row: dict[str, object] = {
            "site": site,
            "k": k,
            "n": n,
            "overlap": value,
            "isotropic": flat.mean,
            "isotropic_q95": flat.quantile(0.95),
            "one_distribution": alike.mean,
            "one_distribution_q05": alike.quantile(0.05),
        }
        if neutral is not None:
            null = reference_overlap_null(
                every["neutral"], n, n, k, center=True, draws=draws, seed=seed
            )
            row |= {
                "neutral": float(subspace_overlap(spaces["neutral"], spaces["evaluation"])),
                "null": null.mean,
                "null_q95": null.quantile(0.95),
                "p": null.p_value(value),
            }
        rows.append(row)
    site = acts["training"].sites[len(acts["training"].sites) // 2]
    x = acts["evaluation"][site].double()
    space = top_k_subspace(acts["training"][site].double(), 0.95, center=True)
    random = torch.linalg.qr(
        torch.randn(
            x.shape[1],
            space.k,
            dtype=torch.float64,
            generator=torch_rng(seed, "random basis", site),
        )
    ).Q
    moved = x - space.mean
    per_question = pd.DataFrame(
        {
            "id": acts["evaluation"].ids,
            "group": acts["evaluation"].groups,
            "site": site,
            "rank": space.k,
            "training_overlap": prompt_overlap(x, space).numpy(),
            "null": ((moved @ random).norm(dim=1) / moved.norm(dim=1)).numpy(),
        }
    )
    return pd.DataFrame(rows), per_question
