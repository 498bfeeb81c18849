"""How scores of a sweep's runs go with their losses: correlations, the matched-loss test by each
setting, the Pareto front.

A run is one unit. Runs that are equal in every setting and differ in their seed are first averaged,
and what they differ by becomes the noise of losses and scores. Every row has its interval or its
null. The tables know no models: any sweep that `emlens.data.sweeps` reads will do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from emlens.data.sweeps import NUMBERS, TEXTS, SweepTable
from emlens.foundation.errors import InputError
from emlens.foundation.seeds import numpy_rng
from emlens.results.study_result import columns_of
from emlens.stats import adjust_p_values, correlation_null, partial_correlation, pearson, spearman
from emlens.stats.fronts import front_membership, pareto_front
from emlens.stats.matched import MatchedLoss, Relation, matched_loss_test

RUN = "run"
ON_LOG_SCALE = ("learning_rate", "batch_size", "steps", "base_learning_rate")
LIKE_LOSS = "loss"
"""In place of a setting: strata of runs with like losses, so that scatter may differ between high
and low ones.
"""
_SLOW_DRAWS = 499
_IN_STRATUM = 12


@dataclass(frozen=True)
class Noise:
    """Standard error of a run's loss and score from repeated seeds; 0 where there were none."""

    loss: float = 0.0
    score: float = 0.0


def over_seeds(sweep: SweepTable, loss: str, metric: str) -> tuple[SweepTable, Noise]:
    """Runs that differ only in seed as one run, and the standard errors of those means, pooled over
    runs.

    Runs of equal settings are left apart where one has no seed or two have the same: they differ in
    something that the table does not say.
    """
    table = sweep.table
    fixed = [name for name in sweep.settings if name != "seed"]
    if "seed" not in sweep.settings or not fixed:
        return sweep, Noise()
    cell = table.groupby(fixed, dropna=False, sort=False).ngroup()
    unclear = (
        (table["seed"].isna() | table.duplicated([*fixed, "seed"], keep=False))
        .groupby(cell)
        .transform("any")
    )
    runs = pd.Series(np.where(unclear, -1 - np.arange(len(table)), cell), index=table.index)
    if runs.is_unique:
        return sweep, Noise()
    groups = table.groupby(runs, sort=False)
    values = [*sweep.losses, *sweep.metrics]
    means = groups[values].mean()
    alike = table.loc[~runs.duplicated(), ["run", *fixed]]
    left = table[[loss, metric]] - groups[[loss, metric]].transform("mean")
    freedom = len(table) - len(means)
    errors = np.sqrt((left**2).sum() / freedom / (len(table) / len(means)))
    kept = pd.concat([alike.reset_index(drop=True), means.reset_index(drop=True)], axis=1)[
        ["run", *sweep.losses, *fixed, *sweep.metrics]
    ]
    return replace(sweep, table=kept, settings=tuple(fixed)), Noise(
        float(errors[loss]), float(errors[metric])
    )


def covariates(sweep: SweepTable, names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Those of the named settings that every run has and that vary, as columns; rates, sizes and
    steps on the log scale.
    """
    held = [
        name
        for name in names
        if name in sweep.settings
        and name in NUMBERS
        and sweep.table[name].notna().all()
        and sweep.table[name].nunique() > 1
    ]
    columns = [
        np.log(sweep.table[name]) if name in ON_LOG_SCALE else sweep.table[name] for name in held
    ]
    return held, (
        np.column_stack([np.asarray(column, dtype=float) for column in columns])
        if held
        else np.empty((len(sweep), 0))
    )


def correlations(
    sweep: SweepTable,
    metrics: Sequence[str],
    given: Sequence[str],
    *,
    draws: int = 1999,
    seed: int = 0,
) -> pd.DataFrame:
    """Every loss with every metric: Pearson and Spearman, plain and given settings, with interval
    and two-sided permutation p.

    Columns: loss, metric, measure, given, value, value_low, value_high, p, null_95 (largest
    correlation in 95 % of permutations), n.
    """
    held, columns = covariates(sweep, given)
    rows = []
    for loss in sweep.losses:
        for metric in metrics:
            x, y = sweep.table[loss].to_numpy(), sweep.table[metric].to_numpy()
            for ranks in (False, True):
                for partial in (False, True):
                    if partial and not held:
                        continue
                    plain = spearman if ranks else pearson
                    found = (
                        partial_correlation(x, y, columns, ranks=ranks) if partial else plain(x, y)
                    )
                    head = {
                        "loss": loss,
                        "metric": metric,
                        "measure": (
                            ("partial " if partial else "") + ("Spearman" if ranks else "Pearson")
                        ),
                    }
                    row = {
                        **head,
                        "given": ", ".join(held) if partial else "",
                        **columns_of("value", found),
                        "n": len(x),
                    }
                    if found.defined:
                        null = correlation_null(
                            x,
                            y,
                            ranks=ranks,
                            covariates=columns if partial else None,
                            draws=draws,
                            seed=seed,
                        )
                        row |= {
                            "p": null.p_value(found.value, "two-sided"),
                            "null_95": null.quantile(0.95),
                        }
                    rows.append(row)
    return pd.DataFrame(rows)


def labels(sweep: SweepTable, name: str) -> np.ndarray:
    """A setting's value of each run as text."""
    return np.array(
        [f"{value:g}" if isinstance(value, float) else str(value) for value in sweep.table[name]]
    )


def factors(sweep: SweepTable, asked: Sequence[str]) -> list[str]:
    """Those of the asked settings by which runs can be told apart in groups: two values or more,
    some with two runs or more.
    """
    counts = {
        name: pd.Series(labels(sweep, name)).value_counts()
        for name in asked
        if name in sweep.settings
    }
    return [name for name, count in counts.items() if 1 < len(count) < len(sweep)]


def matched(
    sweep: SweepTable,
    loss: str,
    metric: str,
    by: Sequence[str],
    relations: Sequence[Relation],
    *,
    noise: Noise | None = None,
    strata: str | None = None,
    draws: int = 1999,
    seed: int = 0,
) -> tuple[pd.DataFrame, Mapping[tuple[str, str], MatchedLoss]]:
    """The matched-loss test by each setting, and for single runs, under each relation.

    `p` is corrected within a setting for its values, `p_all` also for the settings looked at
    (Holm). Noise of losses known from seeds is taken out of the linear relation; it is not taken
    out of single runs.

    Raises:
        InputError: what `matched_loss_test` refuses, for every setting.
    """
    x, y = sweep.table[loss].to_numpy(), sweep.table[metric].to_numpy()
    layers = None if strata is None else _like(x) if strata == LIKE_LOSS else labels(sweep, strata)
    parts: list[pd.DataFrame] = []
    tests: dict[tuple[str, str], MatchedLoss] = {}
    refused: list[str] = []
    for relation in relations:
        found: dict[str, MatchedLoss] = {}
        for name in [*by, RUN]:
            groups = None if name == RUN else labels(sweep, name)
            error = (
                noise.loss
                if noise is not None and groups is not None and relation == "linear"
                else 0.0
            )
            count = min(draws, _SLOW_DRAWS) if relation == "isotonic" and groups is None else draws
            try:
                found[name] = matched_loss_test(
                    x,
                    y,
                    groups=groups,
                    relation=relation,
                    strata=layers if groups is not None else None,
                    loss_error=error,
                    draws=count,
                    seed=seed,
                )
            except InputError as reason:
                refused.append(f"{name}, {relation}: {reason}")
        settings = [name for name in by if name in found]
        corrected = (
            dict(zip(settings, adjust_p_values([found[name].p for name in settings]), strict=True))
            if settings
            else {}
        )
        for name, test in found.items():
            table = (
                test.table
                if name != RUN
                else test.table.assign(group=sweep.table["run"].to_numpy())
            )
            better = corrected.get(name, test.p) / test.p
            parts.append(
                table.assign(by=name, relation=relation, p_all=np.minimum(1.0, table["p"] * better))
            )
            tests[name, relation] = test
    if not parts:
        raise InputError(f"no matched-loss test can be made of {len(sweep)} runs: {refused[0]}")
    frame = pd.concat(parts, ignore_index=True)
    return (
        frame[
            ["by", "relation", *[name for name in frame.columns if name not in ("by", "relation")]]
        ],
        tests,
    )


def _like(loss: np.ndarray) -> np.ndarray:
    """Strata of about a dozen runs in the order of their losses, two at least."""
    count = max(2, len(loss) // _IN_STRATUM)
    strata = np.empty(len(loss), dtype=int)
    for i, rows in enumerate(np.array_split(np.argsort(loss, kind="stable"), count)):
        strata[rows] = i
    return strata


def fronts(
    sweep: SweepTable,
    loss: str,
    metric: str,
    test: MatchedLoss,
    noise: Noise,
    *,
    draws: int = 1999,
    seed: int = 0,
) -> pd.DataFrame:
    """Every run with the relation's value and its place on the Pareto front (loss as low, score as
    high as no other's).

    Columns: run, loss, score, expected (the relation), front, membership (share of draws under the
    runs' noise in which it is on the front; without repeated seeds the scatter about the relation
    stands for it), membership_null (the same where residuals are permuted).
    """
    x, y = sweep.table[loss].to_numpy(), sweep.table[metric].to_numpy()
    known = noise.score > 0
    share = front_membership(
        x,
        y,
        loss_error=noise.loss if known else 0.0,
        score_error=noise.score if known else test.scatter,
        draws=draws,
        seed=seed,
    )
    rng = numpy_rng(seed, "fronts")
    residual = y - test.fitted
    null = np.mean(
        [
            pareto_front(x, test.fitted + rng.permutation(residual))
            for _ in range(min(draws, _SLOW_DRAWS))
        ],
        axis=0,
    )
    settings = sweep.table[[name for name in sweep.settings if name in (*NUMBERS, *TEXTS)]]
    head = pd.DataFrame(
        {
            "run": sweep.table["run"],
            "loss": x,
            "score": y,
            "expected": test.fitted,
            "front": pareto_front(x, y),
        }
    )
    return pd.concat(
        [
            head,
            pd.DataFrame({"membership": share, "membership_null": null}),
            settings.reset_index(drop=True),
        ],
        axis=1,
    )
