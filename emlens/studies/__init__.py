"""Whole questions: frozen configuration → typed, resumable result."""

from emlens.studies.config import FamilyConfig, FineTuneConfig, StudyConfig, read_config
from emlens.studies.replicate import Replication, replicate
from emlens.studies.result import Finding, Part, StudyResult
from emlens.studies.running import STUDIES, run_study

__all__ = [
    "STUDIES",
    "FamilyConfig",
    "Finding",
    "FineTuneConfig",
    "Part",
    "Replication",
    "StudyConfig",
    "StudyResult",
    "read_config",
    "replicate",
    "run_study",
]
