"""Did a run turn at once, and what turned first? Change points of parameters, activations and
behaviour along kept checkpoints.

Every series has a steepest place, so each is compared with smooth trends on the axis of the
cumulative learning rate: a smooth step against a straight line, which any curve that levels off
beats, and a kink against a logistic curve. Fine-tunes of one group that differ in their seed are
repeated runs: over them locations get intervals, and the order of events a test. Runs without kept
checkpoints are left out. Each checkpoint is kept once it is measured, so an interrupted study goes
on from there.
"""

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from pydantic import Field, field_validator

from emlens.data import QuestionSet
from emlens.foundation.errors import InputError, UnknownNameError
from emlens.foundation.provenance import hash_directory, hash_json
from emlens.geometry.trajectories import path_components
from emlens.geometry.turns import THRESHOLD, local_cosine, sharpest_turn, turn_null
from emlens.results.sections import Plot, Section
from emlens.results.study_result import Finding, Part, p_text
from emlens.runs import UnitLog
from emlens.stats import adjust_p_values, change_point, order_of_events, t_interval
from emlens.stats.change_points import logistic_midpoint
from emlens.studies.config import Options as BaseOptions, StudyConfig
from emlens.studies.material import Material
from emlens.studies.study import Study, StudyContext
from emlens.studies.trajectories import (
    Parameters,
    applied_adapter,
    checkpoints_of,
    cumulative_rates,
    final_shift,
    measure_activations,
    measure_behaviour,
    read_parameters,
)

_LEAST = 12
_RANDOM_WALK: Final = (0.61, 0.15)
TESTS: Final = (("linear", "transition"), ("logistic", "slope"))
BEHAVIOUR: Final = ("aligned_others", "aligned_own")
MIDPOINT = "half of the change"

SECTION = Section(
    method=(
        "Along the checkpoints that a run kept: norms of the adapter's A, B and BA,"
        " the local cosine of the path of B (−1 straight, 0 a right-angle turn),"
        " the shift of the residual stream along and inside its final direction and subspace"
        " (fitted on other questions), and likelihood scores by domain."
        " Change points are tested on the axis of the cumulative learning rate,"
        " against a straight line (is the change even? any curve that levels off is not) and"
        " against a logistic curve (is there more than one smooth change?),"
        " with a bootstrapped null of dependent noise. The order of two events is tested over runs"
        " by flipping signs of their lags. Norms of A and B depend on how the update is split into"
        " them; that of BA does not."
    ),
    reference=(
        "Turner et al. 2025 (arXiv 2506.11613); Andrews 1993 for tests of a break at an unknown"
        " place."
    ),
    tables={
        "trajectory_parameters": "One row a run, checkpoint and quantity of the adapter.",
        "local_cosine": (
            "One row a run, path, window and checkpoint; the null is the 95 % quantile of the peak"
            " with increments in random order."
        ),
        "path_components": (
            "One row a run and checkpoint: the path of BA in its first two principal components;"
            " a random walk explains .61 and .15."
        ),
        "trajectory_activations": "One row a run, checkpoint and layer.",
        "trajectory_behaviour": (
            "One row a run, checkpoint, metric and group of questions; scores 0 to 100."
        ),
        "trajectory_behaviour_summary": (
            "One row a run, checkpoint and series: own domain and all others."
        ),
        "change_points": (
            "One row a run, series and test: location in steps with its interval,"
            " p against the trend."
        ),
        "change_points_over_runs": (
            "One row a group of runs, series and test: mean location with its interval over runs,"
            " and in how many runs p ≤ .05."
        ),
        "order_of_events": (
            "One row a group, pair of series and kind of event: lag in steps (above 0:"
            " the parameter or activation comes first), p over runs; Holm within one kind of event."
        ),
    },
    plots=(
        Plot(
            "line",
            "trajectory_behaviour_summary",
            "step",
            "value",
            "Behaviour",
            "Mean score with its 95 % interval.",
            "series",
            "model",
            "",
            (),
            "step",
            "score",
        ),
        Plot(
            "line",
            "trajectory_parameters",
            "step",
            "value",
            "Adapter",
            "Norms and closeness to the end.",
            "series",
            "model",
            "",
            (),
            "step",
            "",
        ),
        Plot(
            "line",
            "local_cosine",
            "step",
            "cosine",
            "Local cosine",
            "−1 straight, 0 a right angle; dotted: 95 % of peaks without a moment of turning.",
            "window",
            "model",
            "null",
            (),
            "step",
            "cosine",
        ),
        Plot(
            "line",
            "trajectory_activations",
            "step",
            "projection",
            "Shift along the final one",
            "1: as far as at the end.",
            "layer",
            "model",
            "",
            (),
            "step",
            "share",
        ),
        Plot(
            "forest",
            "change_points_over_runs",
            "event",
            "location",
            "When things change",
            "Mean over runs, 95 % interval.",
            "group",
            "",
            "",
            (),
            "",
            "step",
        ),
        Plot(
            "forest",
            "order_of_events",
            "event",
            "lag",
            "Order of events",
            "Steps from the first to the behaviour; 0: at once.",
            "group",
            "",
            "null",
            (),
            "",
            "lag, steps",
        ),
    ),
)


class Options(BaseOptions):
    """Options of the study.

    runs: fine-tunes to follow; none: every one in focus that kept checkpoints. folders: fine-tune →
    folder of its checkpoints, where that is not its own. every: use every so many checkpoints.
    windows: of the local cosine, in checkpoints. threshold: chords shorter than this have no
    direction. layer: block whose shift is tested; default L−2. position: where activations are
    read. draws: of each null.
    """

    runs: tuple[str, ...] = ()
    folders: Mapping[str, str] = Field(default_factory=dict)
    every: int = Field(1, ge=1)
    windows: tuple[int, ...] = (5, 10, 15)
    threshold: float = Field(THRESHOLD, ge=0)
    layer: int | None = Field(None, ge=0)
    position: str = "last_prompt"
    draws: int = Field(199, ge=19)

    @field_validator("windows")
    @classmethod
    def _positive(cls, windows: tuple[int, ...]) -> tuple[int, ...]:
        if not windows or min(windows) < 1 or len(set(windows)) < len(windows):
            raise ValueError(
                f"windows={windows} must name one window or more, each 1 or more and none twice"
            )
        return windows


def _options(config: StudyConfig) -> Options:
    return config.options_of("phase_transition", Options)


def _runs(material: Material, config: StudyConfig) -> dict[str, dict[int, Path]]:
    """Fine-tune → its checkpoints, thinned."""
    options = _options(config)
    for name in (*options.runs, *options.folders):
        if name not in material.family.finetuned:
            known = ", ".join(material.family.finetuned)
            raise UnknownNameError(
                f"options of phase_transition name {name!r}, which is no fine-tune of this family;"
                f" it has {known}"
            )
    found = {}
    for name in options.runs or tuple(options.folders) or tuple(material.family.finetuned):
        kept = checkpoints_of(_folder(material, config, name))
        if kept:
            found[name] = {
                step: path
                for i, (step, path) in enumerate(kept.items())
                if (len(kept) - 1 - i) % options.every == 0
            }
        elif name in options.runs or name in options.folders:
            where = _folder(material, config, name)
            raise InputError(
                f"{where}: keeps no adapters for {name!r}; pass a folder with checkpoints/step-…"
                " (fit(..., saving=Saving(keep_every=n))) or checkpoint-…"
            )
    return found


def _folder(material: Material, config: StudyConfig, name: str) -> Path:
    given = _options(config).folders.get(name)
    return Path(config.path(given)) if given is not None else Path(material.family.specs[name].path)


def left_out(material: Material, config: StudyConfig) -> str | None:
    if not _runs(material, config):
        return (
            "no fine-tune kept its checkpoints; train with fit(..., saving=Saving(keep_every=n)),"
            " or name folders in the options"
        )
    return None


def check(material: Material, config: StudyConfig) -> None:
    options = _options(config)
    layers = material.family.instruct.n_layers
    if options.layer is not None and options.layer >= layers:
        raise InputError(
            f"options of phase_transition: layer={options.layer},"
            f" but the model has {layers} blocks; pass 0 to {layers - 1}"
        )
    for name, kept in _runs(material, config).items():
        if len(kept) + 1 < _LEAST:
            raise InputError(
                f"{name!r} has {len(kept)} checkpoints (every={options.every});"
                f" change points need {_LEAST - 1} or more"
            )


def run(material: Material, config: StudyConfig, context: StudyContext) -> Part:
    options, part = _options(config), Part()
    tables: dict[str, list[pd.DataFrame]] = {}
    series: dict[str, pd.DataFrame] = {}
    times: dict[str, np.ndarray] = {}
    turns: list[dict[str, Any]] = []
    runs = _runs(material, config)
    for name, kept in runs.items():
        parameters = read_parameters(kept)
        rates = cumulative_rates(_folder(material, config, name), parameters.steps)
        if rates is None or (np.diff(rates) <= 0).any():
            part.warnings.append(
                f"{name}: no learning rates were logged, so trends are even in steps and warm-up"
                " counts as a change"
            )
            rates = np.array(parameters.steps, dtype=np.float64)
        times[name] = rates
        activations, behaviour = _measured(material, name, kept, config, context, 0.8 / len(runs))
        _gather(tables, name, parameters, rates, activations, behaviour)
        found, turn = _turns(name, parameters, options, config.seed, part)
        tables.setdefault("local_cosine", []).extend(found)
        turns += turn
        series[name] = _series(
            parameters, activations, behaviour, options.layer, material.family[name].n_layers
        )
    part.tables |= {table: pd.concat(frames, ignore_index=True) for table, frames in tables.items()}
    rows = turns
    for name, wide in series.items():
        rows = rows + _tested(name, wide, times[name], options, config.seed)
        context.progress(0.2 / len(series))
    points = pd.DataFrame(rows)
    points.insert(1, "group", [_group(material, name) for name in points["model"]])
    part.tables["change_points"] = points
    part.tables["change_points_over_runs"] = _over_runs(points)
    part.tables["order_of_events"] = _order(points, config.seed)
    _findings(part)
    return part


def _group(material: Material, name: str) -> str:
    return material.family.specs[name].group or name


def _measured(
    material: Material,
    name: str,
    kept: Mapping[int, Path],
    config: StudyConfig,
    context: StudyContext,
    share: float,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Activations and behaviour at step 0 and every checkpoint; one unit each."""
    options, parent = _options(config), material.parent(name)
    questions: QuestionSet = material.untrained(material.questions, name)
    final = kept[max(kept)]
    inputs = {
        "parent": parent.provenance,
        "questions": questions.content_hash,
        "final": hash_directory(final),
        "k": config.k,
        "position": options.position,
        "domain": material.domain(name),
    }
    log, halves = UnitLog(context.folder / hash_json(name)[:16]), None
    activations, behaviour = [], []
    for step, path in {0: None, **kept}.items():
        mine = {**inputs, "adapter": None if path is None else hash_directory(path)}
        unit = log.find(f"step-{step}", mine)
        if unit is None:
            if halves is None:
                halves = final_shift(
                    parent, final, questions, k=config.k, position=options.position
                )
            if path is None:
                result = {
                    "activations": [],
                    "behaviour": measure_behaviour(parent, questions, material.domain(name)),
                }
            else:
                with applied_adapter(parent, path) as model:
                    result = {
                        "activations": measure_activations(
                            model, halves, position=options.position
                        ),
                        "behaviour": measure_behaviour(model, questions, material.domain(name)),
                    }
            log.publish(f"step-{step}", mine, result, [])
        else:
            result = unit["result"]
        activations += [{"step": step, **row} for row in result["activations"]]
        behaviour += [{"step": step, **row} for row in result["behaviour"]]
        context.progress(share / (len(kept) + 1))
    return pd.DataFrame(activations), pd.DataFrame(behaviour)


def _gather(
    tables: dict[str, list[pd.DataFrame]],
    name: str,
    parameters: Parameters,
    rates: np.ndarray,
    activations: pd.DataFrame,
    behaviour: pd.DataFrame,
) -> None:
    """One run's rows of the tables of trajectories."""
    time = dict(zip(parameters.steps, rates, strict=True))
    long = parameters.norms.melt("step", var_name="series").dropna()
    summary = behaviour[behaviour["of"] != "domain"]
    summary = summary.assign(series=summary["metric"] + "_" + summary["of"])[
        ["step", "series", "value", "value_low", "value_high"]
    ]
    found = path_components(parameters.update, 2)
    components = pd.DataFrame(
        {
            "step": parameters.steps,
            "first": found.coordinates[:, 0].numpy(),
            "second": found.coordinates[:, 1].numpy(),
        }
    )
    shares = found.explained_variance_ratio.tolist()
    components = components.assign(
        first_explained=shares[0],
        first_random_walk=_RANDOM_WALK[0],
        second_explained=shares[1],
        second_random_walk=_RANDOM_WALK[1],
    )
    for table, frame in (
        ("trajectory_parameters", long),
        ("trajectory_activations", activations),
        ("trajectory_behaviour", behaviour),
        ("trajectory_behaviour_summary", summary),
        ("path_components", components),
    ):
        frame = frame.assign(model=name, cumulative_rate=[time[s] for s in frame["step"]])
        tables.setdefault(table, []).append(
            frame[
                [
                    "model",
                    "cumulative_rate",
                    *(c for c in frame.columns if c not in ("model", "cumulative_rate")),
                ]
            ]
        )


def _turns(
    name: str, parameters: Parameters, options: Options, seed: int, part: Part
) -> tuple[list[pd.DataFrame], list[dict[str, Any]]]:
    """Local cosines of the paths of B and BA at each window, and the sharpest turn of each beside
    its null.
    """
    frames, rows = [], []
    for (label, gram), window in product(
        (("B", parameters.b), ("BA", parameters.update)), options.windows
    ):
        if len(gram) < 2 * window + 3:
            part.warnings.append(
                f"{name}: {len(gram)} checkpoints are too few for a local cosine with window"
                f" {window}"
            )
            continue
        found = local_cosine(gram, window, threshold=options.threshold).numpy()
        if np.isfinite(found).sum() < 3:
            part.warnings.append(
                f"{name}: chords of the path of {label} are shorter than {options.threshold:g} at"
                f" window {window}; no local cosine"
            )
            continue
        null = turn_null(gram, window, threshold=options.threshold, draws=options.draws, seed=seed)
        excess, at = sharpest_turn(gram, window, threshold=options.threshold)
        level = float(np.nanmedian(found)) + null.quantile(0.95)
        frames.append(
            pd.DataFrame(
                {
                    "model": name,
                    "path": label,
                    "window": window,
                    "step": parameters.steps,
                    "cosine": found,
                    "null": level,
                }
            )
        )
        rows.append(
            {
                "model": name,
                "series": f"turn of {label}, k={window}",
                "test": "sharpest turn",
                "location": float(parameters.steps[at]),
                "location_low": np.nan,
                "location_high": np.nan,
                "size": excess,
                "statistic": excess,
                "null_95": null.quantile(0.95),
                "p": null.p_value(),
                "n": len(gram),
            }
        )
    return frames, rows


def _series(
    parameters: Parameters,
    activations: pd.DataFrame,
    behaviour: pd.DataFrame,
    layer: int | None,
    layers: int,
) -> pd.DataFrame:
    """The series that are tested, wide by step: behaviour, the norms of BA and B, and the shift at
    one layer.
    """
    wide = pd.DataFrame(index=list(parameters.steps))
    summary = behaviour[(behaviour["of"] != "domain") & (behaviour["metric"] == "aligned")]
    for of, rows in summary.groupby("of"):
        wide[f"aligned_{of}"] = rows.set_index("step")["value"]
    wide["norm_BA"], wide["norm_B"] = (
        parameters.norms["norm_BA"].to_numpy(),
        parameters.norms["norm_B"].to_numpy(),
    )
    moved = sorted(activations["layer"].unique()) if len(activations) else []
    wanted = [b for b in moved if b <= (layers - 2 if layer is None else layer)]
    if wanted:
        rows = activations[activations["layer"] == wanted[-1]].set_index("step")
        wide[f"projection_{int(wanted[-1])}"] = rows["projection"].reindex(wide.index).fillna(0.0)
    return wide


def _tested(
    name: str, wide: pd.DataFrame, times: np.ndarray, options: Options, seed: int
) -> list[dict[str, Any]]:
    """Change points of every series on the axis of the learning rate; locations in steps."""
    steps = wide.index.to_numpy(dtype=np.float64)

    def step(time: float) -> float:
        return float(np.interp(time, times, steps))

    rows: list[dict[str, Any]] = []
    for series in wide.columns:
        values = wide[series].to_numpy(dtype=np.float64)
        half = logistic_midpoint(values, times, draws=options.draws, seed=seed)
        place = [step(x) if half.defined else np.nan for x in (half.value, half.low, half.high)]
        names = ("location", "location_low", "location_high")
        rows.append(
            {
                "model": name,
                "series": series,
                "test": MIDPOINT,
                **dict(zip(names, place, strict=True)),
                "n": len(values),
            }
        )
        for trend, kind in TESTS:
            found = change_point(
                values,
                times,
                trend=trend,  # type: ignore[arg-type]
                kind=kind,  # type: ignore[arg-type]
                draws=options.draws,
                seed=seed,
            )
            where = found.location
            place = [
                step(x) if where.defined else np.nan for x in (where.value, where.low, where.high)
            ]
            rows.append(
                {
                    "model": name,
                    "series": series,
                    "test": f"{kind} against a {trend} trend",
                    **dict(zip(names, place, strict=True)),
                    "size": found.size,
                    "statistic": found.statistic,
                    "null_95": found.null.quantile(0.95),
                    "p": found.p,
                    "correlation": found.correlation,
                    "n": found.n,
                }
            )
    return rows


def _over_runs(points: pd.DataFrame) -> pd.DataFrame:
    """Mean location over the runs of a group, with a t interval where there are runs to give
    one.
    """
    rows = []
    for (group, series, test), part in points.groupby(["group", "series", "test"], sort=False):
        known = part["location"].dropna().to_numpy()
        row: dict[str, Any] = {
            "group": group,
            "event": f"{series}: {test}",
            "series": series,
            "test": test,
            "runs": len(part),
            "located": len(known),
        }
        if len(known) > 1 and np.ptp(known) > 0:
            found = t_interval(known)
            row |= {"location": found.value, "location_low": found.low, "location_high": found.high}
        else:
            one = (
                part[["location", "location_low", "location_high"]].iloc[0]
                if len(known)
                else pd.Series(dtype=float)
            )
            row |= {
                key: float(one.get(key, np.nan))
                for key in ("location", "location_low", "location_high")
            }
        tested = part["p"].dropna()
        row |= {
            "p_below_05": int((tested <= 0.05).sum()) if len(tested) else np.nan,
            "p_median": float(tested.median()) if len(tested) else np.nan,
        }
        rows.append(row)
    return pd.DataFrame(rows)


def _order(points: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Lag from each parameter or activation series to each of behaviour, by kind of event, over
    runs.

    Holm within a group, one series of behaviour and one kind of event. A turn of the path is
    compared with the half of the change of behaviour.
    """
    rows: list[dict[str, Any]] = []
    for group, mine in points.groupby("group", sort=False):
        place = {
            key: part.set_index("model")
            for key, part in mine.groupby(["series", "test"], sort=False)
        }
        behaviour = [key for key in place if key[0] in BEHAVIOUR]
        found: list[dict[str, Any]] = []
        for (second, test), (first, other) in product(behaviour, place):
            if first in BEHAVIOUR or (
                other != test and not (other == "sharpest turn" and test == MIDPOINT)
            ):
                continue
            both = pd.concat(
                [place[first, other], place[second, test]],
                axis=1,
                join="inner",
                keys=("first", "second"),
            )
            a, b = both["first"]["location"], both["second"]["location"]
            known = a.notna() & b.notna()
            row: dict[str, Any] = {
                "group": group,
                "event": f"{first} before {second}: {other}",
                "first": first,
                "second": second,
                "test": other,
            }
            row |= {"null": 0.0, "n": int(known.sum())}
            if known.sum() > 1:
                order = order_of_events(a[known].to_numpy(), b[known].to_numpy(), seed=seed)
                row |= {
                    "lag": order.lag.value,
                    "lag_low": order.lag.low,
                    "lag_high": order.lag.high,
                    "p": order.p,
                }
                row |= {"first_leads": order.first_leads, "ties": order.ties}
            elif known.any():
                one = both[known].iloc[0]
                ends = (
                    one["second", "location_low"] - one["first", "location_high"],
                    one["second", "location_high"] - one["first", "location_low"],
                )
                row |= {
                    "lag": float(b[known].iloc[0] - a[known].iloc[0]),
                    "lag_low": ends[0],
                    "lag_high": ends[1],
                }
            found.append(row)
        for family in {(row["second"], row["test"]) for row in found}:
            tested = [row for row in found if "p" in row and (row["second"], row["test"]) == family]
            for row, q in zip(
                tested, adjust_p_values([row["p"] for row in tested]) if tested else [], strict=True
            ):
                row["p_holm"] = float(q)
        rows += found
    columns = [
        "group",
        "event",
        "first",
        "second",
        "test",
        "lag",
        "lag_low",
        "lag_high",
        "p",
        "p_holm",
        "first_leads",
        "ties",
        "n",
        "null",
    ]
    return pd.DataFrame(rows, columns=columns)


SENTENCES: Final = (
    ("transition against a linear trend", "it is not straight (nor is any curve that levels off)"),
    ("slope against a logistic trend", "a break stands out from one smooth change"),
)


def _findings(part: Part) -> None:
    over, order = part.tables["change_points_over_runs"], part.tables["order_of_events"]
    for group, rows in over[over["series"] == "aligned_others"].groupby("group", sort=False):
        mine = {str(row["test"]): row for row in rows.to_dict("records")}
        runs = int(rows["runs"].max())
        counts = [(words, int(mine[test]["p_below_05"])) for test, words in SENTENCES]
        half = mine[MIDPOINT]
        where = (
            ""
            if np.isnan(half["location"])
            else (
                f" Half of the change is done at step {half['location']:.1f}"
                f" {_range(half, 'location')}."
            )
        )
        words = "; ".join(f"{text} in {count} of {runs} runs (p ≤ .05)" for text, count in counts)
        status = (
            "shown" if counts[-1][1] == runs else "not shown" if counts[-1][1] == 0 else "undecided"
        )
        part.findings.append(
            Finding(
                "phase_transition",
                f"{group}, alignment outside the domain: {words}.{where}",
                status,
            )
        )
    for row in order[
        (order["test"] == MIDPOINT) & (order["second"] == "aligned_others") & order["p"].notna()
    ].to_dict("records"):
        who = row["first"] if row["lag"] > 0 else "alignment"
        sentence = (
            f"{row['group']}: of {row['first']} and alignment outside the domain,"
            f" {who} comes first, by {abs(row['lag']):.1f} steps (lag {row['lag']:.1f}"
            f" {_range(row, 'lag')}, {row['first']} leads in {row['first_leads']:.0f} of {row['n']}"
            f" runs, p {p_text(row['p'])})."
        )
        part.findings.append(
            Finding("phase_transition", sentence, "shown" if row["p_holm"] <= 0.05 else "undecided")
        )
    if (over["runs"] < 2).all():
        part.warnings.append(
            "one run a group: intervals of change points are over noise within it,"
            " and the order of events has no test"
        )


def _range(row: Mapping[Any, Any], name: str) -> str:
    return f"[{row[f'{name}_low']:.1f}, {row[f'{name}_high']:.1f}]"


class PhaseTransition(Study):
    """Did training turn at once, and what turned first?"""

    name = "phase_transition"
    title = "Did training turn at once, and what turned first?"
    options = Options
    section = SECTION
    cost = 12

    def check(self, context: StudyContext) -> None:
        check(context.material, context.config)

    def left_out(self, context: StudyContext) -> str | None:
        return left_out(context.material, context.config)

    def run(self, context: StudyContext) -> Part:
        return run(context.material, context.config, context)
