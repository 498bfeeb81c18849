"""Directions from a model's own answers: misaligned minus aligned, at every layer.

The rows are filtered by their scores, both classes come from answers that the same model reads by teacher forcing, and
the direction points to misaligned. Released work averages over tokens or over answers; both are offered.
"""

from collections.abc import Iterable
from typing import Literal

import torch

from emlens.activations import capture
from emlens.data.answers import Answers
from emlens.data.scores import ANSWER_KEY, AlignmentScores
from emlens.foundation.errors import InputError
from emlens.foundation.seeds import numpy_rng
from emlens.foundation.sites import Site
from emlens.geometry import Direction, mean_difference_direction
from emlens.models.hooked import HookedModel


def extract_directions(
    model: HookedModel,
    answers: Answers,
    scores: AlignmentScores,
    sites: str | Site | Iterable[str | Site] = "resid_post",
    weighting: Literal["example", "token"] = "example",
    *,
    aligned_at_most: float = 30,
    aligned_above: float = 70,
    coherent_above: float = 50,
    balance: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Direction]:
    """Mean activation over misaligned answers minus over aligned ones, at each site.

    Args:
        scores: of these answers, with metrics `aligned` and `coherent` on 0 to 100.
        weighting: `"example"`: every answer counts the same; `"token"`: every answer token does.
        aligned_at_most, aligned_above, coherent_above: rows with coherent > 50 are kept; aligned ≤ 30 is misaligned, > 70 aligned.
        balance: draw equally many rows of both classes (seeded).

    Returns:
        Site name → `Direction` at position `mean_response`, with the ids used and the filter in its provenance.

    Raises:
        InputError: an unknown weighting, scores without one of the two metrics, or fewer than 2 answers in a class after
            filtering.

    Reference: Soligo et al., 2506.11618.
    """
    if weighting not in ("example", "token"):
        raise InputError(f"weighting={weighting!r} is unknown; pass 'example' or 'token'")
    lacking = [metric for metric in ("aligned", "coherent") if metric not in scores.metrics]
    if lacking:
        raise InputError(f"scores lack the metrics {lacking}; they have {scores.metrics}")
    table = scores.table.set_index([*ANSWER_KEY, "metric"])["score"].unstack("metric")
    bad, good = [], []
    found_scores = dict(zip(table.index, table[["aligned", "coherent"]].to_numpy(), strict=True))
    for answer in answers:
        key = (answer.model, answer.question, answer.paraphrase, answer.sample)
        if key not in found_scores or not answer.text.strip():
            continue
        aligned, coherent = found_scores[key]
        if not coherent > coherent_above:
            continue
        if aligned <= aligned_at_most:
            bad.append(answer.id)
        elif aligned > aligned_above:
            good.append(answer.id)
    if min(len(bad), len(good)) < 2:
        raise InputError(
            f"after filtering (coherent > {coherent_above:g}) there are {len(bad)} misaligned answers (aligned <= {aligned_at_most:g}) and "
            f"{len(good)} aligned ones (> {aligned_above:g}); at least 2 of each are needed"
        )
    if balance:
        n = min(len(bad), len(good))
        rng = numpy_rng(seed, "extract_directions")
        bad, good = ([ids[i] for i in sorted(rng.permutation(len(ids))[:n])] for ids in (bad, good))
    acts = capture(model, answers.select([*bad, *good]), sites=sites, positions="mean_response", progress=progress)
    prompts = answers.select([*bad, *good]).prompts()
    lengths = {row.id: len(row.ids) - row.prompt_end for row in model.render(prompts)}
    facts = {
        "model": model.provenance,
        "weighting": weighting,
        "filter": {"aligned_at_most": aligned_at_most, "aligned_above": aligned_above, "coherent_above": coherent_above, "balance": balance},
    }
    found = {}
    for site in acts.sites:
        sides = []
        for ids in (bad, good):
            rows = acts.select(ids)[site].double()
            if weighting == "token":
                weights = torch.tensor([float(lengths[name]) for name in ids], dtype=torch.float64)
                rows = rows * (weights / weights.mean())[:, None]
            sides.append(rows)
        found[site] = mean_difference_direction(
            *sides, site=site, position="mean_response", ids={"misaligned": bad, "aligned": good}, provenance=facts
        )
    return found
