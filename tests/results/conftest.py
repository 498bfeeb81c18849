"""A finished study of the tiny family, as the tests of studies make it."""

from studies.conftest import config_path, finished

__all__ = ["config_path", "finished"]
