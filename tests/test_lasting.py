"""A process that lives long, runs an event loop, has threads, or is forked while one computes."""

import os
import time
from pathlib import Path

import pytest

from benchmarks import lasting

IN_SHORT = ("capture", "judge by an endpoint")
"""All calls are in `python -m benchmarks lasting`, which takes minutes."""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_calls_are_the_same_every_time_in_loops_threads_and_forks(tmp_path: Path) -> None:
    calls = {name: lasting.CALLS[name] for name in IN_SHORT}
    found = lasting.measure(
        tmp_path, calls=calls, repeats=3, warm=1, forks=2, seconds=30, workers=2
    )
    for name, ways in found.items():
        again, forked = ways["repeated"], ways["forked"]
        assert again["same"] == 3, name
        assert (again["growth"]["files"], again["growth"]["threads"]) == (0, 0), name
        assert ways["concurrent"]["same"] == ways["concurrent"]["calls"] == 5, name
        assert forked["same"] + forked["refused"] == 2, (name, forked)
    # the table of the page is drawn from such values
    assert lasting.lasting_table(found).count("\n") == 1 + len(IN_SHORT)


def test_threads_load_one_after_the_other(tmp_path: Path) -> None:
    """transformers alone mixed up what it changes while it loads, for the rest of the process."""
    with lasting.bench(tmp_path) as bench:
        assert lasting.in_a_loop(bench, lasting.CALLS["load"], 2)["same"] == 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_what_grows_differs_or_hangs_is_found_out(tmp_path: Path) -> None:
    parent, files, numbers = os.getpid(), [], iter(range(99))

    def leaks(bench: lasting.Bench) -> str:
        files.append(open(os.devnull))  # noqa: SIM115, left open on purpose
        return "same"

    def hangs(bench: lasting.Bench) -> str:
        while os.getpid() != parent:
            time.sleep(1)
        return "same"

    with lasting.bench(tmp_path) as bench:
        assert lasting.repeated(bench, leaks, 5, 2)["growth"]["files"] == 3
        assert lasting.in_a_loop(bench, lambda _: str(next(numbers)), 1)["same"] == 0
        assert lasting.forked(bench, hangs, 1, seconds=0.2)["hung"] == 1
    for file in files:
        file.close()
