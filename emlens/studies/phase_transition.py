"""Did a run turn at once, and what turned first? Change points of parameters, activations and
behaviour along kept checkpoints.

Every series has a steepest place, so each is compared with smooth trends on the axis of the
cumulative learning rate: a smooth step against a straight line, which any curve that levels off
beats, and a kink against a logistic curve. Fine-tunes of one group that differ in their seed are
repeated runs: over them locations get intervals, and the order of events a test. Runs without kept
checkpoints are left out.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import pandas as pd
from pydantic import Field, field_validator

from emlens.foundation.errors import InputError
from emlens.geometry.turns import THRESHOLD
from emlens.results.columns import Measure
from emlens.results.sections import Plot, Section
from emlens.results.study_result import Part
from emlens.results.tables import Table
from emlens.results.vocabulary import measures, word
from emlens.studies.change_point_findings import add_findings
from emlens.studies.change_point_tables import (
    change_point_rows,
    order_of_change_points,
    over_runs,
)
from emlens.studies.config import Options as PartOptions
from emlens.studies.followed_runs import RunToFollow, Trajectory, follow, runs_to_follow
from emlens.studies.streams import read_layers
from emlens.studies.study import Study, StudyContext
from emlens.studies.trajectory_tables import tables_of_run, tested_series, turns_of_run

LEAST: Final = 12
"""Points of time, step 0 among them, that a change point needs."""

CHECKPOINT = "model cumulative_rate step"
"""What names a checkpoint of a run."""

SECTION = Section(
    method=(
        "Along the checkpoints that a run kept: norms of the adapter's A, B and BA,"
        " the local cosine of the path of B (−1 straight, 0 a right-angle turn),"
        " the shift of the residual stream along and inside its final direction and subspace"
        " (fitted on other questions), and scores by domain."
        " Change points are tested on the axis of the cumulative learning rate,"
        " against a straight line (is the change even? any curve that levels off is not) and"
        " against a logistic curve (is it more than that curve?),"
        " with a bootstrapped null of dependent noise. The order of two events is tested over runs"
        " by flipping signs of their lags. Norms of A and B depend on how the update is split into"
        " them; that of BA does not."
    ),
    reference=(
        "Turner et al. 2025 (arXiv 2506.11613); Andrews 1993 for tests of a break at an unknown"
        " place."
    ),
    tables={
        "trajectory_parameters": Table(
            "One row per run, checkpoint and quantity of the adapter.",
            [CHECKPOINT, "series value"],
        ),
        "local_cosine": Table(
            "One row per run, path, window and checkpoint;"
            " the null is the 95 % quantile of the peak with increments in random order.",
            ["model path window step cosine null_q95"],
        ),
        "path_components": Table(
            "One row per run and checkpoint: the path of BA in its first two principal components;"
            " a random walk explains .61 and .15.",
            [
                CHECKPOINT,
                "first second first_explained first_random_walk second_explained",
                "second_random_walk",
            ],
        ),
        "trajectory_activations": Table(
            "One row per run, checkpoint and layer.",
            [
                CHECKPOINT,
                "layer delta_norm final_norm overlap_k",
                *measures("projection"),
                Measure(word("overlap"), null="overlap_null"),
                "overlap_null",
            ],
        ),
        "trajectory_behaviour": Table(
            "One row per run, checkpoint, metric and group of questions; scores 0 to 100.",
            [CHECKPOINT, "metric of domain", *measures("value")],
        ),
        "trajectory_behaviour_summary": Table(
            "One row per run, checkpoint and series: own domain and all others.",
            [CHECKPOINT, "series", *measures("value")],
        ),
        "change_points": Table(
            "One row per run, series and test: location in steps with its interval,"
            " p against the trend.",
            [
                "model group series test",
                *measures("location"),
                "size statistic null_q95 p n correlation",
            ],
        ),
        "change_points_over_runs": Table(
            "One row per group of runs, series and test: mean location with its interval over runs,"
            " and in how many runs p ≤ .05.",
            ["group event series test runs located", *measures("location"), "p_below_05 p_median"],
        ),
        "order_of_events": Table(
            "One row per group, pair of series and kind of event: lag in steps (above 0:"
            " the parameter or activation comes first), p over runs;"
            " Holm within one kind of event.",
            [
                "group event first_series second_series test",
                Measure(word("lag"), null="null"),
                "p p_holm first_leads ties n null",
            ],
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
            colour="series",
            facet="model",
            x_title="step",
            y_title="score",
        ),
        Plot(
            "line",
            "trajectory_parameters",
            "step",
            "value",
            "Adapter",
            "Norms and closeness to the end.",
            colour="series",
            facet="model",
            x_title="step",
        ),
        Plot(
            "line",
            "local_cosine",
            "step",
            "cosine",
            "Local cosine",
            "−1 straight, 0 a right angle; dotted: 95 % of peaks without a moment of turning.",
            colour="window",
            facet="model",
            null="null_q95",
            x_title="step",
            y_title="cosine",
        ),
        Plot(
            "line",
            "trajectory_activations",
            "step",
            "projection",
            "Shift along the final one",
            "1: as far as at the end.",
            colour="layer",
            facet="model",
            x_title="step",
            y_title="share",
        ),
        Plot(
            "forest",
            "change_points_over_runs",
            "event",
            "location",
            "When things change",
            "Mean over runs, 95 % interval.",
            colour="group",
            y_title="step",
        ),
        Plot(
            "forest",
            "order_of_events",
            "event",
            "lag",
            "Order of events",
            "Steps from the first to the behaviour; 0: at once.",
            colour="group",
            null="null",
            y_title="lag, steps",
        ),
    ),
)


class Options(PartOptions):
    """What `phase_transition` reads."""

    runs: tuple[str, ...] = ()
    """Fine-tunes to follow; none: every one that kept checkpoints."""
    folders: Mapping[str, str] = Field(default_factory=dict)
    """Fine-tune → folder of its checkpoints, where that is not its own."""
    every: int = Field(1, ge=1)
    """Use every Nth checkpoint."""
    windows: tuple[int, ...] = (5, 10, 15)
    """Of the local cosine, in checkpoints."""
    threshold: float = Field(THRESHOLD, ge=0)
    """Chords of a path that are shorter than this have no direction."""
    layer: int | None = Field(None, ge=0)
    """Block whose shift is tested; default L−2."""
    position: str = "last_prompt"
    """Where activations are read."""
    draws: int = Field(199, ge=19)
    """Of each null."""

    @field_validator("windows")
    @classmethod
    def _positive(cls, windows: tuple[int, ...]) -> tuple[int, ...]:
        if not windows or min(windows) < 1 or len(set(windows)) < len(windows):
            raise ValueError(
                f"windows={windows} must name one window or more, each 1 or more and none twice"
            )
        return windows


class PhaseTransition(Study):
    """Did training turn at once, and what turned first?"""

    name = "phase_transition"
    title = "Did training turn at once, and what turned first?"
    options = Options
    section = SECTION
    wants = ("checkpoints",)
    cost = 12

    def left_out(self, context: StudyContext) -> str | None:
        if _runs(context):
            return None
        return (
            "no fine-tune kept its checkpoints; train with fit(..., saving=Saving(keep_every=n)),"
            " or name folders in the options"
        )

    def check(self, context: StudyContext) -> None:
        """Refuse a layer that the model does not have, and runs with too few checkpoints."""
        options: Options = context.options
        layers = context.family.instruct.n_layers
        where = context.config.place("options", self.name, "layer")
        if options.layer is not None and options.layer >= layers:
            raise InputError(
                f"{where}options of phase_transition: layer={options.layer},"
                f" but the model has {layers} blocks; pass 0 to {layers - 1}"
            )
        read = read_layers(context.config, layers)
        if options.layer is not None and options.layer not in read:
            raise InputError(
                f"{where}options of phase_transition: layer={options.layer} is not among the"
                f" layers that are read ({', '.join(map(str, read))}); name it under layers too"
            )
        for run in _runs(context):
            if len(run.checkpoints) + 1 < LEAST:
                raise InputError(
                    f"{run.name!r} has {len(run.checkpoints)} checkpoints (every={options.every});"
                    f" change points need {LEAST - 1} or more"
                )

    def run(self, context: StudyContext) -> Part:
        part, seed = Part(), context.config.seed
        trajectories = _trajectories(context)
        turn_rows = _add_trajectories(part, trajectories, context)
        points = pd.DataFrame(turn_rows + _change_points(trajectories, context))
        points.insert(1, "group", [_group(context, name) for name in points["model"]])
        part.tables["change_points"] = points
        part.tables["change_points_over_runs"] = over_runs(points)
        part.tables["order_of_events"] = order_of_change_points(points, seed)
        add_findings(part)
        return part


def _runs(context: StudyContext) -> list[RunToFollow]:
    options: Options = context.options
    return runs_to_follow(
        context.material, context.config, options.runs, options.folders, options.every
    )


def _group(context: StudyContext, name: str) -> str:
    """Fine-tunes of one group are repeated runs; without a group each is its own."""
    return context.family.specs[name].group or name


def _trajectories(context: StudyContext) -> list[Trajectory]:
    """Every run, measured at step 0 and at each of its checkpoints."""
    runs = _runs(context)
    trajectories = []
    for run in runs:
        share = 0.8 / len(runs) / (len(run.checkpoints) + 1)
        trajectories.append(
            follow(
                run,
                context.material,
                k=context.config.k,
                position=context.options.position,
                layers=read_layers(context.config, context.family[run.name].n_layers),
                folder=context.folder,
                advance=partial(context.progress, share),
            )
        )
    return trajectories


def _add_trajectories(
    part: Part, trajectories: Sequence[Trajectory], context: StudyContext
) -> list[dict[str, Any]]:
    """Add the tables over time and their warnings; rows of the sharpest turns, which are change
    points too.
    """
    options: Options = context.options
    tables: dict[str, list[pd.DataFrame]] = {}
    rows: list[dict[str, Any]] = []
    for trajectory in trajectories:
        turns = turns_of_run(
            trajectory, options.windows, options.threshold, options.draws, context.config.seed
        )
        for name, table in tables_of_run(trajectory).items():
            tables.setdefault(name, []).append(table)
        tables.setdefault("local_cosine", []).extend(turns.cosines)
        rows += turns.rows
        part.warnings += _time_warnings(trajectory) + turns.warnings
    for name, frames in tables.items():
        part.tables[name] = pd.concat(frames, ignore_index=True)
    return rows


def _time_warnings(trajectory: Trajectory) -> list[str]:
    if trajectory.has_rates:
        return []
    return [
        f"{trajectory.name}: no learning rates were logged, so trends are even in steps and warm-up"
        " counts as a change"
    ]


def _tested_layer(context: StudyContext, name: str) -> int:
    """The deepest block that is read, but for the last one where there are others."""
    n_layers = context.family[name].n_layers
    read = read_layers(context.config, n_layers)
    return max((layer for layer in read if layer <= n_layers - 2), default=read[-1])


def _change_points(
    trajectories: Sequence[Trajectory], context: StudyContext
) -> list[dict[str, Any]]:
    """Change points of the tested series of every run."""
    options: Options = context.options
    rows: list[dict[str, Any]] = []
    for trajectory in trajectories:
        layer = options.layer
        if layer is None:
            layer = _tested_layer(context, trajectory.name)
        series = tested_series(trajectory, layer)
        rows += change_point_rows(
            trajectory.name, series, trajectory.times, options.draws, context.config.seed
        )
        context.progress(0.2 / len(trajectories))
    return rows
