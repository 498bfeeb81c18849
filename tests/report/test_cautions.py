"""What a section lacks is said in it, for every control that can be missing; where nothing is
missing, nothing is said.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from figures.study_tables import study_tables
from report.invented import SECTION, TITLE, tables as invented

from emlens.report.cautions import cautions
from emlens.report.sections import PageSection, sections_of
from emlens.results import Plot, StudyResult
from emlens.results.columns import Column, Measure
from emlens.results.sections import Section
from emlens.results.tables import Table

Tables = dict[str, pd.DataFrame]
PROFILE, OVERLAP, DIRECTION, FORECAST = sections_of(StudyResult("overview", {}, {}, [], [], {}))


def complete() -> Tables:
    """A study that lacks nothing."""
    tables = study_tables()
    tables["models"] = tables["models"].assign(n_others=300, seed=[0, 1, 2, 0, 1])
    tables["overlap"] = tables["overlap"].assign(n=144)
    arms = tables["arms"].assign(n=154)
    tables["arms"] = pd.concat(
        [arms, arms[arms["arm"] == "direction"].assign(arm="benign fine-tune's direction")]
    )
    tables["forecast"] = tables["forecast"].assign(n=352)
    return tables


def without(
    table: str, keep: Callable[[pd.DataFrame], "pd.Series[bool]"]
) -> Callable[[Tables], Tables]:
    return lambda tables: {**tables, table: tables[table][keep(tables[table])]}


def having(table: str, **columns: object) -> Callable[[Tables], Tables]:
    return lambda tables: {**tables, table: tables[table].assign(**columns)}


@pytest.mark.parametrize("section", [PROFILE, OVERLAP, DIRECTION, FORECAST], ids=lambda s: s.name)
def test_a_complete_study_has_no_cautions(section: PageSection) -> None:
    assert cautions(section, complete()) == []
    assert cautions(section, {}) == []


@pytest.mark.parametrize(
    ("section", "change", "said"),
    [
        (PROFILE, without("models", lambda t: t["kind"] != "benign"), "There is no benign control"),
        (
            PROFILE,
            having("models", n_others=12),
            "Small sample: 12 questions outside the trained domain (fewer than 30).",
        ),
        (PROFILE, having("models", seed=0), "Every fine-tune was trained once"),
        (
            OVERLAP,
            without("overlap", lambda t: t["comparison"] != "benign train–evaluation"),
            "Missing: the benign control.",
        ),
        (
            OVERLAP,
            without(
                "overlap",
                lambda t: (t["comparison"] != "train–neutral text") | (t["model"] == "bad@0"),
            ),
            "Missing for wide@0: the control of neutral text.",
        ),
        (
            OVERLAP,
            without("overlap", lambda t: t["null_kind"] != "covariance of before activations"),
            "Missing: the null with the activations’ covariance.",
        ),
        (OVERLAP, having("overlap", n=8), "Small sample: 8 prompts per side (fewer than 30)."),
        (
            DIRECTION,
            without("arms", lambda t: ~t["arm"].str.startswith("random")),
            "Missing: the arm with a random direction.",
        ),
        (
            DIRECTION,
            without("arms", lambda t: ~t["arm"].str.startswith("benign")),
            "Missing: the arm with the benign fine-tune’s direction.",
        ),
        (DIRECTION, having("arms", kl=np.nan), "Missing: damage on neutral text."),
        (DIRECTION, having("arms", n=9), "Small sample: 9 report questions (fewer than 30)."),
        (
            FORECAST,
            without("forecast", lambda t: t["parent"] != "base"),
            "Missing: a forecast from the base model.",
        ),
        (FORECAST, having("forecast", null_q95=np.nan), "Missing: the null of shuffled labels."),
        (
            FORECAST,
            without("forecast", lambda t: t["held_out"] != "domain"),
            "Missing: the forecast with domains held out.",
        ),
        (FORECAST, having("forecast", n=12), "Small sample: 12 questions (fewer than 30)."),
    ],
)
def test_what_is_missing_is_said(
    section: PageSection, change: Callable[[Tables], Tables], said: str
) -> None:
    (only,) = cautions(section, change(complete()))
    assert only.startswith(said)


def test_seeds_in_names_count_as_repeated_trainings() -> None:
    once = having("models", seed=0)(complete())
    names = once["models"]["model"].replace({"wide@0": "bad@1"})
    assert cautions(PROFILE, having("models", model=names)(once)) == []


@pytest.mark.parametrize(
    "beside",
    [{"null_mean": 0.1}, {"null_q95": 0.1}, {"p_holm": 0.1}, {"low": 1.0, "high": 3.0}],
)
def test_an_interval_or_a_null_is_seen_wherever_its_table_declares_it(
    beside: dict[str, float],
) -> None:
    measure = Measure(Column("gap", "number", "a gap"), "low", "high")
    plot = Plot("points", "gaps", "x", "gap", "Gaps", "Gaps.")
    records = Section(
        "m", "r", tables={"gaps": Table("One row each.", ["x", measure])}, plots=[plot]
    )
    section = PageSection("gaps", "Gaps", records)
    bare = pd.DataFrame({"x": [1.0, 2.0], "gap": [2.0, 2.0]})
    assert len(cautions(section, {"gaps": bare})) == 1
    assert cautions(section, {"gaps": bare.assign(**beside)}) == []


def test_plots_from_records_are_looked_at_too() -> None:
    section = PageSection("invented", TITLE, SECTION)
    assert cautions(section, invented()) == [
        (
            "“Loss and alignment” shows values with neither interval nor null:"
            " read them as description."
        ),
        "Small sample: 4 units for some value of “Scores of people” (fewer than 10).",
    ]
