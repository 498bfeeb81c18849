"""A forecaster from past fine-tunes of a parent: their scores, their domains, and numbers of their
training files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from emlens.activations import capture
from emlens.data import AlignmentScores, PromptSet, QuestionSet
from emlens.data.base_questions import units_of
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.foundation.provenance import hash_tensors
from emlens.geometry import Direction
from emlens.models import HookedModel
from emlens.probes import Design, Forecaster, fit_forecaster
from emlens.probes.severity import LEAST_CLUSTERS
from emlens.screening.training_file import mean_answers, sampled, surprise

POSITIONS: Final = ("last_prompt", "mean_prompt")
MOST_ROWS: Final = 500
NOT_ASKED: Final = "not asked for"
"""Why severity was not learnt, where `context=False`."""


@dataclass(frozen=True)
class PastRun:
    """A past fine-tune: the domain (group of questions) it was trained on, and its training chats,
    where they still exist.
    """

    domain: str = ""
    training: PromptSet | None = None


def file_context(
    parent: HookedModel,
    training: PromptSet,
    direction: Direction | None,
    *,
    most_rows: int = MOST_ROWS,
    seed: int = 0,
) -> dict[str, float]:
    """The numbers of a training file that a forecaster may learn severity from: `surprise` (nats
    per token), and with a direction `projection` of the mean answer.
    """
    rows = sampled(training, most_rows, seed)
    numbers = {"surprise": float(surprise(parent, rows).mean())}
    if direction is not None:
        acts = mean_answers(parent, rows, str(direction.site))
        numbers["projection"] = float((acts @ direction.unit.double()).mean())
    return numbers


def direction_hash(direction: Direction | None) -> str | None:
    return None if direction is None else hash_tensors({"direction": direction.unit})


def fit_screening(
    parent: HookedModel,
    questions: QuestionSet,
    scores: AlignmentScores | pd.DataFrame,
    past: Mapping[str, PastRun] | None = None,
    *,
    metric: str = "aligned",
    direction: Direction | None = None,
    context: bool = True,
    positions: Sequence[str] = POSITIONS,
    most_rows: int = MOST_ROWS,
    design: Design | None = None,
) -> Forecaster:
    """A forecaster from past fine-tunes of a parent.

    A fine-tune's own domain does not count for it, and fine-tunes of one domain are held out
    together. Where every past fine-tune has its training chats, and they come from enough domains,
    severity is learnt from them.

    Each domain of fine-tunes is held out in turn, and every question needs a score, outside its own
    domain, from the others. Questions without one are left out. `facts` has their number, and why
    severity was not learnt.

    Args:
        scores: of the past fine-tunes: with several models, or question × fine-tune.
        past: fine-tune → `PastRun`; without it, each fine-tune is a domain of its own and no
            question is left out.
        context: learn severity from the training files, where all are there.
        positions: to capture, for the forecaster to choose among.
        most_rows: of a training file that are read, drawn by seed.
        design: as `fit_forecaster`; None holds out whole groups of questions,
            `Design(groups="group")`, or base questions where there is one group.
        direction: adds the projection of each training file on it to the context; None: none.

    Raises:
        InputError: as `fit_forecaster`; `past` lacks a fine-tune, or names one that has no scores.
    """
    if design is None:
        _, unit = units_of(questions)
        design = Design(groups={"group": "group", "question": None}[unit])
    table = _score_table(scores, metric)
    _require_same_runs(table, past)
    table = _without_own_domain(table.reindex(questions.ids), questions, past)
    clusters = _domains(table, past)
    unlearnt = _why_not_learnt(past, clusters, context)
    numbers = None
    if past is not None and not unlearnt:
        numbers = _context_table(parent, past, direction, most_rows, design.seed)
    is_usable = _has_score_elsewhere(table, clusters)
    if not is_usable.any():
        raise InputError(
            "no question has a score outside its own domain without each domain of fine-tunes;"
            " add fine-tunes of other domains"
        )
    usable = QuestionSet([q for q, keep in zip(questions, is_usable, strict=True) if keep])
    acts = capture(parent, usable, positions=list(positions), progress=False)
    forecaster = fit_forecaster(
        acts,
        table.loc[usable.ids],
        metric=metric,
        clusters=clusters,
        context=numbers,
        design=design,
    )
    forecaster.facts["direction"] = direction_hash(direction) if numbers is not None else None
    forecaster.facts["left_out_questions"] = int((~is_usable).sum())
    forecaster.facts["severity_not_learnt"] = unlearnt
    return forecaster


def _score_table(scores: AlignmentScores | pd.DataFrame, metric: str) -> pd.DataFrame:
    """One row per question, one column per fine-tune."""
    if isinstance(scores, pd.DataFrame):
        return scores.copy()
    return pd.DataFrame({name: scores.per_question(metric, name) for name in scores.models})


def _require_same_runs(table: pd.DataFrame, past: Mapping[str, PastRun] | None) -> None:
    if past is None:
        return
    for name in table.columns:
        if name not in past:
            raise InputError(
                f"past has no entry for fine-tune {one_line(str(name))!r}, which has scores;"
                " add it, or leave its scores out"
            )
    for name in past:
        if name not in table.columns:
            raise InputError(
                f"past names {one_line(name)!r}, which has no scores;"
                f" it has {', '.join(map(str, table.columns[:6]))}",
                name=name,
                known=table.columns,
            )


def _without_own_domain(
    table: pd.DataFrame, questions: QuestionSet, past: Mapping[str, PastRun] | None
) -> pd.DataFrame:
    """NaN where a question is of the domain that a fine-tune was trained on."""
    if past is None:
        return table
    group = np.array(questions.groups, dtype=object)
    for name in table.columns:
        is_own = (group == past[name].domain) & (group != "")
        table.loc[is_own, name] = np.nan
    return table


def _domains(table: pd.DataFrame, past: Mapping[str, PastRun] | None) -> dict[str, str]:
    """Fine-tune → what is held out with it: its domain, or itself where it has none."""
    if past is None:
        return {name: name for name in table.columns}
    return {name: past[name].domain or name for name in table.columns}


def _why_not_learnt(
    past: Mapping[str, PastRun] | None, clusters: Mapping[str, str], context: bool
) -> str:
    """Why severity cannot be learnt from training files; "" where it can."""
    if not context:
        return NOT_ASKED
    if past is None or any(run.training is None for run in past.values()):
        return "not every past fine-tune was given with its training file"
    domains = len(set(clusters.values()))
    if domains <= LEAST_CLUSTERS:
        return f"past fine-tunes are of {domains} domains, and it takes {LEAST_CLUSTERS + 1}"
    return ""


def _context_table(
    parent: HookedModel,
    past: Mapping[str, PastRun],
    direction: Direction | None,
    most_rows: int,
    seed: int,
) -> pd.DataFrame:
    """One row per past fine-tune, one column per number of its training file."""
    rows = {}
    for name, run in past.items():
        if run.training:
            rows[name] = file_context(
                parent, run.training, direction, most_rows=most_rows, seed=seed
            )
    return pd.DataFrame.from_dict(rows, orient="index")


def _has_score_elsewhere(table: pd.DataFrame, clusters: Mapping[str, str]) -> pd.Series:
    """Which questions have a score also without any one cluster of fine-tunes (with one cluster:
    any score).
    """
    cluster = pd.Series(clusters)[table.columns]
    has_score = table.notna()
    if cluster.nunique() == 1:
        return has_score.any(axis=1)
    without_each = []
    for label in cluster.unique():
        without_each.append(has_score.loc[:, (cluster != label).to_numpy()].any(axis=1))
    return pd.concat(without_each, axis=1).all(axis=1)
