"""Choosing one direction among many, on questions of their own.

These questions neither made the candidates nor will report the chosen one
(`emlens.evaluation.question_roles`); `score_candidates` refuses an overlap. `select_candidate` is
the choice itself, a pure function on a table: bounds first, then the best of the candidates within
them. It is also the rule of Arditi et al. (2406.11717), with other columns.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from emlens.data.prompts import PromptSet
from emlens.data.questions import QuestionSet
from emlens.evaluation.ablation_forms import PLAIN
from emlens.evaluation.arms import Arm, evaluate_arms
from emlens.evaluation.damage import text_damage
from emlens.evaluation.question_roles import require_unused
from emlens.evaluation.trials import Score, Trials
from emlens.foundation.errors import InputError
from emlens.foundation.intervention import Intervention, as_interventions
from emlens.foundation.notebooks import in_a_line
from emlens.foundation.sites import Site
from emlens.geometry import Direction
from emlens.judging.likelihood import score_by_likelihood
from emlens.models.hooked import HookedModel

MAX_KL = 0.1
"""Nats per token on neutral text, of the instruct model under the edit; the bound of 2406.11717."""
MAX_COHERENCE_LOSS = 10.0
"""Points of coherence (of 100) that an ablation may cost."""


@dataclass(frozen=True, eq=False, repr=False)
class Selection:
    """The candidate that a rule picks.

    Args:
        label: the index of its row.
        table: the candidates with two more columns, `allowed`, and `left_out` (the reason; "" where
            allowed).
        rule: in words.
    """

    label: object
    table: pd.DataFrame
    rule: str

    @property
    def allowed(self) -> int:
        """How many candidates lie within the bounds."""
        return int(self.table["allowed"].sum())

    def __repr__(self) -> str:
        facts = {"label": self.label, "rule": self.rule, "candidates": len(self.table)}
        return in_a_line("Selection", {**facts, "allowed": self.allowed})


def select_candidate(
    candidates: pd.DataFrame,
    *,
    highest: str | None = None,
    lowest: str | None = None,
    at_most: Mapping[str, float] | None = None,
    at_least: Mapping[str, float] | None = None,
    below: Mapping[str, float] | None = None,
) -> Selection:
    """The best candidate within bounds; the first of equals.

    A number that is missing satisfies no bound and is never best.

    Args:
        candidates: one row per candidate, with any unique index.
        highest, lowest: the column that decides; pass one of the two.
        at_most, at_least, below: column → bound.

    Raises:
        InputError: both or neither of highest and lowest, a column that is not there, an index
            label that occurs twice, or no candidate within the bounds (the message counts which
            bound left out how many).
    """
    column = _deciding_column(highest, lowest)
    bounds = [
        *_bounds("<=", operator.le, at_most),
        *_bounds(">=", operator.ge, at_least),
        *_bounds("<", operator.lt, below),
    ]
    _require_columns(candidates, [column, *(bound.column for bound in bounds)])
    reasons = _reasons_against(candidates, bounds, column)
    table = candidates.assign(allowed=reasons == "", left_out=reasons)
    rule = f"highest {column}" if highest else f"lowest {column}"
    if bounds:
        rule += f" where {', '.join(map(str, bounds))}"
    values = table.loc[table["allowed"], column]
    if not len(values):
        counts = [f"{reason} ({n})" for reason, n in reasons.value_counts(sort=False).items()]
        raise InputError(
            f"none of {len(candidates)} candidates is left by the rule {rule!r}:"
            f" {', '.join(counts) or 'there are none'}"
        )
    # both give the first of equals
    label = values.idxmax() if highest else values.idxmin()
    return Selection(label, table, rule)


@dataclass(frozen=True)
class _Bound:
    """A limit on a column of candidates."""

    column: str
    sign: str
    holds: Callable[[Any, float], Any]
    limit: float

    def __str__(self) -> str:
        return f"{self.column} {self.sign} {self.limit:g}"


def _bounds(
    sign: str, holds: Callable[[Any, float], Any], limits: Mapping[str, float] | None
) -> list[_Bound]:
    return [_Bound(column, sign, holds, limit) for column, limit in (limits or {}).items()]


def _require_columns(candidates: pd.DataFrame, columns: Sequence[str]) -> None:
    for name in columns:
        if name not in candidates.columns:
            raise InputError(
                f"candidates lack the column {name!r};"
                f" they have {', '.join(map(str, candidates.columns))}",
                name=name,
                known=candidates.columns,
            )
    if not candidates.index.is_unique:
        raise InputError(
            "candidates have an index label that occurs twice;"
            " pass a unique index, such as table.reset_index(drop=True)"
        )


def _deciding_column(highest: str | None, lowest: str | None) -> str:
    if highest is not None and lowest is None:
        return highest
    if lowest is not None and highest is None:
        return lowest
    raise InputError(
        f"highest={highest!r} and lowest={lowest!r} were given; pass the one column that decides"
    )


def _reasons_against(
    candidates: pd.DataFrame, bounds: Sequence[_Bound], column: str
) -> "pd.Series[Any]":
    """The first reason against each candidate; "" where there is none."""
    reasons = pd.Series("", index=candidates.index, dtype=object)
    for bound in bounds:
        # a missing number satisfies no comparison
        is_broken = ~bound.holds(candidates[bound.column], bound.limit)
        reasons[(reasons == "") & is_broken] = f"not {bound}"
    reasons[(reasons == "") & candidates[column].isna()] = f"{column} is undefined"
    return reasons


def last_block_read(site: Site) -> float:
    """Index of the last block that has added to the stream at a site.

    i for `resid_post.i` and what is inside block i, i − 1 for `resid_pre.i`; infinite for
    `final_norm`, which lies after all blocks.
    """
    if site.layer is None:
        return float("inf")
    if site.kind == "resid_pre":
        return site.layer - 1
    return site.layer


def score_candidates(
    finetuned: HookedModel,
    instruct: HookedModel,
    candidates: Mapping[str, Direction],
    questions: QuestionSet,
    *,
    edit: Callable[[Direction], Intervention | Sequence[Intervention]] | None = None,
    neutral: PromptSet | None = None,
    exclude_groups: Sequence[str] = (),
    score: Score = score_by_likelihood,
    out: str | Path | None = None,
    progress: bool = True,
    seed: int = 0,
) -> pd.DataFrame:
    """What removing each candidate does on the selection questions.

    Args:
        candidates: name → direction, of any layers, positions and extractions.
        questions: none that a candidate was extracted from, as its `ids` record them.
        edit: what is done with a direction; None: `ablate` after every block.
        neutral, exclude_groups, score, out, seed: as in `evaluate_arms`.

    Returns:
        One row per candidate, indexed by name: site, position, layer (of the last block it was read
        after), norm, instruct_kl, and the columns of `evaluate_arms` that concern one arm.
        instruct_kl is what the same edit costs the instruct model on neutral text, in nats per
        token. It is damage and nothing else, since the instruct model lost nothing, while an edit
        that restores a fine-tune has to move what its fine-tuning moved, on neutral text too.

    Raises:
        InputError: no candidate, or one that was extracted from a selection question.
    """
    if not candidates:
        raise InputError("candidates is empty; pass at least one direction")
    for direction in candidates.values():
        require_unused(direction, questions, "select")
    if edit is None:
        edit = PLAIN.remove
    arms = []
    for name, direction in candidates.items():
        arms.append(Arm(name, as_interventions(edit(direction)), control=False))
    scored = evaluate_arms(
        finetuned,
        instruct,
        questions,
        arms,
        exclude_groups=exclude_groups,
        neutral=neutral,
        score=score,
        out=out,
        progress=progress,
        seed=seed,
    )
    trials = Trials(questions, neutral=neutral, score=score, out=out)
    rows = []
    for arm, direction in zip(arms, candidates.values(), strict=True):
        cost = trials.damage(instruct, arm.edits)
        rows.append(
            {
                "arm": arm.name,
                "site": str(direction.site),
                "position": direction.position or "",
                "layer": last_block_read(direction.site),
                "norm": direction.norm,
                "instruct_kl": _kl_or_nan(cost, seed),
            }
        )
    one_arm = scored.drop(columns=_ABOUT_SEVERAL_ARMS)
    return pd.DataFrame(rows).merge(one_arm, on="arm").set_index("arm")


_ABOUT_SEVERAL_ARMS = [
    "on",
    "control",
    "draws",
    "cosine",
    "restoration_max_draw",
    "lead",
    "lead_low",
    "lead_high",
]
"""Columns of `evaluate_arms` that mean nothing where each arm is a candidate."""


def _kl_or_nan(cost: pd.DataFrame | None, seed: int) -> float:
    if cost is None:
        return float("nan")
    return text_damage(cost, seed=seed).kl.value


def select_direction(
    table: pd.DataFrame,
    *,
    n_layers: int,
    max_kl: float | None = MAX_KL,
    max_coherence_loss: float = MAX_COHERENCE_LOSS,
    last_layer: int | None = None,
) -> Selection:
    """The candidate with the most restoration where coherence stays and damage is bounded.

    Args:
        table: of `score_candidates`.
        n_layers: of the model.
        max_kl: bound on instruct_kl (nats per token); None where it was not measured.
        max_coherence_loss: points of coherence that the edit may cost.
        last_layer: the deepest block that a candidate may have been read after; None: the last but
            one, because a direction that works only after the last block is a readout.

    Raises:
        InputError: what `select_candidate` refuses.
    """
    deepest = max(0, n_layers - 2) if last_layer is None else last_layer
    at_most: dict[str, float] = {"layer": deepest}
    if max_kl is not None:
        at_most["instruct_kl"] = max_kl
    return select_candidate(
        table,
        highest="restoration",
        at_most=at_most,
        at_least={"coherent_change": -max_coherence_loss},
    )
