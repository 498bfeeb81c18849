"""Fixtures shared by the tests of judging, directions and evaluation."""

from steered_family import family, parent_path, questions, steered

__all__ = ["family", "parent_path", "questions", "steered"]
