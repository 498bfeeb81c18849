"""Does the direction of one fine-tune work in another? Every edit in every fine-tune, on questions
outside both domains.

A direction that restores only its own fine-tune is particular to it; one that restores others says
that they share a mechanism, where the controls of the *target* restore less. Cost: one scoring for
each pair; each fine-tune and parent unedited once.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from emlens.data.prompts import PromptSet
from emlens.data.questions import QuestionSet
from emlens.evaluation.damage import text_damage
from emlens.evaluation.restoring import paired_change, restoration
from emlens.evaluation.trials import Score, Trials
from emlens.foundation.errors import InputError, UnknownNameError
from emlens.foundation.estimate import Estimate
from emlens.foundation.intervention import Intervention
from emlens.geometry import Direction, Subspace, direction_cosine
from emlens.interventions import ablate
from emlens.judging.likelihood import score_by_likelihood
from emlens.models.hooked import HookedModel
from emlens.runs.progress import progress_bar


def transfer_matrix(
    directions: Mapping[str, Direction | Subspace],
    finetuned: Mapping[str, HookedModel],
    parents: HookedModel | Mapping[str, HookedModel],
    questions: QuestionSet,
    *,
    domains: Mapping[str, str],
    trained: Mapping[str, Collection[str]] | None = None,
    edit: Callable[[Direction | Subspace, str], Sequence[Intervention]] | None = None,
    neutral: PromptSet | None = None,
    score: Score = score_by_likelihood,
    score_id: str | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    seed: int = 0,
) -> pd.DataFrame:
    """Restoration in fine-tune j by removing the direction of fine-tune i, for all i and j.

    Args:
        directions: source → direction (or subspace). finetuned: target → model. parents: one
            parent, or one for each target.
        domains: training domain of every source and target, "" where there is none; both domains of
            a pair are left out.
        trained: ids of the questions a fine-tune has seen; left out of its pairs.
        edit: what is done with a direction in a target, such as `lambda direction, target:
            form.remove(direction)`; None: plain ablation after every block.
        neutral: prompts on which damage in the target is measured; None leaves it out.
        score, score_id, out: as in `Trials`; with `out` a stopped matrix goes on from the last
            finished pair.

    Returns:
        One row a pair: direction_of, ablated_in, same_domain, site, cosine (with the target's own
            direction, where both are
        single directions) and same_site, restoration, low, high, coherent_change and kl (value,
        `_low`, `_high`), n (questions), method (or why undefined).

    Raises:
        InputError: nothing to compare, or a question without a score. UnknownNameError: a fine-tune
            without domain or parent.
    """
    if not directions or not finetuned:
        raise InputError(
            f"directions holds {len(directions)} and finetuned {len(finetuned)};"
            " pass at least one of each"
        )
    act = edit or (lambda direction, target: (ablate(direction),))
    ancestors = parents if isinstance(parents, Mapping) else dict.fromkeys(finetuned, parents)
    for names, given, what in (
        (dict.fromkeys([*directions, *finetuned]), domains, "domains"),
        (finetuned, ancestors, "parents"),
    ):
        missing = [name for name in names if name not in given]
        if missing:
            raise UnknownNameError(f"{what} lacks {missing[0]!r}; it has {', '.join(given)}")
    trials = Trials(questions, neutral=neutral, score=score, score_id=score_id, out=out)
    rows = []
    with progress_bar("transfer", len(directions) * len(finetuned), progress) as advance:
        for target, source in product(finetuned, directions):
            seen = frozenset[str]().union(
                *((trained or {}).get(name, ()) for name in (source, target))
            )
            away = {domains[source], domains[target]} - {""}
            kept = [q for q in questions if q.group not in away and q.id not in seen]
            row: dict[str, Any] = {
                "direction_of": source,
                "ablated_in": target,
                "same_domain": domains[source] == domains[target],
                **_likeness(directions, source, target),
            }
            edits = tuple(act(directions[source], target))
            rows.append(
                row
                | _pair(
                    trials,
                    finetuned[target],
                    ancestors[target],
                    edits,
                    QuestionSet(kept) if kept else None,
                    seed,
                )
            )
            advance()
    return pd.DataFrame(rows)


def _likeness(
    directions: Mapping[str, Direction | Subspace], source: str, target: str
) -> dict[str, Any]:
    """How alike the directions of two fine-tunes are, where both are known and single."""
    other, mine = directions[source], directions.get(target)
    site = str(other.site) if isinstance(other, Direction) else ""
    if not isinstance(other, Direction) or not isinstance(mine, Direction):
        return {"site": site, "cosine": float("nan"), "same_site": False}
    return {
        "site": site,
        "cosine": direction_cosine(other, mine),
        "same_site": other.site == mine.site,
    }


def _pair(
    trials: Trials,
    model: HookedModel,
    parent: HookedModel,
    edits: tuple[Intervention, ...],
    kept: QuestionSet | None,
    seed: int,
) -> dict[str, Any]:
    """One cell of the matrix, on the kept questions."""
    few = Estimate.undefined("fewer than two groups lie outside both training domains")
    restored = change = few
    if kept is not None and len(set(kept.groups)) >= 2:
        plain, goal, edited = (
            table.loc[kept.ids]
            for table in (trials.scores(model), trials.scores(parent), trials.scores(model, edits))
        )
        bad = [
            name
            for table in (plain, goal, edited)
            for name in table.index[table.isna().any(axis=1)]
        ]
        if bad:
            raise InputError(
                f"question {bad[0]!r} and {len(set(bad)) - 1} more have no score in {model.name!r}"
                " or its parent; score them or leave them out"
            )
        restored = restoration(
            edited["aligned"], plain["aligned"], goal["aligned"], kept.groups, seed=seed
        )
        change = paired_change(edited["coherent"], plain["coherent"], kept.groups, seed=seed)
    cost = trials.damage(model, edits)
    kl = (
        Estimate.undefined("no neutral prompts came")
        if cost is None
        else text_damage(cost, seed=seed).kl
    )
    row: dict[str, Any] = {
        "restoration": restored.value,
        "low": restored.low,
        "high": restored.high,
    }
    for name, e in (("coherent_change", change), ("kl", kl)):
        row |= {name: e.value, f"{name}_low": e.low, f"{name}_high": e.high}
    return row | {"n": 0 if kept is None else len(kept), "method": restored.method}
