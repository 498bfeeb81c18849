"""The second and third question of `delta_overlap`, over all fine-tunes of a study: do shifts share
more than any training on these prompts gives, and is something specific to harm shared across
domains?
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import pandas as pd

from emlens.controls.domain_pairs import DomainPairs
from emlens.controls.null_training import TrainingNull
from emlens.data import PromptSet
from emlens.data.system_messages import prompts_with_system
from emlens.foundation.errors import InputError
from emlens.studies.overlap_answers import cells_of, test_rows
from emlens.studies.overlap_differences import difference_rows
from emlens.studies.overlap_domains import OnThird, domain_rows, with_answers
from emlens.studies.overlap_landmarks import landmark_rows
from emlens.studies.overlap_layers import layer_rows
from emlens.studies.overlap_recipes import NotHad, NullNeeds
from emlens.studies.overlap_shifts import SampledShifts, before_and_deltas
from emlens.studies.overlap_training import (
    IDENTITY,
    StudyNulls,
    described_k,
    tested_null,
    third_prompts,
)
from emlens.studies.streams import Reading
from emlens.studies.study import StudyContext


def asked_third(context: StudyContext, name: str, third: PromptSet) -> PromptSet:
    """The prompts of third domains as a fine-tune is asked them."""
    return prompts_with_system(third, context.material.system(name))


def third_or_reason(context: StudyContext, names: Sequence[str]) -> PromptSet | str:
    """Prompts of third domains; a sentence where there are none."""
    try:
        return third_prompts(context.material, names, context.config)
    except NotHad as reason:
        return str(reason)


def third_models(context: StudyContext, names: Sequence[str]) -> list[str]:
    """The fine-tunes in focus and their benign controls, each once."""
    models: list[str] = []
    for name in names:
        models.append(name)
        benign = context.material.benign_for(name)
        if benign is not None:
            models.append(benign)
    return list(dict.fromkeys(models))


def third_readings(context: StudyContext, names: Sequence[str]) -> list[Reading]:
    """What is read of streams on prompts of third domains."""
    third = third_or_reason(context, names)
    if isinstance(third, str):
        return []
    readings = []
    for name in third_models(context, names):
        parent = context.material.parent(name).name
        readings.append(Reading((parent, name), asked_third(context, name, third)))
    return readings


class OverlapQuestions:
    """Gathers the tables over fine-tunes; nulls are trained as they are needed.

    Args:
        share: of the part's progress that training takes, where something is trained.
    """

    def __init__(
        self,
        context: StudyContext,
        names: Sequence[str],
        progress: Callable[[float], None],
        share: float,
    ):
        self._context = context
        self._names = names
        self._third = third_or_reason(context, names)
        options = context.options
        self._nulls = StudyNulls(
            context,
            options.adapters,
            options.keep_adapters,
            options.ray_actors,
            None if isinstance(self._third, str) else self._third,
            self._after_each,
        )
        self._progress = progress
        self._share_of_each = share / max(1, options.adapters * self._count_of_nulls())
        self._tests: list[dict[str, Any]] = []
        self._layers: list[dict[str, Any]] = []
        self._landmarks: list[dict[str, Any]] = []
        self._differences: list[dict[str, Any]] = []
        self._usable: dict[str, TrainingNull | str] = {}

    @property
    def trains(self) -> bool:
        """Whether some fine-tune has a null."""
        return self._count_of_nulls() > 0

    def add(self, name: str, sides: SampledShifts, benign: SampledShifts | None) -> None:
        """The rows of one fine-tune."""
        config = self._context.config
        null = self._nulls.of(name)
        if not isinstance(null, str):
            null = tested_null(null, sides.rendered) or null
        self._usable[name] = null
        identity = null == IDENTITY
        k = described_k(config)
        cells = cells_of(sides, k)
        benign_cells = None if benign is None else cells_of(benign, k)
        self._tests += test_rows(
            name, sides, benign, null, cells, benign_cells, config.seed, identity=identity
        )
        self._layers += layer_rows(name, cells, benign_cells, null, k)
        if not identity:
            self._landmarks += landmark_rows(
                self._context,
                name,
                sides,
                self._nulls.needs(name),
                self._context.options.landmark_draws,
                k,
            )
        if benign is not None:
            self._differences += difference_rows(name, sides, benign, null)

    def careful_from(self, name: str) -> str:
        """Where the careful answers of a fine-tune's null are from; "" where it has none."""
        needs = self._nulls.needs(name)
        return "" if isinstance(needs, str) else needs.careful_from

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables that have rows, by name."""
        tables = {
            "overlap_test": self._tests,
            "overlap_layers": self._layers,
            "overlap_landmarks": self._landmarks,
            "overlap_difference": self._differences,
            "overlap_domains": self._across_domains(),
        }
        return {name: pd.DataFrame(rows) for name, rows in tables.items() if rows}

    @property
    def no_third(self) -> str:
        """Why there is no comparison across domains; "" where there is one."""
        return self._third if isinstance(self._third, str) else ""

    def _after_each(self) -> None:
        self._progress(self._share_of_each)

    def _count_of_nulls(self) -> int:
        keys = set()
        for name in self._names:
            needs = self._nulls.needs(name)
            if isinstance(needs, NullNeeds):
                keys.add(self._nulls.key(name, needs))
        return len(keys)

    def _across_domains(self) -> list[dict[str, Any]]:
        if isinstance(self._third, str):
            return []
        material = self._context.material
        on_third = {name: self._on_third(name, self._third) for name in self._models()}
        rows: list[dict[str, Any]] = []
        benign_pairs: set[tuple[str, ...]] = set()
        for first, second in combinations(self._names, 2):
            domains = (material.domain(first), material.domain(second))
            if "" in domains or domains[0] == domains[1]:
                continue
            label = f"{domains[0]} × {domains[1]}"
            pairs = self._pairs(first, second)
            rows += domain_rows(on_third[first], on_third[second], "harmful", label, pairs)
            benign = [material.benign_for(name) for name in (first, second)]
            if benign[0] is None or benign[1] is None or benign[0] == benign[1]:
                continue
            names = (benign[0], benign[1], label)
            is_of_domains = [material.domain(name) for name in names[:2]] == list(domains)
            if not is_of_domains or names in benign_pairs:
                continue
            if not isinstance(pairs, str):
                benign_pairs.add(names)  # the first with a null stands for the domains
            rows += domain_rows(on_third[names[0]], on_third[names[1]], "benign", label, pairs)
        return with_answers(_each_benign_once(rows))

    def _models(self) -> list[str]:
        return third_models(self._context, self._names)

    def _pairs(self, first: str, second: str) -> DomainPairs | str:
        """Pairs of the adapters of both nulls; a sentence where one has none."""
        nulls = []
        for name in (first, second):
            null = self._usable[name]
            if isinstance(null, str):
                return f"{name}: {null}"
            nulls.append(null)
        try:
            return DomainPairs.of(*nulls)
        except InputError as error:
            return str(error)

    def _on_third(self, name: str, third: PromptSet) -> OnThird:
        material = self._context.material
        prompts = asked_third(self._context, name, third)
        before, shifts = before_and_deltas(material, name, prompts, self._context.config)
        return OnThird.of(name, material.domain(name), before, shifts)


def _each_benign_once(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without a benign pair that stands there again without its null."""
    best: dict[tuple[object, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("model", "second_model", "position", "domain_pair"))
        if key not in best or best[key]["null_pairs"] < row["null_pairs"]:
            best[key] = row
    return list(best.values())
