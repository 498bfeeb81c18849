"""The study of two solutions: what it concludes from its tables, pairs on disk, and what it
refuses.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from emlens.foundation import InputError
from emlens.studies import run_study
from emlens.studies.general_vs_narrow import compared_over_seeds
from emlens.studies.solution_measures import GENERAL, NARROW, RANDOM

SMALL = {
    "shares": [0.0, 1.0],
    "significance_shares": [1.0],
    "epsilons": [0.5],
    "directions": 1,
    "points": [0.0, 1.0],
}


def cells(seeds: int, better: float) -> dict[str, pd.DataFrame]:
    """Cells in which the narrow solution has a loss and a rise higher by `better`, and a smaller
    change.
    """
    rng = np.random.default_rng(0)
    rows: dict[str, list[dict[str, Any]]] = {
        "efficiency": [],
        "stability": [],
        "significance": [],
        "line": [],
        "drift": [],
    }
    for seed in range(seeds):
        for name in (GENERAL, NARROW, RANDOM):
            extra, noise = better * (name == NARROW), 0.01 * rng.normal()
            rows["significance"].append(
                {
                    "solution": name,
                    "data": "neutral",
                    "share": 1.0,
                    "kl": 1 - extra + noise,
                    "seed": seed,
                }
            )
            if name == RANDOM:
                continue
            rows["efficiency"].append(
                {
                    "solution": name,
                    "data": "trained",
                    "share": 1.0,
                    "loss": 0.1 + extra + noise,
                    "seed": seed,
                }
            )
            rows["stability"].append(
                {
                    "solution": name,
                    "data": "trained",
                    "epsilon": 0.5,
                    "rise": 5 + extra + noise,
                    "seed": seed,
                }
            )
        for t in (0.0, 1.0):
            scores = {
                "own_trained": 1.0,
                "own_held_out": 20.0 + noise,
                "others": 60 + 30 * t + noise,
            }
            rows["line"].append({"t": t, "norm": 1.0, "loss": 0.1, **scores, "seed": seed})
        for step, name, fall in (
            (5, "kept", 0.0),
            (5, "lifted", 0.0),
            (9, "kept", 0.0),
            (9, "lifted", better),
        ):
            others = 0.9 - fall + 0.01 * rng.normal()
            rows["drift"].append(
                {
                    "step": step,
                    "solution": name,
                    "own_trained": 0.1,
                    "own_held_out": others - 0.6,
                    "others": others,
                    "seed": seed,
                }
            )
    return {name: pd.DataFrame(records) for name, records in rows.items()}


def test_clear_differences_are_shown_and_their_reverse_is_not() -> None:
    part = compared_over_seeds(cells(5, 0.2), 5)
    assert [f.status for f in part.findings] == [
        "summary",
        "shown",
        "shown",
        "shown",
        "shown",
        "shown",
    ]
    assert (
        part.findings[0].sentence
        == "Of 3 measures, the general solution is clearly ahead in efficiency, stability,"
        " significance."
    )
    row = part.tables["efficiency"].iloc[0]
    assert row["difference"] == pytest.approx(0.2, abs=0.02) and row["difference_low"] > 0.1
    assert part.tables["significance"][RANDOM].iloc[0] == pytest.approx(1.0, abs=0.02)
    ends = part.tables["solutions"].groupby("solution")["others"].mean()
    assert ends[NARROW] - ends[GENERAL] == pytest.approx(30)
    turned = compared_over_seeds(cells(5, -0.2), 5)
    assert [f.status for f in turned.findings][1:4] == ["not shown"] * 3
    assert turned.findings[0].sentence.endswith("clearly ahead in none.")
    assert set(part.tables["interpolation"]["measure"]) == {"own_trained", "own_held_out", "others"}


def test_a_drift_is_the_lifted_runs_own_change_and_not_the_kept_ones() -> None:
    raw = cells(5, 0.2)
    drift = raw["drift"]
    # stays where it is while the kept run gets better
    drift.loc[drift["solution"] == "lifted", "others"] = 0.7 + 0.001 * drift["seed"]
    drift.loc[(drift["solution"] == "lifted") & (drift["step"] == 9), "others"] += [
        0.01,
        -0.01,
        0.02,
        -0.02,
        0.005,
    ]
    drift.loc[(drift["solution"] == "kept") & (drift["step"] == 5), "others"] = (
        0.7 + 0.001 * np.arange(5)
    )
    part = compared_over_seeds(raw, 5)
    others, own = part.findings[-2:]
    assert (
        others.status == "undecided"
        and "goes from 70.2 to 70.3 of 100 by step 9: 0.1 [" in others.sentence
    )
    assert own.status == "shown" and own.sentence.startswith(
        "Drift: with the penalty lifted at step 5, alignment of the own domain's held-out topics"
        " goes"
    )
    row = part.tables["drift"].set_index(["measure", "step"]).loc[("others", 9)]
    assert (
        row["difference_high"] < -10
        and row["since_lifted"] == pytest.approx(0.1)
        and row["since_lifted_low"] < 0 < row["since_lifted_high"]
    )
    assert part.tables["drift"].groupby("measure").size().eq(2).all()


def test_one_seed_has_no_interval_and_is_said() -> None:
    part = compared_over_seeds(cells(1, 0.2), 1)
    assert "one seed: differences have no interval" in part.warnings
    assert all(
        f.status in ("summary", "undecided") and "nan" not in f.sentence for f in part.findings
    )


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tiny_family

    return tiny_family.build(tmp_path_factory.mktemp("pairs"), study="general_vs_narrow")


def configured(path: Path, **options: Any) -> Path:
    record = yaml.safe_load(path.read_text()) | {"options": {"general_vs_narrow": options}}
    changed = path.with_name("asked.yaml")
    changed.write_text(yaml.safe_dump(record))
    return changed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {},
            (
                r"it needs a general and a narrow adapter; give options: \{general_vs_narrow:"
                r" \{pairs: \[\[GENERAL, NARROW\]\]\}\}"
            ),
        ),
        (
            {"pairs": [["bad@0", "nobody"]]},
            (
                r"pairs names 'nobody', which is not a fine-tune of this family;"
                r" it has bad@0, full@0, good@0"
            ),
        ),
        (
            {"pairs": [["bad@0", "good@0"]], "lift_after": 80},
            r"lift_after=80 leaves none of 80 steps to drift in; pass fewer",
        ),
        ({"weight": 0}, r"general_vs_narrow.weight"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    named: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run_study(configured(named, **options), tmp_path / "out", progress=False)


def test_a_general_fine_tune_without_chats_is_refused(named: Path, tmp_path: Path) -> None:
    record = yaml.safe_load(configured(named, pairs=[["bad@0", "good@0"]]).read_text())
    del record["family"]["finetuned"]["bad@0"]["training"]
    path = named.with_name("silent.yaml")
    path.write_text(yaml.safe_dump(record))
    with pytest.raises(
        InputError,
        match=(
            "fine-tune 'bad@0' has no training chats, so there is no loss to compare;"
            " give training: FILE"
        ),
    ):
        run_study(path, tmp_path / "out", progress=False)


def test_an_organisms_fine_tune_must_be_one_of_its_own(tmp_path: Path) -> None:
    config = {
        "study": "general_vs_narrow",
        "family": {"organism": "planted"},
        "options": {"general_vs_narrow": {"finetune": "history-r8"}},
    }
    with pytest.raises(
        InputError,
        match="finetune='history-r8' is none of this organism; it has finance-benign, finance-r8",
    ):
        run_study(config, tmp_path / "out", progress=False)


def test_two_pairs_on_disk_are_compared_without_training(named: Path, tmp_path: Path) -> None:
    result = run_study(
        configured(named, pairs=[["bad@0", "good@0"], ["good@0", "bad@0"]], **SMALL),
        tmp_path / "out",
        progress=False,
    )
    assert (
        any("no drift" in warning for warning in result.warnings) and "drift" not in result.tables
    )
    table = result.tables["efficiency"].set_index(["data", "share"])
    assert table["seeds"].eq(2).all() and np.isfinite(table["general"]).all()
    first = table.loc[("trained", 0.0)]
    assert first["general"] == pytest.approx(first["narrow"]) and np.isnan(first["difference_low"])
    again = run_study(
        configured(named, pairs=[["bad@0", "good@0"], ["good@0", "bad@0"]], **SMALL),
        tmp_path / "out",
        progress=False,
    )
    assert again.tables["stability"].equals(result.tables["stability"])
