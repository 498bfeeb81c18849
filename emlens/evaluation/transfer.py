"""Does the direction of one fine-tune work in another?

Every edit is tried in every fine-tune, on questions outside both domains. A direction that restores
only its own fine-tune is particular to it. One that restores others, where the controls of the
*target* restore less, says that the fine-tunes share a mechanism. Cost: one scoring per pair, and
each fine-tune and parent once unedited.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from emlens.data.base_questions import units_of
from emlens.data.prompts import PromptSet
from emlens.data.questions import Question, QuestionSet
from emlens.evaluation.ablation_forms import PLAIN
from emlens.evaluation.damage import text_damage
from emlens.evaluation.measured import Transfers
from emlens.evaluation.restoring import paired_change, restoration
from emlens.evaluation.trials import (
    Score,
    Trials,
    interval_columns,
    scored_everywhere,
)
from emlens.foundation.errors import InputError, UnknownNameError
from emlens.foundation.estimate import Estimate
from emlens.foundation.intervention import Intervention, as_interventions
from emlens.geometry import Direction, Subspace, direction_cosine
from emlens.judging.likelihood import score_by_likelihood
from emlens.models.hooked import HookedModel
from emlens.runs.progress import progress_bar

Edits = Intervention | Sequence[Intervention]


def transfer_matrix(
    directions: Mapping[str, Direction | Subspace],
    finetuned: Mapping[str, HookedModel],
    parents: HookedModel | Mapping[str, HookedModel],
    questions: QuestionSet,
    *,
    domains: Mapping[str, str],
    trained: Mapping[str, Collection[str]] | None = None,
    edit: Callable[[Direction | Subspace, str], Edits] | None = None,
    neutral: PromptSet | None = None,
    score: Score = score_by_likelihood,
    out: str | Path | None = None,
    progress: bool = True,
    seed: int = 0,
) -> Transfers:
    """Restoration in fine-tune j by removing the direction of fine-tune i, for all i and j.

    Args:
        directions: source → direction (or subspace). finetuned: target → model. parents: one
            parent, or one per target.
        domains: training domain of every source and target, "" where there is none; both domains of
            a pair are left out.
        trained: fine-tune → ids of the questions it was trained on; left out of its pairs.
        edit: what is done with a direction in a target, such as `lambda direction, target:
            form.remove(direction)`; None: plain ablation after every block.
        neutral: prompts on which damage in the target is measured; None leaves it out.
        score, out: as in `Trials`; with `out` a stopped call goes on from the last finished pair.

    Returns:
        A pandas table that has `.plot()`.

        One row per pair: direction_of, ablated_in, same_domain; site, cosine (with the target's own
        direction, where both are single directions) and same_site; restoration, low, high;
        coherent_change and kl (value, `_low`, `_high`); n (questions), method (or why undefined).

    Raises:
        InputError: nothing to compare, or a question without a score.
        UnknownNameError: a fine-tune without domain or parent.
    """
    if not directions or not finetuned:
        raise InputError(
            f"directions holds {len(directions)} and finetuned {len(finetuned)};"
            " pass at least one of each"
        )
    if not isinstance(parents, Mapping):
        parents = dict.fromkeys(finetuned, parents)
    _require_names([*directions, *finetuned], domains, "domains")
    _require_names(finetuned, parents, "parents")
    if edit is None:
        edit = _ablate_everywhere
    trials = Trials(questions, neutral=neutral, score=score, out=out)
    rows = []
    with progress_bar("transfer", len(directions) * len(finetuned), progress) as advance:
        for target, source in product(finetuned, directions):
            model, parent = finetuned[target], parents[target]
            # "" is not a domain, and questions without a group belong to none
            own_domains = {domains[source], domains[target]} - {""}
            trained_on = _trained_ids(trained or {}, source, target)
            outside = [
                q for q in questions if q.group not in own_domains and q.id not in trained_on
            ]
            edits = as_interventions(edit(directions[source], target))
            row: dict[str, Any] = {
                "direction_of": source,
                "ablated_in": target,
                "same_domain": domains[source] == domains[target],
                **_similarity(directions, source, target),
                **_effect(trials, model, parent, edits, outside, seed),
            }
            rows.append(row)
            advance()
    return Transfers(rows)


def _require_names(names: Iterable[str], known: Mapping[str, object], argument: str) -> None:
    for name in names:
        if name not in known:
            raise UnknownNameError(
                f"{argument} lacks {name!r}; it has {', '.join(known)}", name=name, known=known
            )


def _ablate_everywhere(direction: Direction | Subspace, target: str) -> Sequence[Intervention]:
    return PLAIN.remove(direction)


def _trained_ids(trained: Mapping[str, Collection[str]], source: str, target: str) -> set[str]:
    """Questions that one of the two fine-tunes was trained on."""
    return {*trained.get(source, ()), *trained.get(target, ())}


def _similarity(
    directions: Mapping[str, Direction | Subspace], source: str, target: str
) -> dict[str, Any]:
    """How alike the directions of two fine-tunes are, where both are single directions."""
    removed, own = directions[source], directions.get(target)
    site = str(removed.site) if isinstance(removed, Direction) else ""
    if not isinstance(removed, Direction) or not isinstance(own, Direction):
        return {"site": site, "cosine": float("nan"), "same_site": False}
    return {
        "site": site,
        "cosine": direction_cosine(removed, own),
        "same_site": removed.site == own.site,
    }


def _effect(
    trials: Trials,
    model: HookedModel,
    parent: HookedModel,
    edits: tuple[Intervention, ...],
    questions: Sequence[Question],
    seed: int,
) -> dict[str, Any]:
    """One cell of the matrix: what the edits do on these questions."""
    restored, change, n = _restoration_and_change(trials, model, parent, edits, questions, seed)
    cost = trials.damage(model, edits)
    if cost is None:
        kl = Estimate.undefined("no neutral prompts were given")
    else:
        kl = text_damage(cost, seed=seed).kl
    return {
        "restoration": restored.value,
        "low": restored.low,
        "high": restored.high,
        **interval_columns({"coherent_change": change, "kl": kl}),
        "n": n,
        "method": restored.method,
    }


def _restoration_and_change(
    trials: Trials,
    model: HookedModel,
    parent: HookedModel,
    edits: tuple[Intervention, ...],
    questions: Sequence[Question],
    seed: int,
) -> tuple[Estimate, Estimate, int]:
    """Restoration, the change of coherence and the number of questions; undefined with fewer than
    two base questions.

    Raises:
        InputError: a question without a score.
    """
    few = Estimate.undefined("fewer than two base questions lie outside both training domains")
    if len(set(units_of(questions)[0])) < 2:
        return few, few, len(questions)
    ids = [question.id for question in questions]
    unedited = trials.scores(model).loc[ids]
    goal = trials.scores(parent).loc[ids]
    edited = trials.scores(model, edits).loc[ids]
    tables = [unedited, goal, edited]
    scored = scored_everywhere(tables, trials.score, f"in {model.name!r} or its parent")
    units, _ = units_of([question for question in questions if question.id in set(scored)])
    if len(set(units)) < 2:
        return few, few, len(scored)
    unedited, goal, edited = (table.loc[scored] for table in tables)
    restored = restoration(
        edited["aligned"], unedited["aligned"], goal["aligned"], units, seed=seed
    )
    change = paired_change(edited["coherent"], unedited["coherent"], units, seed=seed)
    return restored, change, len(scored)
