"""Every figure carries the numbers of its table, draws its intervals, escapes its text, and refuses
a table it cannot read.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from figures.study_tables import LAYERS, POSITIONS, study_tables

from emlens.figures.ablation_forest import ablation_forest
from emlens.figures.alignment_by_domain import alignment_by_domain
from emlens.figures.alignment_changes import alignment_changes
from emlens.figures.angle_spectra import angle_spectra
from emlens.figures.direction_by_layer import direction_by_layer
from emlens.figures.forecast_by_site import forecast_by_site
from emlens.figures.forecast_scatter import forecast_scatter
from emlens.figures.forecast_scores import forecast_scores
from emlens.figures.models_overview import models_overview
from emlens.figures.overlap_against_shift import middle_layer, overlap_against_shift
from emlens.figures.overlap_by_layer import overlap_by_layer
from emlens.figures.overlap_heatmaps import overlap_heatmaps
from emlens.figures.plots import plot_facets
from emlens.figures.question_changes import question_changes
from emlens.figures.relation_by_layer import relation_by_layer
from emlens.figures.steering_response import UNUSABLE, steering_response
from emlens.figures.style import CYCLE, apply_layout, rgba
from emlens.figures.transfer_matrix import transfer_matrix
from emlens.foundation.errors import InputError
from emlens.results import Plot

Tables = dict[str, pd.DataFrame]


@dataclass(frozen=True)
class Case:
    table: str
    drop: str
    make: Callable[[Tables, str], go.Figure]


CASES = {
    "alignment_by_domain": Case(
        "domains", "aligned_low", lambda t, m: alignment_by_domain(t["domains"])
    ),
    "models_overview": Case("models", "coherent_high", lambda t, m: models_overview(t["models"])),
    "overlap_heatmaps": Case(
        "overlap",
        "null_q95",
        lambda t, m: overlap_heatmaps(t["overlap"], model=m),
    ),
    "overlap_by_layer": Case(
        "overlap",
        "low",
        lambda t, m: overlap_by_layer(t["overlap"], model=m, position="last_prompt"),
    ),
    "angle_spectra": Case(
        "angles",
        "degrees",
        lambda t, m: angle_spectra(t["angles"], model=m, position="mean_prompt"),
    ),
    "overlap_against_shift": Case(
        "shifts",
        "random_overlap",
        lambda t, m: overlap_against_shift(t["shifts"], t["overlap_shift"], model=m),
    ),
    "relation_by_layer": Case(
        "overlap_shift",
        "partial",
        lambda t, m: relation_by_layer(t["overlap_shift"], model=m),
    ),
    "direction_by_layer": Case(
        "directions",
        "cosine_planted",
        lambda t, m: direction_by_layer(t["directions"], model=m),
    ),
    "ablation_forest": Case("arms", "kl", lambda t, m: ablation_forest(t["arms"], model=m)),
    "steering_response": Case(
        "steering",
        "coefficient",
        lambda t, m: steering_response(t["steering"], model=m),
    ),
    "transfer_matrix": Case("transfer", "high", lambda t, m: transfer_matrix(t["transfer"])),
    "forecast_scatter": Case(
        "forecast_predictions",
        "predicted",
        lambda t, m: forecast_scatter(
            t["forecast_predictions"], model=m, parent="base", summary=t["forecast"]
        ),
    ),
    "forecast_scores": Case(
        "forecast_baselines",
        "gain",
        lambda t, m: forecast_scores(
            t["forecast_baselines"], model=m, parent="base", summary=t["forecast"]
        ),
    ),
    "question_changes": Case(
        "questions",
        "aligned",
        lambda t, m: question_changes(t["questions"], model=m),
    ),
    "forecast_by_site": Case(
        "forecast_sites",
        "p_max",
        lambda t, m: forecast_by_site(t["forecast_sites"], model=m, parent="base"),
    ),
}
HOSTILE = (
    "<script>window.__pwned=1</script></script><img src=x onerror=window.__pwned=1>\u2028\"'&amp;"
)


@pytest.fixture
def tables() -> Tables:
    return study_tables()


def named(figure: go.Figure, name: str) -> list[go.Scatter]:
    found = [trace for trace in figure.data if trace.name == name]
    assert found, [trace.name for trace in figure.data]
    return found


def panel(figure: go.Figure, kind: str = "heatmap") -> list[go.Heatmap]:
    return [trace for trace in figure.data if trace.type == kind]


@pytest.mark.parametrize("name", CASES)
def test_figure_is_drawn_the_same_twice_and_leaves_its_table_alone(
    name: str, tables: Tables
) -> None:
    case = CASES[name]
    before = tables[case.table].copy()
    figure = case.make(tables, "bad@0")
    assert figure.data and figure.layout.height >= 150
    assert figure.to_json() == case.make(tables, "bad@0").to_json()
    pd.testing.assert_frame_equal(tables[case.table], before)
    # nothing of the surrounding session's theme
    assert figure.layout.template.data.to_plotly_json() == {}


@pytest.mark.parametrize("name", CASES)
def test_axes_have_titles(name: str, tables: Tables) -> None:
    figure = CASES[name].make(tables, "bad@0")
    assert any(axis.title.text for axis in figure.select_xaxes())
    assert any(axis.title.text or axis.ticktext for axis in figure.select_yaxes())


@pytest.mark.parametrize("name", CASES)
def test_missing_column_is_named(name: str, tables: Tables) -> None:
    case = CASES[name]
    tables[case.table] = tables[case.table].drop(columns=case.drop)
    with pytest.raises(InputError, match=rf"^{name}: the table has no column {case.drop}; it has "):
        case.make(tables, "bad@0")


@pytest.mark.parametrize("name", CASES)
def test_empty_table_is_refused(name: str, tables: Tables) -> None:
    case = CASES[name]
    tables[case.table] = tables[case.table].head(0)
    with pytest.raises(
        InputError,
        match=rf"^{name}: the table has no rows; pass one with at least one measurement$",
    ):
        case.make(tables, "bad@0")


@pytest.mark.parametrize(
    "name",
    [
        n
        for n, c in CASES.items()
        if n not in ("alignment_by_domain", "models_overview", "transfer_matrix")
    ],
)
def test_unknown_model_is_refused_with_those_there_are(name: str, tables: Tables) -> None:
    with pytest.raises(
        InputError,
        match=(
            rf"^{name}: model='other' is not in the table;"
            r" it holds (base, instruct, )?bad@0, wide@0(, benign@0)?$"
        ),
    ):
        CASES[name].make(tables, "other")


def test_several_models_need_a_choice(tables: Tables) -> None:
    with pytest.raises(
        InputError,
        match=(
            r"overlap_heatmaps: the table holds several values of model \(bad@0, wide@0\);"
            r" pass model="
        ),
    ):
        overlap_heatmaps(tables["overlap"])
    single = tables["overlap"][tables["overlap"]["model"] == "bad@0"]
    assert (
        overlap_heatmaps(single).to_json()
        == overlap_heatmaps(tables["overlap"], model="bad@0").to_json()
    )


@pytest.mark.parametrize("name", CASES)
def test_no_raw_markup_of_the_tables_reaches_a_figure(name: str) -> None:
    hostile = study_tables(HOSTILE, domain=HOSTILE, text=HOSTILE)
    text = CASES[name].make(hostile, HOSTILE).to_json()
    plain = CASES[name].make(study_tables(), "bad@0").to_json()
    for mark in ("<script", "<img", "\\u003cscript", "\\u003cimg", "\u2028"):
        assert mark not in text
    if name in (
        "alignment_by_domain",
        "models_overview",
        "transfer_matrix",
        "overlap_against_shift",
        "forecast_scatter",
    ):
        assert "&lt;script" in text.replace("\\u0026", "&")  # it did get there, escaped
    assert "script" not in plain


def test_domains_carry_means_intervals_and_the_trained_domain(tables: Tables) -> None:
    figure = alignment_by_domain(tables["domains"], models=["bad@0"])
    want = tables["domains"].query("model == 'bad@0'").set_index("group")
    order = [tick.removeprefix("★ ") for tick in figure.layout.yaxis.ticktext]
    after = named(figure, "after (fine-tune)")[0]
    np.testing.assert_allclose(after.x, want.loc[order, "aligned"])
    np.testing.assert_allclose(
        after.error_x.array, want.loc[order, "aligned_high"] - want.loc[order, "aligned"]
    )
    np.testing.assert_allclose(
        after.error_x.arrayminus, want.loc[order, "aligned"] - want.loc[order, "aligned_low"]
    )
    assert [t for t in figure.layout.yaxis.ticktext if t.startswith("★")] == ["★ medicine"]
    before = named(figure, "before (instruct)")[0]
    assert list(before.x) == sorted(before.x)


def test_models_without_a_domain_have_no_own_value(tables: Tables) -> None:
    own = named(models_overview(tables["models"]), "alignment, trained domain")[0]
    assert np.isnan(np.array(own.x, dtype=float)[:2]).all()
    np.testing.assert_allclose(
        np.array(own.x, dtype=float)[2:], tables["models"]["aligned_own"].to_numpy()[2:]
    )


def test_heatmaps_put_controls_beside_the_tested_overlap_on_one_scale(tables: Tables) -> None:
    figure = overlap_heatmaps(tables["overlap"], model="wide@0", center="false")
    maps = panel(figure)
    assert len(maps) == len(POSITIONS) and all(m.coloraxis == "coloraxis" for m in maps)
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)
    rows = list(figure.layout.yaxis.ticktext)
    table = tables["overlap"].query(
        "model == 'wide@0' and center == 'false' and position == 'last_prompt'"
    )
    tested = table[
        (table["comparison"] == "train–evaluation") & (table["null_kind"] == "isotropic")
    ]["value"]
    benign = table[table["comparison"] == "benign train–evaluation"]["value"]
    np.testing.assert_allclose(maps[0].z[0], tested)
    np.testing.assert_allclose(maps[0].z[rows.index("benign fine-tune")], benign)
    np.testing.assert_allclose(maps[0].z[rows.index("one population, 95 %")], [0.6] * len(LAYERS))
    np.testing.assert_allclose(maps[0].z[rows.index("isotropic, mean")], [0.1] * len(LAYERS))


def test_lines_have_nulls_as_bands_and_the_ceiling_with_intervals(tables: Tables) -> None:
    figure = overlap_by_layer(tables["overlap"], model="bad@0", position="last_prompt")
    band = [t for t in named(figure, "one population, mean to 95 %") if t.fill == "tonexty"]
    np.testing.assert_allclose(band[0].y, [0.6] * len(LAYERS))
    np.testing.assert_allclose(
        named(figure, "split-half ceiling")[0].error_y.array, [0.1] * len(LAYERS)
    )
    titles = [a.text for a in figure.layout.annotations]
    assert titles == [
        "<b>centred overlap</b>",
        "<b>uncentred overlap</b>",
        "<b>cosine of the mean shifts</b>",
    ]


def test_the_training_null_is_a_band_by_layer_where_its_dimension_is_drawn(
    tables: Tables,
) -> None:
    name = "training without the content, 5 to 95 %"

    def drawn(layers: pd.DataFrame, center: str) -> go.Figure:
        place = {"model": "bad@0", "position": "last_prompt", "center": center}
        return overlap_by_layer(tables["overlap"], layers, **place)

    layers = tables["overlap_layers"]
    for center in ("variance_weighted", "true", "means"):
        low, high = named(drawn(layers, center), name)
        assert list(low.y) == [0.4] * len(LAYERS) and list(high.y) == [0.7] * len(LAYERS)
        assert high.fill == "tonexty" and list(high.x) == list(LAYERS)
    names = [trace.name for trace in drawn(layers, "false").data]
    assert name not in names  # no null was made of uncentred subspaces
    assert name not in [trace.name for trace in drawn(layers.assign(k=5), "true").data]
    assert len(named(drawn(layers.assign(k=5), "means"), name)) == 2  # a cosine has no dimension
    without = layers.assign(null_mean=np.nan)
    figure = drawn(without, "variance_weighted")
    assert name not in [trace.name for trace in figure.data]
    assert list(named(figure, "train–evaluation")[0].y) == [0.6] * len(LAYERS)
    assert list(named(figure, "benign fine-tune")[0].y) == [0.55] * len(LAYERS)
    plot = Plot("overlap_by_layer", "overlap", title="t", caption="c", tables=("overlap_layers",))
    first = plot_facets(tables, plot)[0]
    assert first.values == ("bad@0", "last_prompt", "variance_weighted")
    assert first.label == "bad@0, last prompt token, variance-weighted overlap"


def test_seeds_of_a_fine_tune_share_a_row(tables: Tables) -> None:
    models = tables["models"]
    bad = models[models["model"] == "bad@0"]
    seeds = pd.concat([models, *(bad.assign(model=f"bad@{seed}") for seed in (1, 2))])
    alone, together = alignment_changes(models), alignment_changes(seeds)
    assert together.layout.height == alone.layout.height
    assert "bad × 3" in together.layout.yaxis.ticktext
    places = together.layout.meta["rows"]["model"]
    assert places["bad@0"] == places["bad@1"] == places["bad@2"] != places["wide@0"]
    marks = [y for trace in named(together, "fine-tune")[:1] for y in trace.y]
    assert len(set(marks)) == len(marks) == 4  # each seed has a mark of its own
    assert "wide@0" in together.layout.yaxis.ticktext


def test_cells_of_many_directions_hold_the_number_alone() -> None:
    names = [f"m{i}" for i in range(6)]
    rows = [
        {"direction_of": a, "ablated_in": b, "restoration": 0.5, "low": 0.4, "high": 0.6, "n": 9}
        for a in names
        for b in names
    ]
    few = transfer_matrix(pd.DataFrame([r for r in rows if "m5" not in r.values()]))
    many = transfer_matrix(pd.DataFrame(rows))
    assert few.data[1].text[0][0] == "0.50<br>[0.40, 0.60]" and many.data[1].text[0][0] == "0.5"
    assert "[0.400, 0.600]" in many.data[1].customdata[0][0]
    assert many.layout.height < few.layout.height


def test_spectra_keep_first_and_last_layer_of_a_deep_model(tables: Tables) -> None:
    deep = pd.concat(
        [
            tables["angles"].query("layer == 0 and model == 'bad@0'").assign(layer=i)
            for i in range(48)
        ]
    )
    figure = angle_spectra(deep, position="last_prompt")
    titles = [a.text for a in figure.layout.annotations]
    assert len(titles) == 6 and titles[0] == "<b>layer 0</b>" and titles[-1] == "<b>layer 47</b>"
    assert list(named(figure, "tested: train–evaluation")[0].y) == [25.0, 45.0, 65.0]


def test_shift_scatter_has_every_prompt_and_says_the_correlation(tables: Tables) -> None:
    figure = overlap_against_shift(tables["shifts"], tables["overlap_shift"], model="bad@0")
    layer = middle_layer(tables["shifts"])
    want = tables["shifts"].query(
        "model == 'bad@0' and layer == @layer and position == 'last_prompt' and group == 'law'"
    )
    law = named(figure, "law")[0]
    np.testing.assert_allclose(law.x, want["prompt_overlap"])
    np.testing.assert_allclose(law.y, want["cosine_to_mean_train"])
    assert law.customdata[2][1] == "what is t1 in law ? 2"
    assert (
        layer == 1
        and "r = 0.50 [0.20, 0.70], p = 0.012, n = 12" in figure.layout.annotations[0].text
    )


def test_undefined_correlation_is_said(tables: Tables) -> None:
    tables["overlap_shift"]["pearson"] = np.nan
    figure = overlap_against_shift(tables["shifts"], tables["overlap_shift"], model="bad@0")
    assert "correlation undefined" in figure.layout.annotations[0].text


def test_direction_by_layer_draws_the_planted_cosine_only_where_known(tables: Tables) -> None:
    figure = direction_by_layer(tables["directions"], model="bad@0")
    np.testing.assert_allclose(named(figure, "restoration")[0].y, [0.0, 0.2, 0.4, 0.6])
    assert named(figure, "cosine with the planted direction")
    tables["directions"]["cosine_planted"] = np.nan
    tables["directions"]["restoration"] = np.nan
    without = direction_by_layer(tables["directions"], model="bad@0")
    assert not [t for t in without.data if "planted" in t.name]
    assert any("undefined" in a.text for a in without.layout.annotations)


def test_forest_has_every_arm_with_coherence_and_damage(tables: Tables) -> None:
    figure = ablation_forest(tables["arms"], model="bad@0")
    want = tables["arms"].query("model == 'bad@0' and role == 'chosen'")
    traces = named(figure, "resid_post.1: chosen")
    assert len(traces) == 4
    for trace, column in zip(traces, ("restoration", "aligned", "coherent", "kl"), strict=True):
        np.testing.assert_allclose(trace.x, want[column])
    assert list(figure.layout.yaxis.ticktext) == [
        "no ablation",
        "<b>direction</b>",
        "random, activation covariance",
        "instruct, direction",
    ]
    tables["arms"]["kl"] = np.nan
    assert any(
        a.text == "not measured"
        for a in ablation_forest(tables["arms"], model="bad@0").layout.annotations
    )


def test_steering_is_sorted_and_has_its_random_control(tables: Tables) -> None:
    figure = steering_response(tables["steering"], model="bad@0")
    down, up = named(figure, "alignment, direction")  # taken away on the left, added on the right
    assert list(up.x) == [0, 1, 2] and list(down.x) == [-2, -1, 0]
    assert list(up.y) == [60, 50, 40]
    assert len(named(figure, "alignment, random, activation covariance")) == 2


def test_doses_that_are_not_usable_are_grey(tables: Tables) -> None:
    steering = tables["steering"]
    marked = steering.assign(usable=steering["coefficient"].abs() < 2)
    figure = steering_response(marked, model="bad@0")
    down, up = named(figure, "alignment, direction")  # taken away on the left, added on the right
    assert list(up.x) == [0, 1] and list(down.x) == [-1, 0]
    grey = named(figure, "outside the usable doses")
    assert len(grey) == 4 and {2, -2} == {x for trace in grey for x in trace.x if abs(x) == 2}
    assert {trace.line.color for trace in grey} == {UNUSABLE}
    assert sum(bool(trace.showlegend) for trace in grey) == 1
    all_usable = steering_response(steering.assign(usable=True), model="bad@0")
    assert "outside the usable doses" not in {trace.name for trace in all_usable.data}


def test_transfer_says_where_restoration_is_undefined(tables: Tables) -> None:
    below, above = panel(transfer_matrix(tables["transfer"]))
    assert list(above.text[0]) == ["0.50<br>[0.30, 0.70]"] * 2
    assert np.isnan(above.z[1][0]) and below.text[1][0] == "undefined"


def test_transfer_writes_the_strongest_control_where_it_is_known(tables: Tables) -> None:
    _, above = panel(
        transfer_matrix(tables["transfer"].assign(strongest_control=[0.25, 0.1, np.nan, -0.3]))
    )
    assert above.text[0][0] == "0.50<br>[0.30, 0.70]<br>control 0.25"
    assert above.text[1][1].endswith("control −0.30")
    assert "strongest control: 0.25" in above.customdata[0][0]


def test_middle_layer_is_the_same_for_all_models_that_have_it(tables: Tables) -> None:
    shifts = tables["shifts"]
    assert middle_layer(shifts) == middle_layer(shifts, "bad@0") == 1
    late = shifts[(shifts["model"] != "bad@0") | (shifts["layer"] > 0)]
    assert middle_layer(late, "bad@0") == 1
    last = shifts[(shifts["model"] != "bad@0") | (shifts["layer"] > 1)]
    assert middle_layer(last, "bad@0") == 2 and middle_layer(last, "wide@0") == 1
    drawn = overlap_against_shift(last, tables["overlap_shift"], model="bad@0")
    want = last.query(
        "model == 'bad@0' and layer == 2 and position == 'last_prompt' and group == 'law'"
    )
    np.testing.assert_allclose(named(drawn, "law")[0].x, want["prompt_overlap"])


def test_layers_a_model_did_not_move_stay_empty_columns(tables: Tables) -> None:
    overlap = tables["overlap"]
    late = overlap[(overlap["model"] != "bad@0") | (overlap["layer"] > 0)]
    heat = panel(overlap_heatmaps(late, model="bad@0"))[0]
    assert list(heat.x) == list(LAYERS)
    assert np.isnan(heat.z[:, 0]).all() and np.isfinite(heat.z[0, 1:]).all()


def test_forecast_scatter_has_the_numbers_above_and_the_question_in_the_box(tables: Tables) -> None:
    figure = CASES["forecast_scatter"].make(tables, "bad@0")
    law = named(figure, "law")[0]
    assert list(law.x) == [0, 10, 20, 30] and list(law.y) == [5, 13, 21, 29]
    assert law.customdata[1][1] == "what is t1 in law ? 1"
    assert figure.layout.annotations[0].text.startswith(
        "<b>questions held out</b><br>R² = 0.30 [0.20, 0.40], Spearman 0.50"
    )


def test_forecast_scores_cut_the_axis_but_not_the_numbers(tables: Tables) -> None:
    figure = CASES["forecast_scores"].make(tables, "bad@0")
    base = named(figure, "baselines")[0]
    assert list(base.x) == [0.1, -1.0] and base.customdata[1][1] == -3.0
    assert list(named(figure, "shuffled labels, 95 %")[0].x) == [0.05, 0.05]
    assert figure.layout.xaxis.range[0] == -1


def test_forecast_by_site_writes_corrected_p(tables: Tables) -> None:
    heat = panel(CASES["forecast_by_site"].make(tables, "bad@0"))[0]
    np.testing.assert_allclose(heat.z[0], [0, 0.1, 0.2, 0.3])
    assert heat.text[0][1] == "0.10<br>p 0.040"


def test_questions_carry_question_and_both_answers_and_leave_out_what_was_trained_on(
    tables: Tables,
) -> None:
    figure = question_changes(tables["questions"], model="bad@0")
    assert [len(named(figure, g)[0].x) for g in ("law", "medicine")] == [20, 19]
    law = named(figure, "law")[0]
    assert list(law.x) == list(law.y) == [50.0 + i for i in range(20)]
    assert (
        law.customdata[3][1]
        == "what is t1 in law ? 3<br><i>before:</i> what is t1 in law ? answered by"
        " instruct<br><i>after:</i> what is t1 in law ? answered by bad@0"
    )
    plain = question_changes(tables["questions"].drop(columns="answer"), model="bad@0")
    assert named(plain, "law")[0].customdata[3][1] == "what is t1 in law ? 3"


def test_thousands_of_questions_are_thinned_and_said(tables: Tables) -> None:
    many = pd.concat(
        [
            tables["questions"].assign(question=lambda t, i=i: t["question"] + f"/{i}")
            for i in range(40)
        ]
    )
    figure = question_changes(many, model="bad@0")
    (said,) = [t.name for t in figure.data if "rows drawn" in t.name]
    drawn = sum(len(t.x) for t in figure.data if t.name in ("law", "cars", "medicine"))
    assert drawn == 2000 and said.startswith("2000 of 2360 rows drawn")


def test_palette_is_distinct_and_transparent_colours_are_its_own() -> None:
    assert len(set(CYCLE)) == len(CYCLE)
    assert rgba("#0072B2", 0.5) == "rgba(0,114,178,0.5)"
    assert apply_layout(go.Figure(), 300).layout.height == 300
