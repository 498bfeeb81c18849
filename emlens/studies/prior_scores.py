"""Scores before and after fine-tuning, over the questions outside its domain: how far means and
spreads moved, and whether the same questions stay low.

Tests take base questions as units and are corrected over the whole table in two ways. Since
questions of a domain are alike, the interval that resamples domains is given with each, and is the
one to read.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, Literal

import numpy as np
import pandas as pd

from emlens.data.base_questions import base_questions, by_base_question, units_of_ids
from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.probes.ceilings import ceiling_from_seeds
from emlens.results.study_result import columns_of
from emlens.stats import (
    adjust_p_values,
    cluster_bootstrap,
    f_test,
    paired_test,
    pearson,
    spearman,
    welch_test,
)
from emlens.stats.outcomes import TestResult
from emlens.stats.spread import brown_forsythe
from emlens.studies.material import Material

TESTS: Final[Mapping[str, Callable[..., TestResult]]] = {
    "paired t": paired_test,
    "Wilcoxon": partial(paired_test, kind="wilcoxon"),
    "Welch t": welch_test,
    "Brown-Forsythe": brown_forsythe,
    "F": f_test,
}
"""Two over pairs (of means, of signed ranks), one of independent means, two of spread. Wilcoxon's p
is exact up to 50 base questions, with ties too.
"""
CORRECTIONS: Final[tuple[tuple[str, Literal["bonferroni", "bh"]], ...]] = (
    ("p_bonferroni", "bonferroni"),
    ("p_bh", "bh"),
)
"""Column → method."""
UNDEFINED_COLUMNS: Final = (
    "statistic",
    "estimate",
    "estimate_low",
    "estimate_high",
    "p",
    "effect",
    "effect_low",
    "effect_high",
)
"""Columns of a test that cannot be made."""
RESAMPLES: Final = 499


def statistics(
    name: str, role: str, scores: pd.Series, groups: Sequence[str], seed: int, of: str
) -> dict[str, object]:
    """Mean and standard deviation of one model's scores, domains resampled.

    Args:
        of: the fine-tune whose domain is left out.
    """
    values = scores.to_numpy(dtype=np.float64)
    units = list(groups)
    if len(set(groups)) < 2:
        units = base_questions(map(str, scores.index))
    mean = cluster_bootstrap(values, units, resamples=RESAMPLES, seed=seed)
    sd = cluster_bootstrap(
        values,
        units,
        lambda rows: float(rows.std(ddof=1)),
        resamples=RESAMPLES,
        method="percentile",
        seed=seed,
    )
    return {
        "model": name,
        "role": role,
        "questions_of": of,
        **columns_of("mean", mean),
        **columns_of("sd", sd),
        "n": len(values),
        "units": len(set(units)),
    }


def changes(
    material: Material, name: str, parents: Sequence[str], ids: list[str], seed: int
) -> list[dict[str, object]]:
    """Tests of one fine-tune against each parent: after − before; a test without a p-value (no
    spread) is left undefined.
    """
    scores = material.per_question(name)[ids]
    after = by_base_question(scores).to_numpy(dtype=np.float64)
    groups = [material.groups[q] for q in ids]
    rows: list[dict[str, object]] = []
    for parent in parents:
        parent_scores = material.per_question(parent, asked_as=name)[ids]
        before = by_base_question(parent_scores).to_numpy(dtype=np.float64)
        gaps = (scores - parent_scores).to_numpy(dtype=np.float64)
        shift = _shift(gaps, groups, seed)
        for test, compute in TESTS.items():
            try:
                columns = _test_columns(compute(after, before))
            except InputError:  # no spread: nothing to test
                columns = dict.fromkeys(UNDEFINED_COLUMNS, np.nan) | {"effect_name": "no spread"}
            rows.append(
                {
                    "model": name,
                    "parent": parent,
                    "test": test,
                    **columns,
                    **columns_of("shift_by_domain", shift),
                    "n": len(after),
                }
            )
    return rows


def corrected(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """The rows with p-values corrected over all of them that have one: Bonferroni and
    Benjamini–Hochberg.
    """
    table = pd.DataFrame(rows)
    p = table["p"].to_numpy(dtype=np.float64)
    tested = np.isfinite(p)
    for column, method in CORRECTIONS:
        table[column] = np.nan
        if tested.any():
            table.loc[tested, column] = adjust_p_values(p[tested], method)
    return table


def relations(
    material: Material, name: str, parents: Sequence[str], ids: list[str]
) -> list[dict[str, object]]:
    """Correlation of scores before and after over questions, intervals over domains."""
    after = material.per_question(name)[ids].to_numpy()
    domains = _domains(material, ids)
    rows: list[dict[str, object]] = []
    for parent in parents:
        before = material.per_question(parent, asked_as=name)[ids].to_numpy()
        rows.append(
            {
                "model": name,
                "parent": parent,
                **columns_of("pearson", pearson(before, after, clusters=domains)),
                **columns_of("spearman", spearman(before, after, clusters=domains)),
                "null": 0.0,
                "n": len(ids),
            }
        )
    return rows


def ceiling(
    material: Material, name: str, ids: list[str], seed: int
) -> tuple[Estimate, tuple[str, ...]]:
    """Noise ceiling of one fine-tune from the other seeds of its group, and those runs; undefined
    without any.
    """
    runs = one_run_per_seed(material, name)
    scores = pd.DataFrame({run: material.per_question(run)[ids] for run in runs})
    if len(runs) < 2 or (scores.max() == scores.min()).any():
        missing = "its group has no second seed whose scores vary"
        return Estimate.undefined(missing, len(runs)), runs
    return ceiling_from_seeds(scores, clusters=_domains(material, ids), seed=seed), runs


def one_run_per_seed(material: Material, name: str) -> tuple[str, ...]:
    """The runs of a fine-tune's group, in the family's order, the first of each seed; of its own
    seed the fine-tune itself. Empty where it has no group.
    """
    specs = material.family.specs
    group = specs[name].group
    if not group:
        return ()
    runs = [run for run in material.family.finetuned if specs[run].group == group]
    by_seed = {specs[name].seed: name}
    for run in runs:
        by_seed.setdefault(specs[run].seed, run)
    return tuple(run for run in runs if run in by_seed.values())


def _domains(material: Material, ids: Sequence[str]) -> list[str] | None:
    """The unit of intervals over these questions: domains, or base questions where there is one
    domain; None where each question is a unit of its own.
    """
    units, _ = units_of_ids(ids, [material.groups[q] for q in ids])
    return units if len(set(units)) < len(ids) else None


def _shift(gaps: np.ndarray, groups: Sequence[str], seed: int) -> Estimate:
    """Mean gap with an interval over domains, where there are several."""
    if len(set(groups)) < 2:
        return Estimate(
            float(gaps.mean()), np.nan, np.nan, 1, "one domain, so no interval over domains"
        )
    return cluster_bootstrap(gaps, list(groups), resamples=RESAMPLES, seed=seed)


def _test_columns(test: TestResult) -> dict[str, object]:
    estimate = columns_of("estimate", test.estimate)
    return {
        "statistic": test.statistic,
        **{column: _finite(value) for column, value in estimate.items()},
        "p": test.p,
        "effect": test.effect,
        "effect_low": test.effect_low,
        "effect_high": test.effect_high,
        "effect_name": test.effect_name,
    }


def _finite(value: float) -> float:
    """NaN for an end that so few base questions cannot reach at this level."""
    return value if np.isfinite(value) else np.nan
