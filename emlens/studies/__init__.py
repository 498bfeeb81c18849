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
    "Plot",
    "Replication",
    "StudyConfig",
    "StudyResult",
    "calibrate_thresholds",
    "false_alarm_rate",
    "lead_time",
    "part_module",
    "read_config",
    "replicate",
    "run_study",
]
