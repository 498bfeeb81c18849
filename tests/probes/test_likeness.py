import numpy as np

from emlens.probes.likeness import distance_bound, distances, model_differences, stale_rows
from emlens.probes.validation import grouped_folds


def test_rows_of_a_new_group_are_refused_no_more_often_than_stated_and_shifted_ones_are() -> None:
    rng = np.random.default_rng(0)
    scales = 1 / np.arange(1, 13)
    beyond, shifted, stated = [], [], []
    for run in range(25):
        groups = np.repeat(np.arange(31), 4)
        rows = (
            rng.standard_normal((31, 12))[groups] * scales + rng.standard_normal((124, 12)) * scales
        )
        known, labels = rows[:120], groups[:120]
        bound, rate = distance_bound(known, labels, grouped_folds(labels, 10, run, "x"), 0.1)
        beyond.append(float((distances(rows[120:], known) > bound).mean()))
        shifted.append(
            float(
                (distances(rows[120:] + 3 * scales[-1] * np.eye(12)[-1] * 6, known) > bound).mean()
            )
        )
        stated.append(rate)
    assert set(stated) == {0.1}
    spread = 3 * np.std(beyond) / np.sqrt(25)
    assert np.mean(beyond) < 0.1 + spread
    assert np.mean(shifted) > 0.9  # along the direction in which the fitted rows vary least


def test_few_groups_give_the_largest_distance_and_say_their_rate() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 6)
    bound, rate = distance_bound(
        rng.standard_normal((24, 3)), labels, grouped_folds(labels, 4, 0, "x"), 0.05
    )
    assert rate == 1 / 5 and np.isfinite(bound)


def test_facts_are_compared_where_both_sides_have_them() -> None:
    mine = {
        "model": {"weights_sha256": "a", "adapter": None, "chat_template_sha256": "t"},
        "interventions": [],
    }
    assert (
        model_differences(mine, mine)
        == {}
        == model_differences(mine, {})
        == model_differences({}, mine)
    )
    other = {
        "model": {"weights_sha256": "b", "chat_template_sha256": "u"},
        "interventions": [{"kind": "ablate"}],
    }
    found = model_differences(mine, other)
    assert (
        set(found) == {"model", "template", "interventions"}
        and "'ablate'" in found["interventions"]
    )


def test_a_known_id_with_other_activations_is_stale_and_rounding_is_not() -> None:
    reference = np.random.default_rng(0).standard_normal((3, 8))
    values = np.stack([reference[0] * 1.0005, reference[2], reference[0]])
    assert stale_rows(["a", "b", "new"], values, {"a": 0, "b": 1}, reference).tolist() == [
        False,
        True,
        False,
    ]
