"""Generation under interventions against plain generation, as ratios within one run.

The intervened model is first compared with plain hooks written out by hand, and nothing is timed
where they differ. Then every case runs once a round, interleaved, and medians are compared; an
interval of the ratio comes from resampling rounds. Seconds are those of the processor on one
thread, so that other processes on the machine do not count; the clock's stand beside them. The
model is the random Qwen2 of `capture_speed`: about 100M parameters, the real vocabulary of 152
thousand.
"""

import random
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks import capture_speed
from benchmarks.records import record, show
from emlens.data import PromptSet
from emlens.foundation.intervention import Intervention
from emlens.foundation.seeds import numpy_rng, torch_rng
from emlens.interventions import ablate, mean_ablate, steer
from emlens.models.transformers_backend import TransformersModel

ROUNDS = 7
NEW_TOKENS = 16
ROWS = (1, 8)
PLAIN = "plain"
GOAL_CASE = "one direction after every block"
GOAL = 1.10
GAP = 5e-5
"""float32 through a dozen blocks in another order of summation."""


def cases(model: TransformersModel) -> dict[str, list[Intervention]]:
    d = model.d_model
    direction, other = torch.randn(2, d, generator=torch_rng(0, "directions"))
    posts = [f"resid_post.{i}" for i in range(model.n_layers)]
    return {
        PLAIN: [],
        GOAL_CASE: [ablate(direction)],
        "the same, affine": [ablate(direction, baseline=other)],
        "the same, answers only": [ablate(direction, positions="response")],
        "one direction at inputs and writes": [ablate(direction, at="inputs_and_writes")],
        "three edits after every block": [
            ablate(direction),
            steer(other, 0.1, at="all_layers"),
            ablate(other),
        ],
        "steer by the norm after every block": [
            steer(other, 0.01, unit="resid_norm", at="all_layers")
        ],
        "mean along the direction": [mean_ablate(dict.fromkeys(posts, other), direction=direction)],
    }


def gap_to_plain_hooks(model: TransformersModel, asked: PromptSet) -> float:
    """Largest relative difference of logits between `ablate` and hooks written out by hand."""
    direction = torch.randn(model.d_model, generator=torch_rng(0, "directions"))
    unit = direction / direction.norm()

    def remove(_module: Any, _args: Any, out: torch.Tensor) -> torch.Tensor:
        return out - (out @ unit)[..., None] * unit

    with model.intervene([ablate(direction)]):
        ours = model.logits(asked)
    layers: Any = model.module.model.layers  # type: ignore[union-attr]
    with ExitStack() as stack, torch.no_grad():
        for block in layers:
            stack.callback(block.register_forward_hook(remove).remove)
        rows = [
            model.module(torch.tensor([row.ids]), use_cache=False).logits[0, -1]
            for row in model.render(asked)
        ]
    return float((ours - torch.stack(rows)).abs().max() / ours.abs().max())


def measure(
    model: TransformersModel, asked: PromptSet, rounds: int, new_tokens: int
) -> list[dict[str, Any]]:
    """Seconds of every case on these prompts, and each as a ratio of plain generation."""
    torch.set_num_threads(1)
    if not (gap := gap_to_plain_hooks(model, asked)) < GAP:
        raise SystemExit(
            f"ablation and plain hooks differ by {gap:.2g}; not timing different results"
        )
    wanted = cases(model)
    seconds: dict[str, list[float]] = {name: [] for name in wanted}
    clock: dict[str, list[float]] = {name: [] for name in wanted}
    order, pick = list(wanted), random.Random(0)
    for turn in range(-1, rounds):  # the first is not counted
        pick.shuffle(order)  # no case always follows the same other
        for name in order:
            start, started = time.process_time(), time.perf_counter()
            with model.intervene(wanted[name]):
                answers = model.generate(asked, max_new_tokens=new_tokens, temperature=0)
            taken, waited = time.process_time() - start, time.perf_counter() - started
            if (lengths := {len(answer.split()) for answer in answers}) != {new_tokens}:
                raise SystemExit(
                    f"{name} ended early, after {lengths} tokens; not comparing different lengths"
                )
            if turn >= 0:
                seconds[name].append(taken)
                clock[name].append(waited)
    return [
        {
            "rows": len(asked),
            "case": name,
            "median_s": statistics.median(s),
            **ratio(s, seconds[PLAIN]),
            "clock_s": statistics.median(clock[name]),
        }
        for name, s in seconds.items()
    ]


def ratio(case: Sequence[float], plain: Sequence[float], draws: int = 2000) -> dict[str, float]:
    """Ratio of medians, with a percentile interval over resampled rounds."""
    pairs = np.array([case, plain])
    index = numpy_rng(0, "rounds").integers(pairs.shape[1], size=(draws, pairs.shape[1]))
    top, bottom = np.median(pairs[:, index], axis=-1)
    low, high = np.quantile(top / bottom, [0.025, 0.975])
    return {
        "over_plain": float(np.median(pairs[0]) / np.median(pairs[1])),
        "low": float(low),
        "high": float(high),
    }


def against_goal(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "goal": f"{GOAL_CASE} ÷ plain <= {GOAL}",
            "rows": one["rows"],
            "value": one["over_plain"],
            "met": one["over_plain"] <= GOAL,
        }
        for one in found
        if one["case"] == GOAL_CASE
    ]


def main() -> None:
    model = capture_speed.build()
    found: list[dict[str, Any]] = []
    for rows in ROWS:
        found += measure(model, capture_speed.prompts(count=rows), ROUNDS, NEW_TOKENS)
    goals = against_goal(found)
    show("generation under interventions, against plain generation", pd.DataFrame(found))
    show("goal", pd.DataFrame(goals))
    parameters = sum(p.numel() for p in model.module.parameters())
    record(
        "intervention_speed",
        [0],
        {
            "parameters": parameters,
            "rounds": ROUNDS,
            "new_tokens": NEW_TOKENS,
            "goals": goals,
            "cases": found,
        },
    )
