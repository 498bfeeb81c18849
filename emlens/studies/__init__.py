"""Whole questions: frozen configuration → typed, resumable result."""

from emlens.studies.config import FamilyConfig, FineTuneConfig, Options, StudyConfig, read_config
from emlens.studies.registry import STUDIES, part_module
from emlens.studies.running import Desk, run_study

__all__ = [
    "STUDIES",
    "Desk",
    "FamilyConfig",
    "FineTuneConfig",
    "Options",
    "StudyConfig",
    "part_module",
    "read_config",
    "run_study",
]
