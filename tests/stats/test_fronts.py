"""Pareto fronts: against the definition in a loop, invariances, membership under noise."""

import numpy as np
import pytest

from emlens.foundation import InputError
from emlens.stats.fronts import front_membership, pareto_front


def test_the_front_is_the_definition_and_keeps_under_increasing_maps():
    rng = np.random.default_rng(0)
    # with ties
    loss, score = rng.integers(0, 8, 40).astype(float), rng.integers(0, 8, 40).astype(float)
    expected = [
        not any(
            loss[j] <= loss[i]
            and score[j] >= score[i]
            and (loss[j] < loss[i] or score[j] > score[i])
            for j in range(40)
        )
        for i in range(40)
    ]
    assert pareto_front(loss, score).tolist() == expected and 0 < sum(expected) < 40
    assert pareto_front(np.exp(loss), score**3).tolist() == expected


def test_membership_is_certain_far_from_the_noise_and_shared_within_it():
    loss, score = [0.0, 0.0, 1.0, 2.0], [1.0, 1.0, 0.0, 5.0]
    share = front_membership(loss, score, score_error=0.1, draws=999)
    assert share[0] == pytest.approx(0.5, abs=0.06) and share[0] + share[1] == pytest.approx(
        1.0, abs=0.01
    )
    assert share[2] == 0 and share[3] == 1
    moved = front_membership(loss, score, loss_error=[0.0, 0.0, 3.0, 0.0], draws=999)
    # of lower loss than all others in about a third of the draws
    assert 0.2 < moved[2] < 0.5 and moved[3] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"score_error": -1.0},
            (
                "score_error must be one standard error of 0 or more, or one for each of 3 runs;"
                " got -1.0"
            ),
        ),
        (
            {"loss_error": [1.0, 2.0]},
            (
                r"loss_error must be one standard error of 0 or more, or one for each of 3 runs;"
                r" got \[1.0, 2.0\]"
            ),
        ),
        (
            {},
            (
                "loss_error and score_error are 0, so the front is certain;"
                " pass a standard error, or use pareto_front"
            ),
        ),
    ],
)
def test_errors_that_are_none_are_refused(unchecked, options, message):
    with pytest.raises(InputError, match=message):
        front_membership([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], **options)
