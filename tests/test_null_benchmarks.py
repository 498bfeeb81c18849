"""Miniatures of the measurements of nulls: the same code on small sizes, so that the long runs
cannot rot.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks import (
    detection_curve,
    elbow,
    null_calibration,
    overlap_calibration,
    overlap_grid_speed,
    overlap_worlds,
)
from emlens.geometry import overlap_null


def test_calibration_shows_which_null_fails_where() -> None:
    table = (
        pd.DataFrame(null_calibration.known(12, ((12, 12),), (2,), 300, 600, 0))
        .set_index(["null", "spectrum", "centred"])
        .sort_index()
    )
    rates = table["false positives"]
    assert (rates.drop(("isotropic", "power law 1/i")) - 0.05).abs().max() < 0.05
    assert rates[("isotropic", "power law 1/i")].min() > 0.5
    # it is shown, and no window is asked of it
    assert table.loc[("isotropic", "power law 1/i"), "window"].eq("").all()
    assert set(table["window"]) <= {"", "inside", "outside"} and (table["±"] > 0).all()


def test_calibration_of_estimated_covariances_and_of_relabellings() -> None:
    table = pd.DataFrame(null_calibration.estimated(8, 8, (1,), (1, 2), 3, 40, 100, 0))
    assert (
        table.groupby("spectrum")["null"].agg(list).tolist()
        == [["covariance, plug-in", "covariance, plug-in", "reference"]] * 2
    )
    assert table["false positives"].between(0, 1).all()
    names = list(null_calibration.relabelled(8, 6, 1, 20, 19, 0))
    assert [row["null"] for row in names] == ["sign flips", "labels", "neutral text"]


def test_a_steeper_spectrum_than_the_reference_has_raises_false_alarms() -> None:
    table = pd.DataFrame(null_calibration.wrong(12, 12, 2, 300, 1, 0)).set_index("deltas")[
        "false positives"
    ]
    assert (
        table["flatter, i^-0.5"]
        <= table["as the reference, i^-1"] + 0.02
        < table["steeper, i^-1.5"]
    )
    assert len(table) == 5


def test_a_grid_is_compared_with_the_loop_before_it_is_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = overlap_grid_speed.measure(2, 2, 3, 40, 3, 100, 2)
    assert found["cells"] == 12 and found["seconds"] > 0
    assert found["over_loop"] == found["seconds"] / found["loop_seconds_extrapolated"]
    monkeypatch.setattr(
        overlap_grid_speed,
        "overlap_null",
        lambda d, *rest, **named: overlap_null(3 * d, *rest, **named),
    )
    with pytest.raises(SystemExit, match="not timing different results"):
        overlap_grid_speed.measure(1, 1, 1, 40, 3, 100, 1)


def test_detection_has_its_controls_beside_it() -> None:
    table = (
        pd.DataFrame(detection_curve.curve(16, 2, (20,), (8.0,), 60, 60, 1, 0))
        .set_index(["noise", "planted"])
        .sort_index()
    )
    assert table.loc[("isotropic", "shared"), "covariance, known"] > 0.9
    assert table.loc[("isotropic", "apart"), "covariance, known"] < 0.3
    assert (
        table.loc[("power law 1/i", "none"), "isotropic"]
        > 0.5
        > table.loc[("power law 1/i", "none"), "covariance, known"]
    )


def test_only_the_elbow_finds_directions_behind_a_dominating_one_and_says_where_there_is_none() -> (
    None
):
    chosen = [
        elbow.Kind(48, 96, 0.0, "one dominates", 4),
        elbow.Kind(48, 96, 0.0, "equal", 4),
        elbow.Kind(48, 96, 0.0, "equal", 0),
    ]
    table = elbow.accuracy(chosen, 5, 0).set_index(["rule", "shape", "planted"])["right"]
    assert (table["elbow"] >= 0.8).all()
    for rule in ("profile likelihood", "growth ratio"):
        assert table[rule, "one dominates", 4] == 0
        assert table[rule, "equal", 4] >= 0.8  # positive control
        assert table[rule, "equal", 0] == 0
    levels = elbow.levels(12, (24,), 20, 19)
    assert levels[["same_k", "same_rule"]].le(0.5).all(axis=None) and (levels["k_low"] >= 1).all()


def test_a_shared_direction_and_a_shared_mean_are_found_by_one_statistic_each() -> None:
    table = pd.DataFrame(overlap_calibration.power(10, 60)).set_index(["shared", "statistic"])
    share = table["share"]
    assert share["direction", "variance_weighted"] > 0.8 > share["direction", "mean_cosine"] + 0.4
    assert share["mean", "mean_cosine"] > 0.8 > share["mean", "variance_weighted"] + 0.4
    assert share["nothing"].max() <= 0.4
    text = overlap_calibration.power_table({"power": table.reset_index().to_dict("records")})
    assert text.count("\n") == 1 + len(table)


def test_the_interval_of_a_difference_of_updates_covers_its_expected_value() -> None:
    row = overlap_calibration.difference_coverage(15, domains=6, each=6)
    assert row["of"] == 15 and row["called"] >= 11


def test_adapters_are_called_by_each_null_and_counted_over_domains() -> None:
    p = {"0": 0.04, "1": 0.5, "medicine-r8": 0.3, "medicine-benign": 0.2}
    rows = [
        overlap_calibration._level_row("medicine", position, null, p, 2)
        for position in ("a", "b")
        for null in ("trained", "random update")
    ]
    assert overlap_calibration.pooled(rows, "trained") == (2, 4)
    assert "| trained | medicine | a | 1 of 2 | 0.300 | 0.200 |" in (
        overlap_calibration.level_table({"level": rows})
    )


def test_any_split_of_exchangeable_pairs_calls_one_in_twenty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    cells = [
        {"pair": pair, "position": position, "statistic": "prompt_cosine", "value": rng.random()}
        for pair in range(59)
        for position in overlap_worlds.POSITIONS
    ]
    pairs = SimpleNamespace(of=lambda first, second: SimpleNamespace(cells=pd.DataFrame(cells)))
    monkeypatch.setattr(overlap_worlds, "DomainPairs", pairs)
    nothing: Any = None
    counts = overlap_worlds.called_by_split(nothing, nothing, 20, 1500, 0)
    assert counts.shape == (1500, 2)
    assert counts.mean(axis=0) / 20 == pytest.approx(2 / 40, abs=0.006)


def test_pairs_across_domains_are_counted_over_worlds() -> None:
    def rows(world: int, called: int) -> list[dict[str, object]]:
        beside = {
            "value": 0.48,
            "null_mean": 0.05,
            "null_q95": 0.2,
            "p": 0.017,
            "cosine of means": 0.6,
            "cosine of means, p": 0.033,
        }
        permuted = {"pair": "permuted", "called": called, "of": 20}
        own = [permuted, {"pair": "r8", **beside}]
        return [{"world": world, "position": "last_prompt", **row} for row in own]

    values = {"across": [*rows(10, 2), *rows(11, 0)]}
    assert overlap_worlds.permuted_called(values, "last_prompt") == (2, 40)
    assert overlap_worlds.level_table(values).splitlines()[-1] == (
        "| last_prompt | 2 of 20 | 0 of 20 | 2 of 40 |"
    )
    assert overlap_worlds.across_table(values).splitlines()[-1] == (
        "| 11 | last_prompt | harmful | 0.480 | 0.050, 0.200 | 0.017 | 0.600, 0.033 |"
    )
