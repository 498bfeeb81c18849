"""Whole questions: frozen configuration → typed, resumable result."""

from emlens.studies.about import About, Plot
from emlens.studies.config import FamilyConfig, FineTuneConfig, Options, StudyConfig, read_config
from emlens.studies.guard import (
    Alarm,
    Guard,
    GuardThresholds,
    LeadTime,
    calibrate_thresholds,
    false_alarm_rate,
    lead_time,
)
from emlens.studies.registry import STUDIES, part_module
from emlens.studies.replicate import Replication, replicate
from emlens.studies.result import Finding, Part, StudyResult
from emlens.studies.running import Desk, run_study
from emlens.studies.screening import PastRun, ScreenOptions, fit_screening, screen
from emlens.studies.screening_backtest import backtest

__all__ = [
    "STUDIES",
    "About",
    "Alarm",
    "Desk",
    "FamilyConfig",
    "Finding",
    "FineTuneConfig",
    "Guard",
    "GuardThresholds",
    "LeadTime",
    "Options",
    "Part",
    "PastRun",
    "Plot",
    "Replication",
    "ScreenOptions",
    "StudyConfig",
    "StudyResult",
    "backtest",
    "calibrate_thresholds",
    "false_alarm_rate",
    "fit_screening",
    "lead_time",
    "part_module",
    "read_config",
    "replicate",
    "run_study",
    "screen",
]
