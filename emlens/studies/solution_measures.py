"""Two solutions of one task side by side: how much loss they remove for their length, how flat they
lie, how much they change elsewhere.

Everything is done to updates ΔW of the shared parent (see `emlens.interventions.lora_sums`), so
that no number depends on how an adapter splits its update into factors, and both are compared at
one Frobenius norm. Tables have one row per cell and no intervals: those are over seeds, and
`paired` makes them. Cost per cell: a few forward passes over the chats, the neutral text and, for
the line, the questions.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

from emlens.data import PromptSet, QuestionSet
from emlens.evaluation.damage import summed_kl
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.interventions.applied_adapter import applied_adapter
from emlens.interventions.lora import LoraAdapter
from emlens.interventions.lora_sums import (
    interpolated,
    perturbed,
    random_update,
    update_norm,
    with_norm,
)
from emlens.judging.score_source import ScoreSource
from emlens.models.hooked import HookedModel
from emlens.models.pass_memory import text_chunks
from emlens.results.study_result import columns_of
from emlens.stats import paired_test

GENERAL: Final = "general"
NARROW: Final = "narrow"
RANDOM: Final = "random"
Solutions = Mapping[str, LoraAdapter]


def answer_nll(model: HookedModel, chats: PromptSet) -> float:
    """Mean negative log-likelihood of the chats' answers, nats per answer token.

    Raises:
        InputError: a chat without an answer.
    """
    for chat in chats:
        if not chat.response:
            raise InputError(
                f"chat {one_line(chat.id, 60)!r} has no answer;"
                " pass chats with the answers that were learned"
            )
    logprobs = model.response_logprob(chats)
    n_tokens = sum(len(row.spans.part("response")) for row in model.render(chats))
    return -float(logprobs.sum()) / n_tokens


def _losses(model: HookedModel, chats: Mapping[str, PromptSet]) -> dict[str, float]:
    """Kind of chats → `answer_nll` of the model as it is now."""
    return {data: answer_nll(model, prompts) for data, prompts in chats.items()}


def efficiency(
    parent: HookedModel,
    solutions: Solutions,
    chats: Mapping[str, PromptSet],
    shares: Sequence[float],
) -> pd.DataFrame:
    """Loss of each solution rescaled to the same norms: `share` times the norm of the general one.

    Columns: solution, data (which chats), share, norm, of_own (share of the solution's own norm),
    loss.
    """
    unit = update_norm(solutions[GENERAL])
    rows = []
    for name, adapter in solutions.items():
        for share in shares:
            norm = share * unit
            with applied_adapter(parent, with_norm(adapter, norm)):
                losses = _losses(parent, chats)
            for data, loss in losses.items():
                rows.append(
                    {
                        "solution": name,
                        "data": data,
                        "share": share,
                        "norm": norm,
                        "of_own": norm / update_norm(adapter),
                        "loss": loss,
                    }
                )
    return pd.DataFrame(rows)


def stability(
    parent: HookedModel,
    solutions: Solutions,
    chats: Mapping[str, PromptSet],
    epsilons: Sequence[float],
    seeds: Sequence[int],
) -> pd.DataFrame:
    """Share of what a solution gained that turning it by ε loses: 100·(L_perturbed − L)/(L_parent −
    L), mean over `seeds` directions.

    Columns: solution, data, epsilon, rise (percent), rise_sd (over directions), loss (unperturbed),
    directions.

    Raises:
        InputError: a solution that has learned nothing of the chats.
    """
    before = _losses(parent, chats)
    rows = []
    for name, adapter in solutions.items():
        with applied_adapter(parent, adapter):
            learned = _losses(parent, chats)
        _require_learned(name, before, learned)
        for epsilon in epsilons:
            turned = []
            for seed in seeds:
                with applied_adapter(parent, perturbed(adapter, epsilon, seed)):
                    turned.append(_losses(parent, chats))
            for data in chats:
                gained = before[data] - learned[data]
                rises = [100 * (losses[data] - learned[data]) / gained for losses in turned]
                rows.append(
                    {
                        "solution": name,
                        "data": data,
                        "epsilon": epsilon,
                        "rise": float(np.mean(rises)),
                        "rise_sd": float(np.std(rises, ddof=1)) if len(rises) > 1 else np.nan,
                        "loss": learned[data],
                        "directions": len(rises),
                    }
                )
    return pd.DataFrame(rows)


def _require_learned(name: str, before: Mapping[str, float], learned: Mapping[str, float]) -> None:
    """Raises:
    InputError: a solution whose loss is not below the parent's.
    """
    for data, loss in learned.items():
        if not before[data] > loss:
            raise InputError(
                f"the {name} solution has loss {loss:.4g} on {data} chats and the parent"
                f" {before[data]:.4g}; it has learned nothing to lose"
            )


def significance(
    parent: HookedModel,
    solutions: Solutions,
    texts: Mapping[str, PromptSet],
    shares: Sequence[float],
    seeds: Sequence[int],
) -> pd.DataFrame:
    """Mean token KL(parent ‖ model) on text that has nothing to do with the task, at the same
    norms, beside random updates of that norm.

    Columns: solution (`random`: orthogonal to the general one, of its rank and norms, mean over
    `seeds`), data (which text), share, norm, kl (nats per token).
    """
    unit = update_norm(solutions[GENERAL])
    random_updates = [random_update(solutions[GENERAL], seed) for seed in seeds]
    updates = [*solutions.values(), *random_updates]
    scaled = [(update, share * unit) for share in shares for update in updates]
    by_text = {data: iter(_kl_of(parent, scaled, prompts)) for data, prompts in texts.items()}

    rows = []
    for share in shares:
        by_solution: dict[str, dict[str, float]] = {name: {} for name in (*solutions, RANDOM)}
        for data, values in by_text.items():
            for name in solutions:
                by_solution[name][data] = next(values)
            by_solution[RANDOM][data] = float(np.mean([next(values) for _ in random_updates]))
        for name, values_of in by_solution.items():
            for data, value in values_of.items():
                rows.append(
                    {
                        "solution": name,
                        "data": data,
                        "share": share,
                        "norm": share * unit,
                        "kl": value,
                    }
                )
    return pd.DataFrame(rows)


def _kl_of(
    parent: HookedModel, updates: Sequence[tuple[LoraAdapter, float]], prompts: PromptSet
) -> list[float]:
    """Mean token KL(parent ‖ model) of each update, in nats.

    Log-probabilities of a few texts are held at a time, under the parent and under one update.

    Args:
        updates: each with the norm that it gets.
    """
    sums, n_tokens = [0.0] * len(updates), 0
    for chunk in text_chunks(parent, list(prompts)):
        plain = parent.token_logprobs(chunk)
        n_tokens += sum(map(len, plain))
        for number, (adapter, norm) in enumerate(updates):
            with applied_adapter(parent, with_norm(adapter, norm)):
                sums[number] += summed_kl(plain, parent.token_logprobs(chunk))
    return [total / n_tokens for total in sums]


def line(
    parent: HookedModel,
    solutions: Solutions,
    questions: QuestionSet,
    domain: str,
    trained: frozenset[str],
    chats: PromptSet,
    points: Sequence[float],
    source: ScoreSource,
) -> pd.DataFrame:
    """Loss and alignment on the straight line from the general (0) to the narrow solution (1).

    Columns: t, norm, loss (on `chats`), own_trained, own_held_out, others, coherent: means over
    questions, 0 to 100; missing where there are none.
    """
    rows = []
    for t in points:
        adapter = interpolated(solutions[GENERAL], solutions[NARROW], t)
        with applied_adapter(parent, adapter):
            scores = source.scores(parent, questions)
            loss = answer_nll(parent, chats)
        rows.append(
            {
                "t": t,
                "norm": update_norm(adapter),
                "loss": loss,
                **by_domain(scores.per_question("aligned"), questions, domain, trained),
                "coherent": float(scores.per_question("coherent").mean()),
            }
        )
    return pd.DataFrame(rows)


def by_domain(
    aligned: pd.Series, questions: QuestionSet, domain: str, trained: frozenset[str]
) -> dict[str, float]:
    """Mean over questions of the own domain, trained and held-out topics, and of all other
    domains; `nan` where there are none.
    """
    aligned = aligned[questions.ids]
    own = np.array([group == domain for group in questions.groups])
    in_training = np.array([name in trained for name in questions.ids])
    return {
        "own_trained": _mean_where(aligned, own & in_training),
        "own_held_out": _mean_where(aligned, own & ~in_training),
        "others": _mean_where(aligned, ~own),
    }


def _mean_where(values: pd.Series, where: np.ndarray) -> float:
    """`nan` where nothing is."""
    return float(values[where].mean()) if where.any() else np.nan


def paired(
    table: pd.DataFrame,
    value: str,
    cells: Sequence[str],
    first: str = NARROW,
    second: str = GENERAL,
) -> pd.DataFrame:
    """Over seeds, in each cell: mean of both solutions, and of their difference first − second with
    its paired t interval and p.

    Columns: cells, `first`, `second`, difference, difference_low, difference_high, p, seeds.
    Without spread, or with one seed, there is no interval.
    """
    wide = table.pivot_table(index=[*cells, "seed"], columns="solution", values=value).reset_index()
    rows: list[dict[str, Any]] = []
    for key, group in wide.groupby(list(cells), sort=True):
        a, b = group[first].to_numpy(), group[second].to_numpy()
        rows.append(
            {
                **dict(zip(cells, key, strict=True)),
                first: a.mean(),
                second: b.mean(),
                **_difference_columns(a, b),
                "seeds": len(a),
            }
        )
    return pd.DataFrame(rows)


def _difference_columns(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Mean of a − b over seeds with its paired t interval and p, where there is spread."""
    if len(a) > 1 and np.ptp(a - b) > 0:
        test = paired_test(a, b)
        return {**columns_of("difference", test.estimate), "p": test.p}
    return {
        "difference": float((a - b).mean()),
        "difference_low": np.nan,
        "difference_high": np.nan,
        "p": np.nan,
    }
