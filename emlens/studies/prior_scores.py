"""Scores before and after fine-tuning, over the questions outside its domain: how far means and
spreads moved, and whether the same questions stay low. Tests take questions as units and are
corrected over the whole table both ways; since questions of a domain are alike, the interval that
resamples domains stands beside each, and is the one to read.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

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

TESTS = {
    "paired t": paired_test,
    "Welch t": welch_test,
    "Brown-Forsythe": brown_forsythe,
    "F": f_test,
}
"""Two of means, two of spread."""
RESAMPLES = 499


def statistics(
    name: str, role: str, scores: pd.Series, groups: Sequence[str], seed: int, of: str
) -> dict[str, object]:
    """Mean and standard deviation of one model's scores, domains resampled; `of` is the fine-tune
    whose domain is left out.
    """
    values = scores.to_numpy(dtype=np.float64)
    several = len(set(groups)) > 1
    units = list(groups) if several else [str(i) for i in range(len(values))]
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
    after = material.per_question(name)[ids].to_numpy(dtype=np.float64)
    groups = [material.groups[q] for q in ids]
    rows: list[dict[str, object]] = []
    for parent in parents:
        before = material.per_question(parent)[ids].to_numpy(dtype=np.float64)
        shift = _shift(after - before, groups, seed)
        for test, compute in TESTS.items():
            try:
                found: TestResult | None = compute(after, before)
            except InputError:  # no spread: nothing to test
                found = None
            rows.append(
                {
                    "model": name,
                    "parent": parent,
                    "test": test,
                    **_test_columns(found),
                    **columns_of("shift_by_domain", shift),
                    "n": len(ids),
                }
            )
    return rows


def corrected(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """The rows with p-values corrected over all of them that have one: Bonferroni and
    Benjamini–Hochberg.
    """
    table = pd.DataFrame(rows)
    p = table["p"].to_numpy(dtype=np.float64)
    for column, method in (("p_bonferroni", "bonferroni"), ("p_bh", "bh")):
        table[column] = np.nan
        if np.isfinite(p).any():
            table.loc[np.isfinite(p), column] = adjust_p_values(p[np.isfinite(p)], method)  # type: ignore[arg-type]
    return table


def relations(
    material: Material, name: str, parents: Sequence[str], ids: list[str]
) -> list[dict[str, object]]:
    """Correlation of scores before and after over questions, intervals over domains."""
    after, groups = material.per_question(name)[ids].to_numpy(), [material.groups[q] for q in ids]
    clusters = groups if len(set(groups)) > 1 else None
    rows: list[dict[str, object]] = []
    for parent in parents:
        before = material.per_question(parent)[ids].to_numpy()
        found = {
            "pearson": pearson(before, after, clusters=clusters),
            "spearman": spearman(before, after, clusters=clusters),
        }
        columns = {
            key: value
            for label, estimate in found.items()
            for key, value in columns_of(label, estimate).items()
        }
        rows.append({"model": name, "parent": parent, **columns, "null": 0.0, "n": len(ids)})
    return rows


def ceiling(
    material: Material, name: str, ids: list[str], seed: int
) -> tuple[Estimate, tuple[str, ...]]:
    """Noise ceiling of one fine-tune from the other seeds of its group, and those runs; undefined
    without any.
    """
    spec = material.family.specs[name]
    runs = [
        other
        for other in material.family.finetuned
        if spec.group and material.family.specs[other].group == spec.group
    ]
    seeds = {material.family.specs[run].seed: run for run in reversed(runs)} | {spec.seed: name}
    chosen = tuple(run for run in runs if run in seeds.values())
    table = pd.DataFrame({run: material.per_question(run)[ids] for run in chosen})
    if len(chosen) < 2 or (table.max() == table.min()).any():
        return (
            Estimate.undefined("its group has no second seed whose scores vary", len(chosen)),
            chosen,
        )
    groups = [material.groups[q] for q in ids]
    return (
        ceiling_from_seeds(table, clusters=groups if len(set(groups)) > 1 else None, seed=seed),
        chosen,
    )


def _shift(gaps: np.ndarray, groups: Sequence[str], seed: int) -> Estimate:
    if len(set(groups)) < 2:
        return Estimate(
            float(gaps.mean()), np.nan, np.nan, 1, "one domain, so no interval over domains"
        )
    return cluster_bootstrap(gaps, list(groups), resamples=RESAMPLES, seed=seed)


def _test_columns(found: TestResult | None) -> dict[str, object]:
    if found is None:
        names = (
            "statistic",
            "estimate",
            "estimate_low",
            "estimate_high",
            "p",
            "effect",
            "effect_low",
            "effect_high",
        )
        return {**dict.fromkeys(names, np.nan), "effect_name": "no spread"}
    return {
        "statistic": found.statistic,
        **columns_of("estimate", found.estimate),
        "p": found.p,
        "effect": found.effect,
        "effect_low": found.effect_low,
        "effect_high": found.effect_high,
        "effect_name": found.effect_name,
    }
