"""Whole questions: frozen configuration → typed, resumable result."""

from emlens.studies.config import Options, StudyConfig, read_config
from emlens.studies.registry import register_study
from emlens.studies.running import run_study
from emlens.studies.study import Study, StudyContext

__all__ = [
    "Options",
    "Study",
    "StudyConfig",
    "StudyContext",
    "read_config",
    "register_study",
    "run_study",
]
