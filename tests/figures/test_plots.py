"""Figures from records: every kind carries its numbers, intervals and null; odd tables are drawn
and said, wrong ones refused.
"""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from hypothesis import given, settings, strategies as st

from emlens import figures
from emlens.figures.descriptions import describe_figure
from emlens.figures.forest import MOST_ROWS
from emlens.figures.groups import MOST_NAMES
from emlens.figures.kinds import Facet
from emlens.figures.style import BLUE, GREY, VERMILLION
from emlens.figures.thinning import MOST_MARKS
from emlens.foundation.errors import InputError
from emlens.results import Plot

HOSTILE = "<script>window.__pwned=1</script>\u2028\"'&amp; %{x}"
KINDS = ("line", "points", "forest", "heatmap")


def record(kind: str = "line", **fields: Any) -> Plot:
    return Plot(
        **{
            "kind": kind,
            "table": "t",
            "x": "step",
            "y": "score",
            "title": "T",
            "caption": "C",
            **fields,
        }
    )


def table(
    models: tuple[str, ...] = ("one", "two"), steps: tuple[float, ...] = (3, 1, 2)
) -> pd.DataFrame:
    """Steps out of order; score = 10·model + step, interval ±1, null 5."""
    rows = [
        {
            "model": m,
            "step": s,
            "score": 10.0 * i + s,
            "score_low": 10.0 * i + s - 1,
            "score_high": 10.0 * i + s + 1,
            "null": 5.0,
        }
        for i, m in enumerate(models)
        for s in steps
    ]
    return pd.DataFrame(rows)


def traces(figure: go.Figure, name: str) -> list[Any]:
    return [trace for trace in figure.data if trace.name == name]


def notes(figure: go.Figure) -> str:
    return "; ".join(a.text for a in figure.layout.annotations)


def test_lines_are_sorted_with_a_band_and_one_dotted_null() -> None:
    figure = figures.draw_plot(
        {"t": table()}, record(colour="model", null="null", hover=("model",))
    )
    band, line = traces(figure, "two")
    assert (
        list(line.x) == [1, 2, 3] and list(line.y) == [11, 12, 13] and line.mode == "lines+markers"
    )
    assert (
        list(band.x) == [1, 2, 3, 3, 2, 1]
        and list(band.y) == [10, 11, 12, 14, 13, 12]
        and band.fill == "toself"
    )
    (null,) = traces(figure, "null")
    assert list(null.y) == [5, 5, 5] and null.line.dash == "dot" and null.line.color == GREY
    assert {t.line.color for t in (line, *traces(figure, "one"))} >= {BLUE, VERMILLION}
    assert "score 11 [10, 12]" in line.customdata[0] and "null 5" in line.customdata[0]
    assert list(figure.layout.xaxis.tickvals) == [1, 2, 3]


def test_nulls_that_differ_have_their_lines_colours() -> None:
    data = table().assign(null=[5.0] * 3 + [6.0] * 3)
    drawn = traces(figures.draw_plot({"t": data}, record(colour="model", null="null")), "null")
    assert [set(t.y) for t in drawn] == [{5}, {6}] and [t.line.color for t in drawn] == [
        BLUE,
        VERMILLION,
    ]
    assert [t.showlegend for t in drawn] == [True, False]


def test_a_band_stops_where_no_interval_is_known_and_a_lone_interval_is_a_bar() -> None:
    data = table(("one",), (1, 2, 3, 4, 5))
    data.loc[2, ["score_low", "score_high"]] = np.nan
    data.loc[3, "score_low"] = np.nan
    band, line = figures.draw_plot({"t": data}, record()).data
    assert list(band.x) == [1, 2, 2, 1]
    assert list(line.error_y.array) == [0, 0, 0, 0, 1] and list(line.error_y.arrayminus) == [
        0,
        0,
        0,
        0,
        1,
    ]


def test_a_line_that_would_go_back_and_forth_is_no_line() -> None:
    data = pd.concat([table(("one",)), table(("one",))])
    figure = figures.draw_plot({"t": data}, record())
    assert figure.data[0].mode == "markers" and "an x has several rows in a group" in notes(figure)
    assert len(figure.data[0].error_y.array) == 6


def test_points_have_bars_and_the_null_of_each() -> None:
    figure = figures.draw_plot({"t": table()}, record("points", colour="model", null="null"))
    two = traces(figure, "two")[0]
    assert (
        list(two.x) == [3, 1, 2] and list(two.error_y.array) == [1, 1, 1] and two.mode == "markers"
    )
    assert len(traces(figure, "null")[0].x) == 6


def test_a_forest_has_a_row_for_every_name_from_the_top() -> None:
    figure = figures.draw_plot(
        {"t": table()}, record("forest", x="model", colour="step", null="null")
    )
    assert list(figure.layout.yaxis.ticktext) == ["one", "two"] and list(
        figure.layout.yaxis.tickvals
    ) == [1, 0]
    first = traces(figure, "3")[0]
    assert list(first.x) == [3, 13] and list(first.error_x.array) == [1, 1]
    assert [round(y) for y in first.y] == [1, 0]
    null = traces(figure, "null")
    assert (
        len(null) == 3
        and sum(bool(t.showlegend) for t in null) == 1
        and null[0].marker.symbol == "line-ns"
    )
    assert figure.layout.xaxis.title.text == "score"


def test_heatmap_cells_stand_where_their_names_are() -> None:
    data = table()
    figure = figures.draw_plot(
        {"t": data.drop(4)}, record("heatmap", colour="model", null="null", x_title="step (of 3)")
    )
    (cells,) = figure.data
    np.testing.assert_array_equal(cells.z, [[1, 2, 3], [np.nan, 12, 13]])
    assert list(figure.layout.xaxis.ticktext) == ["1", "2", "3"] and list(
        figure.layout.yaxis.ticktext
    ) == [
        "one",
        "two",
    ]
    assert cells.text[0][0] == "1<br>null 5" and cells.customdata[1][0] == "no measurement"
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (1, 13)
    data["score"] = [-4.0, 1, 2, 3, 1, 2]
    around = figures.draw_plot({"t": data}, record("heatmap", colour="model")).layout.coloraxis
    assert (around.cmin, around.cmax) == (-4, 4)


def test_a_facet_is_one_figure_and_has_to_be_chosen() -> None:
    data, plot = {"t": table()}, record(facet="model")
    one, two = figures.plot_facets(data, plot)
    assert (one.values, two.values) == (("one",), ("two",))
    assert (one.label, two.label) == ("one", "two")
    assert figures.plot_facets(data, record()) == [Facet()]
    assert (
        figures.plot_facets({}, plot) == []
        and figures.plot_facets(data, record(facet="gone")) == []
    )
    for facet in ("two", ("two",), two):
        assert list(figures.draw_plot(data, plot, facet=facet).data[-1].y) == [11, 12, 13]
    with pytest.raises(
        InputError,
        match=(
            r"draw_plot: column 'model' holds several values \(one, two\);"
            r" pass one of them as facet="
        ),
    ):
        figures.draw_plot(data, plot)
    with pytest.raises(
        InputError, match=r"draw_plot: facet='three' is not in column 'model'; it holds one, two"
    ):
        figures.draw_plot(data, plot, facet="three")
    assert len(figures.draw_plot({"t": table(("one",))}, plot).data) == 2


@pytest.mark.parametrize(
    ("plot", "message"),
    [
        (
            record("pie"),
            "draw_plot: kind 'pie' is unknown; pass one of line, points, forest, heatmap",
        ),
        (record(table="u"), "draw_plot: there is no table 'u'; there are t"),
        (record(y="gone"), r"draw_plot of t: the table has no column gone; it has model, step"),
        (record(hover=("why",)), "draw_plot of t: the table has no column why"),
        (record(y="model"), "draw_plot of t: column 'model' holds 'one'; it must hold numbers"),
        (
            record("heatmap"),
            (
                "draw_plot: heatmap has several rows for step=3;"
                " name the column that tells them apart as colour or facet"
            ),
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(plot: Plot, message: str) -> None:
    with pytest.raises(InputError, match=message):
        figures.draw_plot({"t": table()}, plot)


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(InputError, match="draw_plot of t: the table has no rows"):
        figures.draw_plot({"t": table().head(0)}, record())


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_without_any_value_says_so(kind: str) -> None:
    data = table(("one",)).assign(score=np.nan, score_low=np.nan, score_high=np.nan, null=np.nan)
    figure = figures.draw_plot({"t": data}, record(kind, null="null"))
    assert "no value is defined" in notes(figure)
    assert "no value" in describe_figure(figure) or "no cell" in describe_figure(figure)


@pytest.mark.parametrize("kind", ("line", "points"))
def test_thousands_of_rows_are_thinned_evenly_in_every_group_and_said(kind: str) -> None:
    data = pd.DataFrame(
        {
            "step": np.repeat(np.arange(4000), 3),
            "score": np.arange(12000.0),
            "model": ["a", "b", "c"] * 4000,
        }
    )
    figure = figures.draw_plot({"t": data}, record(kind, colour="model"))
    drawn = [len(traces(figure, name)[0].x) for name in "abc"]
    assert sum(drawn) == MOST_MARKS and max(drawn) - min(drawn) <= 1
    assert f"{MOST_MARKS} of 12000 rows drawn" in notes(figure)
    assert {min(traces(figure, "a")[0].x), max(traces(figure, "c")[0].x)} == {0, 3999}


def test_long_forests_and_legends_are_cut_and_said() -> None:
    names = [f"a model with a name that goes on and on {i}" for i in range(100)]
    figure = figures.draw_plot({"t": table(tuple(names), (1,))}, record("forest", x="model"))
    assert len(figure.data[0].x) == MOST_ROWS and f"{MOST_ROWS} of 100 rows drawn" in notes(figure)
    assert all(
        len(line) <= 22 for tick in figure.layout.yaxis.ticktext for line in tick.split("<br>")
    )
    figure = figures.draw_plot({"t": table(tuple(names[:30]))}, record(colour="model"))
    assert sum(
        bool(t.showlegend) for t in figure.data
    ) == MOST_NAMES and "10 further groups in grey" in notes(figure)


def test_names_that_look_alike_when_cut_stay_apart() -> None:
    long = "x" * 80
    figure = figures.draw_plot(
        {"t": table((long + "1", long + "2"), (1,))}, record("points", x="model")
    )
    assert list(figure.data[0].x) == [0, 1]
    numbers = pd.DataFrame({"step": [1, 1], "score": [1.0, 2.0], "rate": [1.00001e-4, 1.00002e-4]})
    assert len(figures.draw_plot({"t": numbers}, record("heatmap", colour="rate")).data[0].z) == 2


def test_rates_over_orders_of_magnitude_stand_on_a_logarithm() -> None:
    data = table(("one",), (1e-6, 1e-4, 1e-2))
    assert figures.draw_plot({"t": data}, record()).layout.xaxis.type == "log"
    assert (
        figures.draw_plot({"t": table(("one",), (1, 10, 10000))}, record()).layout.xaxis.type
        is None
    )


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_text_is_escaped(kind: str) -> None:
    data = table((HOSTILE,), (1,)).assign(text=HOSTILE, **{HOSTILE: 1})
    plot = record(
        kind,
        x="model" if kind == "forest" else "step",
        colour="model",
        hover=("text", HOSTILE),
        x_title=HOSTILE,
        y_title=HOSTILE,
    )
    text = figures.draw_plot({"t": data}, plot).to_json()
    for mark in ("<script", "\\u003cscript", "\u2028"):
        assert mark not in text
    assert "lt;script" in text


@settings(max_examples=12, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.lists(
        st.tuples(
            st.sampled_from(["a", "b"]),
            st.integers(0, 3),
            st.floats(allow_nan=True, allow_infinity=False, width=32),
        ),
        min_size=1,
        max_size=6,
        unique_by=lambda row: row[:2],
    ),
)
def test_any_table_is_drawn_the_same_twice_and_left_alone(
    kind: str, rows: list[tuple[str, int, float]]
) -> None:
    data = pd.DataFrame(rows, columns=["model", "step", "score"])
    before = data.copy()
    plot = record(kind, colour="model", hover=("step",))
    figure = figures.draw_plot({"t": data}, plot)
    assert (
        figure.to_json() == figures.draw_plot({"t": data}, plot).to_json()
        and figure.layout.height >= 150
    )
    pd.testing.assert_frame_equal(data, before)
    assert describe_figure(figure)


def test_the_gist_names_series_ranges_and_the_greatest_cell() -> None:
    line = describe_figure(figures.draw_plot({"t": table()}, record(colour="model")))
    assert line == "one: 3 values from 1 to 3; two: 3 values from 11 to 13"
    forest = describe_figure(
        figures.draw_plot({"t": table(("<b>",), (2,))}, record("forest", x="model"))
    )
    assert forest == "1 value, 2"
    heat = describe_figure(figures.draw_plot({"t": table()}, record("heatmap", colour="model")))
    assert heat == "6 cells from 1 to 13, greatest at two, 3"
    many = describe_figure(
        figures.draw_plot({"t": table(tuple("abcdefghij"))}, record(colour="model"))
    )
    assert many.endswith("and 2 more series")


@pytest.mark.parametrize(("columns", "text"), [(3, "1<br>null 5"), (8, "1"), (30, None)])
def test_cells_bear_numbers_where_there_is_room(columns: int, text: str | None) -> None:
    data = table(("one",), tuple(range(1, columns + 1)))
    (cells,) = figures.draw_plot({"t": data}, record("heatmap", null="null")).data
    assert (None if cells.text is None else cells.text[0][0]) == text
    assert "null 5" in cells.customdata[0][0]
