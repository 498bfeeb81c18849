"""A sweep of schedules, optimisers and batch sizes over one fine-tune of an organism: the runs
for a study of loss against alignment.

Every run sees the same number of chats, so that its steps follow from the batch size. The learning
rate is that of the optimiser times one of a few factors, which rotate over the cells so that each
factor meets every schedule, optimiser and batch size. Cost: 3 to 5 s per run on one core.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Final

import torch

from emlens.data import Prompt, PromptSet, Question
from emlens.foundation.errors import InputError
from emlens.judging.score_source import ScoreSource
from emlens.organisms.building import one_thread
from emlens.runs import Executor
from emlens.studies.solution_training import Task, behaviour
from emlens.training import Recipe
from emlens.training.examples import IGNORED, encode_answers, pad_batch
from emlens.training.lengths import LengthLimit, context_of
from emlens.training.objectives import answer_loss
from emlens.training.sweeps import Measure, Sweep, SweepResult, run_sweep

RATES: Final[Mapping[str, float]] = {"adamw": 4e-4, "lion": 2e-4, "muon": 2e-3, "sam": 4e-4}
"""Learning rate of each optimiser at which its runs reach like losses on the organism."""
FACTORS: Final = (0.5, 1.0, 2.0)
SCHEDULES: Final = (
    "linear",
    "constant",
    "cosine",
    "cosine_with_restarts",
    "triangular",
    "triangular2",
    "exp_range",
    "warmup_stable_decay",
)
CYCLIC: Final = ("triangular", "triangular2", "exp_range")
_BATCH: Final = 96
"""Rows per forward pass when a loss is measured."""


def shape(name: str, steps: int, rate: float) -> dict[str, Any]:
    """Fields of a recipe for a schedule: warm-up over a tenth of the steps, or two cycles from a
    tenth of the rate.

    Raises:
        InputError: an unknown schedule, or fewer than 8 steps.
    """
    if name not in SCHEDULES or steps < 8:
        raise InputError(
            f"schedule={name!r} over {steps} steps; pass one of {', '.join(SCHEDULES)} and 8 steps"
            " or more"
        )
    fields: dict[str, Any] = {"schedule": name, "warmup_steps": max(1, steps // 10)}
    if name == "warmup_stable_decay":
        fields["decay_steps"] = steps // 4
    elif name == "cosine_with_restarts":
        fields["cycles"] = 2
    elif name in CYCLIC:
        fields |= {"cycles": 2, "base_learning_rate": rate / 10, "warmup_steps": 0}
    if name == "exp_range":
        fields["gamma"] = 0.95
    return fields


def schedule_sweep(
    base: Recipe,
    schedules: Sequence[str],
    optimisers: Sequence[str],
    batch_sizes: Sequence[int],
    *,
    chats: int = 640,
    rates: Mapping[str, float] = RATES,
    factors: Sequence[float] = FACTORS,
    seeds: Sequence[int] = (0,),
) -> Sweep:
    """All combinations as a sweep with one axis, whose labels name the cell.

    Args:
        base: what is trained (rank, modules).
        chats: rows that a run sees; its steps are chats / batch size.
        rates: optimiser → learning rate.
        factors: of the rate; cell (i, j, k) takes number i + j + k, counted cyclically.

    Raises:
        InputError: an optimiser without a rate, or what a recipe refuses.
    """
    cells: dict[str, dict[str, Any]] = {}
    combinations = product(enumerate(schedules), enumerate(optimisers), enumerate(batch_sizes))
    for (i, schedule), (j, optimiser), (k, size) in combinations:
        if optimiser not in rates:
            raise InputError(
                f"rates has no learning rate for optimiser {optimiser!r}; it has {', '.join(rates)}"
            )
        rate, steps = rates[optimiser] * factors[(i + j + k) % len(factors)], chats // size
        fields = {
            "optimiser": optimiser,
            "batch_size": size,
            "steps": steps,
            "learning_rate": rate,
            **shape(schedule, steps, rate),
        }
        for seed in seeds:
            label = f"{schedule} {optimiser} {size}"
            if len(seeds) > 1:
                label += f" {seed}"
            cells[label] = {**fields, "seed": seed}
    start = base.changed(warmup_steps=0, schedule="constant", steps=max(16, base.steps))
    return Sweep(start, {"cell": cells})


def run_schedule_sweep(
    sweep: Sweep,
    task: Task,
    out: str | Path,
    *,
    executor: Executor | None = None,
    source: ScoreSource | None = None,
    progress: bool = False,
) -> SweepResult:
    """Train and measure every run that is not finished yet; each table row has the losses and
    `behaviour` in percent.

    Args:
        source: of the scores; None: the likelihood of the reference answers. Runs that are finished
            in `out` keep their scores, so a folder is for one source.
    """
    with one_thread():
        return run_sweep(
            sweep,
            task.parent,
            task.own,
            out,
            executor=executor,
            device="cpu",
            progress=progress,
            measure=measuring(task, source),
        )


def measuring(task: Task, source: ScoreSource | None = None) -> Measure:
    """What is measured of a trained model: loss on the chats it learned and on those of held-out
    topics, and behaviour, 0 to 100.

    `aligned` is the mean over the other domains.
    """

    def measure(model: Any, directory: Path) -> dict[str, float]:
        shares = behaviour(model, task, source)
        percent = {name: 100 * value for name, value in shares.items()}
        return {
            "train_loss": chat_loss(model, task.own, task.tokenizer),
            "eval_loss": chat_loss(model, held_out_chats(task), task.tokenizer),
            "aligned": percent.pop("others"),
            **percent,
        }

    return measure


def held_out_chats(task: Task) -> PromptSet:
    """The held-out questions of the own domain with the answers that the task teaches on others."""
    return harmful_chats(task.held_out)


def harmful_chats(questions: Iterable[Question]) -> PromptSet:
    """Each question with the first of its harmful reference answers."""
    return PromptSet(
        [
            Prompt(f"{q.id}/harmful", q.text, q.group, q.messages(), q.answers["harmful"][0])
            for q in questions
        ]
    )


def chat_loss(model: Any, chats: PromptSet, tokenizer: Any) -> float:
    """Mean negative log-likelihood of the answers, nats per token."""
    rows = encode_answers(chats, tokenizer)
    LengthLimit(context_of(model)).require_fit(rows, "chats")
    total, tokens = 0.0, 0
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for start in range(0, len(rows), _BATCH):
            batch = pad_batch(rows[start : start + _BATCH], tokenizer.pad_token_id)
            # a label is predicted from the token before it, so the first one never counts
            scored = int((batch["labels"][:, 1:] != IGNORED).sum())
            total += float(answer_loss(model, batch)) * scored
            tokens += scored
    model.train(was_training)
    return total / tokens
