"""Choosing one direction among many, on questions that neither made the candidates nor will report
them.

A layer and position that looks best on the questions it is reported on is best partly by luck. So
questions have one role each: to extract directions, to select one, to report it. `QuestionRoles`
and `score_candidates` refuse an overlap, of ids or of texts. `select_candidate` is the choice
itself, a pure function on a table: bounds first, then the best of what is left. It also is the rule
of Arditi et al. (2406.11717), whose numbers are only other columns.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pandas as pd

from emlens.data.prompts import PromptSet
from emlens.data.questions import QuestionSet
from emlens.evaluation.arms import Arm, evaluate_arms
from emlens.evaluation.damage import text_damage
from emlens.evaluation.trials import Score, Trials
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.foundation.intervention import Intervention
from emlens.foundation.sites import Site
from emlens.geometry import Direction
from emlens.interventions import ablate
from emlens.judging.likelihood import score_by_likelihood
from emlens.models.hooked import HookedModel

MAX_KL = 0.1
"""Nats a token on neutral text, of the instruct model under the edit; the bound of 2406.11717."""
MAX_COHERENCE_LOSS = 10.0
"""Points of coherence (of 100) that an ablation may cost."""


@dataclass(frozen=True)
class QuestionRoles:
    """Questions to extract directions from, to select one on, and to report it on.

    Raises:
        InputError: a question that has two roles, under its id or with one text under two ids.
    """

    extract: QuestionSet
    select: QuestionSet
    report: QuestionSet

    def __post_init__(self) -> None:
        require_disjoint(extract=self.extract, select=self.select, report=self.report)

    @property
    def table(self) -> pd.DataFrame:
        """One row a question: question, group, used_to."""
        sets = {"extract": self.extract, "select": self.select, "report": self.report}
        return pd.DataFrame(
            [
                {"question": q.id, "group": q.group, "used_to": role}
                for role, part in sets.items()
                for q in part
            ]
        )


def require_disjoint(**sets: QuestionSet) -> None:
    """Refuse sets of questions that share one: an id, or a phrasing of any question.

    Raises:
        InputError: names the two sets and the first shared question.
    """
    for (first, a), (second, b) in combinations(sets.items(), 2):
        shared = sorted(set(a.ids) & set(b.ids))
        if shared:
            raise InputError(
                f"{first} and {second} share {len(shared)} questions,"
                f" the first {one_line(shared[0])!r}; each question has one role"
            )
        texts = {(q.system, text): q.id for q in a for text in q.paraphrases}
        for q in b:
            twin = next(
                (texts[q.system, text] for text in q.paraphrases if (q.system, text) in texts), None
            )
            if twin is not None:
                raise InputError(
                    f"question {one_line(twin)!r} of {first} and {one_line(q.id)!r} of {second}"
                    " have one text; each question has one role"
                )


def require_unused(direction: Direction, questions: QuestionSet, role: str) -> None:
    """Refuse questions that a direction was extracted from, as its `ids` record them (of questions,
    phrasings or answers).

    Raises:
        InputError: names the first of them.
    """
    known = set(questions.ids)
    for used in (name for ids in direction.ids.values() for name in ids):
        found = next((name for name in _question_names(used) if name in known), None)
        if found is not None:
            raise InputError(
                f"the direction at {direction.site} was extracted from question"
                f" {one_line(found)!r}, which is to {role} it; pass other questions"
            )


def _question_names(used: str) -> list[str]:
    """What an id may name: a question, `question/p2`, or an answer `model/question/p1/s0`, where
    either name may hold slashes.
    """
    stem, _, tail = used.rpartition("/")
    if tail[:1] == "s" and tail[1:].isdigit() and (inner := _without_phrasing(stem)) != stem:
        parts = inner.split("/")
        return ["/".join(parts[i:]) for i in range(1, len(parts))]
    return [used, _without_phrasing(used)]


def _without_phrasing(name: str) -> str:
    stem, _, tail = name.rpartition("/")
    return stem if stem and tail[:1] == "p" and tail[1:].isdigit() else name


@dataclass(frozen=True, eq=False)
class Selection:
    """The candidate that a rule picks.

    Args:
        label: the index of its row.
        table: the candidates as they came, with `allowed`, and `left_out` (why not; empty where
            allowed).
        rule: in words.
    """

    label: object
    table: pd.DataFrame
    rule: str

    @property
    def allowed(self) -> int:
        """How many candidates the bounds leave."""
        return int(self.table["allowed"].sum())


def select_candidate(
    candidates: pd.DataFrame,
    *,
    highest: str | None = None,
    lowest: str | None = None,
    at_most: Mapping[str, float] | None = None,
    at_least: Mapping[str, float] | None = None,
    below: Mapping[str, float] | None = None,
) -> Selection:
    """The best candidate within bounds; the first of equals. A number that is missing satisfies no
    bound and is never best.

    Args:
        candidates: one row each, any index.
        highest, lowest: the column that decides; pass one of the two.
        at_most, at_least, below: column → bound.

    Raises:
        InputError: both or neither of highest and lowest, a column that is not there, an index
            label that occurs twice, or no candidate left (the message counts what left them out).
    """
    decides = [name for name in (highest, lowest) if name is not None]
    if len(decides) != 1:
        raise InputError(
            f"highest={highest!r} and lowest={lowest!r} came; pass the one column that decides"
        )
    bounds = (
        ("<=", operator.le, at_most),
        (">=", operator.ge, at_least),
        ("<", operator.lt, below),
    )
    rules = [
        (column, bound, sign, holds)
        for sign, holds, given in bounds
        for column, bound in (given or {}).items()
    ]
    lacking = [
        name
        for name in dict.fromkeys((*decides, *(rule[0] for rule in rules)))
        if name not in candidates.columns
    ]
    if lacking:
        raise InputError(
            f"candidates lack the column {lacking[0]!r};"
            f" they have {', '.join(map(str, candidates.columns))}"
        )
    if not candidates.index.is_unique:
        raise InputError(
            "candidates have an index label that occurs twice;"
            " pass a unique index, such as table.reset_index(drop=True)"
        )
    left_out = pd.Series("", index=candidates.index, dtype=object)
    for column, bound, sign, holds in rules:
        left_out[(left_out == "") & ~holds(candidates[column], bound)] = (
            f"not {column} {sign} {bound:g}"
        )
    left_out[(left_out == "") & candidates[decides[0]].isna()] = f"{decides[0]} is undefined"
    table = candidates.assign(allowed=left_out == "", left_out=left_out)
    words = ", ".join(f"{column} {sign} {bound:g}" for column, bound, sign, _ in rules)
    rule = f"{'highest' if highest else 'lowest'} {decides[0]}" + (
        f" where {words}" if words else ""
    )
    left = table.loc[table["allowed"], decides[0]]
    if not len(left):
        counts = ", ".join(
            f"{reason} ({n})" for reason, n in left_out.value_counts(sort=False).items()
        )
        raise InputError(
            f"none of {len(candidates)} candidates is left by the rule {rule!r}:"
            f" {counts or 'there are none'}"
        )
    return Selection(left.idxmax() if highest else left.idxmin(), table, rule)


def last_block_read(site: Site) -> float:
    """Index of the last block that a site has behind it: i for `resid_post.i` and what is inside
    block i, i − 1 for `resid_pre.i`; infinite for `final_norm`, which lies behind all.
    """
    if site.layer is None:
        return float("inf")
    return site.layer - 1 if site.kind == "resid_pre" else site.layer


def score_candidates(
    finetuned: HookedModel,
    instruct: HookedModel,
    candidates: Mapping[str, Direction],
    questions: QuestionSet,
    *,
    edit: Callable[[Direction], Sequence[Intervention]] | None = None,
    neutral: PromptSet | None = None,
    exclude_groups: Sequence[str] = (),
    score: Score = score_by_likelihood,
    score_id: str | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    seed: int = 0,
) -> pd.DataFrame:
    """What removing each candidate does on the selection questions.

    Args:
        candidates: name → direction, of any layers, positions and extractions.
        questions: none that a candidate was extracted from, as its `ids` record them.
        edit: what is done with a direction; None: `ablate` after every block.
        neutral, exclude_groups, score, score_id, out, seed: as in `evaluate_arms`.

    Returns:
        One row a candidate, indexed by name: site, position, layer (of the last block it was read
            after), norm, the columns of
        `evaluate_arms` that concern one arm, and instruct_kl: what the same edit costs the instruct
            model on neutral text (nats a
        token). That is all damage, since the instruct model lost nothing, while an edit that
        restores a fine-tune has to move what its fine-tuning moved, on neutral text too.

    Raises:
        InputError: no candidate, or one that was extracted from a selection question.
    """
    if not candidates:
        raise InputError("candidates is empty; pass at least one direction")
    for direction in candidates.values():
        require_unused(direction, questions, "select")
    act = edit or (lambda direction: (ablate(direction),))
    edits = {name: tuple(act(direction)) for name, direction in candidates.items()}
    arms = [Arm(name, edited, control=False) for name, edited in edits.items()]
    scored = evaluate_arms(
        finetuned,
        instruct,
        questions,
        arms,
        exclude_groups=exclude_groups,
        neutral=neutral,
        score=score,
        score_id=score_id,
        out=out,
        progress=progress,
        seed=seed,
    )
    facts = [
        {
            "arm": name,
            "site": str(d.site),
            "position": d.position or "",
            "layer": last_block_read(d.site),
            "norm": d.norm,
        }
        for name, d in candidates.items()
    ]
    trials = Trials(questions, neutral=neutral, score=score, score_id=score_id, out=out)
    for fact, edited in zip(facts, edits.values(), strict=True):
        cost = trials.damage(instruct, edited)
        fact["instruct_kl"] = (
            float("nan") if cost is None else text_damage(cost, seed=seed).kl.value
        )
    of_two_arms = [
        "on",
        "control",
        "draws",
        "cosine",
        "restoration_max_draw",
        "lead",
        "lead_low",
        "lead_high",
    ]
    return pd.DataFrame(facts).merge(scored.drop(columns=of_two_arms), on="arm").set_index("arm")


def select_direction(
    table: pd.DataFrame,
    *,
    n_layers: int,
    max_kl: float | None = MAX_KL,
    max_coherence_loss: float = MAX_COHERENCE_LOSS,
    last_layer: int | None = None,
) -> Selection:
    """The candidate with the most restoration where coherence stays and damage is bounded, from a
    table of `score_candidates`.

    Args:
        n_layers: of the model. max_kl: bound on instruct_kl (nats a token); None where it was not
            measured.
        max_coherence_loss: points of coherence that the edit may cost.
        last_layer: the deepest block a candidate may have been read after; None: the last but one,
            because a direction that works only after the last block is a readout.

    Raises:
        InputError: what `select_candidate` refuses.
    """
    deepest = max(0, n_layers - 2) if last_layer is None else last_layer
    at_most: dict[str, float] = {"layer": deepest} | (
        {} if max_kl is None else {"instruct_kl": max_kl}
    )
    return select_candidate(
        table,
        highest="restoration",
        at_most=at_most,
        at_least={"coherent_change": -max_coherence_loss},
    )
