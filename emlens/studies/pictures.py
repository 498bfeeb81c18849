"""Figures of trajectories: scores along one training run."""

from typing import TYPE_CHECKING

from emlens.figures.drawing import Drawing, drawing
from emlens.results import Plot

if TYPE_CHECKING:
    from emlens.studies.followed_runs import Trajectory


def picture_of_trajectory(run: "Trajectory") -> Drawing:
    """Mean of each metric over the run's own domain and over all others, with intervals.

    Along the cumulative learning rate, or the step where no rates were logged.
    """
    behaviour = run.behaviour
    if len(behaviour):
        behaviour = behaviour[behaviour["of"] != "domain"]
        times = dict(zip(run.parameters.steps, run.times, strict=True))
        behaviour = behaviour.assign(
            time=[times[step] for step in behaviour["step"]],
            series=behaviour["metric"] + ", " + behaviour["of"],
        )
    plot = Plot(
        kind="line",
        table="behaviour",
        x="time",
        y="value",
        colour="series",
        title=f"Scores along {run.name}",
        x_title="cumulative learning rate" if run.has_rates else "step",
        y_title="mean score (0–100)",
    )
    return drawing(behaviour, plot, empty="no scores were measured along this run")
