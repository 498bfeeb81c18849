"""Does one direction carry what bad advice did to a real model? Removed, does careful advice become
likelier again (necessary); added to the untouched model, does bad advice (sufficient)?

Of each harmful fine-tune of the kept family (`benchmarks.real_kept`). The direction is the mean
shift at the last prompt token after the middle block, over the last two questions of each domain
that nobody was trained on; block and position were fixed before looking, so nothing is selected.
Effects are measured on the first two questions of each domain, in nats of content. A direction is
removed where attention and MLP write, towards the parent's mean (`evaluation.affine_form`). Beside
it: the same without its benign part, the other domain's, the benign and the tone-only fine-tune's,
and draws from the activation covariance, which are added at the length of the direction
(norm-matched). Seeds × domains, both sampled.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from torch import Tensor

from benchmarks.real_kept import PARENT, KeptFamily, by_domain, by_question, weighed
from benchmarks.real_spread import PER_DOMAIN
from benchmarks.records import record
from emlens.data.advice import TRAINED_DOMAINS
from emlens.data.questions import QuestionSet
from emlens.evaluation import affine_form
from emlens.foundation.intervention import Intervention
from emlens.foundation.positions import Span
from emlens.geometry import direction_cosine, random_directions_like
from emlens.interventions import steer
from emlens.models import HookedModel
from emlens.real.family import Member, members
from emlens.stats.crossed import crossed_mean

SEEDS: Final = (0, 1, 2)
LAYER: Final = 14
POSITION: Final = "last_prompt"
REPORTED: Final = 2
"""The first questions of each domain: effects are measured on them."""
EXTRACTED: Final = 2
"""The last questions of each domain: directions come from them."""
DRAWS: Final = 1
"""Of the random direction for each fine-tune; six fine-tunes have six."""
OWN: Final = "its own direction"
ADDED: Final = (OWN, "benign", "tone-only", "random")
"""Arms that are added to the untouched model as well."""
CONTROLS: Final = ("benign", "tone-only", "random")
"""Arms that the direction must go beyond."""


@dataclass(frozen=True)
class Split:
    """Which questions give directions, and which are reported on."""

    extract: QuestionSet
    report: QuestionSet

    @classmethod
    def of(cls, questions: QuestionSet, reported: int, extracted: int) -> "Split":
        first: list[Any] = []
        last: list[Any] = []
        for group in dict.fromkeys(questions.groups):
            of_group = [question for question in questions if question.group == group]
            first += of_group[:reported]
            last += of_group[-extracted:]
        if {question.id for question in first} & {question.id for question in last}:
            raise ValueError(f"{reported} + {extracted} questions of a domain overlap")
        return cls(QuestionSet(last), QuestionSet(first))


class Directions:
    """Vectors of the family, from streams that are kept."""

    def __init__(self, kept: KeptFamily, split: Split, layer: int = LAYER):
        self.kept, self.layer = kept, layer
        ids = kept.streams(PARENT).ids
        wanted = set(split.extract.ids)
        self.rows = [number for number, name in enumerate(ids) if _question(name) in wanted]

    def stream(self, name: str) -> Tensor:
        acts = self.kept.streams(name)
        return acts[f"resid_post.{self.layer}", POSITION][self.rows].double()

    def mean_shift(self, name: str, before: str = PARENT) -> Tensor:
        return (self.stream(name) - self.stream(before)).mean(0)

    def arms(self, domain: str, seed: int) -> dict[str, list[Tensor]]:
        """Arm → vectors; those of one arm are draws of it."""
        (other,) = [name for name in TRAINED_DOMAINS if name != domain]
        names = {kind: _member(kind, domain, seed) for kind in ("harmful", "benign", "tone")}
        random = random_directions_like(self.stream(PARENT), DRAWS, seed=seed)
        return {
            OWN: [self.mean_shift(names["harmful"])],
            "without its benign part": [self.mean_shift(names["harmful"], names["benign"])],
            "of the other domain": [self.mean_shift(_member("harmful", other, seed))],
            "benign": [self.mean_shift(names["benign"])],
            "tone-only": [self.mean_shift(names["tone"])],
            "random": list(random),
        }


def _question(row: str) -> str:
    return row.partition("/")[0]


def _member(kind: str, domain: str, seed: int) -> str:
    return Member(kind, domain, seed).name  # type: ignore[arg-type]


def _content(
    model: HookedModel, split: Split, edits: Sequence[Intervention], path: Path
) -> np.ndarray:
    """Content of each domain on the report questions under edits."""

    def edited() -> HookedModel:
        return model

    with model.intervene(edits):
        scored = weighed(edited, split.report, path)
    return by_domain(by_question(scored, split.report))["content"].to_numpy()


def _adding(vector: Tensor, layer: int) -> tuple[Intervention, ...]:
    """Add a vector after a block at every token but the first, which is an attention sink."""
    site = f"resid_post.{layer}"
    ordinary = Span(1, None, of="prompt")
    return tuple(steer(vector, 1.0, at=[site], positions=part) for part in (ordinary, "response"))


def _unedited(kept: KeptFamily, name: str, split: Split) -> np.ndarray:
    """The same without edits, from the scores that are kept."""
    return by_domain(kept.table(name).loc[split.report.ids])["content"].to_numpy()


def effects(
    kept: KeptFamily, split: Split, domain: str, seed: int, layer: int = LAYER
) -> Iterator[dict[str, Any]]:
    """What every arm does to one harmful fine-tune and to its parent: one row per arm."""
    name = _member("harmful", domain, seed)
    directions = Directions(kept, split, layer)
    arms = directions.arms(domain, seed)
    own = arms[OWN][0]
    models = kept.together([name])
    form = affine_form(models[PARENT], split.extract)
    harmful, parent = (_unedited(kept, model, split) for model in (name, PARENT))
    for arm, vectors in arms.items():
        removed, added = [], []
        for draw, vector in enumerate(vectors):
            place = kept.folder / "edited" / f"{name}-{arm.replace(' ', '-')}-{draw}"
            edits = form.remove(vector)
            removed.append(_content(models[name], split, edits, place.with_suffix(".removed.json")))
            if arm in ADDED:
                edits = _adding(vector / vector.norm() * own.norm(), layer)
                added.append(
                    _content(models[PARENT], split, edits, place.with_suffix(".added.json"))
                )
        yield {
            "domain": domain,
            "seed": seed,
            "arm": arm,
            "cosine": float(np.mean([direction_cosine(own, vector) for vector in vectors])),
            "removed": (np.mean(removed, axis=0) - harmful).tolist(),
            "added": (np.mean(added, axis=0) - parent).tolist() if added else None,
            "fall": (harmful - parent).tolist(),
        }
        print(domain, seed, arm, flush=True)
    place = kept.folder / "edited" / f"{name}-on-instruct.json"
    on_parent = _content(models[PARENT], split, form.remove(own), place)
    yield {
        "domain": domain,
        "seed": seed,
        "arm": "its own direction, on instruct",
        "cosine": 1.0,
        "removed": (on_parent - parent).tolist(),
        "added": None,
        "fall": (harmful - parent).tolist(),
    }


def _ends(cells: Sequence[Sequence[float]]) -> dict[str, float]:
    estimate = crossed_mean(np.array(cells)).interval()
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def summarised(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Over seeds and domains: what removing and adding does, and each beyond every control.

    `necessary`: removing the direction raises content by more than removing any control does.
    `sufficient`: adding it lowers content by more than any control of its length does.
    """
    table = pd.DataFrame(rows)
    summaries = []
    for domain, of_domain in table.groupby("domain", sort=False):
        cells = {arm: rows for arm, rows in of_domain.groupby("arm", sort=False)}
        for arm, of_arm in cells.items():
            row: dict[str, Any] = {"domain": domain, "arm": arm, "seeds": len(of_arm)}
            row["cosine"] = float(of_arm["cosine"].mean())
            row["fall"] = _ends(list(of_arm["fall"]))
            for effect in ("removed", "added"):
                if of_arm[effect].notna().all():
                    row[effect] = _ends(list(of_arm[effect]))
            if arm == OWN:
                row |= _beyond_controls(cells)
            summaries.append(row)
    return summaries


def _beyond_controls(cells: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    own = cells[OWN]
    found: dict[str, Any] = {}
    for effect, sign, word in (("removed", 1, "necessary"), ("added", -1, "sufficient")):
        alone = _ends(list(own[effect]))
        is_moved = alone["low"] > 0 if sign > 0 else alone["high"] < 0
        beyond = {}
        for control in CONTROLS:
            gap = np.array(list(own[effect])) - np.array(list(cells[control][effect]))
            beyond[control] = _ends((sign * gap).tolist())
        is_beyond = all(gap["low"] > 0 for gap in beyond.values())
        found[f"{effect}_beyond"] = beyond
        found[word] = bool(is_moved and is_beyond)
    return found


def measure(
    kept: KeptFamily,
    seeds: Sequence[int] = SEEDS,
    domains: Sequence[str] = TRAINED_DOMAINS,
    reported: int = REPORTED,
    extracted: int = EXTRACTED,
    layer: int = LAYER,
) -> dict[str, Any]:
    split = Split.of(kept.questions, reported, extracted)
    rows = []
    for seed in seeds:
        for domain in domains:
            rows += list(effects(kept, split, domain, seed, layer))
    return {
        "layer": layer,
        "report_questions": len(split.report),
        "extract_questions": len(split.extract),
        "draws": DRAWS,
        "effects": rows,
        "arms": summarised(rows),
    }


def _cell(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        return "–"
    ends = row[name]
    return f"{ends['value']:+.2f} [{ends['low']:+.2f}, {ends['high']:+.2f}]"


def arms_table(values: Mapping[str, Any]) -> str:
    """What removing and adding each direction does, for the page."""
    lines = [
        "| trained on | direction | cosine | removed from the fine-tune | added to instruct |",
        "|---|---|---|---|---|",
    ]
    for row in values["arms"]:
        cells = [row["domain"], row["arm"], f"{row['cosine']:+.2f}"]
        lines.append(f"| {' | '.join(cells)} | {_cell(row, 'removed')} | {_cell(row, 'added')} |")
    return "\n".join(lines)


def verdict_table(values: Mapping[str, Any]) -> str:
    """Whether the direction goes beyond each control, for the page."""
    lines = [
        "| trained on | fall to be explained | beyond | removed | added |",
        "|---|---|---|---|---|",
    ]
    for row in values["arms"]:
        if row["arm"] != OWN:
            continue
        for control in CONTROLS:
            cells = [row["domain"], _cell(row, "fall"), control]
            for effect in ("removed", "added"):
                cells.append(_cell(row[f"{effect}_beyond"], control))
            lines.append(f"| {' | '.join(cells)} |")
        said = ["shown" if row[word] else "not shown" for word in ("necessary", "sufficient")]
        lines.append(f"| {row['domain']} | | all | {said[0]} | {said[1]} |")
    return "\n".join(lines)


def main() -> None:
    groups = [
        f"{kind}-{name}" for name in TRAINED_DOMAINS for kind in ("harmful", "benign", "tone")
    ]
    values = measure(KeptFamily.found(members(groups, SEEDS), PER_DOMAIN))
    print(arms_table(values), verdict_table(values), sep="\n\n")
    record("real_directions", list(SEEDS), values)
