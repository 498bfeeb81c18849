import os

import pytest

from emlens.foundation import InputError
from emlens.runs.ranks import rank_from_environment


def read(environment):
    found = rank_from_environment(environment)
    return found.index, found.count, found.local


ARRAY = {
    "SLURM_ARRAY_TASK_ID": "14",
    "SLURM_ARRAY_TASK_MIN": "10",
    "SLURM_ARRAY_TASK_STEP": "2",
    "SLURM_ARRAY_TASK_COUNT": "5",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, (3, 4, 1)),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "3", "SLURM_LOCALID": "0"}, (2, 3, 0)),
        ({"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "1"}, (0, 1, 0)),
        (ARRAY, (2, 5, 0)),
        ({**ARRAY, "SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}, (9, 20, 1)),
        (
            {
                **ARRAY,
                "SLURM_PROCID": "0",
                "SLURM_NTASKS": "1",
                "RANK": "3",
                "WORLD_SIZE": "4",
                "LOCAL_RANK": "3",
            },
            (11, 20, 3),
        ),
    ],
)
def test_what_torchrun_and_slurm_tell(environment, expected):
    assert read(environment) == expected


def test_ranks_of_an_array_are_all_different():
    found = [
        read(
            {
                **ARRAY,
                "SLURM_ARRAY_TASK_ID": str(task),
                "SLURM_PROCID": str(process),
                "SLURM_NTASKS": "2",
            }
        )
        for task in range(10, 20, 2)
        for process in range(2)
    ]
    assert [index for index, _, _ in found] == list(range(10)) and {
        count for _, count, _ in found
    } == {10}


@pytest.mark.parametrize(
    ("environment", "match"),
    [
        (
            {},
            (
                "no rank in the environment: start with torchrun or Slurm, pass rank= and count=,"
                " or use LocalExecutor"
            ),
        ),
        (
            {"RANK": "1"},
            "WORLD_SIZE is missing; start all ranks with torchrun or Slurm",
        ),
        ({"WORLD_SIZE": "1"}, "RANK is missing"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK is 'one', not a number"),
        (
            {"RANK": "2", "WORLD_SIZE": "2"},
            "the environment says rank 2 of 2; the rank must lie below the count",
        ),
        ({"SLURM_ARRAY_TASK_ID": "1"}, "SLURM_ARRAY_TASK_COUNT is missing"),
    ],
)
def test_environments_that_tell_no_rank(environment, match):
    with pytest.raises(InputError, match=match):
        rank_from_environment(environment)


def test_no_rank_is_fine_where_none_is_needed():
    assert rank_from_environment({}, needed=False).count == 1


def runs(*environments):
    return [rank_from_environment({"RANK": "0", "WORLD_SIZE": "2", **e}).run for e in environments]


def test_a_run_is_what_was_started_together():
    torchrun = {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "0"}
    a, b, again = runs(
        torchrun, {**torchrun, "RANK": "1"}, {**torchrun, "TORCHELASTIC_RESTART_COUNT": "1"}
    )
    assert a == b != again and str(os.getppid()) in a
    array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_JOB_ID": "8"}
    a, b, again, other = runs(
        array,
        {**array, "SLURM_JOB_ID": "9"},
        {**array, "SLURM_RESTART_COUNT": "1"},
        {"SLURM_ARRAY_JOB_ID": "8"},
    )
    assert a == b and len({a, again, other}) == 3
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}
    a, b, other = runs(step, {**step, "RANK": "1"}, {**step, "SLURM_STEP_ID": "1"})
    assert a == b != other
    # nothing tells what belongs together
    assert len(set(runs({}, {}, {"SLURM_JOB_ID": "7"}, {"SLURM_JOB_ID": "7"}))) == 4
