"""One tiny family on disk for all tests of studies, and one finished overview of it."""

import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny_family

from emlens.results import StudyResult
from emlens.studies import run_study


@dataclass(frozen=True)
class Finished:
    """A study that ran once, and how long it took."""

    result: StudyResult
    directory: Path
    seconds: float


@pytest.fixture(scope="session")
def config_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_family.build(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="session")
def finished(config_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    directory = tmp_path_factory.mktemp("study") / "out"
    started = time.monotonic()
    result = run_study(config_path, directory, progress=False)
    return Finished(result, directory, time.monotonic() - started)
