"""Before and during training: what a training file would do, and a guard that watches a run."""

from emlens.screening.alarms import GuardThresholds, calibrate_thresholds, lead_time
from emlens.screening.backtests import backtest
from emlens.screening.guard import Guard
from emlens.screening.past_runs import PastRun, fit_screening
from emlens.screening.screen import ScreenOptions, screen

__all__ = [
    "Guard",
    "GuardThresholds",
    "PastRun",
    "ScreenOptions",
    "backtest",
    "calibrate_thresholds",
    "fit_screening",
    "lead_time",
    "screen",
]
