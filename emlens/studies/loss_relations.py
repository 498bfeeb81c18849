"""How scores of a sweep's runs go with their losses: correlations, the matched-loss test by each
setting, the Pareto front.

A run is one unit. Runs that are equal in every setting and differ in their seed are first averaged,
and their differences become the noise of losses and scores. Every row has its interval or its null.
The tables know no models: any sweep that `emlens.data.sweeps` reads will do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

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

    Runs of equal settings are not averaged where one has no seed or two have the same: they differ
    in something that the table does not show.
    """
    table = sweep.table
    settings = [name for name in sweep.settings if name != "seed"]
    if "seed" not in sweep.settings or not settings:
        return sweep, Noise()
    runs = _run_numbers(table, settings)
    if runs.is_unique:
        return sweep, Noise()
    groups = table.groupby(runs, sort=False)
    means = groups[[*sweep.losses, *sweep.metrics]].mean()
    residuals = table[[loss, metric]] - groups[[loss, metric]].transform("mean")
    # pooled within runs, then of the mean over as many seeds as a run has on average
    freedom = len(table) - len(means)
    errors = np.sqrt((residuals**2).sum() / freedom / (len(table) / len(means)))
    first_of_run = table.loc[~runs.duplicated(), ["run", *settings]]
    averaged = pd.concat(
        [first_of_run.reset_index(drop=True), means.reset_index(drop=True)], axis=1
    )
    averaged = averaged[["run", *sweep.losses, *settings, *sweep.metrics]]
    noise = Noise(float(errors[loss]), float(errors[metric]))
    return replace(sweep, table=averaged, settings=tuple(settings)), noise


def _run_numbers(table: pd.DataFrame, settings: Sequence[str]) -> pd.Series:
    """One number per row; rows that are seeds of one run share it."""
    cell = table.groupby(list(settings), dropna=False, sort=False).ngroup()
    no_seed = table["seed"].isna() | table.duplicated([*settings, "seed"], keep=False)
    unclear = no_seed.groupby(cell).transform("any")
    # below 0, so that no row of an unclear cell shares its number with another
    alone = -1 - np.arange(len(table))
    return pd.Series(np.where(unclear, alone, cell), index=table.index)


def covariates(sweep: SweepTable, names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Those of the named settings that every run has and that vary, as columns; rates, sizes and
    steps on the log scale.
    """
    usable, columns = [], []
    for name in names:
        if name not in sweep.settings or name not in NUMBERS:
            continue
        values = sweep.table[name]
        if values.isna().any() or values.nunique() < 2:
            continue
        usable.append(name)
        # rates, sizes and steps are compared by their ratios
        scaled = np.log(values) if name in ON_LOG_SCALE else values
        columns.append(np.asarray(scaled, dtype=float))
    if not columns:
        return [], np.empty((len(sweep), 0))
    return usable, np.column_stack(columns)


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

    Columns: loss_name, metric, measure, given, value, value_low, value_high, p, null_q95 (largest
    correlation in 95 % of permutations), n.
    """
    settings, columns = covariates(sweep, given)
    conditions: list[tuple[str, np.ndarray | None]] = [("", None)]
    if settings:
        conditions.append((", ".join(settings), columns))
    rows = []
    for loss, metric, ranks in product(sweep.losses, metrics, (False, True)):
        x, y = sweep.table[loss].to_numpy(), sweep.table[metric].to_numpy()
        for names, values in conditions:
            measure = "Spearman" if ranks else "Pearson"
            rows.append(
                {
                    "loss_name": loss,
                    "metric": metric,
                    "measure": measure if values is None else f"partial {measure}",
                    "given": names,
                    **_correlation_columns(x, y, ranks, values, draws, seed),
                }
            )
    return pd.DataFrame(rows)


def _correlation_columns(
    x: np.ndarray,
    y: np.ndarray,
    ranks: bool,
    columns: np.ndarray | None,
    draws: int,
    seed: int,
) -> dict[str, float]:
    """One correlation with its interval and its permutation null; no null where it is undefined."""
    if columns is not None:
        correlation = partial_correlation(x, y, columns, ranks=ranks)
    elif ranks:
        correlation = spearman(x, y)
    else:
        correlation = pearson(x, y)
    row = {**columns_of("value", correlation), "n": len(x)}
    if correlation.defined:
        null = correlation_null(x, y, ranks=ranks, covariates=columns, draws=draws, seed=seed)
        row["p"] = null.p_value(correlation.value, "two-sided")
        row["null_q95"] = null.quantile(0.95)
    return row


def labels(sweep: SweepTable, name: str) -> np.ndarray:
    """The value of a setting in each run, as text."""
    return np.array([_label(value) for value in sweep.table[name]])


def _label(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def factors(sweep: SweepTable, names: Sequence[str]) -> list[str]:
    """Those of the named settings that part the runs into groups: two values or more, some with two
    runs or more.
    """
    grouping = []
    for name in dict.fromkeys(names):  # a name that is given twice counts once
        if name in sweep.settings and 1 < len(set(labels(sweep, name))) < len(sweep):
            grouping.append(name)
    return grouping


@dataclass(frozen=True)
class MatchedOptions:
    """How the matched-loss test is made.

    Args:
        relations: of the score with the loss, each tested.
        strata: residuals are permuted only between runs alike in this: `"loss"`, or a setting;
            None: between all.
        draws, seed: of the null.
    """

    relations: Sequence[Relation] = ("linear",)
    strata: str | None = None
    draws: int = 1999
    seed: int = 0


def matched(
    sweep: SweepTable,
    loss: str,
    metric: str,
    by: Sequence[str],
    options: MatchedOptions,
    noise: Noise | None = None,
) -> tuple[pd.DataFrame, Mapping[tuple[str, str], MatchedLoss]]:
    """The matched-loss test by each setting, and for single runs, under each relation.

    `p` is corrected within a setting for its values, `p_all` also for the settings looked at
    (Holm). Noise of losses known from seeds is taken out of the linear relation; it is not taken
    out of single runs.

    Returns:
        A table with one row per relation, setting and value; the tests by (setting, relation).

    Raises:
        InputError: what `matched_loss_test` refuses, for every setting.
    """
    frames: list[pd.DataFrame] = []
    tests: dict[tuple[str, str], MatchedLoss] = {}
    refusals: list[str] = []
    for relation in options.relations:
        of_relation: dict[str, MatchedLoss] = {}
        for name in [*by, RUN]:
            try:
                of_relation[name] = _matched_test(
                    sweep, loss, metric, name, relation, options, noise or Noise()
                )
            except InputError as error:
                refusals.append(f"{name}, {relation}: {error}")
        better = _corrections(of_relation)
        for name, test in of_relation.items():
            tests[name, relation] = test
            frames.append(_matched_table(sweep, name, relation, test, better[name]))
    if not frames:
        raise InputError(f"no matched-loss test can be made of {len(sweep)} runs: {refusals[0]}")
    return pd.concat(frames, ignore_index=True), tests


def _matched_test(
    sweep: SweepTable,
    loss: str,
    metric: str,
    by: str,
    relation: Relation,
    options: MatchedOptions,
    noise: Noise,
) -> MatchedLoss:
    """The test by one setting, or of single runs (`RUN`), under one relation."""
    x, y = sweep.table[loss].to_numpy(), sweep.table[metric].to_numpy()
    if by == RUN:
        # every run is its own group there, and the isotonic fit of each draw is slow
        draws = min(options.draws, _SLOW_DRAWS) if relation == "isotonic" else options.draws
        return matched_loss_test(x, y, relation=relation, draws=draws, seed=options.seed)
    return matched_loss_test(
        x,
        y,
        groups=labels(sweep, by),
        relation=relation,
        strata=_strata(sweep, loss, options.strata),
        loss_error=noise.loss if relation == "linear" else 0.0,
        draws=options.draws,
        seed=options.seed,
    )


def _corrections(tests: Mapping[str, MatchedLoss]) -> dict[str, float]:
    """Setting → factor by which Holm over the settings raises its p; single runs are not among
    them.
    """
    settings = [name for name in tests if name != RUN]
    raised = {name: test.p for name, test in tests.items()}
    if settings:
        adjusted = adjust_p_values([tests[name].p for name in settings])
        raised |= dict(zip(settings, adjusted, strict=True))
    return {name: raised[name] / test.p for name, test in tests.items()}


def _matched_table(
    sweep: SweepTable, by: str, relation: str, test: MatchedLoss, correction: float
) -> pd.DataFrame:
    """The table of one test, with what was tested before its own columns."""
    table = test.table
    if by == RUN:
        table = table.assign(group=sweep.table["run"].to_numpy())
    table = table.rename(columns={"t": "statistic", "null": "null_q95"})
    table = table.assign(p_all=np.minimum(1.0, table["p"] * correction))
    table.insert(0, "by", by)
    table.insert(1, "relation", relation)
    return table


def _strata(sweep: SweepTable, loss: str, name: str | None) -> np.ndarray | None:
    """Labels of the strata in which residuals are permuted; None: one stratum."""
    if name is None:
        return None
    if name == LIKE_LOSS:
        return _like_losses(sweep.table[loss].to_numpy())
    return labels(sweep, name)


def _like_losses(loss: np.ndarray) -> np.ndarray:
    """Strata of about a dozen runs in the order of their losses, two at least."""
    count = max(2, len(loss) // _IN_STRATUM)
    strata = np.empty(len(loss), dtype=int)
    for number, rows in enumerate(np.array_split(np.argsort(loss, kind="stable"), count)):
        strata[rows] = number
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
    if noise.score > 0:
        loss_error, score_error = noise.loss, noise.score
    else:
        loss_error, score_error = 0.0, test.scatter
    membership = front_membership(
        x, y, loss_error=loss_error, score_error=score_error, draws=draws, seed=seed
    )
    settings = [name for name in sweep.settings if name in (*NUMBERS, *TEXTS)]
    table = pd.DataFrame(
        {
            "run": sweep.table["run"],
            "loss": x,
            "score": y,
            "expected": test.fitted,
            "front": pareto_front(x, y),
            "membership": membership,
            "membership_null": _membership_null(x, y, test.fitted, min(draws, _SLOW_DRAWS), seed),
        }
    )
    return pd.concat([table, sweep.table[settings].reset_index(drop=True)], axis=1)


def _membership_null(
    loss: np.ndarray, score: np.ndarray, fitted: np.ndarray, draws: int, seed: int
) -> np.ndarray:
    """Share of permutations of the residuals in which each run is on the front."""
    rng = numpy_rng(seed, "fronts")
    residual = score - fitted
    on_front = []
    for _ in range(draws):
        on_front.append(pareto_front(loss, fitted + rng.permutation(residual)))
    return np.mean(on_front, axis=0)
