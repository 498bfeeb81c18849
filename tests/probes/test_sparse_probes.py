"""Sparse probes find planted features, select little among noise, and see no unit twice."""

import numpy as np
import pandas as pd
import pytest

from emlens.foundation import InputError
from emlens.probes.sparse_probes import general_and_narrow, sparse_probe

FEATURES = [f"layer{i}[0]" for i in range(8)]


def planted(n_units=40, each=3, strength=2.0, column=2, seed=0):
    """Answers of questions; one feature carries the label."""
    pick = np.random.default_rng(seed)
    ids = [f"q{u}/{i}" for u in range(n_units) for i in range(each)]
    labels = {name: bool(pick.integers(2)) for name in ids}
    x = pick.normal(size=(len(ids), len(FEATURES)))
    x[:, column] += strength * np.array([labels[name] for name in ids])
    return (
        pd.DataFrame(x, index=ids, columns=FEATURES),
        labels,
        {name: name.split("/")[0] for name in ids},
    )


def test_the_planted_feature_is_selected_and_shuffled_copies_are_not():
    features, labels, units = planted()
    probe = sparse_probe(features, labels, units, seed=1)
    first = probe.table.iloc[0]
    assert first["feature"] == "layer2[0]" and first["selected"] == 1 and first["weight_low"] > 0
    assert first["selected_by_chance"] < 0.6 and (probe.table["n"] == 120).all()
    assert probe.auc.low > 0.75
    again = sparse_probe(features, labels, units, seed=1)
    pd.testing.assert_frame_equal(probe.table, again.table)


def test_noise_is_told_from_signal_no_better_than_by_chance():
    areas = [
        sparse_probe(*planted(strength=0, seed=seed), resamples=2, seed=seed).auc.value
        for seed in range(4)
    ]
    assert abs(np.mean(areas) - 0.5) < 0.1


def test_a_unit_is_never_trained_and_tested_on():
    """A feature that is the question's name, by number: useless on other questions, a perfect leak
    where rows are parted.
    """
    features, _, units = planted(n_units=30, each=6, strength=0)
    pick = np.random.default_rng(3)
    of_unit = {unit: bool(pick.integers(2)) for unit in sorted(set(units.values()))}
    labels = {name: of_unit[units[name]] for name in features.index}
    for unit in of_unit:
        features[unit] = [float(units[name] == unit) for name in features.index]
    assert sparse_probe(features, labels, resamples=2).auc.value > 0.9, (
        "the positive control: rows parted freely leak"
    )
    assert sparse_probe(features, labels, units, resamples=2).auc.value < 0.75


def test_general_and_narrow_adapters_are_told_apart():
    narrow, narrow_labels, narrow_units = planted(column=1, seed=5)
    general, general_labels, general_units = planted(column=6, seed=6)
    general.index = [f"other {name}" for name in general.index]
    labels = narrow_labels | {f"other {name}": label for name, label in general_labels.items()}
    units = narrow_units | {
        f"other {name}": f"other {unit}" for name, unit in general_units.items()
    }
    trained = {name: not name.startswith("other") for name in labels}
    table = general_and_narrow(
        pd.concat([narrow, general]), labels, trained, units, resamples=20
    ).set_index("feature")
    assert (
        table.loc["layer1[0]", "selected_narrow"] == 1
        and table.loc["layer6[0]", "selected_general"] == 1
    )
    assert (
        abs(table.loc["layer6[0]", "weight_narrow"]) < table.loc["layer6[0]", "weight_general"] / 3
    )
    assert (table["auc_low_general"] > 0.6).all() and (table["auc_low_narrow"] > 0.6).all()


def test_what_cannot_be_probed_is_refused():
    features, labels, units = planted(n_units=10)
    with pytest.raises(
        InputError, match="labels has none of the 30 ids of features; pass id → True or False"
    ):
        sparse_probe(features, {"other": True})
    with pytest.raises(
        InputError, match="units has no entry for row 'q0/0'; pass one for each labelled id"
    ):
        sparse_probe(features, labels, {})
    with pytest.raises(
        InputError,
        match=(
            "rows labelled False come from 0 units with folds=5;"
            " pass 2 folds or more, and at least as many units of each class"
        ),
    ):
        sparse_probe(features, dict.fromkeys(labels, True), units)
    broken = features.copy()
    broken.iloc[0, 0] = np.nan
    with pytest.raises(
        InputError, match="features hold values that are not finite; drop those columns or rows"
    ):
        sparse_probe(broken, labels, units)
    with pytest.raises(
        InputError, match="trained has no entry for row 'q0/0'; pass one for each labelled id"
    ):
        general_and_narrow(features, labels, {})
